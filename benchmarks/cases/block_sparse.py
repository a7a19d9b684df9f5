"""block_sparse against bf16 and torch's own block-CSR product, by block size and density."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F

from cases import QUICK_SHAPES, SHAPES, Built, Call, Case, peer, rounding
from reference.kernels.block_sparse import Tile, block_sparse
from reference.sparse_tensors import BlockSparseTensor


def build(
    rows: int, outputs: int, columns: int, size: int, density: float, uneven: bool, plans: dict[str, Tile | None],
    device: torch.device, generator: torch.Generator, copies: int,
) -> Built:  # fmt: skip
    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device)

    share = torch.full((outputs // size, 1), density, device=device)
    if uneven:  # twice the density in half of the block rows, next to none in the others
        share = share * (2 - 2 * (torch.arange(outputs // size, device=device) % 2))[:, None]
    kept = torch.rand((outputs // size, columns // size), generator=generator, device=device) < share
    mask = kept.repeat_interleave(size, 0).repeat_interleave(size, 1)
    dense = (random(outputs, columns) * mask).bfloat16()
    x = random(copies, rows, columns).bfloat16()
    tensor = BlockSparseTensor.from_dense(dense, size)
    blocks = [tensor.blocks] + [tensor.blocks.clone() for _ in range(copies - 1)]
    denses = [dense] + [dense.clone() for _ in range(min(copies, 8) - 1)]

    def call(plan: Tile | None) -> Call:
        return lambda i: block_sparse(x[i], blocks[i], tensor.crow, tensor.column, tensor.order, plan=plan)

    calls = {name: call(plan) for name, plan in plans.items()}
    calls["bf16"] = lambda i: F.linear(x[i], denses[i % len(denses)])
    refused: dict[str, str] = {}

    def torchs() -> Call:
        theirs = [d.to_sparse_bsr((size, size)) for d in denses]
        return lambda i: F.linear(x[i], theirs[i % len(theirs)])

    if device.type == "cuda":
        peer(calls, refused, "torch block-CSR", torchs)
    return Built(calls, x[0].double() @ dense.double().T, rounding(torch.bfloat16), refused=refused)


def case(
    rows: int, outputs: int, columns: int, size: int, density: float, uneven: bool = False,
    plans: dict[str, Tile | None] | None = None,
) -> Case:  # fmt: skip
    weight = int(2 * outputs * columns * density)
    return Case(
        "block_sparse",
        {"M": rows, "N": outputs, "K": columns},
        {"block": size, "density": density} | ({"uneven": True} if uneven else {}),
        bytes=weight + 2 * rows * (columns + outputs),
        flops=int(2 * rows * outputs * columns * density),
        rotated=weight,
        build=partial(build, rows, outputs, columns, size, density, uneven, plans or {"block_sparse": None}),
    )


def cases(quick: bool) -> Iterator[Case]:
    for outputs, columns in (QUICK_SHAPES if quick else SHAPES).values():
        for size in (64,) if quick else (32, 64, 128):
            for density in (0.5, 0.1) if quick else (0.5, 0.3, 0.1):
                for rows in (1, 512) if quick else (1, 16, 512, 2048):
                    yield case(rows, outputs, columns, size, density)
    yield case(512, 4096, 4096, 64, 0.3, uneven=True)


def small_cases() -> Iterator[Case]:
    for size in (32, 64, 128):
        yield case(1, 2 * size, 3 * size, size, 0.5)
        yield case(20, 2 * size, 3 * size, size, 0.5, uneven=True)
