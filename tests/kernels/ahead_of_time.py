"""Compile kernels for GPUs that are not here, and read registers, spills and instructions from the machine code.

Every launch of a public function is recorded instead of run: its arguments say, as in a real launch, which types,
alignments and constants the kernel is compiled for. Run as a program, in a process of its own without TRITON_INTERPRET (a
kernel decorated for the interpreter cannot be compiled); prints one JSON line per kernel that a variant launches:

    PYTHONPATH=. python tests/kernels/ahead_of_time.py 80 90 gfx942 [--all]
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from reference.kernels import (
    _checks,
    block_sparse,
    codebook,
    fp8,
    hadamard,
    huffman,
    mxfp4,
    quantize_activations,
    sparse_24,
    w4a16,
    w8a8,
)

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([^;]+);")
N = K = 4096

#: For a compute capability: registers and bytes of shared memory of a multiprocessor, bytes that one program may take,
#: most warps and programs. CUDA C++ programming guide, "Technical specifications per compute capability".
LIMITS = {
    80: (65_536, 167_936, 166_912, 64, 32),
    90: (65_536, 233_472, 232_448, 64, 32),
    100: (65_536, 233_472, 232_448, 64, 32),
    120: (65_536, 102_400, 101_376, 48, 24),
}


def target_of(name: str | int) -> GPUTarget:
    """``80``, ``90`` … for NVIDIA's capabilities, ``gfx942`` … for AMD's."""
    text = str(name)
    return GPUTarget("hip", text, 64) if text.startswith("gfx") else GPUTarget("cuda", int(text), 32)


@dataclass(frozen=True)
class Launch:
    """A kernel as it was launched: compiled, and on how many programs."""

    kernel: str
    constants: dict[str, Any]
    programs: int
    compiled: Any


@contextmanager
def recorded(target: GPUTarget) -> Iterator[list[Launch]]:
    """Launches within are compiled for ``target`` and listed; nothing runs. Tensors may lie on the CPU."""
    launches: list[Launch] = []
    backend = make_backend(target)
    original, interpreted = JITFunction.run, _checks.INTERPRETED
    capability = (target.arch // 10, target.arch % 10) if isinstance(target.arch, int) else (0, 0)

    def run(self, *args, grid, warmup, **options):
        options["debug"] = False
        bind = create_function_from_signature(self.signature, self.params, backend)
        bound, specialization, rest = bind(*args, **options)
        rest, signature, constants, attributes = self._pack_args(backend, options, bound, specialization, rest)
        source = ASTSource(self, signature, constants, attributes)
        compiled = triton.compile(source, target=target, options=rest.__dict__)
        names = list(signature)
        named = {names[path[0]]: value for path, value in constants.items() if len(path) == 1}
        launches.append(Launch(self.fn.__name__, named, math.prod(grid), compiled))

    def descriptors(x: torch.Tensor, columns: int) -> bool:
        return columns % 16 == 0 and capability >= (9, 0)

    places = [(module, "supports_descriptors") for module in (w8a8, fp8)]
    found = [getattr(*place) for place in places]
    try:
        JITFunction.run = run
        _checks.INTERPRETED = triton.language.constexpr(True)  # lets tensors on the CPU pass
        for place in places:
            setattr(*place, descriptors)
        yield launches
    finally:
        JITFunction.run, _checks.INTERPRETED = original, interpreted
        for place, value in zip(places, found, strict=True):
            setattr(*place, value)


def compile_kernel(kernel, types: dict[str, str], constants: dict[str, Any], aligned: set[str], capability: int, **how):
    """One kernel by hand. ``aligned``: pointers and sizes that are multiples of 16, as a launch finds by itself."""
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
    """What the machine code says; the loop's instructions are shared among ``weights_per_lane`` weights."""
    usage, code = machine_code(compiled)
    loop = longest_loop(code)
    loads = [text.split()[0] for text in loop if re.match(r"LDG(STS)?\b", text)]
    return {
        "registers": usage["REG"],
        "stack": usage["STACK"],
        "spills": sum(bool(re.match(r"(LDL|STL)\b", text)) for _, text in code),
        "shared": compiled.metadata.shared,
        "matrix": sorted(set(re.findall(r"(?:wgmma\.mma_async|mma\.sync|tcgen05\.mma)\S*", compiled.asm["ptx"]))),
        "loads_16_bytes": sum(".128" in load for load in loads),
        "loads_4_or_8_bytes": sum(not re.search(r"\.128|\.[US](8|16)\b", load) for load in loads),
        "instructions": len(loop),
        "instructions_per_weight": round(len(loop) / weights_per_lane, 3) if weights_per_lane else None,
    }


def describe_amd(compiled) -> dict[str, Any]:
    """The same of an AMD kernel, from its assembly; ``matrix`` are the matrix instructions."""
    text = compiled.asm["amdgcn"]
    number = {name: int(value) for name, value in re.findall(r"\.(\w+):\s+(\d+)", text)}
    return {
        "registers": number["vgpr_count"],
        "stack": number["private_segment_fixed_size"],
        "spills": number["vgpr_spill_count"],
        "shared": compiled.metadata.shared,
        "matrix": sorted(set(re.findall(r"v_mfma_\w+", text))),
    }


def occupancy(registers: int, shared: int, warps: int, capability: int) -> float:
    """Warps that a multiprocessor holds at once, over the most that it can.

    Registers are handed out to each warp in units of 256, from a quarter of the multiprocessor's, to which the warp
    belongs; each program takes 1 KiB of shared memory besides its own (CUDA C++ programming guide; CUDA's occupancy
    calculator).
    """
    all_registers, all_shared, _, most_warps, most_programs = LIMITS[capability]
    of_warp = -(-registers * 32 // 256) * 256
    by_registers = 4 * (all_registers // 4 // of_warp) // warps
    by_shared = all_shared // (shared + 1024)
    return min(by_registers, by_shared, most_warps // warps, most_programs) * warps / most_warps


@dataclass(frozen=True)
class Variant:
    """One way to launch a kernel.

    Attributes:
        kernel: module and public function.
        options: what distinguishes it.
        call: launches it.
        matrix: part of the matrix instruction's name for its types, or None where none is expected.
        turn: weights (or symbols, or values) that one program takes in one turn of its longest loop, from the constants.
        weight_bytes: bytes of packed weight in such a turn, to be loaded 16 at a time; 0: not asserted.
        core: compiled in every test run.
        least: least capability.
    """

    kernel: str
    options: dict[str, Any]
    call: Callable[[], Any]
    matrix: str | None
    turn: Callable[[dict[str, Any]], int]
    weight_bytes: Callable[[dict[str, Any]], float]
    core: bool = True
    least: int = 80


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype)  # no page of it is touched


INT8, INT16, INT32, UINT8 = torch.int8, torch.int16, torch.int32, torch.uint8
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
NAMES = {BF16: "bf16", FP16: "f16", FP32: "tf32"}


def w4a16_calls() -> Iterator[Variant]:
    for rows, dtype, group, zeros, bits in [
        *((1, BF16, 128, True, 4), (1, BF16, 128, False, 4), (1, FP16, K, True, 4), (1, FP32, 128, True, 4)),
        *((1, BF16, 64, True, 4), (1, BF16, 128, True, 2), (8, BF16, 128, True, 4)),
        *((16, BF16, 128, True, 4), (16, BF16, 128, False, 4), (16, BF16, 32, True, 4), (16, FP32, 128, True, 4)),
        *((64, BF16, 128, True, 4), (512, BF16, 128, True, 4), (512, FP16, K, True, 4)),
    ]:
        zero_point = empty(N, K // group, dtype=UINT8) if zeros else None
        weight = (empty(N, K * bits // 32, dtype=INT32), empty(N, K // group), zero_point)

        call = partial(w4a16.w4a16, empty(rows, K, dtype=dtype), *weight, group_size=group, bits=bits)

        options = {
            "rows": rows,
            "dtype": str(dtype).removeprefix("torch."),
            "group_size": "row" if group == K else group,
        }
        options |= {"zeros": zeros} | ({"bits": bits} if bits != 4 else {})

        def turn(c: dict[str, Any]) -> int:
            columns = c["RUNS"] * w4a16.RUN if "RUNS" in c else c["COLUMNS"] * c.get("BLOCKS", 1)
            return c["OUTPUTS"] * columns

        core = (rows, zeros, bits) in ((1, True, 4), (16, True, 4), (64, True, 4), (512, True, 4)) or rows == 1
        alone = rows == 1 and (dtype == FP32 or group == 64)  # no tensor cores
        yield Variant(
            "w4a16", options, call, None if alone else NAMES[dtype], turn, lambda c, b=bits: turn(c) * b / 8, core
        )


def eight_bit_calls() -> Iterator[Variant]:
    for name, module, dtype in (("w8a8", w8a8.w8a8, INT8), ("fp8", fp8.fp8, torch.float8_e4m3fn)):
        for rows in (1, 16, 64, 256, 4096):
            operands = empty(rows, K, dtype=dtype), empty(N, K, dtype=dtype)
            scales = empty(rows, dtype=FP32), empty(N, dtype=FP32)

            call = partial(module, *operands, *scales)

            def turn(c: dict[str, Any]) -> int:
                return c["OUTPUTS"] * c["COLUMNS"] * c.get("BLOCKS", 1)

            yield Variant(
                name, {"rows": rows}, call, "s8" if dtype == INT8 else "e4m3", turn, turn,
                core=rows in (1, 256), least=80 if dtype == INT8 else 90,
            )  # fmt: skip


def mxfp4_calls() -> Iterator[Variant]:
    weight = empty(N, K // 2, dtype=UINT8), empty(N, K // 32, dtype=UINT8)
    for rows in (16, 64, 512):

        def turn(c: dict[str, Any]) -> int:
            return c["OUTPUTS"] * c["COLUMNS"]

        yield Variant(
            "mxfp4", {"rows": rows}, partial(mxfp4.mxfp4, empty(rows, K), *weight), "bf16", turn,
            lambda c: turn(c) / 2, core=rows == 16,
        )  # fmt: skip


def quantize_calls() -> Iterator[Variant]:
    for columns in (1024, 4096, 11008):
        for norm in (None, empty(columns)):
            yield Variant(
                "quantize_activations", {"columns": columns, "norm": norm is not None},
                partial(quantize_activations.quantize_activations, empty(64, columns), norm=norm),
                None, lambda c: c["BLOCK"], lambda c: 0, core=columns == 4096 and norm is None,
            )  # fmt: skip


def codebook_calls() -> Iterator[Variant]:
    for bits in range(2, 9):
        weight = empty(N, K * bits // 32, dtype=INT32), empty(2**bits, dtype=FP32)
        for rows, dtype in ((1, BF16), (16, BF16), (512, BF16), (512, FP16), (1, FP32), (16, FP32)):
            if (rows == 512 and bits not in (4, 5)) or (dtype != BF16 and bits not in (5,)):
                continue

            def turn(c: dict[str, Any]) -> int:
                return c["OUTPUTS"] * c["COLUMNS"]

            def stream(c: dict[str, Any], bits: int = bits) -> int:
                return turn(c) // 8 * max(width for width in (8, 4, 2) if bits & width)  # the widest plane

            yield Variant(
                "codebook", {"bits": bits, "rows": rows, "dtype": str(dtype).removeprefix("torch.")},
                partial(codebook.codebook, empty(rows, K, dtype=dtype), *weight),
                None if rows == 1 else NAMES[dtype], turn, stream,
                core=dtype == BF16 and bits in (4, 5, 8) and rows < 512,
            )  # fmt: skip


def sparse_24_calls() -> Iterator[Variant]:
    for dtype in (BF16, FP16):
        weight = empty(N, K // 2, dtype=dtype), empty(N, K // 16, dtype=INT16)
        for rows in (1, 16, 512):

            def turn(c: dict[str, Any]) -> int:
                """Kept values; one group of four columns keeps two."""
                return c["OUTPUTS"] * c["BLOCK"] * 2 if "STAGES" in c else c["OUTPUTS"] * c["BLOCK"] // 2

            yield Variant(
                "sparse_24", {"rows": rows, "dtype": str(dtype).removeprefix("torch.")},
                partial(sparse_24.sparse_24, empty(rows, K, dtype=dtype), *weight),
                None if rows == 1 else NAMES[dtype], turn, lambda c: 2 * turn(c), core=dtype == BF16,
            )  # fmt: skip


def block_sparse_calls() -> Iterator[Variant]:
    for size in block_sparse.SIZES:
        stored = (N // size) * (K // size) // 4
        weight = (
            empty(stored, size, size),
            empty(N // size + 1, dtype=INT32),
            empty(stored, dtype=INT32),
            empty(N // size, dtype=INT32),
        )
        for rows in (16, 512):
            yield Variant(
                "block_sparse", {"block": size, "rows": rows},
                partial(block_sparse.block_sparse, empty(rows, K), *weight),
                "bf16", lambda c: c["SIZE"] ** 2, lambda c: 2 * c["SIZE"] ** 2, core=size == 64,
            )  # fmt: skip


def huffman_calls() -> Iterator[Variant]:
    symbols, chunk = 2**24, 256
    stream = empty(2**23, dtype=INT32), empty(symbols // chunk + 1, dtype=INT32)
    for bits, raw in ((8, True), (10, True), (12, False)):
        rest = (empty(2**bits, dtype=INT16), empty(symbols, dtype=UINT8) if raw else None)
        yield Variant(
            "huffman", {"table_bits": bits, "out": "bfloat16" if raw else "uint8"},
            partial(huffman.huffman, *stream, *rest, symbols=symbols, chunk=chunk),
            None, lambda c: 16 * c["LANES"], lambda c, raw=raw: 16 * c["LANES"] if raw else 0, core=bits == 10,
        )  # fmt: skip


def hadamard_calls() -> Iterator[Variant]:
    for n in (16, 128, 256, 1024, 2048, 4096, 8192):
        for dtype in (BF16, FP16, FP32):
            if (dtype == FP32 and n > 4096) or (dtype == FP16 and n != 4096):
                continue
            yield Variant(
                "hadamard", {"n": n, "dtype": str(dtype).removeprefix("torch.")},
                partial(hadamard.hadamard, empty(2**23 // n, n, dtype=dtype)),
                "bf16", lambda c: c["A"] * c["B"] if "A" in c else c["ROWS"] * c["SIDE"],
                lambda c, dtype=dtype: dtype.itemsize * (c["A"] * c["B"] if "A" in c else c["ROWS"] * c["SIDE"]),
                core=n in (128, 4096) and dtype == BF16,
            )  # fmt: skip
    yield Variant(
        "hadamard", {"n": 12 * 1024, "dtype": "bfloat16", "factor": 12},
        partial(hadamard.hadamard, empty(256, 12 * 1024), empty(12, 12, dtype=FP32)),
        "bf16", lambda c: c.get("A", 0) * c.get("B", 0), lambda c: 0, core=False,
    )  # fmt: skip


CALLS = (
    w4a16_calls, eight_bit_calls, mxfp4_calls, quantize_calls, codebook_calls, sparse_24_calls, block_sparse_calls,
    huffman_calls, hadamard_calls,
)  # fmt: skip


def measured(variant: Variant, name: str | int) -> Iterator[dict[str, Any]]:
    """One row for each kernel that a variant launches on ``name``."""
    target = target_of(name)
    nvidia = target.backend == "cuda"
    with recorded(target) as launches:
        variant.call()
    for launch in launches:
        warps = launch.compiled.metadata.num_warps
        lanes = 32 * warps if nvidia else 64 * warps
        turn = 0 if launch.kernel in ("add_splits", "_across") else variant.turn(launch.constants)
        row = {
            "kernel": variant.kernel, "target": target.arch, **variant.options, "launch": launch.kernel,
            "warps": warps, "stages": launch.compiled.metadata.num_stages, "programs": launch.programs,
        }  # fmt: skip
        if not nvidia:
            yield row | describe_amd(launch.compiled)
            continue
        found = describe(launch.compiled, turn / lanes)
        row |= found | {"occupancy": occupancy(found["registers"], found["shared"], warps, target.arch)}
        if turn:
            row["expected_matrix"] = variant.matrix
            row["weight_loads_16_bytes"] = variant.weight_bytes(launch.constants) / 16 / lanes
        yield row


def w4a16_variants(capability: int) -> Iterator[dict[str, Any]]:
    """Rows of w4a16 alone."""
    for variant in w4a16_calls():
        for row in measured(variant, capability):
            yield row | {"capability": capability}


def rows_of(targets: list[str], everything: bool, kernels: set[str]) -> Iterator[dict[str, Any]]:
    for name in targets:
        for calls in CALLS:
            for variant in calls():
                capability = target_of(name).arch if name.isdigit() else 80
                wanted = (everything or variant.core) and (not kernels or variant.kernel in kernels)
                if wanted and capability >= variant.least:
                    yield from measured(variant, name)


if __name__ == "__main__":
    words = sys.argv[1:]
    targets = [word for word in words if word.isdigit() or word.startswith("gfx")]
    for row in rows_of(targets, "--all" in words, {w for w in words if w not in targets and not w.startswith("-")}):
        print(json.dumps(row), flush=True)
