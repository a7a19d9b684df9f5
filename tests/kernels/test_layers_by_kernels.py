"""Layers through the interpreted kernels: codes from `quantization` in, the numbers of ``dequantize() @ x`` out."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

pytest.importorskip("triton", reason="the kernels run with Triton, which is not installed")

import reference.kernel_choice
from reference.kernels import _triton
from reference.layers import Int8Linear, QuantizedLinear
from reference.quantization.activations import ActivationSpec
from reference.quantization.grid import QuantizationSpec
from reference.quantization.round_to_nearest import quantize_layer

if not _triton.INTERPRETED.value:
    pytest.skip("TRITON_INTERPRET=1 was not set when the kernels were imported", allow_module_level=True)


@pytest.fixture
def generator() -> torch.Generator:
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def by_kernels(monkeypatch) -> None:
    monkeypatch.setattr(reference.kernel_choice, "KERNEL_DEVICES", {"cpu"})


def linear(outputs: int, inputs: int, generator: torch.Generator) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    with torch.no_grad():
        layer.weight.copy_(torch.randn((outputs, inputs), generator=generator))
        layer.bias.copy_(torch.randn(outputs, generator=generator))
    return layer


def relative(y: torch.Tensor, expected: torch.Tensor) -> float:
    return ((y.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "affine"])
@pytest.mark.parametrize("group_size", [128, 32, None])
@pytest.mark.parametrize("rows", [(1,), (2, 3), (20,)])
def test_quantized_linear_equals_dequantize_and_multiply(
    bits, symmetric, group_size, rows, generator, by_kernels, monkeypatch
) -> None:
    float_layer = linear(24, 256, generator)
    weight = quantize_layer(
        float_layer.weight.detach(), QuantizationSpec(bits, symmetric=symmetric, group_size=group_size)
    )
    layer = QuantizedLinear.from_linear(float_layer, weight)
    assert layer.multiplies_packed(10**6)
    x = torch.randn((*rows, 256), generator=generator).to(torch.bfloat16)
    monkeypatch.setattr(type(weight), "dequantize", None)  # the kernel has no need of it
    with torch.no_grad():
        y = layer(x)
    monkeypatch.undo()
    assert y.dtype == x.dtype
    assert y.shape == (*rows, 24)
    expected = x.double() @ weight.dequantize(torch.float64).T + float_layer.bias.double()
    assert relative(y, expected) < 2**-7


def test_zero_points_are_unpacked_once_and_again_when_others_are_loaded(generator, by_kernels, monkeypatch) -> None:
    spec = QuantizationSpec(4, symmetric=False, group_size=32)
    weights = [quantize_layer(torch.randn((16, 64), generator=generator), spec) for _ in range(2)]
    first, second = (QuantizedLinear(weight) for weight in weights)
    x = torch.randn((1, 64), generator=generator)
    unpacked = []
    original = type(weights[0]).zero_point.fget
    monkeypatch.setattr(type(weights[0]), "zero_point", property(lambda self: (unpacked.append(1), original(self))[1]))
    with torch.no_grad():
        first(x), first(x)
        assert len(unpacked) == 1
        first.load_state_dict(second.state_dict())
        assert torch.equal(first(x), second(x))


def test_gradients_are_not_cut_off(generator, by_kernels) -> None:
    weight = quantize_layer(torch.randn((16, 64), generator=generator), QuantizationSpec(4, group_size=32))
    x = torch.randn((1, 64), generator=generator, requires_grad=True)
    QuantizedLinear(weight)(x).sum().backward()
    assert relative(x.grad, weight.dequantize(torch.float64).sum(0, keepdim=True)) < 1e-5


@pytest.mark.parametrize("granularity", ["per_token", "per_tensor", "static"])
@pytest.mark.parametrize("bits", [8, 6])
@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("group_size", [None, 40])
def test_int8_linear_equals_its_cpu_path(granularity, bits, restricted, group_size, generator, monkeypatch) -> None:
    layer = Int8Linear.from_linear(
        linear(24, 120, generator),
        quantize_layer(
            torch.randn((24, 120), generator=generator), QuantizationSpec(8, symmetric=True, group_size=group_size)
        ),
        ActivationSpec(granularity=granularity, bits=bits, restricted=restricted),
        input_scale=torch.tensor([0.02]) if granularity == "static" else None,
    )
    x = torch.randn((3, 5, 120), generator=generator)
    on_cpu = layer(x)
    monkeypatch.setattr(reference.kernel_choice, "KERNEL_DEVICES", {"cpu"})
    y = layer(x)
    # The sums are exact on both ways; scales and bias meet them in the same order.
    assert (y - on_cpu).abs().max() <= 4 * torch.finfo(torch.float32).eps * on_cpu.abs().max()


def test_int8_linear_with_a_channel_scale_and_one_weight_scale(generator, monkeypatch) -> None:
    weight = quantize_layer(
        torch.randn((24, 64), generator=generator), QuantizationSpec(8, symmetric=True, per_tensor=True)
    )
    layer = Int8Linear(weight, channel_scale=torch.rand(64, generator=generator) + 0.5)
    x = torch.randn((7, 64), generator=generator).to(torch.bfloat16)
    on_cpu = layer(x)
    monkeypatch.setattr(reference.kernel_choice, "KERNEL_DEVICES", {"cpu"})
    assert relative(layer(x), on_cpu) <= 2**-8
