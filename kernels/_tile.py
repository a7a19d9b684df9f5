"""The settings that several kernels have in common."""

from __future__ import annotations

from typing import NamedTuple


class Tile(NamedTuple):
    """Block sizes of a program: rows of x, rows of W (outputs), columns; and how the compiler spreads them.

    Chapter: advanced/kernels
    """

    rows: int
    outputs: int
    columns: int
    warps: int
    stages: int
