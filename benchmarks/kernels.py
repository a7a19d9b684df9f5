"""Check and time every kernel on a GPU, beside its peers; one JSON line per case, and a results file at the end.

    PYTHONPATH=. python benchmarks/kernels.py --quick --time-limit 100 --output quick.jsonl
    PYTHONPATH=. python benchmarks/kernels.py --record kernels.json
    PYTHONPATH=. TRITON_INTERPRET=1 python benchmarks/kernels.py --dry-run          without a GPU: small sizes, checks only

First every call is compared with float64 on fresh random inputs: PASS or FAIL, and on it goes. `--jobs` processes
share that work, and with it the compilation; a call that failed is not timed. Then each case is timed: each call runs over
copies of the weight that together exceed the L2 cache four times, in one CUDA graph, so that weights come from memory and
launches from the graph; kernel, variants and peers alternate. Times are microseconds a call. `of_copy` is the case's
bytes, each once, per second over what a plain copy moves on this card; `of_products` its flops over those of a large bf16
product.

Cases are those of `benchmarks/cases`; modules ending in `_sweep` and `_steps` run on request, `--sweep` and `--steps`.
Peers in wheels (`--wheels`) are unpacked into a temporary folder, nothing is installed.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from datetime import datetime, timezone
from pathlib import Path

import torch
import torch.nn.functional as F
from cases import Built, Case, all_cases
from tables import install
from timing import Emit, ceilings, check, spread, timers_of

REPLAYS = 30
SEED_NOTE = "fresh: drawn by the operating system"


def measure(case: Case, device: torch.device, limits: dict[str, float], failed: set, replays: int) -> dict:
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    copies = max(2, -(-4 * cache // max(case.rotated, 1)))
    copies = min(copies, 256)
    built: Built = case.build(device, torch.Generator(device).manual_seed(copies), copies)
    calls = {name: call for name, call in built.calls.items() if (case.name, name) not in failed}
    refused = dict(built.refused) | {name: "failed the check" for name in built.calls if name not in calls}
    timers = timers_of(built, calls, copies, refused, capture=case.capture)
    times: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(replays):
        for name, once in timers.items():
            times[name].append(once())
    median = {name: statistics.median(values) for name, values in times.items()}
    ours = median.get(next(iter(built.calls)))
    row = {
        "case": case.name,
        "kernel": case.kernel,
        "shape": case.shape,
        "options": case.options,
        "bytes": case.bytes,
        "flops": case.flops,
        "copies": copies,
        "time_us": {name: spread(values) for name, values in times.items()},
        "refused": refused,
    }
    if ours:
        row |= {
            "gbps": case.bytes / ours / 1000,
            "of_copy": case.bytes / ours / 1000 / limits["copy_gbps"],
            "of_read": case.bytes / ours / 1000 / limits["read_gbps"],
            "tflops": case.flops / ours / 1e6,
            "of_products": case.flops / ours / 1e6 / limits["bf16_tflops"],
            "times_faster_than": {name: value / ours for name, value in median.items() if value != ours},
        }
    return row


def about() -> dict:
    """Device, versions, date: what a number means nothing without."""
    found = {
        "date_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python", *sys.argv]),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    try:
        import triton

        found["versions"]["triton"] = triton.__version__
    except ImportError:
        pass
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.max.sm,clocks.sm", "--format=csv,noheader"]
        smi = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
        found |= {
            "device": properties.name,
            "smi": smi,
            "multiprocessors": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
            "capability": list(torch.cuda.get_device_capability()),
        }
    return found


def unpack_wheels(folder: Path) -> tempfile.TemporaryDirectory | None:
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        return None
    place = tempfile.TemporaryDirectory(prefix="wheels")
    for wheel in wheels:
        zipfile.ZipFile(wheel).extractall(place.name)
    sys.path.append(place.name)
    return place


def checked(arguments: argparse.Namespace, cases: list[Case], emit: Emit) -> set[tuple[str, str]]:
    """Check in ``--jobs`` processes at once; return the calls that failed."""
    failed: set[tuple[str, str]] = set()
    names = {case.name for case in cases}

    def take(row: dict) -> None:
        emit(row)
        if row["ok"] is False:
            failed.add((row["check"], row["call"]))

    flags = [a for a in sys.argv[1:] if a not in ("--check",)]
    workers = []
    for shard in range(min(arguments.jobs, len(cases))):
        command = [sys.executable, __file__, *flags, "--shard", f"{shard}/{min(arguments.jobs, len(cases))}"]
        workers.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    for worker in workers:
        try:
            out, complaints = worker.communicate(timeout=max(5.0, arguments.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            out, complaints = worker.communicate()
            complaints += "\nstopped at the time limit"
        for line in out.splitlines():
            if line.startswith('{"check"'):
                take(json.loads(line))
        if worker.returncode:
            print(complaints[-1500:], file=sys.stderr, flush=True)
            emit({"problem": complaints[-1500:], "returncode": worker.returncode})
    print(f"checked: {len(names)} cases, {len(failed)} calls failed", flush=True)
    return failed


def summary(row: dict) -> str:
    times = " ".join(f"{name}={t['median']:.2f}" for name, t in row["time_us"].items())
    return f"{row['case']}: {row.get('of_copy', 0):.0%} copy {row.get('of_read', 0):.0%} read {row.get('of_products', 0):.0%} mm | {times}"


def record(path: Path, facts: dict, limits: dict, rows: list[dict]) -> None:
    """Write the results in the book's form: values by case, each with what it was compared with."""
    values = {
        row["case"]: {
            "microseconds": {name: round(t["median"], 3) for name, t in row["time_us"].items()},
            "of_copy": round(row["of_copy"], 4),
            "of_read": round(row["of_read"], 4),
            "tflops": round(row["tflops"], 2),
            "times_faster_than": {name: round(v, 3) for name, v in row["times_faster_than"].items()},
        }
        for row in rows
        if "of_copy" in row
    }
    about_run = {
        "name": path.stem,
        "what": "Microseconds of each kernel and its peers on one GPU: medians, weights rotated beyond the L2 cache",
        "values": {"ceilings": {name: round(value, 1) for name, value in limits.items()}, "cases": values},
        "command": facts["command"],
        "device": f"{facts['device']}, driver {facts['smi'].split(', ')[1] if facts['smi'] else 'unknown'}",
        "date": facts["date_utc"][:10],
        "versions": facts["versions"],
        "seed": 0,
        "cheap": False,
    }
    path.write_text(json.dumps(about_run, indent=1) + "\n")
    print(f"wrote {path}: {len(values)} cases")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("kernels.jsonl"), help="file to append lines to")
    parser.add_argument("--record", type=Path, help="write the results file here at the end")
    parser.add_argument("--only", nargs="+", default=[], help="kernels, or words that a case's name must contain")
    parser.add_argument("--quick", action="store_true", help="few sizes")
    parser.add_argument("--check", action="store_true", help="correctness only")
    parser.add_argument("--time-only", action="store_true", help="no correctness")
    parser.add_argument("--sweep", action="store_true", help="the sweeps of settings, and they alone")
    parser.add_argument("--steps", action="store_true", help="the five steps of the chapter, and they alone")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, interpreted: small sizes, no times")
    parser.add_argument("--time-limit", type=float, default=540.0, help="seconds; what is not done by then is left out")
    parser.add_argument("--jobs", type=int, default=12, help="processes that check at once")
    parser.add_argument("--replays", type=int, default=REPLAYS)
    parser.add_argument("--wheels", type=Path, default=Path(".gpu/whl"), help="folder of wheels of peers")
    parser.add_argument("--tables", type=Path, help="settings that benchmarks/tune_kernels.py found, to use")
    parser.add_argument("--failed", type=Path, help="output of a --check: what failed there is not timed")
    parser.add_argument("--shard", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.deadline = time.monotonic() + arguments.time_limit
    if not arguments.dry_run and not torch.cuda.is_available():
        sys.exit("benchmarks/kernels.py needs an NVIDIA GPU: torch.cuda.is_available() is False (see --dry-run)")
    place = unpack_wheels(arguments.wheels)
    device = torch.device("cpu" if arguments.dry_run else "cuda")
    kind = "_sweep" if arguments.sweep else "_steps" if arguments.steps else ""
    cases = [
        case
        for case in all_cases(arguments.quick, kind, small=arguments.dry_run)
        if not arguments.only or any(word == case.kernel or word in case.name for word in arguments.only)
    ]
    if not arguments.quick and not arguments.dry_run:  # time may run out: of every kernel the few sizes first
        first = {case.name for case in all_cases(True, kind)}
        cases.sort(key=lambda case: case.name not in first)
    if arguments.tables:
        print("settings from", arguments.tables, *install(arguments.tables), flush=True)

    def emit(row: dict) -> None:
        line = json.dumps(row)
        with arguments.output.open("a") as file:
            file.write(line + "\n")
        if "check" in row:
            mark = {True: "PASS", False: "FAIL", None: "none"}[row["ok"]]
            if not row["ok"] or arguments.dry_run:
                print(f"{mark} {row['check']} | {row['call']} {row.get('error', '')} {row['why']}", flush=True)

    if arguments.shard or arguments.dry_run:
        shard, shards = map(int, (arguments.shard or "0/1").split("/"))
        say = (lambda row: print(json.dumps(row), flush=True)) if arguments.shard else emit
        failures = []
        for case in cases[shard::shards]:
            if time.monotonic() > arguments.deadline:
                break
            try:
                check(case, device, lambda row: (say(row), failures.append(row) if row["ok"] is False else None))
            except Exception as problem:  # the next case must still be checked
                words = f"{type(problem).__name__}: {' '.join(str(problem).split())[-300:]}"
                row = {"check": case.name, "call": case.kernel, "ok": False, "why": words}
                say(row)
                failures.append(row)
            gc.collect()
        sys.exit(bool(failures) and not arguments.shard)
    facts = about()
    emit(facts)
    print(json.dumps(facts), flush=True)
    failed = set() if arguments.time_only else checked(arguments, cases, emit)
    if arguments.failed and arguments.failed.exists():
        lines = map(json.loads, arguments.failed.read_text().splitlines())
        failed |= {(row["check"], row["call"]) for row in lines if "check" in row and row["ok"] is False}
    if arguments.check:
        sys.exit(bool(failed))
    limits = ceilings()
    emit({"ceilings": limits})
    print(" ".join(f"{name}={value:.1f}" for name, value in limits.items()), flush=True)
    F.linear(torch.zeros((1, 8), device="cuda"), torch.zeros((8, 8), device="cuda"))
    rows = []
    for number, case in enumerate(cases):
        if time.monotonic() > arguments.deadline:
            print(f"time limit: {len(cases) - number} of {len(cases)} cases left out", flush=True)
            break
        try:
            row = measure(case, device, limits, failed, arguments.replays)
        except Exception as problem:  # the next case must still be timed
            emit({"problem": f"{type(problem).__name__}: {problem}"[:400], "case": case.name})
            print(f"ERROR {case.name}: {' '.join(str(problem).split())[:200]}", flush=True)
            continue
        finally:
            gc.collect()
            torch.cuda.empty_cache()
        emit(row)
        rows.append(row)
        print(summary(row), flush=True)
    if arguments.record:
        record(arguments.record, facts, limits, rows)
    if place is not None:
        place.cleanup()


if __name__ == "__main__":
    main()
