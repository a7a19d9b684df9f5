"""Sums over K split over programs, where outputs are too few to keep a GPU busy."""

# mypy: allow-untyped-defs
from __future__ import annotations

from ._triton import jit, round_to, tl, triton


@jit
def add_splits(partial, y, SPLITS, SIZE, BLOCK: tl.constexpr):
    """y = Σ over the first axis of ``partial [SPLITS, SIZE]``, always in the same order."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for split in range(SPLITS):
        total += tl.load(partial + split * SIZE + i, mask=i < SIZE, other=0.0)
    tl.store(y + i, round_to(total, y.dtype.element_ty), mask=i < SIZE)


def splits_for(rows: int, outputs: int, columns: int, tile: tuple[int, int, int]) -> int:
    """Into how many programs the sum over K of each tile (of rows, outputs, columns) is split.

    As many as give 256 programs (about two for each multiprocessor of an H100), as long as the fp32 partial sums
    (8 bytes written and read, per row, output and split) stay below a quarter of the weight's bytes.

    Chapter: none (the kernels chapter is to come)
    """
    programs = triton.cdiv(outputs, tile[1]) * triton.cdiv(rows, tile[0])
    return max(1, min(triton.cdiv(256, programs), columns // (64 * rows), triton.cdiv(columns, tile[2])))
