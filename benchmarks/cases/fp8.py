"""e4m3 products beside torch's scaled_mm and bfloat16."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from cases import Built, Call, Case, peer, rounding
from cases.w4a16 import dense_copies
from cases.w8a8 import named
from reference.kernels._scaled import Slim, Square
from reference.kernels.fp8 import fp8

SETTINGS = [
    Square(128, 128, 128, 8, 8, 3, described=True),
    Square(128, 128, 128, 8, 8, 4),
    Square(128, 128, 128, 8, 4, 3),
]


def case(rows: int, outputs: int, columns: int, settings: tuple[Slim | Square, ...] = ()) -> Case:
    def build(device: torch.device, generator: torch.Generator, copies: int) -> Built:
        def numbers(*shape: int) -> torch.Tensor:
            return torch.randn(shape, device=device, generator=generator).to(torch.float8_e4m3fn)

        w = [numbers(outputs, columns) for _ in range(copies)]
        x = [numbers(rows, columns) for _ in range(min(copies, 4))]
        x_scale = torch.rand(rows, device=device, generator=generator) * 0.01 + 1e-3
        w_scale = torch.rand(outputs, device=device, generator=generator) * 0.01 + 1e-3
        expected = (x[0].double() @ w[0].double().T) * x_scale.double()[:, None] * w_scale.double()

        def ours(plan: Slim | Square | None) -> Call:
            return lambda i: fp8(x[i % len(x)], w[i], x_scale, w_scale, plan=plan)

        calls: dict[str, Call] = {"fp8": ours(None)}
        calls |= {f"fp8 {named(plan)}": ours(plan) for plan in settings}
        refused: dict[str, str] = {}
        floats = x[0].bfloat16() * 0.01
        dense = dense_copies(w[0].bfloat16(), copies, generator)
        calls["bfloat16"] = lambda i: F.linear(floats, dense[i % len(dense)])
        if device.type == "cuda":
            peer(
                calls, refused, "scaled_mm",
                lambda: lambda i: torch._scaled_mm(
                    x[i % len(x)], w[i].T, x_scale[:, None], w_scale[None, :], out_dtype=torch.bfloat16
                ),
            )  # fmt: skip
        return Built(calls, expected, rounding(torch.bfloat16), {"bfloat16": 1e30, "scaled_mm": 2e-2}, refused)

    return Case(
        kernel="fp8",
        shape={"M": rows, "N": outputs, "K": columns},
        options={},
        bytes=outputs * columns + rows * columns + 4 * (rows + outputs) + 2 * rows * outputs,
        flops=2 * rows * outputs * columns,
        rotated=outputs * columns,
        build=build,
    )


def cases(quick: bool) -> Iterator[Case]:
    for rows in (1, 4096) if quick else (1, 16, 64, 256, 4096):
        yield case(rows, 4096, 4096, settings=tuple(SETTINGS) if rows >= 4096 else ())
    if not quick:
        yield case(8192, 8192, 8192, settings=tuple(SETTINGS))


def small_cases() -> Iterator[Case]:
    for rows in (1, 70):
        yield case(rows, 80, 512)
