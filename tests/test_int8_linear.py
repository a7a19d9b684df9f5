"""Integer layers against 64-bit sums, and against the fake-quantised layers recorded from SmoothQuant's authors."""

import copy
import io
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from reference import int8
from reference.int8 import MOST_INPUTS, integer_product
from reference.layers import Int8Linear
from reference.quantization import gptq
from reference.quantization.activations import ActivationSpec, quantize_activations
from reference.quantization.grid import QuantizationSpec
from reference.quantization.round_to_nearest import quantize_layer
from reference.tensors import QuantizedTensor

RECORDED = Path(__file__).parent / "parity" / "smoothquant.npz"
CHANNEL = QuantizationSpec(8, symmetric=True)


def recorded(prefix: str) -> dict[str, Tensor]:
    with np.load(RECORDED, allow_pickle=False) as file:
        return {k.removeprefix(prefix): torch.from_numpy(file[k]) for k in file.files if k.startswith(prefix)}


def layer_of(
    spec: QuantizationSpec = CHANNEL, activations: ActivationSpec | None = None, bias: bool = True, seed: int = 0
) -> Int8Linear:
    torch.manual_seed(seed)
    linear = nn.Linear(96, 40, bias=bias)
    step = torch.tensor([0.02]) if activations and activations.granularity == "static" else None
    weight = quantize_layer(linear.weight.detach(), spec)
    return Int8Linear.from_linear(linear, weight, activations, input_scale=step)


def expected_output(layer: Int8Linear, x: Tensor) -> Tensor:
    """Sums in 64-bit integers, scales and bias in float64."""
    codes, step = quantize_activations(x.reshape(-1, layer.in_features), layer.activations, layer.input_scale)
    size = layer.spec.group_size or layer.in_features
    y = torch.zeros(len(codes), layer.out_features, dtype=torch.float64)
    weight = layer.tensor.codes.numpy().astype(np.int64) - layer.spec.middle
    for group in range(layer.in_features // size):
        part = slice(group * size, (group + 1) * size)
        total = codes.numpy().astype(np.int64)[:, part] @ weight[:, part].T
        y += torch.from_numpy(total).double() * layer.scale.double()[:, group]
    y *= step.double()
    y += 0 if layer.bias is None else layer.bias.double()
    return y.reshape(*x.shape[:-1], layer.out_features)


# --- the product ----------------------------------------------------------------------------------


@pytest.mark.parametrize("product", [integer_product, int8._in_float], ids=["matmul", "in_float"])
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(0, 70), st.integers(0, 40), st.integers(0, 2**31))
def test_products_are_exact(product: object, rows: int, inputs: int, outputs: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    x, w = (generator.integers(-128, 128, (n, inputs), dtype=np.int8) for n in (rows, outputs))
    found = product(torch.from_numpy(x), torch.from_numpy(w))
    assert found.dtype == torch.int32
    assert np.array_equal(found.numpy(), x.astype(np.int64) @ w.astype(np.int64).T)


@pytest.mark.parametrize("rows", [1, 3, 20])
def test_products_are_exact_however_the_codes_lie_in_memory(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    wide = torch.randint(-128, 128, (70, 2 * rows), generator=generator, dtype=torch.int8)
    w = torch.randint(-128, 128, (9, 70), generator=generator, dtype=torch.int8)
    # Of a column turned into a row torch says that it is contiguous, and its product misreads the strides.
    column = wide[:, :rows].contiguous()
    for x in (column.T, wide[:, ::2].T, column[:, 0].contiguous().expand(rows, -1), column.T.contiguous()):
        for weight in (w, w.T.contiguous().T, w[:1], w.T.contiguous().T[:1]):
            expected = x.numpy().astype(np.int64) @ weight.numpy().astype(np.int64).T
            assert np.array_equal(integer_product(x, weight).numpy(), expected), (x.stride(), weight.stride())


def test_products_equal_the_recorded_accumulators() -> None:
    stored = recorded("int8_")
    found = integer_product(stored["x"].reshape(-1, 64), stored["w"])
    assert torch.equal(found, stored["acc"])


@pytest.mark.parametrize("product", [integer_product, int8._in_float], ids=["matmul", "in_float"])
@pytest.mark.parametrize(("left", "right"), [(-128, -128), (127, -128), (127, 127)])
def test_the_longest_sum_does_not_overflow(product: object, left: int, right: int) -> None:
    x, weight = (torch.full((3, MOST_INPUTS), value, dtype=torch.int8) for value in (left, right))
    assert (product(x, weight) == left * right * MOST_INPUTS).all()
    assert 128 * 128 * (MOST_INPUTS + 1) > 2**31 - 1


def test_what_has_no_exact_product_is_refused() -> None:
    codes = torch.zeros(2, MOST_INPUTS + 1, dtype=torch.int8)
    with pytest.raises(ValueError, match="sums in int32 are exact up to 131,071"):
        integer_product(codes, codes)
    with pytest.raises(TypeError, match=r"x is torch.uint8 and weight torch.int8"):
        integer_product(codes.to(torch.uint8), codes)
    with pytest.raises(ValueError, match=r"x is \(2, 3\), weight \(2, 4\)"):
        integer_product(codes[:, :3], codes[:, :4])


@pytest.mark.skipif(sys.platform != "linux" or not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
def test_processors_without_vnni_are_exact_too() -> None:
    """torch's own product saturates there; oneDNN can be told to take this one for such a processor."""
    script = (
        "import torch; from reference.int8 import integer_product, _int_mm_is_exact\n"
        "x = torch.full((5, 200), 127, dtype=torch.int8)\n"
        "assert (integer_product(x, x) == 127 * 127 * 200).all()\n"
        "assert _int_mm_is_exact() == bool((torch._int_mm(x, x.T) == 127 * 127 * 200).all())\n"
    )
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, cwd=Path(__file__).parents[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rows", [1, 16, 17, 40])
def test_products_on_cuda_are_exact_for_every_shape(rows: int) -> None:
    x = torch.randint(-128, 128, (rows, 99), dtype=torch.int8)
    weight = torch.randint(-128, 128, (13, 99), dtype=torch.int8)
    assert torch.equal(integer_product(x.cuda(), weight.cuda()).cpu(), integer_product(x, weight))


# --- the layer ------------------------------------------------------------------------------------


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
    spec = ActivationSpec(granularity=granularity, restricted=True)
    layer = Int8Linear(authors_weight(stored["w"], weights == "per_tensor"), spec, stored["bias"])
    y, expected = layer(stored["x"]), stored[f"linear_{weights}_{granularity}_noqout"]
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
    codes, step = quantize_activations(y, spec)  # the authors may quantise outputs too
    expected = stored[f"linear_{weights}_{granularity}_qout"]
    assert ((codes * step - expected).abs() <= 1e-5 * expected.abs().max()).float().mean() > 0.999


GRIDS = [QuantizationSpec(bits, symmetric=True, group_size=size) for bits in (2, 4, 8) for size in (None, 32)]


@pytest.mark.parametrize("granularity", ["per_token", "per_tensor", "static"])
@pytest.mark.parametrize("spec", [*GRIDS, QuantizationSpec(8, symmetric=True, per_tensor=True)], ids=repr)
@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_computes_integer_sums(spec: QuantizationSpec, granularity: str, bias: bool) -> None:
    layer = layer_of(spec, ActivationSpec(granularity=granularity), bias)
    x = torch.randn(2, 7, 96) * torch.logspace(-3, 3, 7)[:, None]
    x[0, 0] = 0
    torch.testing.assert_close(layer(x).double(), expected_output(layer, x), rtol=1e-5, atol=1e-5)


def test_a_token_of_zeros_gives_the_bias() -> None:
    layer = layer_of()
    assert torch.equal(layer(torch.zeros(3, 96)), layer.bias.expand(3, -1))


def test_gptq_codes_of_four_bits_are_multiplied_as_they_are() -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(64, 24), torch.randn(4, 30, 64)
    accumulator = gptq.HessianAccumulator(64)
    accumulator.add(x)
    weight = gptq.quantize_layer(linear.weight.detach(), accumulator.hessian, QuantizationSpec(4, symmetric=True))
    layer = Int8Linear.from_linear(linear, weight=weight)
    assert torch.equal(layer.weight, weight.codes.to(torch.int8) - 8)
    torch.testing.assert_close(layer(x).double(), expected_output(layer, x), rtol=1e-5, atol=1e-5)


def test_by_default_weights_have_eight_bits_and_columns_take_the_channel_scale() -> None:
    torch.manual_seed(0)
    linear, scale = nn.Linear(64, 32), torch.logspace(-1, 1, 64)
    layer = Int8Linear.from_linear(linear, channel_scale=scale)
    assert layer.spec == CHANNEL
    expected = quantize_layer(linear.weight.detach() * scale, CHANNEL)
    assert torch.equal(layer.tensor.codes, expected.codes)
    x = torch.randn(9, 64) * scale
    assert torch.equal(layer(x), Int8Linear(expected, bias=linear.bias)(x / scale))
    with torch.no_grad():
        assert (layer(x) - linear(x)).norm() < 0.015 * linear(x).norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_input_is_computed_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    layer, x = layer_of(), torch.randn(5, 96).to(dtype)
    assert torch.equal(layer(x), layer(x.float()).to(dtype))


@pytest.mark.parametrize("shape", [(96,), (1, 96), (0, 96), (2, 0, 96), (2, 3, 5, 96)])
def test_any_leading_shape(shape: tuple[int, ...]) -> None:
    layer, x = layer_of(), torch.randn(shape)
    y = layer(x)
    assert y.shape == (*shape[:-1], 40)
    assert torch.equal(y, torch.stack([layer(row) for row in x.reshape(-1, 96)]).reshape(y.shape) if x.numel() else y)


def test_a_token_does_not_depend_on_the_others_unless_they_share_a_scale() -> None:
    x = torch.randn(6, 96)
    louder = torch.cat((x, 100 * x))
    for granularity, same in (("per_token", True), ("per_tensor", False), ("static", True)):
        layer = layer_of(activations=ActivationSpec(granularity=granularity))
        assert torch.equal(layer(louder)[:6], layer(x)) is same


@pytest.mark.parametrize("granularity", ["per_token", "per_tensor"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_comes_out_not_finite(granularity: str, value: float) -> None:
    layer, x = layer_of(activations=ActivationSpec(granularity=granularity)), torch.randn(4, 96)
    x[2, 5] = value
    finite = torch.isfinite(layer(x)).all(1)
    assert finite.tolist() == ([True, True, False, True] if granularity == "per_token" else [False] * 4)


def test_nan_under_a_static_scale_is_refused() -> None:
    layer = layer_of(activations=ActivationSpec(granularity="static"))
    with pytest.raises(ValueError, match="x holds NaN activations"):
        layer(torch.full((1, 96), float("nan")))


def test_going_backward_is_refused_rather_than_cut_off() -> None:
    layer, x = layer_of(), torch.randn(2, 96, requires_grad=True)
    y = layer(x)
    assert y.requires_grad
    with pytest.raises(RuntimeError, match="Int8Linear has no derivative"):
        y.sum().backward()
    with torch.no_grad():
        assert torch.equal(layer(x), y)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": quantize_layer(torch.randn(8, 32), QuantizationSpec(8))}, "weight has an affine grid"),
        ({"activations": ActivationSpec(granularity="static")}, "input_scale is for static activations"),
        ({"input_scale": torch.ones(1)}, "input_scale is for static activations"),
        (
            {"activations": ActivationSpec(granularity="static"), "input_scale": torch.zeros(1)},
            "must be one positive number",
        ),
        ({"channel_scale": torch.ones(31)}, "channel_scale must be 32 positive numbers"),
        ({"channel_scale": torch.zeros(32)}, "channel_scale must be 32 positive numbers"),
        ({"channel_scale": torch.full((32,), torch.inf)}, "channel_scale must be 32 positive numbers"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict, message: str) -> None:
    weight = quantize_layer(torch.randn(8, 32), CHANNEL)
    with pytest.raises(ValueError, match=message):
        Int8Linear(**{"weight": weight} | arguments)


def test_moving_groups_and_other_shapes_are_refused() -> None:
    weight, hessian = torch.randn(8, 64), torch.diag(torch.rand(64) + 1)
    grid = QuantizationSpec(4, symmetric=True, group_size=32)
    moving = gptq.quantize_layer(weight, hessian, grid, act_order=True)
    with pytest.raises(ValueError, match="group index"):
        Int8Linear(moving)
    with pytest.raises(ValueError, match=r"weight is \(8, 64\), the layer that it replaces \(8, 32\)"):
        Int8Linear.from_linear(nn.Linear(32, 8), weight=moving)


# --- as a module ----------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["per_token", "static"])
def test_state_dict_round_trip_through_a_file(granularity: str) -> None:
    spec = ActivationSpec(granularity=granularity)
    saved, other = layer_of(activations=spec, seed=1), layer_of(activations=spec, seed=2)
    file = io.BytesIO()
    torch.save(saved.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(3, 96)
    assert torch.equal(other(x), saved(x))
    assert torch.equal(copy.deepcopy(saved)(x), saved(x))
    assert torch.equal(saved.tensor.codes, other.tensor.codes)


def test_changing_the_type_changes_the_bias_only() -> None:
    layer = Int8Linear(
        quantize_layer(torch.randn(8, 32), CHANNEL), ActivationSpec(granularity="static"), torch.randn(8),
        input_scale=torch.tensor([0.0123]), channel_scale=torch.rand(32) + 0.5,
    )  # fmt: skip
    before = {name: tensor.clone() for name, tensor in layer.named_buffers()}
    nn.Sequential(layer).to(torch.bfloat16)
    for name, tensor in layer.named_buffers():
        assert torch.equal(tensor, before[name]) is (name != "bias"), name
    assert layer.bias.dtype == torch.bfloat16
    assert {tensor.device.type for tensor in layer.to("meta").buffers()} == {"meta"}


def test_it_has_no_parameters_and_says_what_it_is() -> None:
    layer = layer_of(QuantizationSpec(4, symmetric=True))
    assert list(layer.parameters()) == []
    assert repr(layer) == "Int8Linear(96, 40, 4-bit weights, 8-bit per_token activations)"
