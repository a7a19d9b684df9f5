"""Registers, shared memory, instructions and occupancy of every kernel and tuned setting, compiled without a GPU.

    python studies/kernels_compiled.py      # about five minutes on one core

Writes ``book/data/kernels_compiled.json``. ``rows``: each variant of ``tests/kernels/variants_*.py`` for compute capabilities
8.0 and 9.0, as ptxas and the disassembler show it. ``resident`` is what one multiprocessor holds at once: programs = min of

    warps it has / warps of a program                     blocks it has
    registers / (warps · registers of a thread · 32, in units of 256 a warp)
    shared memory / (shared memory of a program + 1 KiB)

with its sizes from the CUDA C++ programming guide (`reference.hardware.occupancy`). ``elsewhere``: whether the variant compiles for
compute capabilities 10.0 and 12.0 and for AMD's gfx942 with the same settings; if not, what the compiler says. Compiled is
not run: that it gives right numbers there is not shown.
"""

import argparse
import concurrent.futures
import importlib
import multiprocessing
import os
import platform
import re
import resource
import signal
import sys
import tempfile
from pathlib import Path

import recording

from reference.hardware.occupancy import occupancy

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "book/data/kernels_compiled.json"
CAPABILITIES = (80, 90)
KEPT = ("registers", "stack", "spills", "shared", "warps", "matrix", "loads_16_bytes", "instructions_per_weight")
#: An AMD compute unit gives a workgroup 64 KiB, NVIDIA's multiprocessors these: what ptxas does not check by itself.
SHARED = {"sm_100": 227 * 1024, "sm_120": 99 * 1024, "gfx942": 64 * 1024}
SECONDS = 40  # for one compilation; they take one, as a rule
VARIANTS: list = []  # set before processes are started, which inherit it


def row(found: dict) -> dict:
    """One row of the file: what does not apply is left out."""
    kept = {name: found[name] for name in ("name", "capability", *KEPT) if found[name] is not None}
    kept["matrix"] = sorted({re.sub(r"\.(sync|aligned|row|col|satfinite)\b", "", text) for text in found["matrix"]})
    lives = occupancy(found["capability"], **{name: found[name] for name in ("warps", "registers", "shared")})
    return kept | {"resident": {"programs": lives.blocks, "warps": lives.warps, "limit": lives.limit}}


def attempt(variant, target: str) -> str:
    """Compile in this process, whose standard error is a file by now; says "yes" or why not."""
    import triton
    from ahead_of_time import source_of
    from triton.backends.compiler import GPUTarget

    chosen = GPUTarget("hip", target, 64) if target.startswith("gfx") else GPUTarget("cuda", int(target[3:]), 32)
    try:
        compiled = triton.compile(
            source_of(variant), target=chosen, options={"num_warps": variant.warps, "num_stages": variant.stages}
        )
    except Exception as problem:  # whatever the compiler throws is the answer
        return f"{type(problem).__name__}: {problem}"
    needed = compiled.metadata.shared
    return "yes" if needed <= SHARED[target] else f"{needed:,} bytes of shared memory, more than {SHARED[target]:,}"


def child(variant, target: str, error_file: str, answer) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    os.dup2(os.open(error_file, os.O_WRONLY | os.O_TRUNC), 2)
    answer.send(attempt(variant, target))


def compiles(variant, target: str) -> str:
    """As `attempt`, in a process of its own: some programs make the compiler abort."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    with tempfile.NamedTemporaryFile("r", suffix=".txt") as errors:
        process = context.Process(target=child, args=(variant, target, errors.name, send))
        process.start()
        send.close()
        try:
            said = receive.recv()
        except EOFError:
            said = ""
        process.join()
        if said == "yes":
            return said
        if process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL):
            return f"not compiled in {SECONDS} s of processor time"
        return reason(said, errors.read(), process.exitcode or 0)


def reason(said: str, errors: str, code: int) -> str:
    """One line: the last of an exception, or the first error that the compiler wrote; without paths and addresses."""
    lines = [line.strip() for line in errors.splitlines()]
    named = [line for line in lines if re.search(r"\berror\b|ERROR|Assertion|not supported", line)]
    last = said.strip().splitlines()[-1:]
    if said.startswith("CompilationError"):  # which quotes the kernel first
        line = f"CompilationError: {last[0]}"
    else:
        line = (named or last or lines[-1:] or ["no message"])[0]
    line = re.sub(r"\S*/(\S+?:\d+)(:\d+)?", r"\1", line)
    line = re.sub(r"0x[0-9a-f]+", "0x…", line)[:240]
    ended = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return line if code == 0 else f"the compiler ended its process ({ended}): {line}"


def rows_for(capability: int) -> list[dict]:
    from ahead_of_time import compile_variants

    return compile_variants((v for v in VARIANTS if capability in v.capabilities), capability)


def everywhere(number: int) -> dict[str, str]:
    return {target: compiles(VARIANTS[number], target) for target in SHARED}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("TRITON_INTERPRET is 1: unset it, an interpreted kernel cannot be compiled")
    os.environ["TRITON_CACHE_DIR"] = tempfile.mkdtemp()
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "kernels")]

    tool = importlib.import_module("ahead_of_time")
    VARIANTS.extend(tool.variants())
    context = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(arguments.processes, mp_context=context) as pool:
        here = pool.map(rows_for, CAPABILITIES)
        there = pool.map(everywhere, range(len(VARIANTS)))
        rows = [row(found) for several in here for found in several]
        elsewhere = {variant.name: found for variant, found in zip(VARIANTS, there, strict=True)}
    recording.write(
        RESULT,
        what="Machine code of every kernel and tuned setting, compiled ahead of time for compute capabilities 8.0 and "
        "9.0; how many programs a multiprocessor holds: the least of its warps, blocks, registers (256 at a time "
        "to a warp) and shared memory (1 KiB more than asked for) over a program's (CUDA C++ programming guide)",
        values={"rows": rows, "elsewhere": elsewhere},
        command="python studies/kernels_compiled.py",
        device=f"no GPU: {platform.machine()}",
        seed=0,
        packages=("triton",),
    )
    print(f"{len(rows)} rows, {len(elsewhere)} variants elsewhere")


if __name__ == "__main__":
    main()
