"""Quantisation of activations, alone and behind RMSNorm, beside torch's operations and a plain copy."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from cases import Built, Call, Case, peer
from reference.kernels.quantize_activations import quantize_activations

EPSILON = 1e-6


def case(rows: int, columns: int, norm: bool, warps: tuple[int, ...] = ()) -> Case:
    def build(device: torch.device, generator: torch.Generator, copies: int) -> Built:
        x = [
            torch.randn((rows, columns), device=device, generator=generator, dtype=torch.bfloat16)
            for _ in range(copies)
        ]
        gain = torch.rand(columns, device=device, generator=generator).bfloat16() + 0.5

        def ours(warps: int | None) -> Call:
            def call(i: int) -> tuple[Tensor, Tensor]:
                return quantize_activations(x[i], norm=gain if norm else None, epsilon=EPSILON, warps=warps)

            return call

        def plain(i: int) -> tuple[Tensor, Tensor]:
            values = x[i].float()
            if norm:
                values = values * torch.rsqrt(values.square().mean(1, keepdim=True) + EPSILON) * gain.float()
            absmax = values.abs().amax(1, keepdim=True).clamp(min=1e-5)
            step = absmax / torch.full_like(absmax, 127.5)  # by a number, torch multiplies by its reciprocal
            return torch.round(values / step).clamp_(-128, 127).to(torch.int8), step[:, 0]

        def compared(result: Tensor | tuple[Tensor, Tensor]) -> Tensor:
            if isinstance(result, Tensor):
                return result
            codes, scale = result
            return torch.cat([codes.float(), scale[:, None]], 1) if not norm else codes * scale[:, None]

        calls: dict[str, Call] = {"quantize_activations": ours(None)}
        calls |= {f"quantize_activations w{count}": ours(count) for count in warps}
        refused: dict[str, str] = {}
        if device.type == "cuda":
            peer(calls, refused, "torch operations", lambda: plain)
        target = torch.empty((3 * rows * columns // 2,), dtype=torch.uint8, device=device)
        source = torch.randint(0, 255, (copies, 3 * rows * columns // 2), device=device, dtype=torch.uint8)
        calls["copy of as many bytes"] = lambda i: target.copy_(source[i])
        if norm:  # float64 all the way: within half a step of each value
            values = x[0].double()
            expected = values * torch.rsqrt(values.square().mean(1, keepdim=True) + EPSILON) * gain.double()
            bound = 0.02
        else:
            expected, bound = compared(plain(0)), 0.0
        return Built(calls, expected, bound, {"copy of as many bytes": float("inf")}, refused, compared)

    return Case(
        kernel="quantize_activations",
        shape={"M": rows, "K": columns},
        options={"norm": norm},
        bytes=3 * rows * columns + 4 * rows + (2 * columns if norm else 0),
        flops=10 * rows * columns,
        rotated=3 * rows * columns,
        build=build,
    )


def cases(quick: bool) -> Iterator[Case]:
    sizes = [(4096, 4096), (16, 4096)] if quick else [(rows, k) for k in (4096, 8192, 11008) for rows in (1, 64, 4096)]
    for rows, columns in sizes:
        for norm in (False, True):
            yield case(rows, columns, norm, warps=(2, 4, 8) if rows >= 4096 else ())


def small_cases() -> Iterator[Case]:
    for norm in (False, True):
        yield case(6, 300, norm)
