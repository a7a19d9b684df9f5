"""Packed codes to a dense weight, for so many rows of activations that a dense product is worth the writing."""

# mypy: allow-untyped-defs
from __future__ import annotations

from ._triton import jit, round_to, tl
from ._words import codes_of


@jit
def dense(
    packed, scale, zero_point, w, N, K, WORDS, GROUPS,
    BITS: tl.constexpr, G: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """``w[n, k] = scale[n, k // G] * (u[n, k] - zero_point[n, k // G])``, rounded once; a block lies in one group."""
    n = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    k = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    word = tl.program_id(0) * (COLUMNS * BITS // 32) + tl.arange(0, COLUMNS * BITS // 32)
    words = tl.load(
        packed + n[:, None] * WORDS + word[None, :], mask=(n < N)[:, None] & (word < WORDS)[None, :], other=0
    )
    codes = codes_of(words, BITS, OUTPUTS, COLUMNS)
    group = n * GROUPS + (tl.program_id(0) * COLUMNS) // G
    s = tl.load(scale + group, mask=n < N, other=0.0).to(tl.float32)[:, None]
    if zero_point is None:
        codes -= 1 << (BITS - 1)
    else:
        codes -= tl.load(zero_point + group, mask=n < N, other=0).to(tl.int32)[:, None]
    out = round_to(s * codes.to(tl.float32), w.dtype.element_ty)
    tl.store(w + n.to(tl.int64)[:, None] * K + k[None, :], out, mask=(n < N)[:, None] & (k < K)[None, :])
