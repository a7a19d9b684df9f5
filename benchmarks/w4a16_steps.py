"""The five steps of the kernels chapter: compile them for GPUs that are not here, or time them on one that is.

    python benchmarks/w4a16_steps.py --compile book/data/w4a16_steps_compiled.json
    python benchmarks/w4a16_steps.py --output book/data/w4a16_steps.json

The first counts registers, loads and instructions per weight in the machine code (no GPU). The second checks every step
against float64 and times it on this GPU, one row of activations: copies of the weight that together exceed the L2
cache four times, one CUDA graph for each step, steps and bfloat16 in turns. Copy and read ceilings of the card stand
beside it. Each writes one record of the form in CONTRIBUTING.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "kernels")]

from reference.hardware.latency import graph_latencies  # noqa: E402
from reference.kernels.w4a16_steps import STEPS, ladder  # noqa: E402

SHAPES = [(4096, 4096), (11008, 4096), (8192, 8192)]
GROUP_SIZE = 128


def record(name: str, what: str, values: dict, device: str, notes: str = "") -> dict:
    """The form of a recorded result."""
    import triton

    return {
        "name": name,
        "what": what,
        "values": values,
        "command": " ".join(["python", "benchmarks/w4a16_steps.py", *sys.argv[1:]]),
        "device": device,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "triton": triton.__version__},
        "seed": 0,
        "cheap": False,
    } | ({"notes": notes} if notes else {})


def write(result: dict, output: str) -> None:
    text = json.dumps(result, indent=1) + "\n"
    if output == "-":
        sys.stdout.write(text)
    else:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        Path(output).write_text(text)


# --- compiled, without a GPU ------------------------------------------------------------------------


def compiled(capabilities: list[int]) -> list[dict]:
    """One row a step and capability: registers, loads, instructions per weight."""
    import ahead_of_time

    types = {"x": "*bf16", "packed": "*i32", "scale": "*bf16", "zero_point": "*u8", "y": "*bf16"}
    types |= dict.fromkeys(("K", "WORDS", "GROUPS"), "i32")
    aligned = set(types)
    rows = []
    for capability in capabilities:
        for number, (kernel, constants, warps) in STEPS.items():
            built = ahead_of_time.compile_kernel(
                kernel, types, {"G": GROUP_SIZE, **constants}, aligned, capability, num_warps=warps, num_stages=3
            )
            block = STEPS[number].outputs * STEPS[number].columns
            rows.append(row(number, capability, warps, ahead_of_time.describe(built, block / (32 * warps))))
        rows.append(row(5, capability, None, tuned(ahead_of_time, capability)))
    return rows


def row(number: int, capability: int, warps: int | None, found: dict) -> dict:
    kept = ("registers", "stack", "spills", "shared", "loads_16_bytes", "loads_4_or_8_bytes", "instructions_per_weight")
    head = {"step": number, "capability": capability} | ({"warps": warps} if warps else {})
    return head | {name: found[name] for name in kept}


def tuned(ahead_of_time, capability: int) -> dict:
    """The variant of w4a16 that one row of bfloat16 in groups of 128 takes."""
    wanted = {"rows": 1, "dtype": "bfloat16", "group_size": GROUP_SIZE, "zeros": True}
    for variant in ahead_of_time.w4a16_variants(capability):
        if all(variant[name] == value for name, value in wanted.items()):
            return variant
    raise LookupError(f"tests/kernels/ahead_of_time.py compiles no variant with {wanted}")


# --- timed, on a GPU --------------------------------------------------------------------------------


def pack(codes: torch.Tensor) -> torch.Tensor:
    shifts = 4 * torch.arange(8, device=codes.device, dtype=torch.int32)
    return (codes.view(codes.shape[0], -1, 8) << shifts).sum(-1, dtype=torch.int32)


def ceilings() -> dict[str, float]:
    """GB/s of a plain copy (read and written) and of a plain read, over 1 GiB."""
    source = torch.randint(-(2**31), 2**31 - 1, (2**28,), dtype=torch.int32, device="cuda")
    target = torch.empty_like(source)
    floats = source.view(torch.float32).nan_to_num_()
    calls = {"copy": lambda i: target.copy_(source), "read": lambda i: floats.amax()}
    times = graph_latencies(calls, copies=2, replays=10)
    return {
        "copy_gbps": 2 * source.nbytes / times["copy"].median / 1e9,
        "read_gbps": source.nbytes / times["read"].median / 1e9,
    }


def clocks() -> dict[str, float]:
    """Present and highest clock of the multiprocessors, MHz; empty where nvidia-smi is not at hand."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=clocks.sm,clocks.max.sm", "--format=csv,noheader,nounits", "--id=0"],
            capture_output=True,
            text=True,
            check=True,
        )
        now, most = (float(value) for value in done.stdout.split(","))
    except (OSError, ValueError, subprocess.CalledProcessError):
        return {}
    return {"clock_mhz": now, "highest_clock_mhz": most}


def measure(outputs: int, columns: int, copies: int, generator: torch.Generator) -> dict:
    """Times of all steps and of bfloat16 on one shape."""
    draw = {"device": "cuda", "generator": generator}
    groups = columns // GROUP_SIZE
    codes = torch.randint(0, 16, (outputs, columns), dtype=torch.int32, **draw)
    scale = (torch.rand((outputs, groups), **draw) * 0.01 + 0.001).bfloat16()
    zero_point = torch.randint(0, 16, (outputs, groups), dtype=torch.uint8, **draw)
    spread = [t.float().repeat_interleave(GROUP_SIZE, 1) for t in (scale, zero_point)]
    weight = spread[0] * (codes - spread[1])
    x = torch.randn((copies, 1, columns), **draw).bfloat16()
    ladders = [
        ladder(x[i], pack(codes), scale.clone(), zero_point.clone(), group_size=GROUP_SIZE) for i in range(copies)
    ]
    dense = [weight.bfloat16() for _ in range(max(4, copies // 4 + 1))]
    calls = {str(number): lambda i, n=number: ladders[i][n]() for number in ladders[0]}
    calls["bfloat16"] = lambda i: F.linear(x[i], dense[i % len(dense)])
    expected = x[0].double() @ weight.double().T
    errors = {name: ((call(0).double() - expected).norm() / expected.norm()).item() for name, call in calls.items()}
    wrong = {name: error for name, error in errors.items() if not error < 2**-8 + 4e-6 and name != "bfloat16"}
    if wrong:
        raise SystemExit(f"wrong results at {outputs}×{columns}: {wrong}")
    times = graph_latencies(calls, copies=copies)
    moved = outputs * columns / 2 + 3 * outputs * groups + 2 * (columns + outputs)
    return {
        "outputs": outputs,
        "columns": columns,
        "copies": copies,
        "bytes": moved,
        "microseconds": {name: round(1e6 * found.median, 3) for name, found in times.items()},
        "middle_half": {name: [round(1e6 * found.low, 3), round(1e6 * found.high, 3)] for name, found in times.items()},
        "relative_error": errors,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", metavar="FILE", help="write what the compiler makes of the steps; - prints it")
    parser.add_argument("--capabilities", type=int, nargs="+", default=[80, 90], help="for --compile")
    parser.add_argument("--output", metavar="FILE", default="-", help="where to write measured times; - prints them")
    arguments = parser.parse_args()
    if arguments.compile:
        what = "Machine code of the five steps to w4a16 for one row of bfloat16, groups of 128, K = 4096"
        found = record(
            "w4a16_steps_compiled", what, {"rows": compiled(arguments.capabilities)}, f"no GPU: {platform.machine()}"
        )
        write(found, arguments.compile)
        return
    if not torch.cuda.is_available():
        sys.exit("timing needs an NVIDIA GPU: torch.cuda.is_available() is False; --compile needs none")
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("TRITON_INTERPRET is 1: unset it, or the interpreter is timed")
    generator = torch.Generator(device="cuda").manual_seed(0)
    properties = torch.cuda.get_device_properties(0)
    values: dict = ceilings() | {
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "rows": [],
    }
    for outputs, columns in SHAPES:
        copies = max(4, -(-4 * properties.L2_cache_size // (outputs * columns // 2)))
        values["rows"].append(measure(outputs, columns, copies, generator))
        print(f"{outputs}×{columns}: {values['rows'][-1]['microseconds']}", file=sys.stderr, flush=True)
    values |= clocks()
    what = "Microseconds of the five steps to w4a16 and of bfloat16, one row, groups of 128, weights from memory"
    write(record("w4a16_steps", what, values, properties.name), arguments.output)


if __name__ == "__main__":
    main()
