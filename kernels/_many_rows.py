"""Many rows of activations times packed codes: a block of the weight is unpacked once for all rows of a tile."""

# mypy: allow-untyped-defs
from __future__ import annotations

from ._triton import INTERPRETED, jit, round_to, tl
from ._words import codes_of


@jit
def _exact(codes, dtype: tl.constexpr):
    """Codes as ``dtype``, all raised by the same power of two, whose last mantissa bit is worth one.

    OR-ing the code into that mantissa replaces an integer conversion, which runs at a quarter of the rate or less;
    the raise cancels in ``u - z``.
    """
    if dtype == tl.bfloat16:
        raised = (codes | 0x4300).to(tl.int16).to(tl.bfloat16, bitcast=True)  # 2^7
    elif dtype == tl.float16:
        raised = (codes | 0x6400).to(tl.int16).to(tl.float16, bitcast=True)  # 2^10
    else:
        raised = (codes | 0x4B000000).to(tl.float32, bitcast=True)  # 2^23
    # The interpreter multiplies bf16 as raw bits; fp32 holds the same values.
    return raised.to(tl.float32) if INTERPRETED else raised


@jit
def many_rows(
    x, packed, scale, zero_point, y, M, N, K, WORDS, GROUPS, STRIDE, BLOCKS,
    BITS: tl.constexpr, G: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    first_row = tl.program_id(1) * ROWS
    x += first_row.to(tl.int64) * STRIDE
    y += (tl.program_id(2) * M + first_row).to(tl.int64) * N
    m = tl.arange(0, ROWS)
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    column = tl.arange(0, COLUMNS)
    word = tl.arange(0, COLUMNS * BITS // 32)
    m_inside = m < M - first_row
    n_inside = n < N
    total = tl.zeros((OUTPUTS, ROWS), tl.float32)
    first = tl.program_id(2) * BLOCKS
    for block in range(first, min(first + BLOCKS, tl.cdiv(K, COLUMNS))):
        k = block * COLUMNS + column
        w = block * (COLUMNS * BITS // 32) + word
        inside = n_inside[:, None] & (w < WORDS)[None, :]
        words = tl.load(packed + n[:, None] * WORDS + w[None, :], mask=inside, other=0)
        xs = tl.load(x + m[None, :] * STRIDE + k[:, None], mask=m_inside[None, :] & (k < K)[:, None], other=0.0)
        codes = codes_of(words, BITS, OUTPUTS, COLUMNS)
        group = n * GROUPS + (block * COLUMNS) // G
        if zero_point is None:
            zero = tl.full((1, 1), 1 << (BITS - 1), tl.int32)
        else:
            zero = tl.load(zero_point + group, mask=n_inside, other=0).to(tl.int32)[:, None]
        weights = _exact(codes, xs.dtype) - _exact(zero, xs.dtype)
        if INTERPRETED:
            xs = xs.to(tl.float32)
        # A block lies in one group: the scale multiplies the block's sum in fp32, and the weights stay whole numbers.
        s = tl.load(scale + group, mask=n_inside, other=0.0).to(tl.float32)
        total += s[:, None] * tl.dot(weights, xs, input_precision="tf32x3")
    out = round_to(total, y.dtype.element_ty)
    tl.store(y + m[None, :] * N + n[:, None], out, mask=m_inside[None, :] & n_inside[:, None])
