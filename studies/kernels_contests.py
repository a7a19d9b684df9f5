"""What the tuner measured of w4a16 at one row, beside what the machine code of each setting has on its way to a GPU.

    PYTHONPATH=. python benchmarks/tune_kernels.py --output tune.jsonl      on a GPU
    python studies/kernels_contests.py tune.jsonl                           anywhere, about two minutes

Writes ``book/data/kernels_contests.json``: for each setting, compiled for capability 9.0, registers, programs that one
multiprocessor holds, bytes of weight in a turn of its loop, turns that are on their way while one is worked on, and
instructions per weight; where words pass through shared memory in the tensor cores' layout, the bytes from one row of the
weight to the next there (``pitch``). ``microseconds``: the tuner's median by outputs and columns; empty where a setting
has not been measured.
"""

import argparse
import ast
import json
import os
import re
import sys
import tempfile
from pathlib import Path

import recording

from reference.hardware.occupancy import occupancy

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "book/data/kernels_contests.json"
NAME = re.compile(r"w4a16 M=1 N=(\d+) K=(\d+) group=128 bits=4 zeros=True dtype=bfloat16")
#: The layout of a buffer in shared memory, and the shape of the weight's buffer: stages, blocks, outputs, words.
LAYOUT = r"^(#\w+) = #ttg\.swizzled_shared<\{.*order = (\[[\d, ]+\])"
BUFFER = r"memdesc<\d+x(\d+)x(\d+)x16xi32, (#\w+), #smem, mutable>"


def measured(path: Path) -> dict[str, dict[str, float]]:
    """The contests' medians, by setting and "outputs x columns"."""
    found: dict[str, dict[str, float]] = {}
    for row in map(json.loads, path.read_text().splitlines()):
        for problem, times in row.get("times_us", {}).items():
            if shape := NAME.fullmatch(problem):
                for plan, microseconds in times.items():
                    found.setdefault(plan, {})["x".join(shape.groups())] = round(microseconds, 2)
    return found


def pitch(intermediate: str) -> int:
    """Bytes from a row of the weight to the next in the buffer that feeds the tensor cores."""
    buffer = re.search(BUFFER, intermediate)
    assert buffer, "the weight has no buffer in shared memory"
    blocks = int(buffer[1])
    (order,) = (ast.literal_eval(text) for name, text in re.findall(LAYOUT, intermediate, re.M) if name == buffer[3])
    return 64 * (blocks if order.index(0) < order.index(1) else 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tuned", type=Path)
    parser.add_argument("--device", default="NVIDIA H200, driver 580.159.04", help="what the tuner ran on")
    parser.add_argument("--date", default="2026-11-26", help="when it ran")
    arguments = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("TRITON_INTERPRET is 1: unset it, an interpreted kernel cannot be compiled")
    os.environ["TRITON_CACHE_DIR"] = tempfile.mkdtemp()
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "kernels"), str(ROOT / "benchmarks")]
    import ahead_of_time
    import torch
    import variants_a
    from cases import w4a16_sweep

    from reference.kernels.w4a16 import BLOCK, RUN, Direct, Few, OneRow

    times, rows = measured(arguments.tuned), []
    for plan in w4a16_sweep.plans(1):
        variant = variants_a.of_plan(1, 128, torch.bfloat16, True, 4, plan)
        compiled = ahead_of_time.compile_kernel(variant, 90)
        (code,) = ahead_of_time.instructions([compiled.asm["cubin"]], 90)
        found = ahead_of_time.describe(compiled, variant, code)
        lives = occupancy(90, **{name: found[name] for name in ("warps", "registers", "shared")})
        columns = RUN * plan.runs if isinstance(plan, OneRow) else BLOCK * plan.blocks
        rows.append(
            {
                "plan": w4a16_sweep.named(plan),
                "outputs": plan.outputs,
                "columns": columns,
                "turn_bytes": plan.outputs * columns // 2,
                "ahead": plan.ahead if isinstance(plan, Direct) else max(1, plan.stages - 1),
                "warps": found["warps"],
                "registers": found["registers"],
                "programs": lives.blocks,
                "instructions_per_weight": found["instructions_per_weight"],
                "microseconds": times.get(w4a16_sweep.named(plan), {}),
            }
        )
        if isinstance(plan, Few):
            rows[-1]["pitch"] = pitch(compiled.asm["ttgir"])
    recording.write(
        RESULT,
        what="w4a16 at one row: medians in microseconds of the tuner's contests on one GPU, and of each setting what the "
        "machine code for capability 9.0 has on its way",
        values={"rows": rows},
        command=f"PYTHONPATH=. python benchmarks/tune_kernels.py --output tune.jsonl on {arguments.device}, "
        f"{arguments.date}; then python studies/kernels_contests.py tune.jsonl",
        device=f"{arguments.device}; compiled without a GPU",
        seed=1,
        packages=("triton",),
        notes=f"Times of {arguments.date}: Triton 3.6.0, torch 2.11.0+cu130; code compiled with the versions given here.",
        indent=None,
    )
    print(f"{len(rows)} settings, {sum(bool(row['microseconds']) for row in rows)} of them measured")


if __name__ == "__main__":
    main()
