"""codebook against bf16: weights as 2- to 8-bit indices into one table."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F

from cases import QUICK_SHAPES, SHAPES, SMALL, Built, Call, Case, rounding
from reference.coding.planes import pack_planes
from reference.kernels.codebook import Tile, codebook


def build(
    rows: int, outputs: int, columns: int, bits: int, plans: dict[str, Tile | None],
    device: torch.device, generator: torch.Generator, copies: int,
) -> Built:  # fmt: skip
    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device)

    codes = torch.randint(0, 2**bits, (outputs, columns), generator=generator, device=device, dtype=torch.int32)
    table, x = random(2**bits) * 0.02, random(copies, rows, columns).bfloat16()
    packed = pack_planes(codes, bits)
    weights = [packed] + [packed.clone() for _ in range(copies - 1)]
    dense = table.bfloat16()[codes.long()]
    denses = [dense] + [dense.clone() for _ in range(min(copies, 8) - 1)]

    def call(plan: Tile | None) -> Call:
        return lambda i: codebook(x[i], weights[i], table, plan=plan)

    calls = {name: call(plan) for name, plan in plans.items()}
    calls["bf16"] = lambda i: F.linear(x[i], denses[i % len(denses)])
    exact = (table if rows == 1 else table.bfloat16()).double()[codes.long()]
    bounds = {"bf16": 4 * rounding(torch.bfloat16)}  # its table is rounded
    return Built(calls, x[0].double() @ exact.T, rounding(torch.bfloat16), bounds)


def case(rows: int, outputs: int, columns: int, bits: int, plans: dict[str, Tile | None] | None = None) -> Case:
    weight = outputs * columns * bits // 8
    return Case(
        "codebook",
        {"M": rows, "N": outputs, "K": columns},
        {"bits": bits},
        bytes=weight + 4 * 2**bits + 2 * rows * (columns + outputs),
        flops=2 * rows * outputs * columns,
        rotated=weight,
        build=partial(build, rows, outputs, columns, bits, plans or {"codebook": None}),
    )


def cases(quick: bool) -> Iterator[Case]:
    for outputs, columns in (QUICK_SHAPES if quick else SHAPES).values():
        for bits in (4, 5, 8) if quick else (2, 3, 4, 5, 6, 8):
            for rows in (1, 16) if quick else (1, 16, 128):
                yield case(rows, outputs, columns, bits)


def small_cases() -> Iterator[Case]:
    for bits in range(2, 9):
        yield case(1, SMALL["N"], SMALL["K"], bits)
        yield case(SMALL["M"], SMALL["N"], SMALL["K"], bits)
