"""Sums over K that are split among programs, and added in a fixed order: the same result in every run."""

# mypy: allow-untyped-defs
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ._splits import add_splits
from ._triton import triton

PROGRAMS = 264  # two for each multiprocessor of an H100


def splits_by_bytes(programs: int, rows: int, outputs: int, blocks: int, bytes_of_weight: int) -> int:
    """Into how many programs each tile's sum over K is split.

    As many as give `PROGRAMS`, no more than there are ``blocks`` of columns, and as long as the fp32 partial sums
    (8 bytes written and read, per row, output and split) stay below a quarter of the weight's bytes.
    """
    affordable = bytes_of_weight // (32 * max(1, rows * outputs))
    return max(1, min(triton.cdiv(PROGRAMS, max(1, programs)), affordable, blocks))


def with_splits(launch: Callable[[Tensor], None], y: Tensor, splits: int) -> None:
    """``launch`` writes ``[splits, *y.shape]`` partial sums in fp32 (or ``y`` itself where there is one split)."""
    if splits == 1:
        launch(y)
        return
    partial = torch.empty((splits, *y.shape), dtype=torch.float32, device=y.device)
    launch(partial)
    add_splits[(triton.cdiv(y.numel(), 1024),)](partial, y, splits, y.numel(), BLOCK=1024)
