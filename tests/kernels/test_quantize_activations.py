"""quantize_activations: codes and steps equal torch's bit for bit; behind the norm they are within half a step."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="the kernels run with Triton, which is not installed")

from reference.kernels import _triton
from reference.kernels import quantize_activations as module
from reference.kernels.quantize_activations import quantize_activations
from reference.quantization import activations

if not _triton.INTERPRETED.value:
    pytest.skip("TRITON_INTERPRET=1 was not set when the kernels were imported", allow_module_level=True)

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def by_torch(x: torch.Tensor, restricted: bool) -> tuple[torch.Tensor, torch.Tensor]:
    codes, scale = activations.quantize_activations(x, activations.ActivationSpec(restricted=restricted))
    return codes, scale[:, 0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (7, 300), (3, 4096), (40, 33), (2, 5000)])
def test_codes_and_steps_equal_torchs(rows, columns, restricted, dtype, generator) -> None:
    x = torch.randn((rows, columns), generator=generator) * torch.logspace(-4, 3, rows)[:, None]
    x = x.to(dtype)
    codes, scale = quantize_activations(x, restricted=restricted)
    expected = by_torch(x, restricted)
    assert torch.equal(codes, expected[0])
    assert torch.equal(scale, expected[1])


@pytest.mark.parametrize("restricted", [False, True])
def test_halves_are_rounded_to_even(restricted, generator) -> None:
    top = 127.0 if restricted else 127.5
    x = torch.cat([torch.arange(-127, 127) + 0.5, torch.tensor([top])])[None]  # the step is 1
    codes, scale = quantize_activations(x, restricted=restricted)
    assert scale == 1
    assert torch.equal(codes[0, :-1].float(), torch.round(x[0, :-1]))


@pytest.mark.filterwarnings("ignore:invalid value encountered in divide")
def test_extremes() -> None:
    x = torch.zeros((6, 40))
    x[1, 3], x[2, 5], x[3, 7], x[4, 0] = 1e-7, torch.finfo(torch.float32).max, math.inf, math.nan
    codes, scale = quantize_activations(x)
    expected = by_torch(x, False)
    finite = expected[1].isfinite()
    assert finite.tolist() == [True, True, True, False, False, True]
    assert torch.equal(scale[finite], expected[1][finite])
    assert torch.equal(codes[finite], expected[0][finite])
    assert scale[3].isinf()
    assert scale[4].isnan()


@pytest.mark.parametrize("dtype", DTYPES)
def test_behind_the_norm_values_are_within_half_a_step(dtype, generator) -> None:
    x = (torch.randn((9, 300), generator=generator) * torch.logspace(-2, 2, 9)[:, None]).to(dtype)
    x[4] = 0
    gain = (torch.randn(300, generator=generator) + 1).to(dtype)
    codes, scale = quantize_activations(x, norm=gain, epsilon=1e-5, restricted=True)
    normed = x.double() / (x.double().square().mean(1, keepdim=True) + 1e-5).sqrt() * gain.double()
    assert ((codes.double() * scale.double()[:, None] - normed).abs() <= scale.double()[:, None] * 0.50001).all()
    largest = normed.abs().amax(1).clamp(min=module.SMALLEST_ABSMAX)
    assert torch.allclose(scale.double() * 127, largest, rtol=1e-6)


def test_strided_rows_are_read_in_place_and_nothing_outside_is_touched(assert_inside, generator) -> None:
    wide = torch.full((5, 90), math.nan)
    x = wide[:, 11:74].copy_(torch.randn((5, 63), generator=generator))
    codes, scale = quantize_activations(x)
    assert torch.equal(codes, by_torch(x, False)[0])
    assert_inside(x, codes, scale)


def test_the_quotient_of_the_gpu_is_the_division(generator) -> None:
    """`_quotient`'s five multiply-adds in numpy, whose float64 holds the products exactly, close to the halves."""

    def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        return (a.astype(np.longdouble) * b.astype(np.longdouble) + c.astype(np.longdouble)).astype(np.float32)

    steps = (torch.rand(50, generator=generator) * 10.0 ** torch.randint(-6, 4, (50,), generator=generator)).numpy()
    for step in steps.astype(np.float32):
        halves = ((np.arange(-128, 128) + 0.5) * np.float64(step)).astype(np.float32)
        x = (halves[:, None].view(np.int32) + np.arange(-4, 5, dtype=np.int32)).view(np.float32).ravel()
        s = np.full_like(x, step)
        inverse = np.float32(1) / s
        quotient = x * inverse
        for _ in range(2):
            quotient = fma(fma(quotient, -s, x), inverse, quotient)
        assert (quotient == x / s).all()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"x": torch.zeros((2, 8), dtype=torch.int8)}, TypeError, "x was torch.int8"),
        ({"x": torch.zeros(8)}, ValueError, "x had shape"),
        ({"x": torch.zeros((8, 2)).T}, ValueError, "x had strides"),
        ({"x": torch.zeros((1, 32769))}, ValueError, "x had 32769 columns, may have up to 32768"),
        ({"x": torch.zeros((2, 8)), "norm": torch.zeros(7)}, ValueError, r"norm had shape \[7\], may have \[8\]"),
    ],
)
def test_wrong_arguments_are_refused_by_name(arguments, error, words) -> None:
    with pytest.raises(error, match=words):
        quantize_activations(**arguments)


def test_no_rows_and_no_columns() -> None:
    codes, scale = quantize_activations(torch.zeros((0, 4)))
    assert codes.shape == (0, 4)
    assert scale.shape == (0,)
    codes, scale = quantize_activations(torch.zeros((3, 0)))
    assert codes.shape == (3, 0)
    assert torch.equal(scale, by_torch(torch.zeros((3, 1)), False)[1])
