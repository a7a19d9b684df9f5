"""A few rows of activations times packed codes: codes go from memory straight into the tensor cores' registers."""

# mypy: allow-untyped-defs
from __future__ import annotations

from ._few_rows import _eight
from ._triton import INTERPRETED, jit, round_to, tl


@jit
def _octet(units, n, block, N, UNITS, EVEN: tl.constexpr):
    """Eight rows of the weight: four lanes a row, 16 bytes a lane, which is how the tensor cores spread rows."""
    u = block[:, None, None] * 16 + tl.arange(0, 16)[None, None, :]
    pointers = units + n[None, :, None] * UNITS + u
    if EVEN:
        return tl.load(pointers, mask=u < UNITS, other=0)
    return tl.load(pointers, mask=(n < N)[None, :, None] & (u < UNITS), other=0)


@jit
def _pair(units, n, block, N, UNITS, EVEN: tl.constexpr):
    """Sixteen rows, ``[BLOCKS, 2, 8, 16]``: a lane has two of them, eight apart."""
    upper = _octet(units, n, block, N, UNITS, EVEN)
    lower = _octet(units, n + 8, block, N, UNITS, EVEN)
    return tl.permute(tl.join(upper, lower), (0, 3, 1, 2))


@jit
def _words(units, first, N, UNITS, OUTPUTS: tl.constexpr, BLOCKS: tl.constexpr, EVEN: tl.constexpr):
    """The words of one turn, ``[BLOCKS, OUTPUTS, 16]``, as they lie in memory: nothing waits for them here."""
    block = first + tl.arange(0, BLOCKS)
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, 8)
    words = _pair(units, n, block, N, UNITS, EVEN)
    if OUTPUTS == 32:
        words = tl.permute(tl.join(words, _pair(units, n + 16, block, N, UNITS, EVEN)), (0, 4, 1, 2, 3))
    return tl.reshape(words, (BLOCKS, OUTPUTS, 16))


@jit
def _columns(x, m, first, K, STRIDE, BLOCKS: tl.constexpr):
    """Activations of one turn: for unit j of every lane's four, ``[BLOCKS, rows, 4 lanes, 8 columns]``."""
    block = (first + tl.arange(0, BLOCKS))[:, None, None, None] * 128
    k = block + tl.arange(0, 4)[None, None, :, None] * 32 + tl.arange(0, 8)[None, None, None, :]
    x += m[None, :, None, None] * STRIDE + k
    return (
        tl.load(x, mask=k < K, other=0.0),
        tl.load(x + 8, mask=k + 8 < K, other=0.0),
        tl.load(x + 16, mask=k + 16 < K, other=0.0),
        tl.load(x + 24, mask=k + 24 < K, other=0.0),
    )


@jit
def _split(x):
    """The eight columns of each unit, as few_rows takes them: the last axes of two are the bits of their number."""
    even, odd = tl.split(tl.reshape(x, (x.shape[0], x.shape[1], x.shape[2], 2, 2, 2)))
    x04, x26 = tl.split(even)
    x15, x37 = tl.split(odd)
    x0, x4 = tl.split(x04)
    x2, x6 = tl.split(x26)
    x1, x5 = tl.split(x15)
    x3, x7 = tl.split(x37)
    return x0, x1, x2, x3, x4, x5, x6, x7


@jit
def _add(
    total, words, x0, x1, x2, x3, scale, zero_point, first, N, K, GROUPS, ones,
    BITS: tl.constexpr, G: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, BLOCKS: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """One turn's products: as in `few_rows`, code t of every unit meets column t of every eight.

    The joins make the compiler give lane t of four the units 4t to 4t + 3, as both loads do: nothing changes its lane.
    """
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    block = first + tl.arange(0, BLOCKS)
    group = n[None, :] * GROUPS + (block * 128 // G)[:, None]
    inside = (block * 128 < K)[:, None] & (EVEN | (n < N))[None, :]
    s = tl.load(scale + group, mask=inside, other=0.0)
    dtype: tl.constexpr = x0.dtype
    base: tl.constexpr = 128 if dtype == tl.bfloat16 else 0
    if zero_point is None:
        z = tl.full((1, 1, 1), base + (1 << (BITS - 1)), tl.float32)
    else:
        z = tl.load(zero_point + group, mask=inside, other=0).to(tl.float32)[:, :, None] + base
    w = _eight(words, BITS, dtype)
    first, second, third, fourth = _split(x0), _split(x1), _split(x2), _split(x3)
    part = tl.zeros((BLOCKS, OUTPUTS, ROWS), tl.float32)
    sums = tl.zeros((BLOCKS, OUTPUTS, ROWS), tl.float32)
    for t in tl.static_range(8):
        lower = tl.join(first[t], second[t])
        column = tl.join(lower, tl.join(third[t], fourth[t]))  # [BLOCKS, rows, lane, of two, of two pairs]
        column = tl.reshape(tl.permute(column, (0, 2, 4, 3, 1)), (BLOCKS, 16, ROWS))
        if INTERPRETED:
            column = column.to(tl.float32)
        part = tl.dot(w[t], column, part)
        sums = tl.dot(ones, column, sums)
    return total + s.to(tl.float32)[:, :, None] * (part - z * sums)


@jit
def direct_rows(
    x, units, scale, zero_point, y, M, N, K, UNITS, GROUPS, STRIDE,
    BITS: tl.constexpr, G: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, BLOCKS: tl.constexpr,
    AHEAD: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """``OUTPUTS`` (16 or 32) outputs of eight rows a program; in each turn ``BLOCKS`` blocks of 128 columns, a warp each.

    `few_rows` sends words through shared memory, where eight rows of a block lie in the same banks: each load takes
    four times as long as it could. Here a lane loads the 16 bytes that its own products need, and the words of
    ``AHEAD`` turns (1 to 4) wait in registers: as many as are on their way. EVEN: N is a multiple of OUTPUTS.
    """
    m = tl.minimum(tl.program_id(1) * ROWS + tl.arange(0, ROWS), M - 1)  # the last row again, rather than a mask
    ones = tl.full((BLOCKS, OUTPUTS, 16), 1.0, tl.float32 if INTERPRETED else x.dtype.element_ty)
    total = tl.zeros((BLOCKS, OUTPUTS, ROWS), tl.float32)
    a = _words(units, 0, N, UNITS, OUTPUTS, BLOCKS, EVEN)
    b, c, d = a, a, a
    if AHEAD > 1:
        b = _words(units, BLOCKS, N, UNITS, OUTPUTS, BLOCKS, EVEN)
    if AHEAD > 2:
        c = _words(units, 2 * BLOCKS, N, UNITS, OUTPUTS, BLOCKS, EVEN)
    if AHEAD > 3:
        d = _words(units, 3 * BLOCKS, N, UNITS, OUTPUTS, BLOCKS, EVEN)
    xs = _columns(x, m, 0, K, STRIDE, BLOCKS)
    for now in range(0, tl.cdiv(K, 128), AHEAD * BLOCKS):
        later = now + AHEAD * BLOCKS
        total = _add(
            total, a, *xs, scale, zero_point, now, N, K, GROUPS, ones, BITS, G, ROWS, OUTPUTS, BLOCKS, EVEN
        )  # fmt: skip
        a = _words(units, later, N, UNITS, OUTPUTS, BLOCKS, EVEN)
        xs = _columns(x, m, now + BLOCKS, K, STRIDE, BLOCKS)
        if AHEAD > 1:
            total = _add(
                total, b, *xs, scale, zero_point, now + BLOCKS, N, K, GROUPS, ones,
                BITS, G, ROWS, OUTPUTS, BLOCKS, EVEN,
            )  # fmt: skip
            b = _words(units, later + BLOCKS, N, UNITS, OUTPUTS, BLOCKS, EVEN)
            xs = _columns(x, m, now + 2 * BLOCKS, K, STRIDE, BLOCKS)
        if AHEAD > 2:
            total = _add(
                total, c, *xs, scale, zero_point, now + 2 * BLOCKS, N, K, GROUPS, ones,
                BITS, G, ROWS, OUTPUTS, BLOCKS, EVEN,
            )  # fmt: skip
            c = _words(units, later + 2 * BLOCKS, N, UNITS, OUTPUTS, BLOCKS, EVEN)
            xs = _columns(x, m, now + 3 * BLOCKS, K, STRIDE, BLOCKS)
        if AHEAD > 3:
            total = _add(
                total, d, *xs, scale, zero_point, now + 3 * BLOCKS, N, K, GROUPS, ones,
                BITS, G, ROWS, OUTPUTS, BLOCKS, EVEN,
            )  # fmt: skip
            d = _words(units, later + 3 * BLOCKS, N, UNITS, OUTPUTS, BLOCKS, EVEN)
            xs = _columns(x, m, now + 4 * BLOCKS, K, STRIDE, BLOCKS)
    out = round_to(tl.sum(total, axis=0), y.dtype.element_ty)
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    tl.store(y + rows[None, :] * N + n[:, None], out, mask=(rows < M)[None, :] & (n < N)[:, None])
