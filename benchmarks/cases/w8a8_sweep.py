"""Settings of w8a8 to choose from."""

from __future__ import annotations

from collections.abc import Iterator

from cases import Case
from cases.w8a8 import case as product
from cases.w8a8 import named, plans


def case(rows: int, outputs: int, columns: int) -> Case:
    return product(rows, outputs, columns, plans={named(plan): plan for plan in plans(rows)})


def cases(quick: bool) -> Iterator[Case]:
    for rows in (1, 16, 64, 128, 4096) if not quick else (1, 16, 4096):
        yield case(rows, 4096, 4096)
    if not quick:
        yield case(1, 11008, 4096)
        yield case(8192, 8192, 8192)


def small_cases() -> Iterator[Case]:
    for rows in (1, 12, 70, 200):
        yield case(rows, 80, 512)
