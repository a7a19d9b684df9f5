"""Folding a channel scale changes parameters and never the function."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from reference.quantization.channel_scale import fold, foldable

WIDTH = 6
PREVIOUS = {
    "LayerNorm": lambda: nn.LayerNorm(WIDTH),
    "LayerNorm without bias": lambda: nn.LayerNorm(WIDTH, bias=False),
    "RMSNorm": lambda: LlamaRMSNorm(WIDTH),
    "Gemma": lambda: GemmaRMSNorm(WIDTH),
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "linear without bias": lambda: nn.Linear(WIDTH, WIDTH, bias=False),
}


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return module.double()


def behind(*rows: int) -> list[nn.Module]:
    return [randomised(nn.Linear(WIDTH, out), out) for out in rows]


def scale_of(log_scale: list[float]) -> Tensor:
    return torch.tensor(log_scale, dtype=torch.float64).exp()


@pytest.mark.parametrize("kind", PREVIOUS)
@given(log_scale=st.lists(st.floats(-4, 4), min_size=WIDTH, max_size=WIDTH), layers=st.integers(1, 3))
def test_function_is_kept_and_channels_are_divided(kind: str, log_scale: list[float], layers: int) -> None:
    previous, linears, scale = randomised(PREVIOUS[kind]()), behind(*range(2, 2 + layers)), scale_of(log_scale)
    x = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    channels, outputs = previous(x), [linear(previous(x)) for linear in linears]
    assert foldable(previous, linears)
    fold(previous, linears, scale)
    # Gemma's norm itself computes in float32.
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if kind in ("Gemma", "RMSNorm") else {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(previous(x), channels / scale, **tolerance)
    for linear, output in zip(linears, outputs, strict=True):
        torch.testing.assert_close(linear(previous(x)), output, **tolerance)


@pytest.mark.parametrize("parts", [2, 3])
def test_of_a_fused_layer_the_last_outputs_are_divided(parts: int) -> None:
    fused, linears = randomised(nn.Linear(4, parts * WIDTH)), behind(3)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scale = torch.arange(1, WIDTH + 1, dtype=torch.float64)
    first, last = fused(x)[:, :-WIDTH], fused(x)[:, -WIDTH:]
    fold(fused, linears, scale)
    torch.testing.assert_close(fused(x)[:, :-WIDTH], first, rtol=0, atol=0)
    torch.testing.assert_close(fused(x)[:, -WIDTH:], last / scale)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_parameters_are_rounded_once_from_float32(dtype: torch.dtype) -> None:
    linear = behind(3)[0].to(dtype)
    norm = nn.LayerNorm(WIDTH, dtype=dtype)
    norm.weight.data = torch.rand(WIDTH, generator=torch.Generator().manual_seed(0)).to(dtype)
    scale = torch.linspace(0.3, 3, WIDTH)
    column, row = linear.weight.float() * scale, norm.weight.float() / scale
    fold(norm, [linear], scale)
    assert linear.weight.dtype == norm.weight.dtype == dtype
    assert torch.equal(linear.weight, column.to(dtype))
    assert torch.equal(norm.weight, row.to(dtype))


def kv_shared() -> tuple[nn.Module, list[nn.Module], Tensor]:
    return randomised(nn.Linear(4, WIDTH // 2)), behind(3), torch.ones(WIDTH, dtype=torch.float64)


def overflowing() -> tuple[nn.Module, list[nn.Module], Tensor]:
    return nn.LayerNorm(WIDTH, dtype=torch.float16), [behind(3)[0].half()], torch.full((WIDTH,), 1e-5)


def with_scale(*values: float) -> tuple[nn.Module, list[nn.Module], Tensor]:
    return randomised(nn.LayerNorm(WIDTH)), behind(3), torch.tensor(values, dtype=torch.float64)


REFUSED = {
    "zero": (lambda: with_scale(1, 1, 0, 1, 1, 1), "positive numbers.*1 are not"),
    "negative": (lambda: with_scale(1, 1, -1, 1, 1, 1), "positive"),
    "NaN": (lambda: with_scale(1, 1, float("nan"), 1, 1, float("inf")), "2 are not"),
    "length": (lambda: with_scale(1, 1), "has 2 entries"),
    "norm without weight": (
        lambda: (nn.LayerNorm(WIDTH, elementwise_affine=False), *with_scale(1, 1, 1, 1, 1, 1)[1:]),
        "must match",
    ),
    "columns differ": (
        lambda: (nn.LayerNorm(WIDTH), [nn.Linear(WIDTH, 2), nn.Linear(WIDTH + 1, 2)], torch.ones(WIDTH)),
        "must match",
    ),
    "grouped-query attention": (kv_shared, "grouped-query"),
    "float16 overflow": (overflowing, "beyond torch.float16"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_folded_is_refused_and_nothing_is_changed(what: str) -> None:
    make, message = REFUSED[what]
    previous, linears, scale = make()
    before = copy.deepcopy([module.state_dict() for module in (previous, *linears)])
    with pytest.raises(ValueError, match=f"o_proj.*{message}"):
        fold(previous, linears, scale, name="scale of o_proj")
    for module, state in zip((previous, *linears), before, strict=True):
        assert all(torch.equal(parameter, state[name]) for name, parameter in module.state_dict().items())
