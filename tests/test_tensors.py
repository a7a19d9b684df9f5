"""QuantizedTensor: what it stores, what it means, what it refuses."""

import pytest
import torch

from reference.quantization.grid import QuantizationSpec
from reference.quantization.round_to_nearest import quantize_layer
from reference.tensors import QuantizedTensor


def random_parts(spec: QuantizationSpec, rows: int = 12, columns: int = 64) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(spec.bits)
    groups = 1 if spec.per_tensor else columns // (spec.group_size or columns)
    shape = (1 if spec.per_tensor else rows, groups)
    codes = torch.randint(0, 2**spec.bits, (rows, columns), generator=generator, dtype=torch.uint8)
    scale = torch.rand(shape, generator=generator).half() + 0.01
    zero = torch.randint(0, 2**spec.bits, shape, generator=generator, dtype=torch.int32)
    return codes, scale, torch.full_like(zero, spec.middle) if spec.symmetric else zero


SPECS = [
    QuantizationSpec(bits, symmetric=symmetric, group_size=size, per_tensor=per_tensor)
    for bits in (2, 3, 4, 8)
    for symmetric in (False, True)
    for size, per_tensor in ((None, False), (16, False), (None, True))
]


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_codes_scales_and_zero_points_come_back_as_given(spec: QuantizationSpec) -> None:
    codes, scale, zero = random_parts(spec)
    tensor = QuantizedTensor.from_codes(codes, scale, zero, spec)
    assert torch.equal(tensor.codes, codes)
    assert torch.equal(tensor.scale, scale)
    assert torch.equal(tensor.zero_point, zero)
    assert tensor.zero_point.dtype == torch.int32
    assert (tensor.packed_zero_point is None) == spec.symmetric


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_dequantize_is_scale_times_code_minus_zero_point(spec: QuantizationSpec) -> None:
    codes, scale, zero = random_parts(spec)
    rows, columns = codes.shape
    expected = torch.empty(rows, columns, dtype=torch.float64)
    for row in range(rows):
        for column in range(columns):
            at = (row if scale.shape[0] > 1 else 0, column * scale.shape[1] // columns)
            expected[row, column] = scale[at].item() * (codes[row, column].item() - zero[at].item())
    tensor = QuantizedTensor.from_codes(codes, scale, zero, spec)
    assert torch.equal(tensor.dequantize(torch.float64), expected)
    assert torch.equal(tensor.dequantize(torch.float32), expected.float())
    assert tensor.dequantize().dtype == torch.float16
    assert torch.equal(tensor.dequantize(), expected.half())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_nbytes_is_the_packed_size(bits: int) -> None:
    rows, columns, size = 64, 96, 32
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    symmetric = quantize_layer(weight, QuantizationSpec(bits, symmetric=True, group_size=size))
    affine = quantize_layer(weight, QuantizationSpec(bits, group_size=size))
    codes, scales = rows * columns * bits // 8, rows * 3 * 2
    assert symmetric.nbytes == codes + scales
    assert affine.nbytes == codes + scales + rows * 3 * bits // 8


def test_a_group_index_says_whose_scale_a_column_has() -> None:
    spec = QuantizationSpec(4, group_size=4)
    codes, scale, zero = random_parts(spec, rows=3, columns=8)
    order = torch.tensor([1, 0, 1, 0, 0, 1, 1, 0], dtype=torch.int32)
    tensor = QuantizedTensor.from_codes(codes, scale, zero, spec, order)
    expected = (codes.int() - zero[:, order.long()]) * scale[:, order.long()].float()
    assert torch.equal(tensor.dequantize(torch.float32), expected)
    plain = QuantizedTensor.from_codes(codes, scale, zero, spec)
    assert tensor.nbytes == plain.nbytes + order.nbytes
    natural = torch.arange(8, dtype=torch.int32) // 4
    same = QuantizedTensor.from_codes(codes, scale, zero, spec, natural)
    assert torch.equal(same.dequantize(), plain.dequantize())


def test_parts_that_do_not_fit_together_are_refused() -> None:
    spec = QuantizationSpec(4, group_size=16)
    codes, scale, zero = random_parts(spec)
    with pytest.raises(ValueError, match=r"scale has shape \(12, 3\); codes and spec need \(12, 4\)"):
        QuantizedTensor.from_codes(codes, scale[:, :3], zero, spec)
    with pytest.raises(ValueError, match="zero_point has shape"):
        QuantizedTensor.from_codes(codes, scale, zero[:1], spec)
    with pytest.raises(ValueError, match="zero_point of a symmetric grid of 4 bits is 8 everywhere"):
        QuantizedTensor.from_codes(codes, scale, zero, QuantizationSpec(4, symmetric=True, group_size=16))
    with pytest.raises(ValueError, match="4 bits hold 0 to 15"):
        QuantizedTensor.from_codes(codes + 1, scale, zero, spec)
    with pytest.raises(ValueError, match="group_size 16 does not divide the 60 columns"):
        QuantizedTensor.from_codes(codes[:, :60], scale[:, :3], zero[:, :3], spec)


def test_it_is_compared_by_identity_and_can_be_a_key() -> None:
    codes, scale, zero = random_parts(spec := QuantizationSpec(4))
    one, other = (QuantizedTensor.from_codes(codes, scale, zero, spec) for _ in range(2))
    assert one != other
    assert len({one: 1, other: 2}) == 2
