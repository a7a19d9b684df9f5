"""Machine code of the five steps of the kernels chapter, for GPUs that are not here.

    python benchmarks/w4a16_steps.py --output book/data/w4a16_steps_compiled.json

Counts registers, loads and instructions per weight in what the compiler makes of each step, and writes one record of the
form in CONTRIBUTING.md. It needs no GPU. ``benchmarks/kernels.py --steps`` times the steps on one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from datetime import datetime, timezone
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "kernels")]

from reference.kernels.w4a16_steps import STEPS  # noqa: E402

GROUP_SIZE = 128
KEPT = ("registers", "stack", "spills", "shared", "loads_16_bytes", "loads_4_or_8_bytes", "instructions_per_weight")


def compiled(capabilities: list[int]) -> list[dict]:
    """One row a step and capability: registers, loads, instructions per weight."""
    import ahead_of_time

    types = {"x": "*bf16", "packed": "*i32", "scale": "*bf16", "zero_point": "*u8", "y": "*bf16"}
    types |= dict.fromkeys(("K", "WORDS", "GROUPS"), "i32")
    rows = []
    for capability in capabilities:
        for number, (kernel, constants, warps) in STEPS.items():
            built = ahead_of_time.compile_kernel(
                kernel, types, {"G": GROUP_SIZE, **constants}, set(types), capability, num_warps=warps, num_stages=3
            )
            block = STEPS[number].outputs * STEPS[number].columns
            rows.append(row(number, capability, ahead_of_time.describe(built, block / (32 * warps))))
        rows.append(row(5, capability, tuned(ahead_of_time, capability)))
    return rows


def row(number: int, capability: int, found: dict) -> dict:
    return {"step": number, "capability": capability} | {name: found[name] for name in KEPT}


def tuned(ahead_of_time, capability: int) -> dict:
    """The variant of w4a16 that one row of bfloat16 in groups of 128 takes."""
    wanted = {"rows": 1, "dtype": "bfloat16", "group_size": GROUP_SIZE, "zeros": True}
    for variant in ahead_of_time.w4a16_variants(capability):
        if all(variant[name] == value for name, value in wanted.items()):
            return variant
    raise LookupError(f"tests/kernels/ahead_of_time.py compiles no variant with {wanted}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", metavar="FILE", default="-", help="where to write the record; - prints it")
    parser.add_argument("--capabilities", type=int, nargs="+", default=[80, 90])
    arguments = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("TRITON_INTERPRET is 1: unset it, an interpreted kernel cannot be compiled")
    import triton

    result = {
        "name": "w4a16_steps_compiled",
        "what": "Machine code of the five steps to w4a16 for one row of bfloat16, groups of 128, K = 4096",
        "values": {"rows": compiled(arguments.capabilities)},
        "command": " ".join(["python", "benchmarks/w4a16_steps.py", *sys.argv[1:]]),
        "device": f"no GPU: {platform.machine()}",
        "date": datetime.now(timezone.utc).date().isoformat(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "triton": triton.__version__},
        "seed": 0,
        "cheap": False,
    }
    text = json.dumps(result, indent=1) + "\n"
    if arguments.output == "-":
        sys.stdout.write(text)
    else:
        Path(arguments.output).write_text(text)


if __name__ == "__main__":
    main()
