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

KEPT = (
    *("registers", "stack", "spills", "shared", "warps", "loads_16_bytes", "weight_loads_16_bytes"),
    "instructions_per_weight",
)


def compiled(capabilities: list[int]) -> list[dict]:
    """One row a step and capability: registers, loads, instructions per weight; and two faults of step 4."""
    import ahead_of_time
    import torch
    import variants_a
    import variants_w4a16_steps as steps

    from reference.kernels import w4a16

    few = next(plan for _, _, plan in w4a16.FEW_ROWS if isinstance(plan, w4a16.Few))
    tuned = variants_a.few_rows(1, steps.GROUP, torch.bfloat16, True, 4, few)
    named = [(str(number), variant) for number, variant in enumerate([*steps.variants(), tuned], start=1)]
    named += [(variant.name, variant) for variant in steps.faults()]
    rows = []
    for capability in capabilities:
        found = ahead_of_time.compile_variants([variant for _, variant in named], capability)
        for (name, _), row in zip(named, found, strict=True):
            rows.append({"step": name, "capability": capability} | {key: row[key] for key in KEPT})
    return rows


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
