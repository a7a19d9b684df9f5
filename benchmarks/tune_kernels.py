"""Choose the kernels' settings by measuring them: writes tables as JSON, and as lines for the kernels' modules.

    PYTHONPATH=. python benchmarks/tune_kernels.py --check --output tune.jsonl          compile and compare, 14 processes
    PYTHONPATH=. python benchmarks/tune_kernels.py --output tune.jsonl --tables tables.json

A group of settings competes for one row of a table over several problems: the one with the least mean of the logarithm
of its times wins. What failed in `tune.jsonl` does not compete. Then `benchmarks/kernels.py --tables tables.json` measures
the kernels with the tables found.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from cases import Built, Case, codebook, sparse_24, w4a16, w4a16_sweep, w8a8
from cases.coded_sweep import FEW_ROWS_CODES, FEW_ROWS_SPARSE, ONE_ROW_CODES, ONE_ROW_SPARSE
from tables import Tables, source, stored
from timing import check, timers_of, warm_up

import reference.kernels.codebook
import reference.kernels.sparse_24
from reference.kernels.codebook import Tile as CodebookTile
from reference.kernels.sparse_24 import Tile as SparseTile

ALL = 2**31
DEVICE = "cuda"


class Slot(NamedTuple):
    """One row of a table: its name, the most rows of x and outputs it holds for (empty: the table is one plan)."""

    table: str
    limits: tuple[int, ...]


@dataclass(frozen=True)
class Contest:
    """Plans by name, competing for a slot on problems; ``make(problem, plans)`` builds a case of some of the plans."""

    slot: Slot
    plans: dict[str, Any]
    problems: list[tuple[int, ...]]
    make: Callable[[tuple[int, ...], dict[str, Any]], Case]


def contests() -> Iterator[Contest]:
    """The most important first."""
    small, wide, tall, large, huge = (4096, 4096), (11008, 4096), (4096, 11008), (8192, 8192), (28672, 8192)

    def int4(rows: int, most: int) -> Iterator[Contest]:
        plans = {w4a16_sweep.named(plan): plan for plan in w4a16_sweep.plans(rows)}
        for outputs, shapes in ((6144, (small, tall)), (8192, (large,)), (ALL, (wide, huge))):
            problems = [(rows, *shape) for shape in shapes]
            yield Contest(
                Slot("w4a16.FEW_ROWS", (most, outputs)), plans, problems,
                lambda p, plans: w4a16.case(*p, plans=plans, peers=False),
            )  # fmt: skip

    def int8(rows: int, most: int, shapes: tuple) -> Contest:
        plans = {w8a8.named(plan): plan for plan in w8a8.plans(rows)}
        return Contest(
            Slot("w8a8.PLANS", (most, ALL)), plans, [(rows, *shape) for shape in shapes],
            lambda p, plans: w8a8.case(*p, plans=plans, peers=False),
        )  # fmt: skip

    yield from int4(1, 1)
    for rows, most in ((4, 4), (8, 8), (16, 16)):
        yield from int4(rows, most)
    yield int8(4096, ALL, (small, wide, large))
    yield int8(1, 8, (small, wide))
    for rows, most in ((128, 128), (256, 256), (512, 512), (32, 32), (64, 64)):
        yield from int4(rows, most)
    for rows, most in ((16, 16), (64, 64), (256, 256)):
        yield int8(rows, most, (small, wide))
    for rows, name in ((1, "ONE_ROW"), (16, "FEW")):
        codes = [CodebookTile(*p) for p in (ONE_ROW_CODES if rows == 1 else FEW_ROWS_CODES)]
        codes.append(getattr(reference.kernels.codebook, name))
        sparse = [SparseTile(*p) for p in (ONE_ROW_SPARSE if rows == 1 else FEW_ROWS_SPARSE)]
        sparse.append(getattr(reference.kernels.sparse_24, name))
        yield Contest(
            Slot(f"codebook.{name}", ()), {plain(plan): plan for plan in codes},
            [(rows, *wide, 4), (rows, *wide, 5), (rows, *small, 4)], lambda p, plans: codebook.case(*p, plans=plans),
        )  # fmt: skip
        yield Contest(
            Slot(f"sparse_24.{name}", ()), {plain(plan): plan for plan in sparse},
            [(rows, *small), (rows, *wide)], lambda p, plans: sparse_24.case(*p, plans=plans),
        )  # fmt: skip


def plain(plan: tuple[int, ...]) -> str:
    return "-".join(map(str, plan))


def name_of(call: str, case: Case) -> str:
    """The plan's name in a call's."""
    return call.removeprefix(f"{case.kernel} ")


def tasks(most: int) -> list[list[Case]]:
    """Cases for the checks, together those of the same plans, ``most`` at most: one process compiles a plan.

    Problems with many outputs are left out: they compile to the same code, and float64 results of them take long.
    """
    found: dict[tuple, list[Case]] = {}
    for contest in contests():
        names = list(contest.plans)
        for first in range(0, len(names), most):
            some = {name: contest.plans[name] for name in names[first : first + most]}
            for problem in contest.problems:
                if problem[1] * problem[2] < 2**26:
                    found.setdefault((contest.slot.table, *some), []).append(contest.make(problem, some))
    return list(found.values())


def check_all(arguments: argparse.Namespace) -> None:
    """Shares of the tasks in processes of their own; each writes its rows as it goes."""
    count = arguments.jobs
    command = [sys.executable, __file__, "--check", "--output", str(arguments.output)]
    command += ["--time-limit", str(arguments.time_limit - 2)]
    workers = [subprocess.Popen([*command, "--shard", f"{shard}/{count}"]) for shard in range(count)]
    for worker in workers:
        try:
            worker.wait(timeout=max(1.0, arguments.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
    rows = [json.loads(line) for line in arguments.output.read_text().splitlines()]
    bad = [f"{row['check']} {row['call']} {row.get('error')} {row['why']}" for row in rows if row.get("ok") is False]
    print(f"checked: {sum('check' in row for row in rows)} calls, {len(bad)} failed", *bad[:20], sep="\n", flush=True)


def contest_times(contest: Contest, failed: set[tuple[str, str]], replays: int) -> dict[str, dict[str, float]]:
    """Median microseconds by problem and plan."""
    found: dict[str, dict[str, float]] = {}
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    for problem in contest.problems:
        case = contest.make(problem, contest.plans)
        copies = min(256, max(2, -(-3 * cache // case.rotated)))
        built: Built = case.build(torch.device(DEVICE), torch.Generator(DEVICE).manual_seed(1), copies)
        times = found[case.name] = {}
        calls = {name_of(name, case): call for name, call in built.calls.items()}
        calls = {n: call for n, call in calls.items() if n in contest.plans and (case.kernel, n) not in failed}
        refused: dict[str, str] = {}
        timers = timers_of(built, calls, copies, refused)
        for name, why in refused.items():
            print(f"out: {case.name} {name}: {why}", flush=True)
        samples: dict[str, list[float]] = {name: [] for name in timers}
        for _ in range(replays):
            for name, once in timers.items():
                samples[name].append(once())
        times |= {name: statistics.median(values) for name, values in samples.items()}
        del built, calls, timers
        gc.collect()
        torch.cuda.empty_cache()
    return found


def winner(times: dict[str, dict[str, float]]) -> str:
    """The plan with the least geometric mean over the problems, of those that ran on all."""
    everywhere = set.intersection(*(set(of) for of in times.values()))
    return min(everywhere, key=lambda name: sum(math.log(of[name]) for of in times.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("tune.jsonl"))
    parser.add_argument("--tables", type=Path, default=Path("tables.json"))
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--jobs", type=int, default=14)
    parser.add_argument("--replays", type=int, default=7)
    parser.add_argument("--time-limit", type=float, default=60.0)
    parser.add_argument("--shard", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.deadline = time.monotonic() + arguments.time_limit

    def emit(row: dict) -> None:
        with arguments.output.open("a") as file:
            file.write(json.dumps(row) + "\n")

    if arguments.shard:
        shard, shards = map(int, arguments.shard.split("/"))
        for case in [case for cases in tasks(3)[shard::shards] for case in cases]:
            if time.monotonic() > arguments.deadline:
                break
            try:
                check(case, torch.device(DEVICE), emit)
            except Exception as problem:  # the next case must still be checked
                emit({"check": case.name, "call": "", "ok": False, "why": f"{type(problem).__name__}: {problem}"[:300]})
            gc.collect()
            torch.cuda.empty_cache()
    elif arguments.check:
        check_all(arguments)
    else:
        tune(arguments, emit)


def tune(arguments: argparse.Namespace, emit: Callable[[dict], None]) -> None:
    lines = arguments.output.read_text().splitlines() if arguments.output.exists() else []
    rows = [json.loads(line) for line in lines]
    failed = {
        (r["check"].split()[0], r["call"].removeprefix(r["check"].split()[0] + " "))
        for r in rows
        if r.get("ok") is False
    }
    tables: Tables = {}
    warm_up()
    for contest in contests():
        if time.monotonic() > arguments.deadline:
            print(f"time limit: no contest for {contest.slot}", flush=True)
            continue
        try:
            times = contest_times(contest, failed, arguments.replays)
            best = winner(times)
        except Exception as problem:  # the next contest must still be held
            print(f"ERROR {contest.slot}: {type(problem).__name__}: {str(problem)[:200]}", flush=True)
            continue
        emit({"slot": contest.slot, "winner": best, "times_us": times})
        for name, of in times.items():
            order = sorted(of, key=of.__getitem__)[:4]
            print(f"{name}: {best}={of[best]:.2f} | " + " ".join(f"{n}={of[n]:.2f}" for n in order), flush=True)
        tables.setdefault(contest.slot.table, []).append([list(contest.slot.limits), stored(contest.plans[best])])
        for rows in tables.values():
            rows.sort(key=lambda row: row[0])
        arguments.tables.write_text(json.dumps({"tables": tables}, indent=1) + "\n")
    print(source(tables), flush=True)


if __name__ == "__main__":
    main()
