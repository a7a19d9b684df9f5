"""Settings of w4a16 to choose from: one case for a few settings, so that processes can share the compilation."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from cases import QUICK_SHAPES, SHAPES, Case
from cases.w4a16 import case
from reference.kernels.w4a16 import DENSE, MANY, PADDED, SOME, Direct, Few, OneRow, Plan, Tile

#: (outputs, blocks, warps, stages) of `few_rows`.
EIGHT = [
    (16, 8, 8, 3), (16, 8, 8, 5), (16, 4, 4, 3), (16, 4, 4, 5), (16, 2, 2, 6), (16, 16, 16, 2), (16, 16, 16, 3),
    (32, 4, 4, 3), (32, 4, 4, 5), (32, 4, 4, 9), (32, 8, 8, 2), (32, 8, 8, 3), (32, 8, 8, 5), (32, 16, 16, 3),
    (32, 2, 2, 6), (32, 1, 1, 6), (64, 4, 4, 3), (64, 8, 8, 3), (64, 8, 8, 4), (64, 2, 2, 5),
]  # fmt: skip
EARLY = [(16, 8, 8, 5), (32, 4, 4, 5), (32, 8, 8, 3)]
#: (outputs, blocks, ahead) of `direct_rows`: none spills at capability 8.0 or 9.0. The bytes on their way grow with each.
DIRECT = [(16, 4, 1), (16, 4, 3), (16, 8, 1), (32, 4, 1), (32, 4, 2)]
#: (outputs, runs of 1024 columns, warps, stages) of `one_row`.
ONE = [
    (16, 1, 4, 1), (16, 1, 4, 3), (8, 1, 1, 1), (8, 1, 1, 3), (8, 1, 2, 3), (8, 1, 4, 3), (8, 2, 4, 2), (16, 2, 8, 3),
    (4, 1, 1, 4), (32, 1, 4, 3), (16, 1, 2, 3),
]  # fmt: skip
SIXTEEN = [
    (16, 8, 8, 3), (16, 4, 4, 3), (16, 4, 4, 4), (32, 4, 4, 2), (32, 4, 4, 3), (32, 4, 4, 4), (32, 8, 8, 2), (32, 8, 8, 3),
    (32, 2, 2, 4), (16, 2, 2, 5), (64, 4, 4, 2), (64, 8, 8, 2),
]  # fmt: skip
THIRTY_TWO = [(32, 4, 4, 2), (16, 4, 4, 2), (16, 8, 8, 2), (32, 8, 8, 2)]
TILES = [
    SOME,
    SOME._replace(splits=4),
    Tile(32, 128, 128, 4, 3),
    Tile(32, 64, 128, 4, 4, splits=4),
    Tile(64, 64, 64, 4, 4, splits=4),
    Tile(64, 64, 128, 4, 3, splits=2),
    Tile(64, 128, 128, 8, 3, splits=4),
]
#: More than 64 rows: none spills at capability 9.0. The smaller ones share a multiprocessor, so that one program's
#: products may hide another's unpacking.
LARGE = [
    *(MANY._replace(splits=splits) for splits in (1, 2, 4)),
    *(Tile(64, 128, 64, 8, 3, splits=splits) for splits in (1, 2, 4)),
    *(Tile(64, 64, 64, 4, 4, splits=splits) for splits in (1, 2, 4)),
    *(Tile(128, 64, 64, 4, 4, splits=splits) for splits in (1, 2)),
    Tile(128, 128, 128, 8, 3),
    Tile(256, 64, 64, 8, 3),
    DENSE,
    DENSE._replace(outputs=16),
]


def named(plan: Plan) -> str:
    return type(plan).__name__.lower() + " " + "-".join(str(int(part)) for part in plan)


def plans(rows: int) -> list[Plan]:
    """Those worth measuring for so many rows."""
    if rows <= 8:
        few: list[Plan] = [Few(8, *rest) for rest in EIGHT] + [Few(8, *rest, early=True) for rest in EARLY]
        few += [Direct(*rest) for rest in DIRECT]
        return [*few, *([OneRow(*rest) for rest in ONE] if rows == 1 else [PADDED])]
    if rows <= 16:
        few = [Few(16, *rest) for rest in SIXTEEN] + [Few(8, *rest) for rest in EIGHT[7:12]]
        return [
            *few,
            Few(16, 32, 4, 4, 3, early=True),
            PADDED,
            Tile(16, 64, 128, 4, 4),
            Tile(16, 64, 128, 4, 4, splits=4),
        ]
    if rows > 64:
        return LARGE
    few = [Few(32, *rest) for rest in THIRTY_TWO] + [Few(16, 32, 4, 4, 3), Few(16, 32, 8, 8, 3)]
    return [*few, Few(32, 32, 4, 4, 2, early=True), *TILES]


def cases(quick: bool) -> Iterator[Case]:
    shapes = QUICK_SHAPES if quick else {name: SHAPES[name] for name in ("7B attention", "7B up", "70B attention")}
    for rows in (1, 4, 16) if quick else (1, 4, 8, 16, 32, 64, 128, 512):
        for outputs, columns in shapes.values():
            found = iter(plans(rows))
            part = 0
            while some := list(islice(found, 7)):
                yield case(
                    rows, outputs, columns,
                    plans={named(plan): plan for plan in some}, peers=part == 0, options={"part": part},
                )  # fmt: skip
                part += 1


def small_cases() -> Iterator[Case]:
    for rows in (1, 5, 16, 20):
        yield case(rows, 80, 1024, plans={named(plan): plan for plan in plans(rows)})
