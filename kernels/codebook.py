r"""Multiply activations by weights that are indices into one short table: :math:`Y = X W^\top`, ``W = table[codes]``.

Layout: the bits of a code are cut into planes of 8, 4, 2 or 1, the wider first: 5 = 4 + 1, 6 = 4 + 2, 7 = 4 + 2 + 1. A
row holds its planes one after the other, each in whole words for each 32 columns; so what a thread loads at once, 16
bytes, is aligned whatever the number of bits::

    row n, 5 bits, K = 64   │ q0 q1 q2 q3 │ q4 q5 q6 q7 │ s0 │ s1 │     4 words and 1 word for each 32 columns
                              4 bits of columns 0 … 63   1 bit of 0 … 31 and 32 … 63

A plane alone (8, 4 or 2 bits) is `reference.tensors.pack`'s stream. Narrower planes beside it are ordered so that
bytes line up: four codes are put together in a register by masks and shifts of whole words::

    q & 0x0F0F0F0F      0000 dddd  0000 cccc  0000 bbbb  0000 aaaa      (the others: q >> 4)
    s & 0x01010101      0000 000D  0000 000C  0000 000B  0000 000A      (the others: s >> 1 … s >> 7)
    q | s << 4          000D dddd  000C cccc  000B bbbb  000A aaaa

and each byte is an index. The table goes through shared memory: 16 or 32 entries lie in banks of their own, so all lanes
of a warp look up at once; of 256 entries eight share a bank, and lanes wait for each other.

Two kernels: `_one_row` multiplies in fp32 by the table's fp32 values; `_tile` looks up in the activations' type and
feeds tensor cores.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import torch
from torch import Tensor

from ._checks import FLOATS, check_shape, check_size, check_tensors
from ._splits import PROGRAMS, splits_for, with_splits
from ._tile import Tile
from ._triton import INTERPRETED, jit, round_to, tl, triton
from ._words import codes_of

#: One row of a 16-bit dtype with 4 or 8 bits, and few rows; the fastest at 4 and 5 bits on an H200.
ONE_ROW = Tile(rows=1, outputs=16, columns=512, warps=2, stages=4)
#: One row otherwise, where `ONE_ROW` would spill registers or is slower: at 5 bits 28 µs and not the 32 µs of
#: ``book/data/kernels.json``, which was recorded with `ONE_ROW`.
ONE_ROW_SMALL = Tile(rows=1, outputs=8, columns=512, warps=4, stages=4)
FEW = Tile(rows=16, outputs=64, columns=128, warps=4, stages=4)
MANY = Tile(rows=128, outputs=128, columns=64, warps=8, stages=3)
FLOAT32 = Tile(rows=16, outputs=64, columns=64, warps=4, stages=2)  # supported, not tuned


@jit
def _load_plane(packed, block, inside, ALL, BEFORE: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    """Words of one plane, ``[outputs, COLUMNS * WIDTH / 32]``: BEFORE bits of a code lie in planes before it."""
    word = block * (COLUMNS * WIDTH // 32) + tl.arange(0, COLUMNS * WIDTH // 32)
    return tl.load(
        packed[:, None] + (ALL * BEFORE + word)[None, :], mask=inside[:, None] & (word < ALL * WIDTH)[None, :], other=0
    )


@jit
def _part(words, BEFORE: tl.constexpr, WIDTH: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr):
    """One plane's part of four codes, a byte each: ``[OUTPUTS, COLUMNS / 4]``."""
    if WIDTH == 4:
        words = tl.join(words, words >> 4)
    elif WIDTH == 2:
        words = tl.join(tl.join(words, words >> 4), tl.join(words >> 2, words >> 6))
    else:
        even = tl.join(tl.join(words, words >> 4), tl.join(words >> 2, words >> 6))
        odd = tl.join(tl.join(words >> 1, words >> 5), tl.join(words >> 3, words >> 7))
        words = tl.join(even, odd)
    words = tl.reshape(words, (OUTPUTS, COLUMNS // 4))
    return (words & (0x01010101 * ((1 << WIDTH) - 1))) << BEFORE


@jit
def _codes(packed, block, inside, ALL, BITS: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr):
    if BITS == 8 or BITS == 4 or BITS == 2:
        words = _load_plane(packed, block, inside, ALL, 0, BITS, COLUMNS)
        return codes_of(words, BITS, OUTPUTS, COLUMNS)
    BASE: tl.constexpr = 4 if BITS > 4 else 2
    four = _part(_load_plane(packed, block, inside, ALL, 0, BASE, COLUMNS), 0, BASE, OUTPUTS, COLUMNS)
    if BITS == 6 or BITS == 7:
        four |= _part(_load_plane(packed, block, inside, ALL, 4, 2, COLUMNS), 4, 2, OUTPUTS, COLUMNS)
    if BITS & 1:
        four |= _part(_load_plane(packed, block, inside, ALL, BITS - 1, 1, COLUMNS), BITS - 1, 1, OUTPUTS, COLUMNS)
    codes = tl.join(tl.join(four, four >> 16), tl.join(four >> 8, four >> 24)) & 255
    STEPS: tl.constexpr = 8 // BASE  # words of four codes that one word of the base plane gives
    codes = tl.permute(tl.reshape(codes, (OUTPUTS, COLUMNS // (4 * STEPS), STEPS, 4)), (0, 1, 3, 2))
    return tl.reshape(codes, (OUTPUTS, COLUMNS))


@jit
def _look_up(values, codes, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr):
    return tl.reshape(tl.gather(values, tl.reshape(codes, (OUTPUTS * COLUMNS,)), 0), (OUTPUTS, COLUMNS))


@jit
def _one_row(
    x, packed, table, y, N, K, WORDS, ALL,
    BITS: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    column = tl.arange(0, COLUMNS)
    values = tl.load(table + tl.arange(0, 1 << BITS))
    total = tl.zeros((OUTPUTS, COLUMNS), tl.float32)
    # num_stages on the loop itself: without a dot inside, the compiler prefetches only where it is told to.
    for block in tl.range(0, tl.cdiv(K, COLUMNS), num_stages=STAGES):
        codes = _codes(packed + n * WORDS, block, n < N, ALL, BITS, OUTPUTS, COLUMNS)
        k = block * COLUMNS + column
        xs = tl.load(x + k, mask=k < K, other=0.0).to(tl.float32)
        total += _look_up(values, codes, OUTPUTS, COLUMNS) * xs[None, :]
    tl.store(y + n, round_to(tl.sum(total, axis=1), y.dtype.element_ty), mask=n < N)


@jit
def _tile(
    x, packed, table, y, M, N, K, WORDS, ALL, STRIDE, BLOCKS,
    BITS: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    first_row = tl.program_id(1) * ROWS
    x += first_row.to(tl.int64) * STRIDE
    y += (tl.program_id(2) * M + first_row).to(tl.int64) * N
    m = tl.arange(0, ROWS)
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    column = tl.arange(0, COLUMNS)
    m_inside = m < M - first_row
    values = round_to(tl.load(table + tl.arange(0, 1 << BITS)), x.dtype.element_ty)
    total = tl.zeros((OUTPUTS, ROWS), tl.float32)
    first = tl.program_id(2) * BLOCKS
    for block in range(first, min(first + BLOCKS, tl.cdiv(K, COLUMNS))):
        codes = _codes(packed + n * WORDS, block, n < N, ALL, BITS, OUTPUTS, COLUMNS)
        k = block * COLUMNS + column
        xs = tl.load(x + m[None, :] * STRIDE + k[:, None], mask=m_inside[None, :] & (k < K)[:, None], other=0.0)
        weights = _look_up(values, codes, OUTPUTS, COLUMNS)
        if INTERPRETED:  # which multiplies bf16 as raw bits; fp32 holds the same values
            weights, xs = weights.to(tl.float32), xs.to(tl.float32)
        total = tl.dot(weights, xs, total, input_precision="tf32x3")
    out = round_to(total, y.dtype.element_ty)
    tl.store(y + m[None, :] * N + n[:, None], out, mask=m_inside[None, :] & (n < N)[:, None])


def plan_for(rows: int, columns: int, dtype: torch.dtype, bits: int) -> Tile:
    """The tile for ``rows`` rows of x and codes of ``bits``.

    Args:
        rows: of x, 1 or more.
        columns: of x.
        dtype: of x.
        bits: of a code, 2 to 8.

    Example:
        >>> [plan_for(rows, 4096, torch.bfloat16, bits=4).rows for rows in (1, 2, 100)]
        [1, 16, 128]

    Chapter: advanced/kernels
    """
    if rows == 1:  # of a short row no more than it has
        plan = ONE_ROW if bits in (4, 8) and dtype != torch.float32 else ONE_ROW_SMALL
        outputs = plan.outputs if bits >= 4 else 16  # so that a thread's share is 16 bytes
        return plan._replace(outputs=outputs, columns=min(plan.columns, max(64, triton.next_power_of_2(columns))))
    return FLOAT32 if dtype == torch.float32 else FEW if rows <= FEW.rows else MANY


def codebook(x: Tensor, packed: Tensor, table: Tensor, *, plan: Tile | None = None) -> Tensor:
    r""":math:`Y = X W^\top` with ``W[n, k] = table[codes[n, k]]``, ``codes`` packed.

    ================  =========================  ===========================================================
    argument          shape                      dtype and layout
    ================  =========================  ===========================================================
    ``x``             ``[M, K]``                 float16, bfloat16 or float32; stride 1 along K, any along M
    ``packed``        ``[N, b · ceil(K / 32)]``  int32, contiguous; codes of b bits in planes, see above
    ``table``         ``[2^b]``                  float32, contiguous, b 2 to 8
    returns           ``[M, N]``                 as ``x``, contiguous
    ================  =========================  ===========================================================

    `reference.coding.planes.pack_planes` packs.

    Sums are in fp32, and the same in every run. With one row the table's values enter as they are, with more as
    rounded to the type of ``x``. float32 ``x`` is supported, not tuned: it takes three TF32 products.

    Roofline: ``N b K / 8 + 4 · 2^b`` bytes of weight, ``2 (M K + M N)`` of activations; ``2 M N K`` flops, and ``N K``
    look-ups: an H100 makes 7.4 · 10^12 a second where they do not collide, 1.2 times what 4 bits at 3 TB/s need.

    Args:
        x: activations; Inf or NaN make their row non-finite.
        packed: the codes.
        table: the shared values.
        plan: block sizes, to measure them; None: what ``plan_for`` chooses.

    Raises:
        TypeError: a dtype is none of the above.
        ValueError: shapes, strides or devices do not fit.
        ImportError: Triton is not installed.

    No gradient flows through it. Source: weights as indices into a short table are Han et al. 2016; planes for widths
    that divide no word are Guo et al. 2024 (FLUTE, arXiv 2407.10960), in another order.

    Example:
        >>> from reference.coding.planes import pack_planes
        >>> codes, table = torch.arange(64).view(2, 32) % 7, torch.arange(8.0) ** 2
        >>> x = torch.arange(32.0)[None]
        >>> codebook(x, pack_planes(codes, 3), table).tolist(), (x @ table[codes].T).tolist()
        ([[6014.0, 6775.0]], [[6014.0, 6775.0]])

    Chapter: advanced/kernels
    """
    _check(x, packed, table)
    (rows, columns), outputs, bits = x.shape, len(packed), len(table).bit_length() - 1
    y = torch.empty((rows, outputs), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    plan = plan or plan_for(rows, columns, x.dtype, bits)
    with torch.cuda.device_of(x):
        if plan.rows == 1:
            _launch_one_row(x, packed, table, y, plan)
            return y
        splits = splits_for(rows, outputs, columns, plan[:3], bits, PROGRAMS)
        with_splits(lambda out: _launch_tile(x, packed, table, out, plan, splits), y, splits)
    return y


def _launch_one_row(x: Tensor, packed: Tensor, table: Tensor, y: Tensor, plan: Tile) -> None:
    columns, outputs = x.shape[1], y.shape[1]
    _one_row[(triton.cdiv(outputs, plan.outputs),)](
        x, packed, table, y, outputs, columns, packed.shape[1], triton.cdiv(columns, 32),
        BITS=len(table).bit_length() - 1, OUTPUTS=plan.outputs, COLUMNS=plan.columns, STAGES=plan.stages,
        num_warps=plan.warps,
    )  # fmt: skip


def _launch_tile(x: Tensor, packed: Tensor, table: Tensor, y: Tensor, plan: Tile, splits: int) -> None:
    (rows, columns), outputs = x.shape, y.shape[-1]
    blocks = triton.cdiv(triton.cdiv(columns, plan.columns), splits)
    grid = (triton.cdiv(outputs, plan.outputs), triton.cdiv(rows, plan.rows), splits)
    _tile[grid](
        x, packed, table, y, rows, outputs, columns, packed.shape[1], triton.cdiv(columns, 32), x.stride(0), blocks,
        BITS=len(table).bit_length() - 1, ROWS=plan.rows, OUTPUTS=plan.outputs, COLUMNS=plan.columns,
        num_warps=plan.warps, num_stages=plan.stages,
    )  # fmt: skip


def _check(x: Tensor, packed: Tensor, table: Tensor) -> None:
    check_tensors({"x": (x, FLOATS, 2), "packed": (packed, (torch.int32,), 2), "table": (table, (torch.float32,), 1)})
    check_size("packed", packed)
    if len(table) not in [2**bits for bits in range(2, 9)]:
        raise ValueError(f"table had {len(table)} entries, may have 4 to 256, a power of two")
    columns, bits = x.shape[1], len(table).bit_length() - 1
    if columns == 0:
        raise ValueError("x had 0 columns, may have 1 or more")
    words = bits * triton.cdiv(columns, 32)
    check_shape("packed", packed, [len(packed), words], f"for {columns} columns of {bits} bits")
