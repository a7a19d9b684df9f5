r"""Multiply 16-bit activations by weights of which two in four are zero, and are not stored: :math:`Y = X W^\top`.

Layout: of each four columns of a row the two kept values lie side by side, a 32-bit word; where they stood, in two bits
each, lies apart, four groups to a 16-bit number::

    columns        0   1   2   3 │ 4   5   6   7 │ 8 …            W[n, :]
                   ·   a   ·   b │ c   d   ·   · │
    values        ┌───────┬──────┬───────┬──────┬──
                  │   a   │   b  │   c   │   d  │ …               [N, K / 2]
                  └───────┴──────┴───────┴──────┴──
    positions      15 ············ 7 6   5 4   3 2   1 0          [N, K / 16], int16
                                 │ 1  │  0  │  3  │  1 │
                                   d     c     b     a

That is 9/16 of the bytes of the dense weight. Triton has no instruction for the tensor cores' own 2:4 mode, so there is
nothing to win where arithmetic decides; the bytes are won where memory does.

Two kernels. `_one_row` shifts the four activations of a group, which lie in 64 bits, right by 16 times the position:
no table, no gather. `_tile` shifts the two values left instead and has the four columns of the dense weight in a
register pair, as the tensor cores want them.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import torch
from torch import Tensor

from ._checks import check_shape, check_size, check_start, check_tensors
from ._splits import PROGRAMS, splits_for, with_splits
from ._tile import Tile
from ._triton import INTERPRETED, jit, round_to, tl, triton

COLUMNS = 16  # columns whose positions fill an int16; K is a multiple of it
FLOATS = (torch.float16, torch.bfloat16)

ONE_ROW = Tile(rows=1, outputs=4, columns=512, warps=1, stages=4)
FEW = Tile(rows=16, outputs=64, columns=128, warps=4, stages=4)
MANY = Tile(rows=128, outputs=128, columns=64, warps=8, stages=3)


@jit
def _positions(meta, SHAPE0: tl.constexpr, SHAPE1: tl.constexpr):
    """int16 ``[A, B]`` to the four bits of each group, ``[A, 4 B]``, in the low bits: other bits above them."""
    meta = meta.to(tl.int32)
    meta = tl.join(tl.join(meta, meta >> 8), tl.join(meta >> 4, meta >> 12))
    return tl.reshape(meta, (SHAPE0, SHAPE1))


@jit
def _one_each(index):
    """``index``, of which the compiler no longer knows that it counts up: a thread then loads one value, not a run.

    A run of positions would give each thread 32 groups side by side, and lanes that read values and activations 128 bytes
    apart from shared memory wait for each other: they are in the same bank.
    """
    if INTERPRETED:
        return index
    return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [index], tl.int32, is_pure=True, pack=1)


@jit
def _half(bits, dtype: tl.constexpr):
    """The low 16 bits as ``dtype``, in fp32."""
    return bits.to(tl.int16).to(dtype, bitcast=True).to(tl.float32)


@jit
def _one_row(
    x, values, meta, y, N, GROUPS, QUADS,
    OUTPUTS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    group = tl.arange(0, BLOCK)
    quad = _one_each(tl.arange(0, BLOCK // 4))
    total = tl.zeros((OUTPUTS, BLOCK), tl.float32)
    meta += n[:, None] * QUADS
    following = tl.load(meta + quad[None, :], mask=(n < N)[:, None] & (quad < QUADS)[None, :], other=0)
    for g0 in tl.range(0, GROUPS, BLOCK, num_stages=STAGES):
        inside = (n < N)[:, None] & (g0 + group < GROUPS)[None, :]
        pair = tl.load(values + n[:, None] * GROUPS + (g0 + group)[None, :], mask=inside, other=0)
        m = _positions(following, OUTPUTS, BLOCK)
        q = (g0 + BLOCK) // 4 + quad  # two bytes a thread are too few to be copied ahead: they are, in a register
        following = tl.load(meta + q[None, :], mask=(n < N)[:, None] & (q < QUADS)[None, :], other=0)
        xs = tl.load(x + g0 + group, mask=g0 + group < GROUPS, other=0).to(tl.uint64, bitcast=True)[None, :]
        first = _half(xs >> ((m & 3) << 4).to(tl.uint64), y.dtype.element_ty)
        second = _half(xs >> ((m & 12) << 2).to(tl.uint64), y.dtype.element_ty)
        total += _half(pair, y.dtype.element_ty) * first
        total += _half(pair >> 16, y.dtype.element_ty) * second
    tl.store(y + n, round_to(tl.sum(total, axis=1), y.dtype.element_ty), mask=n < N)


@jit
def _tile(
    x, values, meta, y, M, N, K, GROUPS, QUADS, STRIDE, BLOCKS,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    first_row = tl.program_id(1) * ROWS
    x += first_row.to(tl.int64) * STRIDE
    y += (tl.program_id(2) * M + first_row).to(tl.int64) * N
    m = tl.arange(0, ROWS)
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    column = tl.arange(0, BLOCK)
    group = tl.arange(0, BLOCK // 4)
    quad = tl.arange(0, BLOCK // 16)
    m_inside = m < M - first_row
    n_inside = n < N
    total = tl.zeros((OUTPUTS, ROWS), tl.float32)
    first = tl.program_id(2) * BLOCKS
    for block in range(first, min(first + BLOCKS, tl.cdiv(K, BLOCK))):
        g = block * (BLOCK // 4) + group
        q = block * (BLOCK // 16) + quad
        k = block * BLOCK + column
        pair = tl.load(
            values + n[:, None] * GROUPS + g[None, :], mask=n_inside[:, None] & (g < GROUPS)[None, :], other=0
        )
        p = tl.load(meta + n[:, None] * QUADS + q[None, :], mask=n_inside[:, None] & (q < QUADS)[None, :], other=0)
        xs = tl.load(x + m[None, :] * STRIDE + k[:, None], mask=m_inside[None, :] & (k < K)[:, None], other=0.0)
        p = _positions(p, OUTPUTS, BLOCK // 4)
        low = (pair & 0xFFFF).to(tl.uint64) << ((p & 3) << 4).to(tl.uint64)
        high = ((pair >> 16) & 0xFFFF).to(tl.uint64) << ((p & 12) << 2).to(tl.uint64)
        four = low | high
        left, right = four.to(tl.int32), (four >> 32).to(tl.int32)
        four = tl.join(tl.join(left, right), tl.join(left >> 16, right >> 16))
        weights = tl.reshape(four, (OUTPUTS, BLOCK)).to(tl.int16).to(xs.dtype, bitcast=True)
        if INTERPRETED:  # which multiplies bf16 as raw bits; fp32 holds the same values
            weights, xs = weights.to(tl.float32), xs.to(tl.float32)
        total = tl.dot(weights, xs, total)
    out = round_to(total, y.dtype.element_ty)
    tl.store(y + m[None, :] * N + n[:, None], out, mask=m_inside[None, :] & n_inside[:, None])


def plan_for(rows: int) -> Tile:
    """The tile for ``rows`` rows of x.

    Args:
        rows: of x, 1 or more.

    Example:
        >>> [plan_for(rows).rows for rows in (1, 2, 100)]
        [1, 16, 128]

    Chapter: advanced/kernels
    """
    return ONE_ROW if rows == 1 else FEW if rows <= FEW.rows else MANY


def sparse_24(x: Tensor, values: Tensor, positions: Tensor, *, plan: Tile | None = None) -> Tensor:
    r""":math:`Y = X W^\top` where each four columns of a row of W hold two values, and two zeros that are not stored.

    ================  ====================  =============================================================
    argument          shape                 dtype and layout
    ================  ====================  =============================================================
    ``x``             ``[M, K]``            float16 or bfloat16; stride 1 along K, any along M
    ``values``        ``[N, K / 2]``        as ``x``, contiguous; in the order of their columns
    ``positions``     ``[N, K / 16]``       int16, contiguous; column of a value in its four: two bits each,
                                            the first value's lowest
    returns           ``[M, N]``            as ``x``, contiguous
    ================  ====================  =============================================================

    `reference.sparse_tensors.SparseTensor` holds ``values`` and ``positions``.

    Sums are in fp32, and the same in every run. Two values of a group at the same position make one dense value of
    undefined bits where M > 1; a `SparseTensor` refuses them.

    Roofline: ``9 N K / 8`` bytes of weight against ``2 N K`` of a dense one: 1.78 times fewer, the ceiling of the
    speed-up where bytes decide. ``M N K`` flops at M = 1, ``2 M N K`` beyond, as many as dense.

    Args:
        x: activations.
        values: the kept weights.
        positions: where they stood.
        plan: block sizes, to measure them; None: what ``plan_for`` chooses.

    Raises:
        TypeError: a dtype is none of the above, or ``values`` has another than ``x``.
        ValueError: shapes, strides or devices do not fit.
        ImportError: Triton is not installed.

    No gradient flows through it.

    Example:
        >>> x, values = torch.arange(16.0)[None].half(), torch.ones(1, 8).half()
        >>> positions = torch.tensor([[0x4444]], dtype=torch.int16)  # in each four columns 0 (00) and 1 (01)
        >>> sparse_24(x, values, positions).tolist(), 0 + 1 + 4 + 5 + 8 + 9 + 12 + 13
        ([[52.0]], 52)

    Chapter: advanced/kernels
    """
    _check(x, values, positions)
    (rows, columns), outputs = x.shape, values.shape[0]
    y = torch.empty((rows, outputs), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    plan = plan or plan_for(rows)
    with torch.cuda.device_of(x):
        if plan.rows == 1:
            _launch_one_row(x, values, positions, y, plan)
            return y
        splits = splits_for(rows, outputs, columns, plan[:3], 9, PROGRAMS)
        with_splits(lambda out: _launch_tile(x, values, positions, out, plan, splits), y, splits)
    return y


def _launch_one_row(x: Tensor, values: Tensor, positions: Tensor, y: Tensor, tile: Tile) -> None:
    columns, outputs = x.shape[1], y.shape[1]
    # The four activations of a group are read as one number of 64 bits.
    row = x[0] if x.data_ptr() % 8 == 0 and x.storage_offset() % 4 == 0 else x[0].clone()
    block = min(tile.columns // 4, max(4, triton.next_power_of_2(columns // 4)))
    _one_row[(triton.cdiv(outputs, tile.outputs),)](
        row.view(torch.int64), values.view(torch.int32), positions, y, outputs, columns // 4, columns // COLUMNS,
        OUTPUTS=tile.outputs, BLOCK=block, STAGES=tile.stages, num_warps=tile.warps,
    )  # fmt: skip


def _launch_tile(x: Tensor, values: Tensor, positions: Tensor, y: Tensor, tile: Tile, splits: int) -> None:
    (rows, columns), outputs = x.shape, y.shape[-1]
    blocks = triton.cdiv(triton.cdiv(columns, tile.columns), splits)
    grid = (triton.cdiv(outputs, tile.outputs), triton.cdiv(rows, tile.rows), splits)
    _tile[grid](
        x, values.view(torch.int32), positions, y, rows, outputs, columns, columns // 4, columns // COLUMNS,
        x.stride(0), blocks,
        ROWS=tile.rows, OUTPUTS=tile.outputs, BLOCK=tile.columns, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def _check(x: Tensor, values: Tensor, positions: Tensor) -> None:
    check_tensors({"x": (x, FLOATS, 2), "values": (values, FLOATS, 2), "positions": (positions, (torch.int16,), 2)})
    check_size("values", values)
    if values.dtype != x.dtype:
        raise TypeError(f"values was {values.dtype}, may be {x.dtype}, as x is")
    columns, outputs = x.shape[1], len(values)
    if columns == 0 or columns % COLUMNS:
        raise ValueError(f"x had {columns} columns, may have a positive multiple of {COLUMNS}")
    check_shape("values", values, [outputs, columns // 2], f"for x of {columns} columns")
    check_shape("positions", positions, [outputs, columns // COLUMNS], f"for x of {columns} columns")
    check_start("values", values)
