"""hadamard against a product with the dense matrix, torch's butterflies, and a copy."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from cases import Built, Call, Case, rounding
from reference.kernels.hadamard import Plan, hadamard
from reference.quantization.hadamard import matrix


def butterflies(x: torch.Tensor) -> torch.Tensor:
    """log2(n) passes in fp32 through memory, as `reference.quantization.hadamard` does it on a CPU."""
    n, y = x.shape[-1], x.float()
    for bit in range(n.bit_length() - 1):
        first, second = y.reshape(-1, 2, 2**bit).unbind(1)
        y = torch.stack((first + second, first - second), dim=1)
    return (y.reshape(x.shape) / n**0.5).to(x.dtype)


def build(
    rows: int, n: int, dtype: torch.dtype, plans: dict[str, Plan | None],
    device: torch.device, generator: torch.Generator, copies: int,
) -> Built:  # fmt: skip
    x = torch.randn((copies, rows, n), generator=generator, device=device).to(dtype)
    dense = matrix(n).to(device)
    kept: dict[int, torch.Tensor] = {}  # so that each copy writes to memory of its own

    def keep(call: Call) -> Call:
        def kept_call(i: int) -> torch.Tensor:
            kept[i] = call(i)
            return kept[i]

        return kept_call

    calls = {name: keep(lambda i, plan=plan: hadamard(x[i], plan=plan)) for name, plan in plans.items()}
    dense_there = dense.to(dtype)
    calls["dense"] = keep(lambda i: x[i] @ dense_there)
    calls["butterflies"] = keep(lambda i: butterflies(x[i]))
    bounds = {"dense": 4 * rounding(dtype), "butterflies": 2 * rounding(dtype)}
    return Built(calls, x[0].double() @ dense, rounding(dtype), bounds)


def case(rows: int, n: int, dtype: torch.dtype = torch.bfloat16, plans: dict[str, Plan | None] | None = None) -> Case:
    return Case(
        "hadamard",
        {"M": rows, "n": n},
        {"dtype": str(dtype).removeprefix("torch.")},
        bytes=2 * rows * n * dtype.itemsize,
        flops=rows * n * (n.bit_length() - 1),  # additions of the fast transform
        rotated=rows * n * dtype.itemsize,
        build=partial(build, rows, n, dtype, plans or {"hadamard": None}),
    )


def cases(quick: bool) -> Iterator[Case]:
    for n in (128, 4096) if quick else (64, 128, 1024, 4096, 8192):
        for rows in (2**23 // n,) if quick else (2**17 // n, 2**23 // n, 2**25 // n):
            yield case(rows, n)
    if not quick:
        yield case(2**23 // 4096, 4096, torch.float16)
        yield case(2**23 // 4096, 4096, torch.float32)


def small_cases() -> Iterator[Case]:
    for n in (2, 64, 256, 1024):
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            yield case(5, n, dtype)
