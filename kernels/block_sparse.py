r"""Multiply by a weight of which whole square blocks are zero, and are not stored: :math:`Y = X W^\top`.

Layout (block-CSR, as `torch.Tensor.to_sparse_bsr` has it): the stored blocks of a block row follow each other, from
left to right; ``crow`` says where each row's begin, ``column`` in which block column each stands::

            0     1     2     3        block columns
         ┌─────┬─────┬─────┬─────┐
       0 │     │  A  │     │  B  │     blocks  [A, B, C, D, E]     each B × B, [n, k]
         ├─────┼─────┼─────┼─────┤
       1 │     │     │     │     │     column  [1, 3, 0, 1, 2]
         ├─────┼─────┼─────┼─────┤
       2 │  C  │  D  │  E  │     │     crow    [0, 2, 2, 5]        row r: blocks crow[r] … crow[r + 1] - 1
         └─────┴─────┴─────┴─────┘

A program makes one tile of Y: it walks along a block row and multiplies each stored block by the rows of x that meet
it. So a block is the tensor cores' work as in a dense product, and the only price of sparsity is a column number a
block. Where rows of x are few a block row is split among programs. Block rows hold different numbers of blocks;
``order`` starts the longest first, so that none of them is what everyone waits for at the end.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._checks import check_shape, check_size, check_tensors
from ._splits import PROGRAMS, splits_for, with_splits
from ._triton import INTERPRETED, jit, round_to, tl, triton

SIZES = (32, 64, 128)
FLOATS = (torch.float16, torch.bfloat16)


class Tile(NamedTuple):
    """Rows of x in a tile, and how the compiler spreads it. Its other sides are the block's.

    Example:
        >>> plan_for(rows=1, size=64), plan_for(rows=512, size=64).rows  # a tile has 16 rows at least
        (Tile(rows=16, warps=4, stages=9), 128)

    Chapter: advanced/kernels
    """

    rows: int
    warps: int
    stages: int


#: Settings by block size, for up to 16 rows of x and for more. A column number must arrive before the rows of x that it names can be
#: asked for, so a block in flight takes two stages of the compiler's pipeline.
FEW = {32: Tile(16, 1, 9), 64: Tile(16, 4, 9), 128: Tile(16, 4, 7)}
MANY = {32: Tile(128, 4, 9), 64: Tile(128, 4, 7), 128: Tile(128, 8, 5)}


@jit
def _tile(
    x, blocks, crow, column, order, y, M, N, BLOCKS, COLUMNS, STRIDE, SPLITS,
    SIZE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    if order is not None:
        row = tl.minimum(tl.maximum(tl.load(order + row), 0), N // SIZE - 1)
    first_row = tl.program_id(1) * ROWS
    x += first_row.to(tl.int64) * STRIDE
    y += (tl.program_id(2) * M + first_row).to(tl.int64) * N
    m = tl.arange(0, ROWS)
    inner = tl.arange(0, SIZE)
    inside = m < M - first_row
    total = tl.zeros((SIZE, ROWS), tl.float32)
    begin = tl.maximum(tl.load(crow + row), 0)
    count = tl.minimum(tl.load(crow + row + 1), BLOCKS) - begin
    share = tl.cdiv(count, SPLITS)
    begin += tl.program_id(2) * share
    count = tl.minimum(share, count - tl.program_id(2) * share)
    block = inner[:, None] * SIZE + inner[None, :]
    for b in range(begin, begin + count):
        c = tl.minimum(tl.maximum(tl.load(column + b), 0), COLUMNS - 1)
        k = c * SIZE + inner
        weights = tl.load(blocks + b * (SIZE * SIZE) + block)
        xs = tl.load(x + m[None, :] * STRIDE + k[:, None], mask=inside[None, :], other=0.0)
        if INTERPRETED:  # which multiplies bf16 as raw bits; fp32 holds the same values
            weights, xs = weights.to(tl.float32), xs.to(tl.float32)
        total = tl.dot(weights, xs, total)
    n = row * SIZE + inner
    tl.store(y + m[None, :] * N + n[:, None], round_to(total, y.dtype.element_ty), mask=inside[None, :])


def block_sparse(
    x: Tensor, blocks: Tensor, crow: Tensor, column: Tensor, order: Tensor | None = None, *, plan: Tile | None = None
) -> Tensor:
    r""":math:`Y = X W^\top` where W is stored as its square blocks that are not zero.

    ================  ====================  =============================================================
    argument          shape                 dtype and layout
    ================  ====================  =============================================================
    ``x``             ``[M, K]``            float16 or bfloat16; stride 1 along K, any along M
    ``blocks``        ``[S, B, B]``         as ``x``, contiguous; row by row, B 32, 64 or 128
    ``crow``          ``[N / B + 1]``       int32, contiguous; first block of each block row, and S
    ``column``        ``[S]``               int32, contiguous; block column of each block
    ``order``         ``[N / B]``           int32, contiguous; in which order block rows are begun; or None
    returns           ``[M, N]``            as ``x``, contiguous
    ================  ====================  =============================================================

    `reference.sparse_tensors.BlockSparseTensor` holds the four. Indices out of range are clamped: the result is wrong
    then, but nothing outside the tensors is read. K is a multiple of B; N is too.

    Sums are in fp32, and the same in every run.

    Roofline: ``2 S B² + 4 S + 4 N / B`` bytes of weight, ``2 (M K + M N)`` of activations; ``2 M S B²`` flops: both
    fall in proportion to the blocks that are left.

    Args:
        x: activations.
        blocks: the stored blocks.
        crow: where block rows begin.
        column: where blocks stand.
        order: a permutation; the longest block row first is best.
        plan: rows and spread of a tile, to measure them; None: what ``plan_for`` chooses.

    Raises:
        TypeError: a dtype is none of the above, or ``blocks`` has another than ``x``.
        ValueError: shapes, strides or devices do not fit.
        ImportError: Triton is not installed.

    No gradient flows through it.

    Example:
        >>> x, blocks = torch.ones(1, 64, dtype=torch.float16), torch.ones(1, 32, 32, dtype=torch.float16)
        >>> crow = torch.tensor([0, 0, 1], dtype=torch.int32)  # of a 64 × 64 weight only the lower left block is stored
        >>> y = block_sparse(x, blocks, crow, torch.tensor([0], dtype=torch.int32))
        >>> y[0, ::32].tolist()
        [0.0, 32.0]

    Chapter: advanced/kernels
    """
    _check(x, blocks, crow, column, order)
    rows, size = x.shape[0], blocks.shape[1]
    outputs = (len(crow) - 1) * size
    y = torch.empty((rows, outputs), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    plan = plan or plan_for(rows, size)
    stored = blocks.numel() // outputs  # columns of a row, on average
    splits = splits_for(rows, outputs, stored, (plan.rows, size, size), 16, PROGRAMS)
    with torch.cuda.device_of(x):
        with_splits(lambda out: _launch(x, blocks, crow, column, order, out, plan, splits), y, splits)
    return y


def plan_for(rows: int, size: int) -> Tile:
    """The tile for ``rows`` rows of x and blocks of ``size``.

    Args:
        rows: of x, 1 or more.
        size: side of a block, 32, 64 or 128.

    Example:
        >>> [plan_for(rows, size=128).rows for rows in (1, 16, 17)]
        [16, 16, 128]

    Chapter: advanced/kernels
    """
    return (FEW if rows <= FEW[size].rows else MANY)[size]


def _launch(
    x: Tensor, blocks: Tensor, crow: Tensor, column: Tensor, order: Tensor | None, y: Tensor, tile: Tile, splits: int
) -> None:
    rows, size = x.shape[0], blocks.shape[1]
    grid = (len(crow) - 1, triton.cdiv(rows, tile.rows), splits)
    _tile[grid](
        x, blocks, crow, column, order, y, rows, y.shape[-1], len(blocks), x.shape[1] // size, x.stride(0), splits,
        SIZE=size, ROWS=tile.rows, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def _check(x: Tensor, blocks: Tensor, crow: Tensor, column: Tensor, order: Tensor | None) -> None:
    check_tensors(
        {
            "x": (x, FLOATS, 2),
            "blocks": (blocks, FLOATS, 3),
            "crow": (crow, (torch.int32,), 1),
            "column": (column, (torch.int32,), 1),
            "order": (order, (torch.int32,), 1),
        }
    )
    check_size("blocks", blocks)
    if blocks.dtype != x.dtype:
        raise TypeError(f"blocks was {blocks.dtype}, may be {x.dtype}, as x is")
    stored, size, other = blocks.shape
    if size != other or size not in SIZES:
        raise ValueError(f"blocks had shape {list(blocks.shape)}, may have a side of {' or '.join(map(str, SIZES))}")
    if len(crow) == 0:
        raise ValueError("crow had no entries, may have one for each block row, and the end")
    check_shape("column", column, [stored], "(one for each block)")
    check_shape("order", order, [len(crow) - 1], "(one for each block row)")
    if x.shape[1] == 0 or x.shape[1] % size:
        raise ValueError(f"x had {x.shape[1]} columns, may have a positive multiple of {size}, the side of a block")
