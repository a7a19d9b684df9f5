"""Compile kernels for GPUs that are not here, and read registers, spills and instructions from the machine code.

Run as a program, in a process of its own without TRITON_INTERPRET (a kernel decorated for the interpreter cannot be
compiled): prints one JSON line for each variant of `variants_*.py` and each capability it is for.

    PYTHONPATH=. python tests/kernels/ahead_of_time.py 80 90
"""

from __future__ import annotations

import bisect
import importlib
import itertools
import json
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from variant import Variant

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([^;]+);")


def source_of(variant: Variant) -> ASTSource:
    kernel, constants = variant.kernel, variant.constants
    signature = {p.name: "constexpr" if p.name in constants else variant.types[p.name] for p in kernel.params}
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(signature)
        if name in variant.aligned and name not in constants
    }
    return ASTSource(kernel, signature, constants, attributes)


def compile_kernel(variant: Variant, capability: int):
    options = {"num_warps": variant.warps, "num_stages": variant.stages}
    return triton.compile(source_of(variant), target=GPUTarget("cuda", capability, 32), options=options)


def resources(cubin: bytes) -> dict[str, int]:
    """REG and STACK as ptxas reports them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [TOOLS / "cuobjdump", "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"(REG|STACK):(\d+)", text)}


def instructions(cubins: list[bytes], capability: int) -> list[list[tuple[int, str]]]:
    """Instructions of each kernel with their addresses.

    The disassembler takes half a second to start and no time to work, so it is given the code of all kernels in a row.
    """
    codes = [kernel_code(cubin) for cubin in cubins]
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(b"".join(codes))
        file.flush()
        command = [TOOLS / "nvdisasm", "-hex", "-b", f"SM{capability}{'a' if capability >= 90 else ''}", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ends = [*itertools.accumulate(map(len, codes))]
    found: list[list[tuple[int, str]]] = [[] for _ in codes]
    for address, code in INSTRUCTION.findall(text):
        found[bisect.bisect_right(ends, int(address, 16))].append((int(address, 16), code.strip()))
    return found


def kernel_code(cubin: bytes) -> bytes:
    """The one section of an ELF file whose name starts with .text."""
    (table,) = struct.unpack_from("<Q", cubin, 40)
    size, count, of_names = struct.unpack_from("<HHH", cubin, 58)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + i * size) for i in range(count)]
    names = sections[of_names][4]
    (code,) = (cubin[s[4] : s[4] + s[5]] for s in sections if cubin.startswith(b".text.", names + s[0]))
    return code


def longest_loop(code: list[tuple[int, str]]) -> list[str]:
    """Instructions from the target of a backward branch to the branch."""
    loops: list[list[str]] = [[]]
    for address, text in code:
        target = re.search(r"^BRA.*0x([0-9a-f]+)", text)
        if target and int(target[1], 16) < address:
            loops.append([t for a, t in code if int(target[1], 16) <= a <= address])
    return max(loops, key=len)


def describe(compiled, variant: Variant, code: list[tuple[int, str]]) -> dict[str, Any]:
    usage = resources(compiled.asm["cubin"])
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
        "loads_16_bytes_before": sum(bool(re.match(r"LDG\S*\.128", text)) for _, text in code)
        - sum(".128" in load and "STS" not in load for load in loads),
        "shared_steps": sum(bool(re.match(r"(LDS|STS|BAR|SHFL)", text)) for text in loop),
        "weight_loads_16_bytes": variant.stream / 16 / lanes,
        "instructions_per_weight": round(len(loop) * lanes / variant.weights, 3) if variant.weights else None,
        "most_instructions": variant.most_instructions,
    }


def variants() -> Iterator[Variant]:
    for file in sorted(Path(__file__).parent.glob("variants_*.py")):
        yield from importlib.import_module(file.stem).variants()


def compile_variants(chosen: Iterable[Variant], capability: int) -> list[dict[str, Any]]:
    """A row for each: what its machine code shows."""
    built = [(variant, compile_kernel(variant, capability)) for variant in chosen]
    codes = instructions([compiled.asm["cubin"] for _, compiled in built], capability)
    return [
        {"name": variant.name, "capability": capability, "expected": variant.matrix.get(capability)}
        | describe(compiled, variant, code)
        for (variant, compiled), code in zip(built, codes, strict=True)
    ]


if __name__ == "__main__":
    for number in map(int, sys.argv[1:]):
        for row in compile_variants((v for v in variants() if number in v.capabilities), number):
            print(json.dumps(row))
