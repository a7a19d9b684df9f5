"""w8a8 beside torch._int_mm (integers only) and bfloat16; and quantisation plus product against bfloat16."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from cases import QUICK_SHAPES, SHAPES, Built, Call, Case, peer, rounding
from cases.w4a16 import dense_copies
from reference.kernels._scaled import Slim, Square
from reference.kernels.quantize_activations import quantize_activations
from reference.kernels.w8a8 import w8a8

#: Settings beside the module's own, to choose from.
SQUARES = [
    Square(128, 256, 128, 8, 8, 3, described=True),
    Square(128, 256, 128, 8, 8, 4, described=True),
    Square(128, 256, 128, 8, 8, 3),
    Square(128, 128, 128, 8, 8, 4, described=True),
    Square(256, 128, 128, 4, 8, 3, described=True),
    Square(128, 128, 128, 8, 4, 4),
]
SLIMS = {
    8: [Slim(8, 16, 256, 8, 8, 3), Slim(8, 32, 256, 4, 4, 3), Slim(8, 16, 128, 8, 8, 4), Slim(8, 32, 128, 4, 4, 4)],
    16: [Slim(16, 32, 256, 4, 4, 3), Slim(16, 16, 256, 4, 4, 3), Slim(16, 32, 128, 8, 8, 3)],
    64: [Slim(32, 32, 128, 4, 4, 3), Square(64, 64, 128, 1, 4, 4), Square(64, 64, 256, 1, 4, 3), Square(64, 32, 256, 1, 4, 4)],
}  # fmt: skip


def named(plan: Slim | Square) -> str:
    return type(plan).__name__.lower() + " " + "-".join(str(int(part)) for part in plan)


def plans(rows: int) -> list[Slim | Square]:
    for most, some in SLIMS.items():
        if rows <= most:
            return some
    return SQUARES if rows > 128 else [Square(128, 128, 128, 8, 8, 4), Square(128, 64, 128, 8, 4, 4), *SLIMS[64][1:3]]


def case(
    rows: int, outputs: int, columns: int, plans: dict[str, Slim | Square] | None = None, peers: bool = True
) -> Case:  # fmt: skip
    def build(device: torch.device, generator: torch.Generator, copies: int) -> Built:
        def integers(*shape: int) -> torch.Tensor:
            return torch.randint(-127, 128, shape, device=device, generator=generator, dtype=torch.int8)

        w = [integers(outputs, columns) for _ in range(copies)]
        many = min(copies, max(2, 2**28 // (rows * columns)))
        x = [integers(rows, columns) for _ in range(many)]
        floats = [
            torch.randn((rows, columns), device=device, generator=generator, dtype=torch.bfloat16) for _ in range(many)
        ]
        x_scale = torch.rand(rows, device=device, generator=generator) * 0.01 + 1e-3
        w_scale = torch.rand(outputs, device=device, generator=generator) * 0.01 + 1e-3
        bias = torch.randn(outputs, device=device, generator=generator, dtype=torch.bfloat16)
        expected = x[0].double() @ w[0].double().T
        expected = expected * x_scale.double()[:, None] * w_scale.double() + bias.double()

        def ours(plan: Slim | Square | None) -> Call:
            return lambda i: w8a8(x[i % many], w[i], x_scale, w_scale, bias, plan=plan)

        def both(i: int) -> torch.Tensor:
            codes, scale = quantize_activations(floats[i % many])
            return w8a8(codes, w[i], scale, w_scale, bias)

        calls: dict[str, Call] = {"w8a8": ours(None)}
        calls |= {f"w8a8 {name}": ours(plan) for name, plan in (plans or {}).items()}
        refused: dict[str, str] = {}
        if not peers:
            return Built(calls, expected, rounding(torch.bfloat16))
        calls["quantize + w8a8"] = both
        dense = dense_copies((w[0].float() * w_scale[:, None]).bfloat16(), copies, generator)
        calls["bfloat16"] = lambda i: F.linear(floats[i % many], dense[i % len(dense)], bias)
        peer(calls, refused, "int_mm", lambda: lambda i: torch._int_mm(x[i % many], w[i].T))
        # Peers that compute something else are compared with nothing: their bound lets every finite result pass.
        anything = float("1e30")
        return Built(
            calls, expected, rounding(torch.bfloat16),
            {"quantize + w8a8": anything, "bfloat16": anything, "int_mm": anything}, refused,
        )  # fmt: skip

    return Case(
        kernel="w8a8",
        shape={"M": rows, "N": outputs, "K": columns},
        options={},
        bytes=outputs * columns + rows * columns + 4 * (rows + outputs) + 2 * outputs + 2 * rows * outputs,
        flops=2 * rows * outputs * columns,
        rotated=outputs * columns,
        build=build,
    )


def cases(quick: bool) -> Iterator[Case]:
    for name, (outputs, columns) in (QUICK_SHAPES if quick else SHAPES).items():
        if not quick and name not in ("7B attention", "7B up", "70B attention"):
            continue
        for rows in (1, 16, 4096) if quick else (1, 8, 16, 64, 128, 256, 1024, 4096):
            yield case(rows, outputs, columns)
    if not quick:
        yield case(8192, 8192, 8192)


def small_cases() -> Iterator[Case]:
    for rows in (1, 12, 70, 300):
        yield case(rows, 80, 512)
