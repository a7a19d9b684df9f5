"""Winning tickets of LeNet-300-100 beside their controls, five seeds at a time, on the digits stand-in.

    python studies/lottery_ticket.py            # all jobs that are missing, twenty minutes on one core
    python studies/lottery_ticket.py --jobs 1   # the next one

Writes ``book/data/lottery_ticket.json`` after each job; masks and weights that later jobs need are kept in
``.cache/lottery_ticket``. All networks of a job train side by side, see ``reference.pruning.parallel_training``.
"""

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import recording
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from reference.models.vision import LeNet300
from reference.pruning import connectivity, lottery_ticket
from reference.pruning import parallel_training as parallel
from reference.pruning import ticket_task as task
from reference.pruning.chain_gradients import chain_gradients

ROOT = Path(__file__).resolve().parents[1]
RESULT, CACHE = ROOT / "book/data/lottery_ticket.json", ROOT / ".cache/lottery_ticket"
SEEDS = (0, 1, 2, 3, 4)
ROUNDS = 18
CONTROLS = (3, 7, 12, 15, 18)  # rounds at which controls are trained: 51, 21, 7, 3.6, 1.9 % kept
REWIND = 75  # k, 5 % of the training
GLOBAL = 0.5904
FEWER = 3  # rounds, each four in one, of the other ways to prune: to 7 % kept
DROP = 1000  # with a schedule the rate falls to a tenth here
FOUR = {name: 1 - (1 - fraction) ** 4 for name, fraction in task.FRACTIONS.items()}  # four rounds in one
MODEL = LeNet300()
MASKED = tuple(task.FRACTIONS)


def learn(
    images: task.Images, start: parallel.States, masks: parallel.States, order: int = 0, first: int = 0,
    schedule: Callable[[int, int], float] | None = None,
) -> tuple[parallel.States, dict]:  # fmt: skip
    """Train a state, and say how it went; ``order`` is added to the seeds of the data order."""
    watch = task.EarlyStop(MODEL, images)
    count = len(start["fc1.bias"])
    seeds = [SEEDS[index % len(SEEDS)] + order for index in range(count)]
    trained = parallel.train(
        MODEL, start, *images.train, steps=task.STEPS, seeds=seeds, rates=[task.RATE] * count, batch=task.BATCH,
        start=first, masks=masks, schedule=schedule, after_step=watch, gradient=chain_gradients,
    )  # fmt: skip
    row = {
        "density": rounded(lottery_ticket.density(masks)),
        "step": watch.step().tolist(),
        "accuracy": rounded(watch.accuracy()),
        "final": rounded(parallel.evaluate(MODEL, trained, *images.test)[1]),
        "loss": [round(float(loss.mean()), 4) for loss in watch.losses],  # a curve, mean of the seeds
    }
    return trained, row


def rounded(values: Tensor, digits: int = 5) -> list[float]:
    return [round(value, digits) for value in values.tolist()]


def keep(name: str, state: parallel.States) -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in state.items()}, CACHE / f"{name}.safetensors")


def kept(name: str) -> parallel.States:
    return load_file(CACHE / f"{name}.safetensors")


def theta_k(images: task.Images) -> parallel.States:
    start = task.initial(SEEDS)
    return parallel.train(MODEL, start, *images.train, steps=REWIND, seeds=SEEDS, rates=[task.RATE] * len(SEEDS),
                          batch=task.BATCH, gradient=chain_gradients)  # fmt: skip


def rounds(
    images: task.Images, label: str, start: parallel.States, fractions: float | dict[str, float], *, first: int = 0,
    restart: str = "rewind", schedule: Callable | None = None, later: Callable | None = None, count: int = ROUNDS,
    dense: tuple[dict, str] | None = None,
) -> list[dict]:  # fmt: skip
    """Iterative pruning; ``later`` is the schedule of all trainings but the first, ``dense`` that one, if it was run."""
    rows: list[dict] = []

    def train(state: parallel.States, masks: parallel.States) -> parallel.States:
        if dense and not rows:
            rows.append(dense[0])
            return kept(dense[1])
        chosen = later if rows and later else schedule
        trained, row = learn(images, state, masks, first=first, schedule=chosen)
        rows.append(row)
        sys.stderr.write(f"{label} {len(rows) - 1}: {row['density']} {row['step']} {row['accuracy']} {row['final']}\n")
        return trained

    done = lottery_ticket.iterative(start, train, fractions=fractions, rounds=count, restart=restart)  # type: ignore[arg-type]
    for found in done:
        if found.number in (0, FEWER, *CONTROLS):
            keep(f"{label}_{found.number}_masks", found.masks)
            keep(f"{label}_{found.number}_trained", found.trained)
    return rows


def controls(images: task.Images, number: int) -> dict[str, dict]:
    """Everything that is trained beside the ticket of one round, each with as many weights in each layer."""
    masks, start = kept(f"layers_{number}_masks"), task.initial(SEEDS)
    seeds = [1000 + seed for seed in SEEDS]
    drawn = lottery_ticket.random_masks(masks, seeds)
    arms = {
        "new start": (task.initial([100 + seed for seed in SEEDS]), masks),
        "another new start": (task.initial([200 + seed for seed in SEEDS]), masks),
        "random mask": (start, drawn),
        "shuffled mask": (start, lottery_ticket.shuffled_masks(masks, seeds)),
        "signs only": (lottery_ticket.signs_only(start, MASKED), masks),
        "one-shot": (start, lottery_ticket.largest(kept("layers_0_trained"), masks)),
    }
    rows = {}
    for name, (state, these) in arms.items():
        trained, rows[name] = learn(images, lottery_ticket.masked(state, these), these)
        row = rows[name]
        sys.stderr.write(f"{name} {number}: {row['density']} {row['step']} {row['accuracy']} {row['final']}\n")
        if name == "random mask":
            keep(f"random_{number}_masks", drawn)
            keep(f"random_{number}_trained", trained)
    return rows


def connected(images: task.Images, label: str, number: int) -> dict:
    """A second training in another order of the images, and the errors on the line between the two."""
    masks, first = kept(f"{label}_{number}_masks"), kept(f"{label}_{number}_trained")
    start = theta_k(images) if label == "later" else task.initial(SEEDS)
    second, row = learn(images, lottery_ticket.masked(start, masks), masks, order=50,
                        first=REWIND if label == "later" else 0)  # fmt: skip
    errors = connectivity.errors_between(MODEL, first, second, *images.test)
    found = {"density": row["density"], "errors": [rounded(step) for step in errors],
             "barrier": rounded(connectivity.barrier(errors))}  # fmt: skip
    sys.stderr.write(f"{label} {number}: barrier {found['barrier']}\n")
    return found


def jobs(images: task.Images, done: dict) -> dict[str, Callable[[], object]]:
    """Name → job; ``done`` holds the results of those that ran."""

    def fall(step: int, total: int) -> float:
        return 1.0 if step < DROP else 0.1

    def last(step: int, total: int) -> float:
        return 0.1

    def other(label: str, start: parallel.States, fractions: float | dict[str, float], **how: Any) -> list[dict]:
        return rounds(
            images, label, start, fractions, count=FEWER, dense=(done["ticket"][0], "layers_0_trained"), **how
        )

    def scheduled(**how: Any) -> list[dict]:
        before = done.get("schedule, weights rewound")
        dense = (before[0], "schedule_0_trained") if before else None
        label = "continued" if before else "schedule"
        return rounds(images, label, start, FOUR, count=FEWER, dense=dense, schedule=fall, **how)

    start = task.initial(SEEDS)
    found: dict[str, Callable[[], object]] = {"ticket": lambda: rounds(images, "layers", start, task.FRACTIONS)}
    for number in (15, 7, 12):
        found[f"controls {number}"] = partial(controls, images, number)
    for label, number in (("ticket", 0), ("ticket", 15), ("random", 15), ("ticket", 7), ("random", 7)):
        name = "layers" if label == "ticket" else label
        found[f"line, {label} {number}"] = partial(connected, images, name, number)
    found["schedule, weights rewound"] = scheduled
    found["schedule, rate rewound"] = partial(scheduled, restart="continue")
    found["schedule, fine-tuned"] = partial(scheduled, restart="continue", later=last)
    found["rewound to k"] = lambda: other("later", theta_k(images), FOUR, first=REWIND)
    found["four rounds in one"] = partial(other, "four", start, FOUR)
    found[f"line, rewound to k {FEWER}"] = partial(connected, images, "later", FEWER)
    found["global"] = partial(other, "global", start, GLOBAL)
    for number in (18, 3):
        found[f"controls {number}"] = partial(controls, images, number)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000, help="stop after so many")
    most = parser.parse_args().jobs
    torch.set_num_threads(1)
    settings = {
        "steps": task.STEPS, "batch": task.BATCH, "rate": task.RATE, "fractions": task.FRACTIONS, "global": GLOBAL,
        "rounds": ROUNDS, "fewer": FEWER, "controls": list(CONTROLS), "rewind": REWIND, "drop": DROP, "every": 25,
    }  # fmt: skip
    values = recording.resumed(RESULT, settings)
    todo = jobs(task.data(), values["results"])
    sys.exit(0 if recording.finished(values, todo, most, write) else 3)


def write(values: dict) -> None:
    recording.write(
        RESULT,
        what="Winning tickets of LeNet-300-100 on the digits stand-in beside their controls, rewinding, and errors on "
        "the line between two trainings: five seeds, 4,000 test images",
        values=values,
        command="python studies/lottery_ticket.py",
        device=recording.ONE_THREAD,
        seed=list(SEEDS),
        indent=None,
    )


if __name__ == "__main__":
    main()
