r"""Quantise activations to 8-bit integers, one step a token, in one pass; alone or behind an RMSNorm.

A program holds a whole row in registers: it reads it once, finds the largest magnitude, rounds, writes::

        x  [M, K]   ┌────────────── row m: 2 K bytes in ──────────────┐
                    └─────────────────────┬───────────────────────────┘
                          registers:  (× gain / rms)  →  absmax  →  s = absmax / steps
                    ┌─────────────────────┴───────┐
    codes  [M, K]   │ round(x / s): K bytes out   │     scale [M]  s: 4 bytes
                    └─────────────────────────────┘

Three bytes move for each value of a 16-bit row. torch's own operations read the row for the maximum, read it again for
the quotient, and write and read fp32 results in between. Behind the norm, which would write its result for the next
operation to read, fusing saves four bytes more.

Rounding is the reference's: division to nearest, halves to even, so the codes are equal to torch's bit for bit.
Triton's ``/`` is an approximate division on a GPU; `_quotient` is exact.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import torch
from torch import Tensor

from ._checks import FLOATS, check_shape, check_tensors
from ._triton import INTERPRETED, jit, tl, triton

SMALLEST_ABSMAX = 1e-5  # reference.quantization.activations.SMALLEST_ABSMAX, so that zeros have a step
MOST_COLUMNS = 32768  # of a row that fits one program's registers


@jit
def _quotient(x, step):
    """``x / step`` correctly rounded, by one reciprocal a row and five multiply-adds a value.

    A remainder computed exactly (that is what fma is for) corrects the quotient, twice (Markstein 1990). A division for
    each value would take thirty instructions; the interpreter, which has no exact fma, divides.
    """
    if INTERPRETED:
        return tl.div_rn(x, step)
    inverse = tl.div_rn(1.0, step)
    quotient = x * inverse
    quotient = tl.fma(tl.fma(quotient, -step, x), inverse, quotient)
    return tl.fma(tl.fma(quotient, -step, x), inverse, quotient)


@jit
def _quantize(
    x, gain, codes, scale, K, STRIDE, steps, epsilon,
    BLOCK: tl.constexpr, LOWEST: tl.constexpr, HIGHEST: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    values = tl.load(x + row * STRIDE + k, mask=k < K, other=0.0).to(tl.float32)
    if gain is not None:
        mean = tl.sum(values * values, axis=0) / K
        values *= tl.rsqrt(mean + epsilon)
        values *= tl.load(gain + k, mask=k < K, other=0.0).to(tl.float32)
    # As whole numbers the bits of magnitudes are in the order of their values, and NaN comes above all.
    absmax = tl.max(values.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=0).to(tl.float32, bitcast=True)
    step = tl.div_rn(tl.where(absmax < 1e-5, 1e-5, absmax), steps)
    quotient = tl.minimum(tl.maximum(_quotient(values, step), LOWEST), HIGHEST)
    # 1.5 * 2^23 plus the quotient has no place for less than one: the sum is rounded, halves to even, and its lowest
    # bits are the code.
    rounded = (quotient + 12582912.0).to(tl.int32, bitcast=True)
    tl.store(codes + row * K + k, rounded.to(tl.int8), mask=k < K)
    tl.store(scale + row, step)


def quantize_activations(
    x: Tensor,
    *,
    restricted: bool = False,
    norm: Tensor | None = None,
    epsilon: float = 1e-6,
    warps: int | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Codes and steps of ``x``, or of its RMSNorm :math:`x \cdot g / \sqrt{\mathrm{mean}(x^2) + \epsilon}`.

    =========  ==========  ==============================================
    argument   shape       dtype and layout
    =========  ==========  ==============================================
    ``x``      ``[M, K]``  float16, bfloat16 or float32; stride 1 along K
    ``norm``   ``[K]``     float16, bfloat16 or float32: the gain, or None
    codes      ``[M, K]``  int8, contiguous
    scale      ``[M]``     float32
    =========  ==========  ==============================================

    Without ``norm`` codes and steps are those of ``reference.quantization.activations.quantize_activations`` per token,
    bit for bit. With it all is computed in fp32, and the norm's result is not rounded to the type of ``x`` in between.

    Roofline: ``3 M K`` bytes of 16-bit activations and codes, ``4 M`` of steps, ``2 K`` of the gain; about ten operations
    a value, so memory decides.

    Args:
        x: activations. A row with NaN or infinity gets a step that is NaN or infinite.
        restricted: False: ``absmax / 127.5``, codes −128…127; True: ``absmax / 127``, codes −127…127.
        norm: gain of an RMSNorm to apply first.
        epsilon: the norm's.
        warps: of a program, to measure one number; None: by the width of a row.

    Returns:
        ``(codes, scale)``.

    Raises:
        TypeError: a dtype is none of the above.
        ValueError: shapes, strides or devices do not fit, or more than 32,768 columns.
        ImportError: Triton is not installed.

    Source: Xiao et al. 2023 (SmoothQuant), section 2; ``int-quantized`` of compressed-tensors.

    Example:
        >>> x = torch.tensor([[127.0, -50.4, 1.5, 2.5], [0.0, 0.5, 1.0, -1.0]])
        >>> codes, scale = quantize_activations(x, restricted=True)
        >>> codes.tolist(), (127 * scale).tolist()  # halves go to even; each row has its own step
        ([[127, -50, 2, 2], [0, 64, 127, -127]], [127.0, 1.0])

    Chapter: advanced/kernels
    """
    check_tensors({"x": (x, FLOATS, 2), "norm": (norm, FLOATS, 1)})
    rows, columns = x.shape
    if columns > MOST_COLUMNS:
        raise ValueError(f"x had {columns} columns, may have up to {MOST_COLUMNS}: a row must fit registers")
    check_shape("norm", norm, [columns], "for x's columns")
    codes = torch.empty((rows, columns), dtype=torch.int8, device=x.device)
    scale = torch.empty(rows, dtype=torch.float32, device=x.device)
    if rows == 0 or columns == 0:
        return codes, scale.fill_(SMALLEST_ABSMAX / (127.0 if restricted else 127.5))
    block = triton.next_power_of_2(columns)
    with torch.cuda.device_of(x):
        _quantize[(rows,)](
            x, norm, codes, scale, columns, x.stride(0), 127.0 if restricted else 127.5, epsilon,
            BLOCK=block, LOWEST=-127 if restricted else -128, HIGHEST=127,
            num_warps=warps or max(1, min(16, block // 1024)),
        )  # fmt: skip
    return codes, scale
