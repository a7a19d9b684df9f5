"""Compile kernels for GPUs that are not here, and read registers, spills and instructions from the machine code.

Run as a program, in a process of its own without TRITON_INTERPRET (a kernel decorated for the interpreter cannot be
compiled): prints one JSON line per variant of w4a16.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from reference.kernels import w4a16

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([^;]+);")


def compile_kernel(kernel, types: dict[str, str], constants: dict[str, Any], aligned: set[str], capability: int, **how):
    """``aligned``: pointers and sizes that are multiples of 16, as Triton finds by itself at a launch."""
    signature = {p.name: "constexpr" if p.name in constants else types[p.name] for p in kernel.params}
    attributes = {
        (i,): [["tt.divisibility", 16]] for i, name in enumerate(signature) if name in aligned - set(constants)
    }
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=how)


def machine_code(compiled) -> tuple[dict[str, int], list[tuple[int, str]]]:
    """Resources as ptxas reports them, and the instructions with their addresses."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [TOOLS / "cuobjdump", "-res-usage", "-sass", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = {name: int(value) for name, value in re.findall(r"(REG|STACK):(\d+)", text)}
    return usage, [(int(address, 16), code.strip()) for address, code in INSTRUCTION.findall(text)]


def longest_loop(code: list[tuple[int, str]]) -> list[str]:
    """Instructions from the target of a backward branch to the branch."""
    loops: list[list[str]] = [[]]
    for address, text in code:
        target = re.search(r"^BRA.*0x([0-9a-f]+)", text)
        if target and int(target[1], 16) < address:
            loops.append([t for a, t in code if int(target[1], 16) <= a <= address])
    return max(loops, key=len)


def describe(compiled, weights_per_lane: float) -> dict[str, Any]:
    usage, code = machine_code(compiled)
    loop = longest_loop(code)
    loads = [text.split()[0] for text in loop if re.match(r"LDG(STS)?\b", text)]
    return {
        "registers": usage["REG"],
        "stack": usage["STACK"],
        "spills": sum(bool(re.match(r"(LDL|STL)\b", text)) for _, text in code),
        "shared": compiled.metadata.shared,
        "matrix": sorted(set(re.findall(r"(?:wgmma\.mma_async|mma\.sync)\S*", compiled.asm["ptx"]))),
        "loads_16_bytes": sum(".128" in load for load in loads),
        "loads_4_or_8_bytes": sum(not re.search(r"\.128|\.[US](8|16)\b", load) for load in loads),
        "instructions_per_weight": round(len(loop) / weights_per_lane, 3) if weights_per_lane else None,
    }


def w4a16_variants(capability: int) -> Iterator[dict[str, Any]]:
    columns = 4096
    types = {"packed": "*i32", "scale": "*bf16", "zero_point": "*u8"}
    types |= dict.fromkeys(("M", "N", "K", "WORDS", "GROUPS", "STRIDE", "BLOCKS"), "i32")
    aligned = {"x", "packed", "scale", "zero_point", "y", "N", "K", "WORDS", "STRIDE"}
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    for rows, dtype, group_size, zeros in [
        *((1, bf16, 128, True), (1, bf16, 128, False), (1, fp16, columns, True), (1, fp32, 128, True)),
        *((16, bf16, 128, True), (16, bf16, 128, False), (16, bf16, 32, True), (16, fp32, 128, True)),
        *((64, bf16, 128, True), (512, bf16, 128, True), (512, fp16, columns, True)),
    ]:
        constants: dict[str, Any] = {"G": group_size} | ({} if zeros else {"zero_point": None})
        if rows == 1:
            kernel, warps, stages = w4a16._one_row, w4a16.ONE_ROW_WARPS, w4a16.ONE_ROW_STAGES
            quads = w4a16.quads_for(columns)
            constants |= {"OUTPUTS": w4a16.ONE_ROW_OUTPUTS, "QUADS": quads, "STAGES": stages}
            block = w4a16.ONE_ROW_OUTPUTS * quads * w4a16.QUAD
        else:
            tile = w4a16.tile_for(rows, columns, group_size, dtype)
            kernel, warps, stages = w4a16._tile, tile.warps, tile.stages
            constants |= {"ROWS": tile.rows, "OUTPUTS": tile.outputs, "COLUMNS": tile.columns}
            block = tile.outputs * tile.columns
        pointers = {"x": POINTERS[dtype], "y": POINTERS[dtype]}
        compiled = compile_kernel(
            kernel, types | pointers, constants, aligned, capability, num_warps=warps, num_stages=stages
        )
        lanes = 32 * warps
        yield {
            "capability": capability,
            "rows": rows,
            "dtype": str(dtype).removeprefix("torch."),
            "group_size": "row" if group_size == columns else group_size,
            "zeros": zeros,
            "weight_loads_16_bytes": block / 2 / 16 / lanes,
        } | describe(compiled, block / lanes)


if __name__ == "__main__":
    for capability in map(int, sys.argv[1:]):
        for variant in w4a16_variants(capability):
            print(json.dumps(variant), flush=True)
