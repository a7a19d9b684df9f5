"""w4a16, w8a8, fp8, mxfp4 and quantize_activations, with each of their tuned settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton.language as tl
from variant import Variant

from reference.kernels import (
    _dense,
    _direct_rows,
    _few_rows,
    _many_rows,
    _one_row,
    _scaled,
    fp8,
    mxfp4,
    quantize_activations,
    w4a16,
    w8a8,
)

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
POINTERS = {BF16: "*bf16", FP16: "*fp16", FP32: "*fp32"}
MMA = {80: "mma.sync.aligned.m16n8k16", 90: "mma.sync.aligned.m16n8k16"}
WIDE = {80: "mma.sync.aligned.m16n8k16", 90: "wgmma.mma_async"}
COLUMNS = 4096
SIZES = dict.fromkeys(("M", "N", "K", "WORDS", "UNITS", "GROUPS", "STRIDE", "BLOCKS"), "i32")


#: Of the settings that `benchmarks/cases/w4a16_sweep.py` lets compete; no table names one.
CANDIDATES = [w4a16.Direct(16, 4, 1), w4a16.Direct(16, 4, 3), w4a16.Direct(32, 4, 1), w4a16.Direct(32, 4, 2)]


def of_w4a16() -> Iterator[Variant]:
    for plan in CANDIDATES:
        yield of_plan(1, 128, BF16, True, 4, plan)
    yield of_plan(1, 128, FP16, False, 4, CANDIDATES[1])
    tuned = {(most_rows == 1, plan) for most_rows, _, plan in w4a16.FEW_ROWS}
    tuned |= {(one, plan._replace(early=False)) for one, plan in tuned if isinstance(plan, w4a16.Few)}  # before 9.0
    for one, plan in sorted(tuned, key=str):
        yield of_plan(1 if one else plan[0], 128, BF16, True, 4, plan)
    for rows, dtype, group, zeros, bits in [
        *((1, BF16, 128, False, 4), (1, BF16, 128, True, 2), (1, FP16, COLUMNS, True, 4)),
        *((1, BF16, 64, True, 4), (1, FP32, 128, False, 4)),
        *((16, BF16, 64, True, 4), (16, BF16, 32, True, 4), (16, FP32, 128, True, 4)),
        *((64, BF16, 64, True, 4), (128, BF16, 128, True, 4), (128, FP16, COLUMNS, True, 4), (128, BF16, 128, True, 2)),
        *((512, BF16, 128, True, 4), (512, FP16, COLUMNS, False, 2), (512, FP32, 32, True, 4)),
    ]:
        plan = w4a16.plan_for(rows, COLUMNS, COLUMNS, group, dtype, bits)
        yield of_plan(rows, group, dtype, zeros, bits, plan)


def of_plan(rows: int, group: int, dtype: torch.dtype, zeros: bool, bits: int, plan: w4a16.Plan) -> Variant:
    if isinstance(plan, w4a16.Few):
        return few_rows(rows, group, dtype, zeros, bits, plan)
    if isinstance(plan, w4a16.Direct):
        return direct_rows(group, dtype, zeros, bits, plan)
    if isinstance(plan, w4a16.Dense):
        return dense(group, dtype, zeros, bits, plan)
    types = SIZES | {"packed": "*i32", "scale": "*bf16", "zero_point": "*u8"}
    types |= {"x": POINTERS[dtype], "y": POINTERS[dtype]}
    constants: dict[str, Any] = {"G": group} | ({} if zeros else {"zero_point": None})
    if isinstance(plan, w4a16.OneRow):
        kernel = _one_row.one_row
        constants |= {"OUTPUTS": plan.outputs, "RUNS": plan.runs, "STAGES": plan.stages, "EVEN": True}
        weights, limit, matrix = plan.outputs * plan.runs * w4a16.RUN, 4.7, {80: "", 90: ""}
    else:
        kernel = _many_rows.many_rows
        constants |= {"ROWS": plan.rows, "OUTPUTS": plan.outputs, "COLUMNS": plan.columns, "BITS": bits}
        weights, limit, matrix = plan.outputs * plan.columns, 0.0, {} if dtype == FP32 else WIDE
    aligned = {"x", "packed", "scale", "zero_point", "y", "N", "K", "WORDS", "STRIDE"}
    return Variant(
        f"w4a16 {describe(plan)} {POINTERS[dtype][1:]} {bits} bits group {group}{'' if zeros else ' symmetric'}",
        kernel, types, constants, frozenset(aligned), plan.warps, plan.stages,
        weights=weights, most_instructions=limit, stream=weights * bits // 8, matrix=matrix,
    )  # fmt: skip


def few_rows(rows: int, group: int, dtype: torch.dtype, zeros: bool, bits: int, few: w4a16.Few) -> Variant:
    constants: dict[str, Any] = {
        "BITS": bits, "G": group, "ROWS": few.rows, "OUTPUTS": few.outputs, "COLUMNS": w4a16.BLOCK,
        "BLOCKS": few.blocks, "STAGES": few.stages, "ONE": rows == 1, "EVEN": True, "EARLY": few.early,
    }  # fmt: skip
    types = SIZES | {"units": "*i32" if bits == 4 else "*i16", "scale": "*bf16", "zero_point": "*u8"}
    weights = few.outputs * few.blocks * w4a16.BLOCK
    return Variant(
        f"w4a16 {describe(few)} {'one row' if rows == 1 else 'rows'} {POINTERS[dtype][1:]} {bits} bits group {group}"
        f"{'' if zeros else ' symmetric'}",
        _few_rows.few_rows, types | {"x": POINTERS[dtype], "y": POINTERS[dtype]},
        constants | ({} if zeros else {"zero_point": None}),
        frozenset({"x", "units", "scale", "zero_point", "y", "N", "K", "UNITS", "STRIDE"}), few.warps, few.stages,
        weights=weights, most_instructions=4.0 if few.rows <= 8 else 5.0, stream=weights * bits // 8, matrix=MMA,
        capabilities=(90,) if few.early else (80, 90),
    )  # fmt: skip


def direct_rows(group: int, dtype: torch.dtype, zeros: bool, bits: int, plan: w4a16.Direct) -> Variant:
    constants: dict[str, Any] = {
        "BITS": bits, "G": group, "ROWS": w4a16.EIGHT, "OUTPUTS": plan.outputs, "BLOCKS": plan.blocks,
        "AHEAD": plan.ahead, "EVEN": True,
    }  # fmt: skip
    types = SIZES | {"units": "*i32" if bits == 4 else "*i16", "scale": "*bf16", "zero_point": "*u8"}
    weights = plan.outputs * plan.blocks * w4a16.BLOCK * plan.ahead  # the loop's body is so many turns
    return Variant(
        f"w4a16 {describe(plan)} {POINTERS[dtype][1:]} {bits} bits group {group}{'' if zeros else ' symmetric'}",
        _direct_rows.direct_rows, types | {"x": POINTERS[dtype], "y": POINTERS[dtype]},
        constants | ({} if zeros else {"zero_point": None}),
        frozenset({"x", "units", "scale", "zero_point", "y", "N", "K", "UNITS", "STRIDE"}), plan.blocks, 1,
        weights=weights, most_instructions=3.9, stream=weights * bits // 8, matrix=MMA,
    )  # fmt: skip


def dense(group: int, dtype: torch.dtype, zeros: bool, bits: int, plan: w4a16.Dense) -> Variant:
    constants: dict[str, Any] = {"BITS": bits, "G": group, "OUTPUTS": plan.outputs, "COLUMNS": plan.columns}
    types = SIZES | {"packed": "*i32", "scale": "*bf16", "zero_point": "*u8", "w": POINTERS[dtype]}
    stream = plan.outputs * plan.columns * bits // 8  # of short groups, or of 2 bits, less than 16 bytes a thread
    return Variant(
        f"w4a16 {describe(plan)} {POINTERS[dtype][1:]} {bits} bits group {group}{'' if zeros else ' symmetric'}",
        _dense.dense, types, constants | ({} if zeros else {"zero_point": None}),
        frozenset({"packed", "scale", "zero_point", "w", "N", "K", "WORDS"}), plan.warps, 3,
        stream=stream if stream >= 16 * 32 * plan.warps else 0, matrix={80: "", 90: ""},
    )  # fmt: skip


def of_scaled() -> Iterator[Variant]:
    integers, floats = "i8", "fp8e4nv"
    plans = [(integers, plan) for _, _, plan in w8a8.PLANS] + [(floats, plan) for _, plan in fp8.PLANS]
    for number, plan in plans:
        name = "w8a8" if number == integers else "fp8"
        total = tl.int32 if number == integers else tl.float32
        types = SIZES | {"x": f"*{number}", "w": f"*{number}", "x_scale": "*fp32", "w_scale": "*fp32", "bias": "*bf16"}
        types |= {"y": "*bf16"}
        constants: dict[str, Any] = {"x_zero": None, "w_sum": None, "SUM": total, "ROWS": plan.rows}
        constants |= {"OUTPUTS": plan.outputs, "COLUMNS": plan.columns}
        aligned = {"x", "w", "y", "N", "K", "STRIDE", "x_scale", "w_scale", "bias"}
        narrow = "mma.sync.aligned.m16n8k32" if number == integers else "mma.sync.aligned.m16n8k16"
        if isinstance(plan, _scaled.Slim):
            kernel = _scaled._slim
            constants |= {"BLOCKS": plan.blocks, "STAGES": plan.stages}
            stream = plan.outputs * plan.blocks * plan.columns
            matrix = {80: narrow, 90: narrow}
        else:
            kernel = _scaled._square
            constants |= {"SIDE": plan.side, "DESCRIBED": plan.described}
            stream = 0 if plan.described else plan.outputs * plan.columns
            matrix = {80: narrow, 90: "wgmma.mma_async"}
            if plan.described:
                types |= {
                    "x": f"tensordesc<{number}[{plan.rows},{plan.columns}]>",
                    "w": f"tensordesc<{number}[{plan.outputs},{plan.columns}]>",
                }
                aligned -= {"x", "w"}
        only_new = number == floats or (isinstance(plan, _scaled.Square) and plan.described)
        yield Variant(
            f"{name} {describe(plan)}", kernel, types, constants, frozenset(aligned), plan.warps, plan.stages,
            stream=stream, matrix=matrix, capabilities=(90,) if only_new else (80, 90),
        )  # fmt: skip


def of_mxfp4() -> Iterator[Variant]:
    types = SIZES | {"x": "*bf16", "words": "*i32", "scale": "*u8", "y": "*bf16"}
    aligned = frozenset({"x", "words", "scale", "y", "N", "K", "WORDS", "STRIDE"})
    for plan in (mxfp4.FEW, mxfp4.SOME, mxfp4.MANY):
        constants = {"ROWS": plan.rows, "OUTPUTS": plan.outputs, "COLUMNS": plan.columns}
        weights = plan.outputs * plan.columns
        yield Variant(
            f"mxfp4 {describe(plan)}", mxfp4._mxfp4, types, constants, aligned, plan.warps, plan.stages,
            weights=weights, most_instructions=10.0 if plan.rows <= 16 else 0.0, stream=weights // 2, matrix=WIDE,
        )  # fmt: skip


def of_quantize_activations() -> Iterator[Variant]:
    types = {"x": "*bf16", "gain": "*bf16", "codes": "*i8", "scale": "*fp32", "K": "i32", "STRIDE": "i32"}
    types |= {"steps": "fp32", "epsilon": "fp32"}
    for block in (4096, 8192, 16384):
        for norm in (False, True):
            yield Variant(
                f"quantize_activations {block} columns{' behind RMSNorm' if norm else ''}",
                quantize_activations._quantize, types,
                {"BLOCK": block, "LOWEST": -128, "HIGHEST": 127} | ({} if norm else {"gain": None}),
                frozenset({"x", "gain", "codes", "scale", "K", "STRIDE"}), max(1, min(16, block // 1024)), 3,
                stream=2 * block, matrix={80: "", 90: ""},
            )  # fmt: skip


def describe(plan: tuple) -> str:
    return type(plan).__name__.lower() + " " + "-".join(str(int(part)) for part in plan)


def variants() -> Iterator[Variant]:
    yield from of_w4a16()
    yield from of_scaled()
    yield from of_mxfp4()
    yield from of_quantize_activations()
