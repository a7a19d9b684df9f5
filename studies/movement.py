"""MiniLM fine-tuned on the topics task while it is pruned: magnitude, movement, soft movement, random, L0, distilled.

    python studies/movement.py --out FOLDER [--payload FOLDER] [--processes 2] [--time-limit 250]
    python studies/movement.py --out FOLDER --collect         # writes book/data/movement.json

Runs of one method are trained together (:mod:`reference.pruning.stacked`); such a job writes ``FOLDER/job.json`` when it
is done and is skipped when that exists, so a study that was cut off goes on. Jobs stand in the order of their
importance. The rates are chosen by the first jobs, on validation passages; nothing is chosen on test passages.

Try it on a CPU: ``--steps 6 --limit 64 --runs 2 --batch 4``. For the payload see ``studies/movement_payload.py``.
"""

import argparse
import datetime
import json
import math
import multiprocessing
import platform
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import movement_payload
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from reference.files import atomic_write
from reference.models.stacked import StackedEncoder
from reference.pruning.movement import Schedule
from reference.pruning.stacked import PrunedStack, Run, density

RESULT = Path(__file__).resolve().parents[1] / "book/data/movement.json"
SEEDS = (0, 1, 2)
DENSITIES = (0.5, 0.3, 0.15, 0.1, 0.05, 0.03)
HIGH = (0.9, 0.7)  # where magnitude is expected ahead
CHOOSING = (0.15, 0.03)  # densities at which rates are chosen
DISTILLED = (0.15, 0.05, 0.03)
RATES = (1e-4, 2.5e-4, 6e-4)
SCORE_RATE, SOFT_RATES, L0_RATE = 1e-2, (1e-2, 3e-2, 1e-1), 1e-1
SOFT_PENALTIES, L0_PENALTIES = (5, 20, 80, 320, 1280, 5120), (5, 20, 80, 320, 1280, 5120, 20480)
TAU, WARMUP, COOLDOWN, REFRESH = 0.1, 0.1, 0.2, 16  # of the ramp: shares of all steps
BUCKETS = (48, 64, 80, 96)  # tokens


@dataclass(frozen=True)
class Setting:
    """One run: what it aims at and at which rates. ``target`` is a density, None where only the penalty sets it."""

    target: float | None = None
    penalty: float = 0.0
    seed: int = 0
    rate: float = 0.0
    score_rate: float = 0.0


@dataclass(frozen=True)
class Job:
    name: str
    method: str
    settings: Callable[[dict[str, list[dict]]], list[Setting]]  # of the results of the jobs it waits for
    after: tuple[str, ...] = ()
    distilled: bool = False


def best(rows: list[dict], key: str) -> float:
    """The value of ``key`` with the highest mean accuracy on validation passages."""
    found: dict[float, list[float]] = {}
    for row in rows:
        found.setdefault(row[key], []).append(row["validation"])
    return max(found, key=lambda value: sum(found[value]) / len(found[value]))


def rate_of(done: dict[str, list[dict]], method: str) -> float:
    rows = done[f"rates_{method}"]
    return best([row for row in rows if row["score_rate"] in (0.0, SCORE_RATE)], "rate")


def soft_choice(done: dict[str, list[dict]]) -> tuple[float, list[tuple[float, float]]]:
    """Score rate with the best validation accuracy at equal densities, and its (density, penalty), by interpolation."""

    def at(rows: list[dict], x: float) -> float:  # validation accuracy at a log density, linear between runs
        points = sorted((math.log(row["density"]), row["validation"]) for row in rows)
        for (x0, y0), (x1, y1) in pairwise(points):
            if x0 <= x <= x1:
                return y0 if x1 == x0 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)
        return points[0][1] if x < points[0][0] else points[-1][1]

    by_rate = {rate: [row for row in done["soft_grid"] if row["score_rate"] == rate] for rate in SOFT_RATES}
    usable = {rate: rows for rate, rows in by_rate.items() if rows}
    quality = {rate: sum(at(rows, math.log(d)) for d in (0.15, 0.05, 0.03)) for rate, rows in usable.items()}
    chosen = max(quality, key=lambda rate: quality[rate])
    return chosen, sorted((row["density"], row["penalty"]) for row in usable[chosen])


def penalty_for(points: list[tuple[float, float]], target: float) -> float:
    """Penalty expected to leave ``target``: log-linear between the two runs around it, the nearest run's beyond."""
    for (low, more), (high, less) in pairwise(points):
        if low <= target <= high and low < high:
            share = (math.log(target) - math.log(low)) / (math.log(high) - math.log(low))
            return math.exp(math.log(more) + share * (math.log(less) - math.log(more)))
    return points[0][1] if target < points[0][0] else points[-1][1]


def grid(method: str, densities: tuple[float, ...], seeds: tuple[int, ...], score_rate: float = 0.0) -> Callable:
    def settings(done: dict[str, list[dict]]) -> list[Setting]:
        rate = rate_of(done, method)
        return [Setting(d, seed=seed, rate=rate, score_rate=score_rate) for seed in seeds for d in densities]

    return settings


def soft(densities: tuple[float, ...], seeds: tuple[int, ...]) -> Callable:
    def settings(done: dict[str, list[dict]]) -> list[Setting]:
        score_rate, points = soft_choice(done)
        rate = rate_of(done, "movement")
        return [Setting(d, penalty_for(points, d), seed, rate, score_rate) for seed in seeds for d in densities]

    return settings


def rates(score_rate: float = 0.0, extra: tuple[float, ...] = ()) -> Callable:
    return lambda done: (
        [Setting(d, rate=r, score_rate=score_rate) for d in CHOOSING for r in RATES]
        + [Setting(d, rate=RATES[1], score_rate=other) for d in CHOOSING for other in extra]
    )


BOTH = ("rates_magnitude", "rates_movement")
ALL = (*HIGH, *DENSITIES)
JOBS = [
    Job("rates_dense", "dense", lambda done: [Setting(1.0, rate=r) for r in RATES]),
    Job("rates_movement", "movement", rates(SCORE_RATE, extra=(1e-3, 1e-1))),
    Job("rates_magnitude", "magnitude", rates()),
    Job("dense", "dense", grid("dense", (1.0,), SEEDS), ("rates_dense",)),
    Job("movement", "movement", grid("movement", ALL, SEEDS, SCORE_RATE), BOTH),
    Job("magnitude", "magnitude", grid("magnitude", ALL, SEEDS), BOTH),
    Job("soft_grid", "soft", lambda done: [
        Setting(None, p, 0, rate_of(done, "movement"), s) for s in SOFT_RATES for p in SOFT_PENALTIES], BOTH),
    Job("soft", "soft", soft(DENSITIES, SEEDS), ("soft_grid", *BOTH)),
    Job("movement_distilled", "movement", grid("movement", DISTILLED, SEEDS, SCORE_RATE), ("dense", *BOTH), True),
    Job("magnitude_distilled", "magnitude", grid("magnitude", DISTILLED, SEEDS), ("dense", *BOTH), True),
    Job("soft_distilled", "soft", soft(DISTILLED, SEEDS), ("dense", "soft_grid", *BOTH), True),
    Job("random", "random", lambda done: [
        Setting(d, seed=s, rate=rate_of(done, "magnitude")) for s in SEEDS for d in DENSITIES], BOTH),
    Job("l0", "l0", lambda done: [
        Setting(None, p, 0, rate_of(done, "movement"), L0_RATE) for p in L0_PENALTIES], BOTH),
]  # fmt: skip


class Data:
    """The task on the device: ids ``[n, 96]``, lengths, labels, by split."""

    def __init__(self, tensors: dict[str, Tensor], device: str, limit: int | None) -> None:
        self.ids, self.lengths, self.labels = (
            {s: tensors[f"{s}.{what}"][:: max(1, len(tensors[f"{s}.ids"]) // limit) if limit else 1].to(device).long()
             for s in ("train", "validation", "test")}
            for what in ("ids", "lengths", "labels")
        )  # fmt: skip
        self.device = device
        widths = torch.tensor(BUCKETS)
        self.bucket = (widths.unsqueeze(0) < self.lengths["train"].cpu().unsqueeze(1)).sum(1)

    def order(self, seeds: list[int], epochs: int, batch: int) -> Iterator[tuple[int, Tensor]]:
        """Width and rows ``[R, batch]`` of each step. Which bucket comes when is the same for all runs; which of its
        passages, and in which order, is the seed's. What does not fill a batch is left out for an epoch."""
        members = [(self.bucket == b).nonzero().squeeze(1) for b in range(len(BUCKETS))]
        for epoch in range(epochs):
            plan, place = [], {}
            for b, rows in enumerate(members):
                plan += [b] * (len(rows) // batch)
                shuffled = [rows[torch.randperm(len(rows), generator=generator(seed, epoch, b))] for seed in seeds]
                place[b] = iter(torch.stack(shuffled).to(self.device).split(batch, dim=1))
            for i in torch.randperm(len(plan), generator=generator(0, epoch, 99)).tolist():
                yield BUCKETS[plan[i]], next(place[plan[i]])

    def batch(self, split: str, rows: Tensor, width: int) -> tuple[Tensor, Tensor]:
        real = torch.arange(width, device=self.device) < self.lengths[split][rows].unsqueeze(-1)
        return self.ids[split][rows][..., :width], real


def generator(*numbers: int) -> torch.Generator:
    return torch.Generator().manual_seed(sum(n * 1009**i for i, n in enumerate(numbers)))


@torch.no_grad()
def logits_of(model: StackedEncoder, weights: dict[str, Tensor], data: Data, split: str, batch: int = 256) -> Tensor:
    """Logits of all passages of a split: ``[R, passages, classes]``."""
    model.eval()
    order = data.lengths[split].argsort()
    found = []
    for rows in order.split(batch):
        ids, real = data.batch(split, rows.expand(model.runs, -1), BUCKETS[-1])
        found.append(model(ids, real, weights))
    return torch.cat(found, 1)[:, order.argsort()]


def factor(step: int, total: int) -> float:
    """Linear warm-up of the rates over a tenth of the steps, then linearly to zero."""
    return min((step + 1) / max(1, WARMUP * total), (total - step) / max(1, (1 - WARMUP) * total), 1.0)


def facts(trainer: PrunedStack, initial: dict[str, Tensor], final: dict[str, Tensor]) -> dict[str, list]:
    """What a mask kept: density by matrix, the share of weights that moved away from zero, of small ones."""
    kept = {name: weight != 0 for name, weight in final.items()}
    total = sum(mask.sum((0, 2, 3)) for mask in kept.values())
    away = sum(((final[n].abs() > initial[n].abs()) & kept[n]).sum((0, 2, 3)) for n in kept)
    small = sum(
        ((initial[n].abs() < initial[n].abs().flatten(2).median(2).values[..., None, None]) & kept[n]).sum((0, 2, 3))
        for n in kept
    )
    by_matrix = torch.cat([mask.double().mean((2, 3)) for mask in kept.values()]).T
    return {
        "moved_away": (away / total).tolist(),
        "small_at_start": (small / total).tolist(),
        "by_matrix": [[round(x, 4) for x in row] for row in by_matrix.tolist()],
    }


def run(job: Job, settings: list[Setting], options: argparse.Namespace, payload: tuple[dict, dict]) -> list[dict]:
    """Train and evaluate the runs of a job."""
    tensors, meta = payload
    data = Data(tensors, options.device, options.limit)
    seeds = [setting.seed for setting in settings]
    torch.manual_seed(sum(map(ord, job.name)))
    cuda = options.device.startswith("cuda")
    model = StackedEncoder(
        {n: t for n, t in tensors.items() if n.split(".")[0] in ("embeddings", "encoder")},
        seeds, classes=meta["classes"], heads=meta["heads"], dtype=torch.bfloat16 if cuda else torch.float32,
    ).to(options.device)  # fmt: skip
    initial = {name: weight.detach()[:, :1].clone() for name, weight in model.weights().items()}
    total = len(list(data.order([0], options.epochs, options.batch)))
    total = min(total, options.steps or total)
    ramp = {"warmup": int(WARMUP * total), "cooldown": int(COOLDOWN * total)}
    goal = TAU if job.method == "soft" else None
    trainer = PrunedStack(model, job.method, [
        Run(Schedule(total, goal or s.target or 1.0, penalty=s.penalty, **ramp), s.rate, s.score_rate, s.seed)
        for s in settings], refresh=REFRESH)  # fmt: skip
    teacher = load_file(options.out / "teacher.safetensors", options.device)["logits"] if job.distilled else None
    places = torch.tensor(seeds, device=options.device).unsqueeze(1)

    begun, losses = time.perf_counter(), []
    for step, (width, rows) in zip(range(total), data.order(seeds, options.epochs, options.batch), strict=False):
        ids, real = data.batch("train", rows, width)
        known = None if teacher is None else teacher[places, rows]
        losses.append(trainer.step(step, ids, real, data.labels["train"][rows], known, factor(step, total)))
    last = torch.stack(losses[-20:]).mean(0).tolist()  # waits for the device
    seconds = time.perf_counter() - begun

    final = trainer.final_weights()
    accuracy = {
        split: (logits_of(model, final, data, split).argmax(2) == data.labels[split]).double().mean(1).tolist()
        for split in ("validation", "test")
    }
    if job.name == "dense":
        known = logits_of(model, final, data, "train")
        atomic_write(options.out / "teacher.safetensors", save({"logits": known.contiguous().cpu()}))
    shares, more = density(final).tolist(), facts(trainer, initial, final)
    rows_ = []
    for i, setting in enumerate(settings):
        row = asdict(setting) | {"density": shares[i], "loss": last[i]}
        row |= {name: values[i] for name, values in (accuracy | more).items()}
        rows_.append(row)
    memory = torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0
    print(
        f"{job.name}: {len(seeds)} runs, {total} steps, {seconds:.1f} s, {1e3 * seconds / total:.1f} ms a step, "
        f"{memory:.1f} GiB; " + " ".join(f"{r['density']:.3f}:{r['test']:.3f}" for r in rows_), flush=True,
    )  # fmt: skip
    return [{"steps": total, "seconds": seconds, "device": name_of(options.device), **row} for row in rows_]


def name_of(device: str) -> str:
    return torch.cuda.get_device_name() if device.startswith("cuda") else f"{platform.machine()} CPU"


def work(options: argparse.Namespace, jobs: list[str], deadline: float) -> None:
    """Take jobs, in their order, that nobody has taken and whose predecessors are done, until none is left."""
    torch.set_num_threads(1)
    torch.backends.cuda.enable_cudnn_sdp(False)  # it builds a plan for every new shape, and shapes here are many
    payload = movement_payload.load(options.payload)
    while time.time() < deadline:
        state = {job.name: status(options.out / job.name) for job in JOBS if job.name in jobs}
        waiting = [job for job in JOBS if state.get(job.name) == "open"]
        lost = [
            job for job in waiting if any(state.get(name, status(options.out / name)) == "failed" for name in job.after)
        ]
        waiting = [job for job in waiting if job not in lost]
        if not waiting:
            return
        ready = [job for job in waiting if all(status(options.out / name) == "done" for name in job.after)]
        if not any(claim(options.out / job.name) and finish(job, options, payload) for job in ready):
            if not ready and "taken" not in state.values():
                print("missing:", sorted({n for j in waiting for n in j.after if status(options.out / n) != "done"}))
                return
            time.sleep(0.2)


def status(path: Path) -> str:
    for suffix, meaning in ((".json", "done"), (".failed", "failed"), (".taken", "taken")):
        if path.with_suffix(suffix).exists():
            return meaning
    return "open"


def claim(path: Path) -> bool:
    try:
        path.with_suffix(".taken").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def finish(job: Job, options: argparse.Namespace, payload: tuple[dict, dict]) -> bool:
    """Run a job and write its results, or why there are none."""
    path = options.out / job.name
    try:
        done = {name: json.loads((options.out / f"{name}.json").read_text()) for name in job.after}
        settings = job.settings(done)[: options.runs]
        stacks = [settings[i : i + options.stack] for i in range(0, len(settings), options.stack)]
        rows = [row for stack in stacks for row in run(job, stack, options, payload)]
        atomic_write(path.with_suffix(".json"), json.dumps(rows).encode())
    except Exception:
        path.with_suffix(".failed").write_text(traceback.format_exc())
        traceback.print_exc()
    if options.device.startswith("cuda"):
        torch.cuda.empty_cache()
    return True


def collect(options: argparse.Namespace) -> None:
    """Write the recorded result from the jobs that are done."""
    found = {
        job.name: json.loads(path.read_text()) for job in JOBS if (path := options.out / f"{job.name}.json").is_file()
    }
    if not found:
        raise SystemExit(f"--out {options.out} holds no finished job")
    rows = [row for rows in found.values() for row in rows]
    about = json.loads((options.out / "about.json").read_text())
    record = {
        "name": RESULT.stem,
        "what": "MiniLM (encoder's linear layers pruned, embeddings frozen, weights started from values rounded to "
        "float16) fine-tuned on the topics task; accuracy on validation and test passages by method, density and seed; "
        "rates chosen on validation passages, seed 0",
        "values": {
            "settings": about["settings"] | {"steps": rows[0]["steps"]},
            "jobs": {name: [shorten(row, name) for row in rows] for name, rows in found.items()},
        },
        "command": about["command"],
        "device": rows[0]["device"],
        "date": about["date"],
        "versions": about["versions"],
        "seed": list(SEEDS),
        "cheap": False,
    }
    atomic_write(RESULT, (json.dumps(record, indent=1) + "\n").encode())
    print("wrote", RESULT, "from", ", ".join(found))


def shorten(row: dict, job: str) -> dict:
    """A row less what is the same everywhere; densities by matrix only where the method may choose them, seed 0."""
    drop = {"device", "steps"} | (set() if job in ("soft", "l0") and row["seed"] == 0 else {"by_matrix"})
    return {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()
            if k not in drop and v is not None}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the jobs' results")
    parser.add_argument(
        "--payload", type=Path, help="folder that movement_payload.py wrote (default: the model itself)"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--stack", type=int, default=24, help="most runs trained together; about 1 GiB of memory each")
    parser.add_argument("--time-limit", type=float, default=math.inf, help="seconds after which no job starts")
    parser.add_argument("--jobs", default=".*", help="regular expression of the names of the jobs to run")
    parser.add_argument("--steps", type=int, help="at most so many steps (for a try)")
    parser.add_argument("--limit", type=int, help="about so many passages of each split (for a try)")
    parser.add_argument("--runs", type=int, help="at most so many runs of each job (for a try)")
    parser.add_argument("--collect", action="store_true", help="write the recorded result and stop")
    options = parser.parse_args()
    if options.collect:
        return collect(options)
    deadline = time.time() + options.time_limit
    options.out.mkdir(parents=True, exist_ok=True)
    for left in (*options.out.glob("*.taken"), *options.out.glob("*.failed")):  # of a study that was cut off
        left.unlink()
    about = {
        "settings": {
            "epochs": options.epochs, "batch": options.batch, "buckets": BUCKETS, "warmup": WARMUP,
            "cooldown": COOLDOWN, "tau": TAU, "refresh": REFRESH,
        },
        "command": " ".join(["python", "studies/movement.py", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }  # fmt: skip
    atomic_write(options.out / "about.json", json.dumps(about).encode())
    jobs = [job.name for job in JOBS if re.fullmatch(options.jobs, job.name)]
    if options.processes == 1:
        return work(options, jobs, deadline)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work, args=(options, jobs, deadline)) for _ in range(options.processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise SystemExit("a worker process failed")


if __name__ == "__main__":
    main()
