"""Sums over K split over programs, where outputs are too few to keep a GPU busy, and added in a fixed order."""

# mypy: allow-untyped-defs
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ._triton import jit, round_to, tl, triton

PROCESSORS = 132  # multiprocessors of an H100 and of an H200
PROGRAMS = 2 * PROCESSORS
MANY_ROWS = 64  # from here on a tile's arithmetic takes longer than its share of the weight's bytes


@jit
def add_splits(partial, y, SPLITS, SIZE, BLOCK: tl.constexpr):
    """y = Σ over the first axis of ``partial [SPLITS, SIZE]``, always in the same order."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for split in range(SPLITS):
        total += tl.load(partial + split * SIZE + i, mask=i < SIZE, other=0.0)
    tl.store(y + i, round_to(total, y.dtype.element_ty), mask=i < SIZE)


def splits_for(
    rows: int, outputs: int, columns: int, tile: tuple[int, int, int], bits: float = 4.0, programs: int = 256
) -> int:
    """Into how many programs the sum over K of each tile (of rows, outputs, columns) is split.

    The fp32 partial sums cost 8 bytes, written and read, per row, output and split.

    Few rows, where bytes decide: as many splits as give ``programs``, no more than there are blocks of columns, and as
    long as the partial sums stay below a quarter of the weight's bytes: ``bits`` for each number.

    Tiles of `MANY_ROWS` and more, where arithmetic decides: as many as fit the processors at once, one program each,
    since a second round would take as long as the first. An H200's share of a partial sum of such a tile takes as long
    as the products of 256 columns (``book/data/kernels.json``: 65 µs for 4096 columns of 128 × 128 numbers, 4 TB/s for
    132 processors), so a split has 1024 columns at least: a quarter again.

    Chapter: advanced/kernels
    """
    tiles = triton.cdiv(outputs, tile[1]) * triton.cdiv(rows, tile[0])
    if tile[0] >= MANY_ROWS:
        return max(1, min(PROCESSORS // tiles, columns // 1024))
    affordable = int(columns * bits) // (256 * rows)
    return max(1, min(triton.cdiv(programs, tiles), affordable, triton.cdiv(columns, tile[2])))


def with_splits(launch: Callable[[Tensor], None], y: Tensor, splits: int) -> None:
    """``launch`` writes ``[splits, *y.shape]`` partial sums in fp32 (or ``y`` itself where there is one split)."""
    if splits == 1:
        launch(y)
        return
    partial = torch.empty((splits, *y.shape), dtype=torch.float32, device=y.device)
    launch(partial)
    add_splits[(triton.cdiv(y.numel(), 1024),)](partial, y, splits, y.numel(), BLOCK=1024)
