"""Compile kernels for GPUs that are not here, and read registers, spills and instructions from the machine code.

Run as a program, in a process of its own without TRITON_INTERPRET (a kernel decorated for the interpreter cannot be
compiled): prints one JSON line for each variant of `variants_*.py` and each capability it is for.

    PYTHONPATH=. python tests/kernels/ahead_of_time.py 80 90
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from variant import Variant

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
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


def describe(compiled, variant: Variant) -> dict[str, Any]:
    usage, code = machine_code(compiled)
    loop = longest_loop(code) or [text for _, text in code]
    loads = [text.split()[0] for text in loop if re.match(r"LDG(STS)?\b", text)]
    lanes = 32 * variant.warps
    return {
        "registers": usage["REG"],
        "stack": usage["STACK"],
        "spills": sum(bool(re.match(r"(LDL|STL)\b", text)) for _, text in code),
        "shared": compiled.metadata.shared,
        "warps": variant.warps,
        "matrix": sorted(set(re.findall(r"(?:wgmma\.mma_async|mma\.sync)\S*", compiled.asm["ptx"]))),
        "loads_16_bytes": sum(".128" in load for load in loads),
        "weight_loads_16_bytes": variant.stream / 16 / lanes,
        "instructions_per_weight": round(len(loop) * lanes / variant.weights, 3) if variant.weights else None,
        "most_instructions": variant.most_instructions,
    }


def variants() -> Iterator[Variant]:
    for file in sorted(Path(__file__).parent.glob("variants_*.py")):
        yield from importlib.import_module(file.stem).variants()


if __name__ == "__main__":
    for variant in variants():
        for capability in map(int, sys.argv[1:]):
            if capability in variant.capabilities:
                compiled = compile_kernel(
                    variant.kernel, variant.types, variant.constants, set(variant.aligned), capability,
                    num_warps=variant.warps, num_stages=variant.stages,
                )  # fmt: skip
                row = {"name": variant.name, "capability": capability, "expected": variant.matrix.get(capability)}
                print(json.dumps(row | describe(compiled, variant)), flush=True)
