"""w4a16 beside bfloat16, torch's own 4-bit kernel and gemlite, on the layers of 7B, 13B and 70B models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cases import QUICK_SHAPES, SHAPES, Built, Call, Case, peer, rounding
from reference.kernels.w4a16 import Plan, w4a16

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
ALL_ROWS = ("7B attention", "7B up", "70B attention")


def random_words(shape: Sequence[int], device: torch.device, generator: torch.Generator) -> Tensor:
    return torch.randint(-(2**31), 2**31, tuple(shape), device=device, generator=generator, dtype=torch.int64).int()


def unpack(words: Tensor, bits: int) -> Tensor:
    """int32 ``[N, W]`` to codes uint8 ``[N, 32 W / bits]``."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=words.device)
    return ((words[:, :, None] >> shifts) & (2**bits - 1)).flatten(1).to(torch.uint8)


def dense_copies(first: Tensor, copies: int, generator: torch.Generator) -> list[Tensor]:
    """Copies of a dense weight for a peer: enough to exceed the cache, fewer than of the packed one."""
    count = max(1, min(copies, 2 + copies // 3))
    return [
        first,
        *(
            torch.randn(first.shape, device=first.device, generator=generator, dtype=first.dtype)
            for _ in range(1, count)
        ),
    ]


def case(
    rows: int,
    outputs: int,
    columns: int,
    *,
    group: int = 128,
    bits: int = 4,
    zeros: bool = True,
    dtype: torch.dtype = torch.bfloat16,
    plans: dict[str, Plan] | None = None,
    peers: bool = True,
    options: dict[str, object] | None = None,
) -> Case:
    """One product; ``plans`` are further calls of our kernel, with other settings."""
    groups = columns // group
    weight_bytes = outputs * columns * bits // 8 + (3 if zeros else 2) * outputs * groups

    def build(device: torch.device, generator: torch.Generator, copies: int) -> Built:
        words = [random_words((outputs, columns * bits // 32), device, generator) for _ in range(copies)]
        scales = [
            (torch.rand((outputs, groups), device=device, generator=generator) * 0.01 + 0.001).to(dtype)
            for _ in range(copies)
        ]
        zero_points: list[Tensor | None] = [
            torch.randint(0, 2**bits, (outputs, groups), device=device, generator=generator, dtype=torch.uint8)
            if zeros
            else None
            for _ in range(copies)
        ]
        x = torch.randn((copies, rows, columns), device=device, generator=generator).to(dtype)
        codes = unpack(words[0], bits)
        first_zero = zero_points[0]
        z = torch.full_like(scales[0], 2 ** (bits - 1)) if first_zero is None else first_zero
        weight = (codes.double() - z.double().repeat_interleave(group, 1)) * scales[0].double().repeat_interleave(
            group, 1
        )
        expected = x[0].double() @ weight.T

        def ours(plan: Plan | None) -> Call:
            return lambda i: w4a16(x[i], words[i], scales[i], zero_points[i], group_size=group, bits=bits, plan=plan)

        calls: dict[str, Call] = {"w4a16": ours(None)}
        calls |= {f"w4a16 {name}": ours(plan) for name, plan in (plans or {}).items()}
        refused: dict[str, str] = {}
        if peers:
            dense = dense_copies(weight.to(dtype), copies, generator)
            calls[str(dtype).removeprefix("torch.")] = lambda i: F.linear(x[i], dense[i % len(dense)])
            if bits == 4 and zeros and dtype == torch.bfloat16:
                stored = (words, scales, zero_points)
                peer(calls, refused, "int4pack_mm", lambda: int4pack(x, stored, group))
                peer(calls, refused, "gemlite", lambda: gemlite(x, stored, group))
        bound = rounding(dtype)
        return Built(
            calls, expected, bound, {"int4pack_mm": 2e-2, "gemlite": 2e-2, "bfloat16": 2e-2, "float16": 2e-3}, refused
        )

    return Case(
        kernel="w4a16",
        shape={"M": rows, "N": outputs, "K": columns},
        options={"group": group, "bits": bits, "zeros": zeros, "dtype": str(dtype).removeprefix("torch.")}
        | (options or {}),
        bytes=weight_bytes + 2 * rows * (columns + outputs),
        flops=2 * rows * outputs * columns,
        rotated=weight_bytes,
        build=build,
    )


Stored = tuple[list[Tensor], list[Tensor], list]


def int4pack(x: Tensor, stored: Stored, group: int) -> Call:
    """torch's kernel: W = (u - 8) s + z with z in units of the weight; even columns in the high nibble of a byte."""
    made = []
    for words, scale, zero_point in zip(*stored, strict=True):
        codes = unpack(words, 4)
        nibbles = (codes[:, ::2] << 4 | codes[:, 1::2]).contiguous()
        shift = (8 - zero_point.float()) * scale.float()
        both = torch.stack((scale.float(), shift), -1).transpose(0, 1).contiguous().bfloat16()
        made.append((torch.ops.aten._convert_weight_to_int4pack(nibbles, 8), both))
    return lambda i: torch.ops.aten._weight_int4pack_mm(x[i], made[i][0], group, made[i][1])


def gemlite(x: Tensor, stored: Stored, group: int) -> Call:
    """gemlite's layer with the settings that it ships for this card."""
    from gemlite import DType, GemLiteLinearTriton

    layers: list[Callable[[Tensor], Tensor]] = []
    for words, scale, zero_point in zip(*stored, strict=True):
        codes = unpack(words, 4)
        layer = GemLiteLinearTriton(
            4,
            group_size=group,
            in_features=codes.shape[1],
            out_features=codes.shape[0],
            input_dtype=DType.BF16,
            output_dtype=DType.BF16,
        )
        layer.pack(codes, scale, zero_point.to(scale.dtype), None)
        layers.append(layer)
    return lambda i: layers[i](x[i])


def cases(quick: bool) -> Iterator[Case]:
    for name, (outputs, columns) in (QUICK_SHAPES if quick else SHAPES).items():
        for rows in (1, 4, 16, 64) if quick else ROWS if name in ALL_ROWS else (1, 16, 128):
            yield case(rows, outputs, columns)
    outputs, columns = SHAPES["7B up"]
    for rows in (1, 16):
        yield case(rows, outputs, columns, group=64)
        yield case(rows, outputs, columns, zeros=False, dtype=torch.float16)
        yield case(rows, outputs, columns, bits=2, group=128)


def small_cases() -> Iterator[Case]:
    for rows in (1, 5, 16, 20):
        yield case(rows, 48, 1024)
    yield case(3, 48, 512, bits=2, zeros=False, dtype=torch.float16)
    yield case(1, 48, 512, group=64)
