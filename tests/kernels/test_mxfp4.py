"""mxfp4 against a table of the sixteen numbers, in float64."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("triton", reason="the kernels run with Triton, which is not installed")

from reference.kernels import _triton
from reference.kernels.mxfp4 import Tile, mxfp4

if not _triton.INTERPRETED.value:
    pytest.skip("TRITON_INTERPRET=1 was not set when the kernels were imported", allow_module_level=True)

#: E2M1 by its definition: sign, exponent with bias 1 and subnormal 0, one bit of mantissa.
NUMBERS = torch.tensor(
    [
        (-1.0) ** (c >> 3) * (0.5 * (c & 1) if (c >> 1 & 3) == 0 else 2.0 ** ((c >> 1 & 3) - 1) * (1 + 0.5 * (c & 1)))
        for c in range(16)
    ],
    dtype=torch.float64,
)


def weights(outputs: int, columns: int, generator: torch.Generator, low: int = 100, high: int = 150):
    codes = torch.randint(0, 16, (outputs, columns), generator=generator)
    scale = torch.randint(low, high, (outputs, columns // 32), generator=generator, dtype=torch.uint8)
    packed = (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8)
    return packed, scale, NUMBERS[codes] * torch.exp2(scale.double() - 127).repeat_interleave(32, 1)


@pytest.mark.parametrize(
    ("rows", "outputs", "columns"),
    [(1, 20, 64), (1, 130, 512), (5, 33, 2048), (16, 5, 32), (20, 130, 96), (70, 20, 256), (130, 7, 160)],
)
def test_equals_dequantise_and_multiply(rows, outputs, columns, generator) -> None:
    packed, scale, weight = weights(outputs, columns, generator)
    x = torch.randn((rows, columns), generator=generator).to(torch.bfloat16)
    y, expected = mxfp4(x, packed, scale), x.double() @ weight.T
    # Scales span 2^50, so each output is measured against what it added up.
    assert ((y.double() - expected).abs() <= 2**-8 * expected.abs() + 4e-6 * (x.double().abs() @ weight.abs().T)).all()


@pytest.mark.parametrize("low_high", [(0, 3), (125, 130), (248, 252)])
def test_unit_vectors_return_the_weights_exactly(low_high, generator) -> None:
    packed, scale, weight = weights(16, 64, generator, *low_high)
    y = torch.cat([mxfp4(x, packed, scale) for x in torch.eye(64, dtype=torch.bfloat16).split(16)])
    assert torch.equal(y, weight.T.to(torch.bfloat16))


def test_the_last_exponent_is_nan(generator) -> None:
    packed, scale, _ = weights(5, 64, generator)
    scale[2, 1] = 255
    y = mxfp4(torch.ones((1, 64), dtype=torch.bfloat16), packed, scale)
    assert y[0].isnan().tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("plan", [Tile(16, 32, 32, 4, 2), Tile(64, 16, 128, 4, 3)], ids=str)
def test_every_plan_computes_the_same(plan, generator) -> None:
    packed, scale, weight = weights(40, 160, generator, 120, 130)
    x = torch.randn((18, 160), generator=generator).to(torch.bfloat16)
    expected = x.double() @ weight.T
    assert (mxfp4(x, packed, scale, plan=plan).double() - expected).norm() <= (2**-8 + 4e-6) * expected.norm()


def test_nothing_outside_the_tensors_is_touched(assert_inside, generator) -> None:
    packed, scale, weight = weights(19, 96, generator, 120, 130)
    wide = torch.full((3, 130), math.nan, dtype=torch.bfloat16)
    x = wide[:, 11:107].copy_(torch.randn((3, 96), generator=generator))
    y = mxfp4(x, packed, scale)
    assert (y.double() - x.double() @ weight.T).norm() <= (2**-8 + 4e-6) * (x.double() @ weight.T).norm()
    assert_inside(x, packed.view(torch.int32), scale, y)


GOOD = {
    "x": torch.zeros((2, 64), dtype=torch.bfloat16),
    "packed": torch.zeros((4, 32), dtype=torch.uint8),
    "scale": torch.zeros((4, 2), dtype=torch.uint8),
}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.zeros((2, 64), dtype=torch.float16)}, TypeError, "x was torch.float16, may be torch.bfloat16"),
        ({"packed": torch.zeros((4, 8), dtype=torch.int32)}, TypeError, "packed was torch.int32"),
        (
            {"x": torch.zeros((2, 40), dtype=torch.bfloat16)},
            ValueError,
            "x had 40 columns, may have a positive multiple",
        ),
        ({"packed": torch.zeros((4, 31), dtype=torch.uint8)}, ValueError, r"packed had shape \[4, 31\]"),
        (
            {"packed": torch.zeros(4 * 32 + 2, dtype=torch.uint8)[2:].view(4, 32)},
            ValueError,
            "packed began at an odd address, may begin at a multiple of 4 bytes",
        ),
        (  # at a multiple of 4 in memory, and not in its storage
            {"packed": torch.frombuffer(bytearray(4 * 32 + 8), dtype=torch.uint8, offset=2)[2:130].view(4, 32)},
            ValueError,
            "packed began at an odd address, may begin at a multiple of 4 bytes",
        ),
        ({"scale": torch.zeros((4, 1), dtype=torch.uint8)}, ValueError, r"scale had shape \[4, 1\], may have \[4, 2\]"),
    ],
)
def test_wrong_arguments_are_refused_by_name(change, error, words) -> None:
    with pytest.raises(error, match=words):
        mxfp4(**(GOOD | change))
