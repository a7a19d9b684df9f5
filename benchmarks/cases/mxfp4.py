"""MXFP4 weights beside bfloat16."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from cases import Built, Call, Case, rounding
from cases.w4a16 import dense_copies
from reference.kernels.mxfp4 import mxfp4

VALUES = (0, 0.5, 1, 1.5, 2, 3, 4, 6)


def case(rows: int, outputs: int, columns: int) -> Case:
    weight_bytes = outputs * columns // 2 + outputs * columns // 32

    def build(device: torch.device, generator: torch.Generator, copies: int) -> Built:
        def some(low: int, high: int, *shape: int) -> torch.Tensor:
            return torch.randint(low, high, shape, device=device, generator=generator, dtype=torch.uint8)

        packed = [some(0, 256, outputs, columns // 2) for _ in range(copies)]
        scale = [some(115, 125, outputs, columns // 32) for _ in range(copies)]
        x = torch.randn((copies, rows, columns), device=device, generator=generator).bfloat16()
        table = torch.tensor([*VALUES, *(-v for v in VALUES)], dtype=torch.float64, device=device)
        codes = torch.stack((packed[0] & 15, packed[0] >> 4), -1).flatten(1)
        weight = table[codes.int()] * torch.exp2(scale[0].double() - 127).repeat_interleave(32, 1)
        dense = dense_copies(weight.bfloat16(), copies, generator)
        calls: dict[str, Call] = {
            "mxfp4": lambda i: mxfp4(x[i], packed[i], scale[i]),
            "bfloat16": lambda i: F.linear(x[i], dense[i % len(dense)]),
        }
        return Built(calls, x[0].double() @ weight.T, rounding(torch.bfloat16), {"bfloat16": 2e-2})

    return Case(
        kernel="mxfp4",
        shape={"M": rows, "N": outputs, "K": columns},
        options={},
        bytes=weight_bytes + 2 * rows * (columns + outputs),
        flops=2 * rows * outputs * columns,
        rotated=weight_bytes,
        build=build,
    )


def cases(quick: bool) -> Iterator[Case]:
    for rows in (1, 16) if quick else (1, 16, 64, 512):
        yield case(rows, 11008, 4096)


def small_cases() -> Iterator[Case]:
    for rows in (1, 20):
        yield case(rows, 80, 512)
