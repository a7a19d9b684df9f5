"""Integer layers against 64-bit sums, and against the fake-quantised layers recorded from SmoothQuant's authors."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from reference.int8 import MOST_INPUTS, integer_product
from reference.layers import Int8Linear
from reference.quantization.activations import AbsmaxAccumulator, ActivationSpec, quantize_activations
from reference.quantization.grid import QuantizationSpec
from reference.quantization.round_to_nearest import quantize_layer
from reference.tensors import QuantizedTensor

RECORDED = Path(__file__).parent / "parity" / "smoothquant.npz"
CHANNEL = QuantizationSpec(8, symmetric=True)


def recorded(prefix: str) -> dict[str, Tensor]:
    with np.load(RECORDED, allow_pickle=False) as file:
        return {k.removeprefix(prefix): torch.from_numpy(file[k]) for k in file.files if k.startswith(prefix)}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(1, 70), st.integers(1, 40), st.integers(0, 2**31))
def test_integer_products_are_exact(rows: int, inputs: int, outputs: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    x, w = (generator.integers(-128, 128, (n, inputs), dtype=np.int8) for n in (rows, outputs))
    found = integer_product(torch.from_numpy(x), torch.from_numpy(w))
    assert found.dtype == torch.int32
    assert np.array_equal(found.numpy(), x.astype(np.int64) @ w.astype(np.int64).T)


def test_the_longest_sum_does_not_overflow_and_a_longer_one_is_refused() -> None:
    low = torch.full((1, MOST_INPUTS), -128, dtype=torch.int8)
    assert integer_product(low, low).item() == 128**2 * MOST_INPUTS
    with pytest.raises(ValueError, match="exact up to 131,071"):
        integer_product(
            torch.zeros(1, MOST_INPUTS + 1, dtype=torch.int8), torch.zeros(1, MOST_INPUTS + 1).to(torch.int8)
        )


@pytest.mark.parametrize(("granularity", "bits"), list(itertools.product(("per_token", "per_tensor"), (8, 4))))
def test_activations_equal_the_authors(granularity: str, bits: int) -> None:
    stored = recorded("fq_")
    codes, scale = quantize_activations(stored["x"], ActivationSpec(granularity, bits, restricted=True))
    torch.testing.assert_close(codes * scale, stored[f"x_{granularity}_{bits}"], rtol=1e-6, atol=0)


def authors_weight(weight: Tensor, per_tensor: bool) -> QuantizedTensor:
    """The authors' weight grid: absmax / 127, and no code −128."""
    absmax = (weight.abs().amax() if per_tensor else weight.abs().amax(1, keepdim=True)).clamp(min=1e-5).reshape(-1, 1)
    scale = absmax / 127
    codes = (torch.round(weight / scale) + 128).to(torch.uint8)
    spec = QuantizationSpec(8, symmetric=True, per_tensor=per_tensor)
    return QuantizedTensor.from_codes(codes, scale, torch.full(scale.shape, 128, dtype=torch.int32), spec)


@pytest.mark.parametrize(
    ("weights", "granularity"), list(itertools.product(("per_channel", "per_tensor"), ("per_token", "per_tensor")))
)
def test_layers_equal_the_authors_w8a8(weights: str, granularity: str) -> None:
    """Theirs multiplies dequantised floats; ours integers, so only the rounding of the sum differs."""
    stored = recorded("fq_")
    weight = authors_weight(stored["w"], weights == "per_tensor")
    layer = Int8Linear(weight, ActivationSpec(granularity=granularity, restricted=True), stored["bias"])
    expected = stored[f"linear_{weights}_{granularity}_noqout"]
    torch.testing.assert_close(layer(stored["x"]), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_static_scales_come_from_the_largest_batch_and_clip_beyond() -> None:
    batches = torch.randn(5, 4, 32, generator=torch.Generator().manual_seed(0))
    first, second = AbsmaxAccumulator(32), AbsmaxAccumulator(32)
    for batch in batches[:2]:
        first.add(batch)
    for batch in batches[2:]:
        second.add(batch)
    first.merge(second)
    assert torch.equal(first.absmax, batches.abs().amax((0, 1)))
    spec = ActivationSpec(granularity="static")
    codes, scale = quantize_activations(3 * batches, spec, first.static_scale(spec))
    assert codes.max() == 127
    assert codes.min() == -128
    assert scale == batches.abs().max() / 127.5
    with pytest.raises(ValueError, match="layer holds NaN"):
        first.add(torch.full((1, 32), float("nan")), "layer")
    with pytest.raises(ValueError, match="scale is missing"):
        quantize_activations(batches, spec)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([3, 4, 8]), st.booleans())
def test_a_layer_computes_what_its_dequantised_parts_do(seed: int, bits: int, bias: bool) -> None:
    torch.manual_seed(seed)
    linear = nn.Linear(48, 20, bias=bias)
    weight = quantize_layer(linear.weight.detach(), QuantizationSpec(bits, symmetric=True))
    layer = Int8Linear.from_linear(linear, weight=weight)
    x = torch.randn(2, 7, 48) * torch.logspace(-3, 3, 7)[:, None]
    x[0, 0] = 0
    codes, step = quantize_activations(x, ActivationSpec())
    expected = (codes.double() * step.double()) @ weight.dequantize(torch.float64).T
    expected += 0 if linear.bias is None else linear.bias.double()
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(layer.tensor.codes, weight.codes)


def test_a_channel_scale_undoes_that_of_the_weight() -> None:
    torch.manual_seed(0)
    linear, scale = nn.Linear(64, 32), torch.rand(64) + 0.5
    x = torch.randn(9, 64) * scale
    with torch.no_grad():
        expected = linear(x)
        linear.weight *= scale
    layer = Int8Linear.from_linear(
        linear, quantize_layer(linear.weight.detach(), CHANNEL), ActivationSpec(), channel_scale=scale
    )
    assert (layer(x) - expected).norm() < 0.02 * expected.norm()


def test_types_and_state_survive() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(32, 16)
    layer = Int8Linear.from_linear(linear, weight=quantize_layer(linear.weight.detach(), CHANNEL))
    x, before = torch.randn(3, 32), layer.scale.clone()
    other = Int8Linear.from_linear(nn.Linear(32, 16), weight=quantize_layer(torch.randn(16, 32), CHANNEL))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    halved = layer.to(torch.bfloat16)
    assert torch.equal(halved.scale, before)
    assert halved(x.bfloat16()).dtype == torch.bfloat16


def test_groups_are_sums_of_their_own_and_affine_grids_are_refused() -> None:
    torch.manual_seed(0)
    weight = quantize_layer(torch.randn(8, 64), QuantizationSpec(4, symmetric=True, group_size=16))
    x = torch.randn(5, 64)
    codes, step = quantize_activations(x, ActivationSpec())
    expected = (codes.double() * step.double()) @ weight.dequantize(torch.float64).T
    torch.testing.assert_close(Int8Linear(weight)(x).double(), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="affine grid"):
        Int8Linear(quantize_layer(torch.randn(8, 32), QuantizationSpec(8)))
    with pytest.raises(ValueError, match="granularity is 'row'"):
        ActivationSpec(granularity="row")
