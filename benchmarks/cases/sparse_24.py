"""sparse_24 against bf16 and torch's own semi-structured product."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F

from cases import QUICK_SHAPES, SHAPES, SMALL, Built, Call, Case, peer, rounding
from reference.kernels.sparse_24 import Tile, sparse_24
from reference.sparse_tensors import SparseTensor


def build(
    rows: int, outputs: int, columns: int, plans: dict[str, Tile | None],
    device: torch.device, generator: torch.Generator, copies: int,
) -> Built:  # fmt: skip
    weight = torch.randn((outputs, columns), generator=generator, device=device)
    dropped = weight.abs().view(outputs, -1, 4).argsort(-1)[..., :2]
    dense = weight.view(outputs, -1, 4).scatter(-1, dropped, 0.0).view(outputs, columns).bfloat16()
    x = torch.randn((copies, rows, columns), generator=generator, device=device).bfloat16()
    tensor = SparseTensor.from_dense(dense)
    weights = [(tensor.values.clone(), tensor.positions.clone()) for _ in range(copies)]
    denses = [dense] + [dense.clone() for _ in range(min(copies, 8) - 1)]

    def call(plan: Tile | None) -> Call:
        return lambda i: sparse_24(x[i], *weights[i], plan=plan)

    calls = {name: call(plan) for name, plan in plans.items()}
    calls["bf16"] = lambda i: F.linear(x[i], denses[i % len(denses)])
    refused: dict[str, str] = {}

    def torchs() -> Call:
        theirs = [torch.sparse.to_sparse_semi_structured(d) for d in denses]
        return lambda i: F.linear(x[i], theirs[i % len(theirs)])

    if device.type == "cuda":
        peer(calls, refused, "torch 2:4", torchs)
    return Built(calls, x[0].double() @ dense.double().T, rounding(torch.bfloat16), refused=refused)


def case(rows: int, outputs: int, columns: int, plans: dict[str, Tile | None] | None = None) -> Case:
    weight = outputs * columns * 9 // 8
    return Case(
        "sparse_24",
        {"M": rows, "N": outputs, "K": columns},
        {},
        bytes=weight + 2 * rows * (columns + outputs),
        flops=2 * rows * outputs * columns,
        rotated=weight,
        build=partial(build, rows, outputs, columns, plans or {"sparse_24": None}),
    )


def cases(quick: bool) -> Iterator[Case]:
    for outputs, columns in (QUICK_SHAPES if quick else SHAPES).values():
        for rows in (1, 16, 128) if quick else (1, 4, 16, 64, 128, 512):
            yield case(rows, outputs, columns)


def small_cases() -> Iterator[Case]:
    yield case(1, SMALL["N"], SMALL["K"])
    yield case(SMALL["M"], SMALL["N"], SMALL["K"])
