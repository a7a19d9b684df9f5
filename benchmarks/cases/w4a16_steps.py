"""The five steps of the kernels chapter, one row of activations, beside the bfloat16 product."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from cases import Built, Call, Case, rounding
from cases.w4a16 import dense_copies, random_words, unpack
from reference.kernels.w4a16_steps import STEPS, step

SHAPES = [(4096, 4096), (11008, 4096), (8192, 8192)]
GROUP = 128


def case(outputs: int, columns: int) -> Case:
    """Step 5, w4a16 itself, comes first: it is what the others are compared with."""
    groups = columns // GROUP
    weight_bytes = outputs * columns // 2 + 3 * outputs * groups

    def build(device: torch.device, generator: torch.Generator, copies: int) -> Built:
        draw = {"device": device, "generator": generator}
        words = [random_words((outputs, columns // 8), device, generator) for _ in range(copies)]
        scales = [(torch.rand((outputs, groups), **draw) * 0.01 + 0.001).bfloat16() for _ in range(copies)]
        zeros = [torch.randint(0, 16, (outputs, groups), dtype=torch.uint8, **draw) for _ in range(copies)]
        x = torch.randn((copies, 1, columns), **draw).bfloat16()
        spread: list[Tensor] = [t.double().repeat_interleave(GROUP, 1) for t in (scales[0], zeros[0])]
        weight = spread[0] * (unpack(words[0], 4).double() - spread[1])
        dense = dense_copies(weight.bfloat16(), copies, generator)

        def call(number: int) -> Call:
            return lambda i: step(number, x[i], words[i], scales[i], zeros[i], group_size=GROUP)

        calls = {f"step {number}": call(number) for number in (5, *STEPS)}
        calls["bfloat16"] = lambda i: F.linear(x[i], dense[i % len(dense)])
        return Built(calls, x[0].double() @ weight.T, rounding(torch.bfloat16), {"bfloat16": 2e-2})

    return Case(
        kernel="w4a16_steps",
        shape={"M": 1, "N": outputs, "K": columns},
        options={"group": GROUP},
        bytes=weight_bytes + 2 * (columns + outputs),
        flops=2 * outputs * columns,
        rotated=weight_bytes,
        build=build,
    )


def cases(quick: bool) -> Iterator[Case]:
    for outputs, columns in SHAPES[:1] if quick else SHAPES:
        yield case(outputs, columns)


def small_cases() -> Iterator[Case]:
    yield case(32, 2048)
