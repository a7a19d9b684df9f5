# mypy: allow-untyped-defs
from __future__ import annotations
from ._triton import INTERPRETED, jit, require_triton, round_to, tl, triton

@jit
def _slice(words, WIDTH: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr):
    """Codes of WIDTH bits, first in the lowest bits of each word, in order: other bits above them."""
    words = tl.join(words, words >> 16)
    words = tl.join(words, words >> 8)
    if WIDTH <= 4:
        words = tl.join(words, words >> 4)
    if WIDTH <= 2:
        words = tl.join(words, words >> 2)
    if WIDTH == 1:
        words = tl.join(words, words >> 1)
    return tl.reshape(words, (OUTPUTS, COLUMNS)) & ((1 << WIDTH) - 1)

@jit
def _load_slice(packed, block, inside, WORDS, BLOCKS, BEFORE: tl.constexpr, WIDTH: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr):
    PER: tl.constexpr = COLUMNS * WIDTH // 32
    word = block * PER + tl.arange(0, PER)
    words = tl.load(packed[:, None] + (BLOCKS * BEFORE + word)[None, :], mask=inside[:, None] & (word < BLOCKS * WIDTH)[None, :], other=0)
    return _slice(words, WIDTH, OUTPUTS, COLUMNS)

@jit
def _codes(packed, block, inside, WORDS, BLOCKS, BITS: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr):
    if BITS == 8:
        return _load_slice(packed, block, inside, WORDS, BLOCKS, 0, 8, OUTPUTS, COLUMNS)
    codes = tl.zeros((OUTPUTS, COLUMNS), tl.int32)
    if BITS & 4:
        codes |= _load_slice(packed, block, inside, WORDS, BLOCKS, 0, 4, OUTPUTS, COLUMNS)
    if BITS & 2:
        codes |= _load_slice(packed, block, inside, WORDS, BLOCKS, BITS & 4, 2, OUTPUTS, COLUMNS) << (BITS & 4)
    if BITS & 1:
        codes |= _load_slice(packed, block, inside, WORDS, BLOCKS, BITS & 6, 1, OUTPUTS, COLUMNS) << (BITS & 6)
    return codes

@jit
def _one_row(
    x, packed, table, y, N, K, WORDS, BLOCKS,
    BITS: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr, GATHER: tl.constexpr,
):
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    column = tl.arange(0, COLUMNS)
    total = tl.zeros((OUTPUTS, COLUMNS), tl.float32)
    if GATHER:
        values = tl.load(table + tl.arange(0, 1 << BITS))
    for block in tl.range(0, tl.cdiv(K, COLUMNS), num_stages=STAGES):
        codes = _codes(packed + n * WORDS, block, n < N, WORDS, BLOCKS, BITS, OUTPUTS, COLUMNS)
        xs = tl.load(x + block * COLUMNS + column, mask=block * COLUMNS + column < K, other=0.0).to(tl.float32)
        if GATHER:
            w = tl.reshape(tl.gather(values, tl.reshape(codes, (OUTPUTS * COLUMNS,)), 0), (OUTPUTS, COLUMNS))
        else:
            w = tl.load(table + codes)
        total += w.to(tl.float32) * xs[None, :]
    tl.store(y + n, round_to(tl.sum(total, axis=1), y.dtype.element_ty), mask=n < N)
