"""QuantizedLinear against F.linear on the dequantised weight."""

import copy
import gc
import io
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from reference.layers import FEW_ROWS, QuantizedLinear
from reference.quantization import formats, hqq
from reference.quantization.grid import QuantizationSpec
from reference.quantization.round_to_nearest import quantize_layer

TOLERANCE = 0.02  # of the largest output, as the class says for the int4 operator


def layer_of(
    spec: QuantizationSpec, outputs: int = 48, inputs: int = 256, bias: bool = True, seed: int = 0
) -> QuantizedLinear:
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        linear.weight.copy_(0.02 * torch.randn(outputs, inputs, generator=generator))
        if bias:
            linear.bias.copy_(0.1 * torch.randn(outputs, generator=generator))
    return QuantizedLinear.from_linear(linear, quantize_layer(linear.weight.detach(), spec))


def inputs_of(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference_output(layer: QuantizedLinear, x: Tensor) -> Tensor:
    """In float64, from codes, scales and zero points."""
    bias = None if layer.bias is None else layer.bias.double()
    return functional.linear(x.double(), layer.tensor.dequantize(torch.float64), bias)


def error(layer: QuantizedLinear, x: Tensor) -> float:
    expected = reference_output(layer, x)
    return ((layer(x).double() - expected).abs().max() / expected.abs().max()).item()


SPECS = [
    QuantizationSpec(bits, symmetric=symmetric, group_size=size)
    for bits, symmetric, size in itertools.product((2, 3, 4, 8), (False, True), (None, 64))
] + [QuantizationSpec(4, per_tensor=True), QuantizationSpec(4, symmetric=True, per_tensor=True)]


@pytest.mark.parametrize("spec", SPECS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_many_rows_equal_f_linear_on_the_dequantised_weight_exactly(spec: QuantizationSpec, dtype: torch.dtype) -> None:
    layer, x = layer_of(spec), inputs_of(FEW_ROWS + 1, 256).to(dtype)
    expected = functional.linear(x, layer.tensor.dequantize(dtype), layer.bias.to(dtype))
    assert torch.equal(layer(x), expected)
    assert error(layer, x) < {torch.float32: 1e-5, torch.bfloat16: 0.02, torch.float16: 0.003}[dtype]


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec.bits == 4], ids=repr)
@pytest.mark.parametrize("rows", range(1, FEW_ROWS + 1))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_few_rows_agree_within_the_stated_tolerance(spec: QuantizationSpec, rows: int, dtype: torch.dtype) -> None:
    layer, x = layer_of(spec), inputs_of(rows, 256).to(dtype)
    y = layer(x)
    assert layer._int4 is not None, "the int4 operator applies here"
    assert y.dtype == dtype
    assert y.shape == (rows, 48)
    assert error(layer, x) < TOLERANCE


def test_few_rows_agree_when_inputs_and_zero_points_pull_one_way() -> None:
    """The worst case of rounding zero points: inputs far from zero mean, one group a row."""
    worst = 0.0
    for seed in range(20):
        layer = layer_of(QuantizationSpec(4), outputs=64, inputs=128, seed=seed, bias=False)
        worst = max(worst, error(layer, inputs_of(2, 128, seed=seed) + 3))
    assert worst < TOLERANCE


@pytest.mark.parametrize(
    ("outputs", "inputs", "group"),
    [
        (50, 256, 64),  # outputs not a multiple of 16
        (1, 128, 32),
        (48, 255, None),  # odd number of inputs
        (48, 1, None),
        (48, 96, 16),  # groups that the operator does not have
        (48, 96, 48),
        (48, 200, None),  # one group a row, not a multiple of 32
        (15, 33, 11),
    ],
)
@pytest.mark.parametrize("symmetric", [False, True])
def test_sizes_beyond_the_operators_limits_are_computed_exactly(
    outputs: int, inputs: int, group: int | None, symmetric: bool
) -> None:
    layer = layer_of(QuantizationSpec(4, symmetric=symmetric, group_size=group), outputs, inputs)
    for rows in range(1, FEW_ROWS + 2):
        x = inputs_of(rows, inputs)
        assert torch.equal(layer(x), functional.linear(x, layer.tensor.dequantize(torch.float32), layer.bias))
    assert layer._int4 is None


@pytest.mark.parametrize(
    ("outputs", "inputs", "group"),
    [(16, 32, None), (16, 96, None), (32, 288, 96), (16, 512, 512), (16, 384, 128), (4096, 64, 32), (80, 160, 32)],
)
def test_odd_sizes_within_the_operators_limits(outputs: int, inputs: int, group: int | None) -> None:
    """Rows or groups longer than 256, or not a power of two, are split for the operator."""
    for symmetric in (False, True):
        layer = layer_of(QuantizationSpec(4, symmetric=symmetric, group_size=group), outputs, inputs)
        for rows in (1, 3):
            assert error(layer, inputs_of(rows, inputs)) < TOLERANCE
        assert layer._int4 is not None


def test_only_four_bits_take_the_operator() -> None:
    for bits in (2, 3, 8):
        layer, x = layer_of(QuantizationSpec(bits, group_size=64)), inputs_of(1, 256)
        assert torch.equal(layer(x), functional.linear(x, layer.tensor.dequantize(torch.float32), layer.bias))


def test_exact_gives_one_row_the_bits_that_it_has_among_many() -> None:
    layer, x = layer_of(QuantizationSpec(4, group_size=64)).exact(), inputs_of(1, 256)
    expected = functional.linear(x, layer.tensor.dequantize(torch.float32), layer.bias)
    assert torch.equal(layer(x), expected)
    assert not torch.equal(layer.exact(False)(x), expected), "the int4 operator rounds to bfloat16"


@pytest.mark.parametrize(
    "shape", [(256,), (1, 1, 256), (2, 2, 256), (3, 5, 256), (2, 1, 2, 256), (0, 256), (2, 0, 256)]
)
@pytest.mark.parametrize("bias", [False, True])
def test_any_leading_shape(shape: tuple[int, ...], bias: bool) -> None:
    layer, x = layer_of(QuantizationSpec(4, group_size=64), bias=bias), inputs_of(*shape)
    assert (layer.bias is not None) == bias
    y = layer(x)
    assert y.shape == (*shape[:-1], 48)
    if x.numel():
        expected = reference_output(layer, x)
        assert (y - expected).abs().max() < TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("rows", [2, 9])
def test_gradients_reach_the_input(rows: int) -> None:
    layer = layer_of(QuantizationSpec(4, group_size=64))
    x = inputs_of(rows, 256).requires_grad_()
    layer(x).sum().backward()
    expected = layer.tensor.dequantize(torch.float32).sum(0).expand(rows, -1)
    assert torch.allclose(x.grad, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_rows_may_lie_in_memory_as_they_like(dtype: torch.dtype) -> None:
    layer, wide = layer_of(QuantizationSpec(4, group_size=32)), inputs_of(256, 4).to(dtype)
    column = wide[:, :1].contiguous()
    last = inputs_of(2, 5, 256).to(dtype)[:, -1]  # the newest token of each sequence
    with torch.no_grad():
        for x in (wide.T, wide[:, ::2].T, column.T, column[:, 0].expand(3, -1), last):
            expected = reference_output(layer, x)
            assert (layer(x).double() - expected).abs().max() <= TOLERANCE * expected.abs().max(), x.stride()
    assert layer.copied_bytes


def test_inputs_of_another_width_are_refused() -> None:
    layer = layer_of(QuantizationSpec(4, group_size=64))
    for shape in ((2, 128), (4, 64), (8, 255)):
        with pytest.raises((RuntimeError, ValueError)):
            layer(inputs_of(*shape))


def test_a_bias_of_another_type_than_the_input_does_not_matter() -> None:
    layer, x = layer_of(QuantizationSpec(4, group_size=64)), inputs_of(9, 256).bfloat16()
    assert layer.bias.dtype == torch.float32
    assert layer(x).dtype == torch.bfloat16
    assert error(layer, x) < TOLERANCE


def test_a_weight_of_another_shape_is_refused() -> None:
    weight = quantize_layer(torch.ones(4, 8), QuantizationSpec(4))
    with pytest.raises(ValueError, match=r"weight is \(4, 8\), the layer that it replaces \(8, 4\)"):
        QuantizedLinear.from_linear(nn.Linear(4, 8), weight)


# --- as a module ----------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_state_dict_round_trip_through_a_file(spec: QuantizationSpec) -> None:
    saved, other = layer_of(spec, seed=1), layer_of(spec, seed=2)
    file = io.BytesIO()
    torch.save(saved.state_dict(), file)
    file.seek(0)
    x = inputs_of(2, 256)
    other(x)  # whatever it keeps from the first call must not survive
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), saved(x))
    assert not other.state_dict().keys() & {"_int4", "weight"}


def test_state_dict_reloads_when_loaded_through_the_parent() -> None:
    saved, other = (nn.Sequential(layer_of(QuantizationSpec(4), seed=seed)) for seed in (1, 2))
    x = inputs_of(1, 256)
    other(x)
    other.load_state_dict(saved.state_dict())
    assert torch.equal(other(x), saved(x))


def test_a_layer_made_of_a_parameter_keeps_no_graph_of_it() -> None:
    linear = nn.Linear(64, 32)
    layer = QuantizedLinear.from_linear(linear, quantize_layer(linear.weight, QuantizationSpec(4, group_size=32)))
    assert not layer.scale.requires_grad
    assert torch.equal(copy.deepcopy(layer).scale, layer.scale)
    assert not hqq.quantize_layer(linear.weight, QuantizationSpec(4)).zero_point.requires_grad
    for name in ("nf4", "nvfp4", "fp8"):
        found = formats.quantize(linear.weight, formats.FORMATS[name])
        assert not found.block_scale.requires_grad, name


def test_deepcopy_is_independent() -> None:
    layer, x = layer_of(QuantizationSpec(4, group_size=64)), inputs_of(2, 256)
    before = layer(x)
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x), before)
    twin.load_state_dict(layer_of(QuantizationSpec(4, group_size=64), seed=5).state_dict())
    assert not torch.equal(twin(x), before)
    assert torch.equal(layer(x), before)


@pytest.mark.parametrize("convert", [nn.Module.half, nn.Module.bfloat16, nn.Module.double], ids=lambda f: f.__name__)
def test_changing_the_type_of_a_module_does_not_change_its_weight(convert: object) -> None:
    """Scales are stored data: bfloat16 would round a float16 scale, and with it the weight."""
    layer = layer_of(QuantizationSpec(4, group_size=64))
    before = layer.tensor
    weight = before.dequantize(torch.float64)
    module = convert(nn.Sequential(layer))
    after = module[0].tensor
    assert after.scale.dtype == torch.float16
    assert after.packed.dtype == torch.int32
    assert after.packed_zero_point.dtype == torch.int32
    assert torch.equal(after.dequantize(torch.float64), weight)
    assert layer.bias.dtype != torch.float32, "the bias is of the computation, not of the storage"
    x = inputs_of(9, 256).to(layer.bias.dtype)
    assert layer(x).dtype == layer.bias.dtype


def test_moving_to_the_meta_device_moves_everything() -> None:
    layer = layer_of(QuantizationSpec(4, group_size=64)).to("meta")
    assert {buffer.device.type for buffer in layer.buffers()} == {"meta"}
    assert layer.scale.dtype == torch.float16


def test_it_has_no_parameters_to_train_and_says_what_it_is() -> None:
    layer = layer_of(QuantizationSpec(3, symmetric=True, group_size=64))
    assert list(layer.parameters()) == []
    assert repr(layer) == "QuantizedLinear(256, 48, bits=3, group_size=64, symmetric)"


@pytest.mark.parametrize("rows", [1, 64])
def test_the_dequantised_weight_is_not_kept(rows: int) -> None:
    layer = layer_of(QuantizationSpec(4, group_size=64), outputs=112, inputs=320, bias=False)
    layer(inputs_of(rows, 320))
    gc.collect()
    dense = [
        tensor
        for tensor in gc.get_objects()
        if type(tensor) in (Tensor, nn.Parameter) and tensor.is_floating_point() and tensor.numel() == 112 * 320
    ]
    assert dense == []
    held = sum(tensor.nbytes for tensor in layer.buffers()) + sum(t.nbytes for t in (layer._int4 or ())[:2])
    assert held < 0.75 * 112 * 320 * 2, "less than the weight in bfloat16, even with the repacked copy"
