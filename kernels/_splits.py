"""Sums over K split over programs, where outputs are too few to keep a GPU busy, and added in a fixed order."""

# mypy: allow-untyped-defs
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ._triton import jit, round_to, tl, triton

PROGRAMS = 264  # two for each of the 132 multiprocessors of an H100


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

    As many as give ``programs``, no more than there are blocks of columns, and as long as the fp32 partial sums (8 bytes
    written and read, per row, output and split) stay below a quarter of the weight's bytes: ``bits`` for each number.

    Chapter: advanced/kernels
    """
    tiles = triton.cdiv(outputs, tile[1]) * triton.cdiv(rows, tile[0])
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
