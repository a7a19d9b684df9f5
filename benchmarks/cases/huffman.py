"""huffman: bf16 weights from coded exponents, bit for bit, by length of chunks and of code words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch

from cases import QUICK_SHAPES, SHAPES, Built, Call, Case
from reference.coding.resident import ResidentTensor
from reference.kernels.huffman import LANES, Lanes, huffman


def build(
    shape: tuple[int, int], chunk: int, max_length: int, plans: dict[str, Lanes],
    device: torch.device, generator: torch.Generator, copies: int,
) -> Built:  # fmt: skip
    weight = (torch.randn(shape, generator=generator, device=device) * 0.02).bfloat16()
    first = ResidentTensor.from_tensor(weight, device, chunk=chunk, max_length=max_length)
    parts = (first.words, first.starts, first.table, first.raw)
    tensors = [parts] + [tuple(part.clone() for part in parts) for _ in range(copies - 1)]
    kept: dict[int, torch.Tensor] = {}  # so that each copy writes to memory of its own

    def call(plan: Lanes) -> Call:
        def decode(i: int) -> torch.Tensor:
            kept[i] = huffman(*tensors[i], symbols=math.prod(shape), chunk=chunk, plan=plan)[0]
            return kept[i].view(torch.int16)

        return decode

    calls = {name: call(plan) for name, plan in plans.items()}
    out = [torch.empty_like(weight) for _ in range(min(copies, 4))]
    calls["bf16 copy"] = lambda i: out[i % len(out)].copy_(weight).view(torch.int16).view(-1)
    return Built(calls, weight.view(torch.int16).view(-1), 0.0)


def case(
    outputs: int, columns: int, chunk: int = 256, max_length: int = 10, plans: dict[str, Lanes] | None = None
) -> Case:
    n = outputs * columns
    coded = n * 2.62 / 8 + 6 * n / chunk  # of a normal distribution's exponents
    return Case(
        "huffman",
        {"N": outputs, "K": columns},
        {"chunk": chunk, "max_length": max_length},
        bytes=int(coded) + 3 * n,
        flops=0,
        rotated=int(coded) + n,
        build=partial(build, (outputs, columns), chunk, max_length, plans or {"huffman": LANES}),
    )


def cases(quick: bool) -> Iterator[Case]:
    for outputs, columns in (QUICK_SHAPES if quick else SHAPES).values():
        yield case(outputs, columns)
        if not quick:
            yield case(outputs, columns, chunk=1024)


def small_cases() -> Iterator[Case]:
    yield case(20, 52, chunk=64, max_length=8)
    yield case(7, 31, chunk=32, max_length=12)
