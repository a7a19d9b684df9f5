"""Sparse from scratch beside the ticket: SNIP, SET, RigL, static masks, small dense networks and early-bird masks.

    python studies/lottery_ticket.py --jobs 1    # first: finds the tickets, whose masks it keeps in .cache
    python studies/sparse_training.py            # all jobs that are missing, about 25 minutes on one idle core
    python studies/sparse_training.py --jobs 1   # the next one

LeNet-300-100 on the task of ``studies/lottery_ticket.py``, five seeds, at the tickets' numbers of weights. Writes
``book/data/sparse_training.json`` after each job.
"""

import argparse
import itertools
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import recording
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from reference.models.vision import LeNet300, SmallResNet
from reference.pruning import architecture, densities, early_bird, lottery_ticket, sparse_training, training_cost
from reference.pruning import parallel_training as parallel
from reference.pruning import ticket_task as task
from reference.pruning.chain_gradients import chain_gradients

ROOT = Path(__file__).resolve().parents[1]
RESULT, CACHE = ROOT / "book/data/sparse_training.json", ROOT / ".cache/sparse_training"
TICKETS, TICKET_ROWS = ROOT / ".cache/lottery_ticket", ROOT / "book/data/lottery_ticket.json"
SEEDS = (0, 1, 2, 3, 4)
TARGETS = (7, 12, 15, 18)  # rounds of the tickets compared: 21, 7, 3.6, 1.9 % kept
LONG, LONG_TARGET = 5, 15  # times as many steps, and where
EVERY, UNTIL, FRACTION = 50, 0.75, 0.3  # steps between two updates, part of the training with updates, moved at first
SCORED = 100  # examples of SNIP
EPOCH, DRAWS = 37, (0, 1, 4)  # steps a pass over the data; passes after which a mask is drawn and trained
RESNET_EPOCHS, RESNET_SEEDS, RATIOS = 16, (0, 1, 2), (0.3, 0.5, 0.7)
MODEL = LeNet300()
SHAPES = {name: tuple(p.shape) for name, p in MODEL.named_parameters() if p.ndim > 1}
SIZES = (784, 300, 100, 10)


class Chain(nn.Sequential):
    """A dense network of other widths than LeNet's, with the same names of its parameters."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        for number, (inputs, outputs) in enumerate(itertools.pairwise(sizes), 1):
            self.add_module(f"fc{number}", nn.Linear(inputs, outputs))
            if number < len(sizes) - 1:
                self.add_module(f"relu{number}", nn.ReLU())


def rounded(values: Tensor, digits: int = 5) -> list[float]:
    return [round(value, digits) for value in values.tolist()]


def stacked(masks: Sequence[dict[str, Tensor]]) -> parallel.States:
    return {name: torch.stack([one[name] for one in masks]) for name in masks[0]}


def generators(base: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(base + seed) for seed in SEEDS]


def learn(
    images: task.Images, start: parallel.States, masks: parallel.States, *, model: nn.Module = MODEL,
    steps: int = task.STEPS, remask: Callable | None = None, after_step: Callable | None = None,
) -> tuple[parallel.States, dict]:  # fmt: skip
    """Train a state, and say how it went."""
    watch = task.EarlyStop(model, images, every=max(25, steps // 30))

    def look(step: int, state: parallel.States) -> None:
        watch(step, state)
        if after_step:
            after_step(step, state)

    trained = parallel.train(
        model, lottery_ticket.masked(start, masks), *images.train, steps=steps, seeds=SEEDS,
        rates=[task.RATE] * len(SEEDS), batch=task.BATCH, masks=masks, remask=remask, after_step=look,
        gradient=chain_gradients,
    )  # fmt: skip
    return trained, {
        "weights": [int(sum(mask[i].sum() for mask in masks.values())) for i in range(len(SEEDS))],
        "accuracy": rounded(watch.accuracy()),
        "final": rounded(parallel.evaluate(model, trained, *images.test)[1]),
    }


def keep(name: str, state: parallel.States) -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in state.items()}, CACHE / f"{name}.safetensors")


def kept(name: str) -> parallel.States:
    return load_file(CACHE / f"{name}.safetensors")


def products(masks: parallel.States) -> list[int]:
    """Of one example, network by network."""
    return [training_cost.forward_products({name: mask[i] for name, mask in masks.items()}) for i in range(len(SEEDS))]


def share(cost: float) -> float:
    """Cost as a multiple of one dense training."""
    return round(cost / training_cost.static_products(266_200, task.STEPS * task.BATCH), 5)


def counts_after(rounds: int) -> dict[str, int]:
    """Weights left in each layer of a ticket."""
    left = {name: MODEL.get_parameter(name).numel() for name in SHAPES}
    for _ in range(rounds):
        left = {name: count - round(task.FRACTIONS[name] * count) for name, count in left.items()}
    return left


def like(counts: dict[str, int]) -> parallel.States:
    """Some masks with as many weights."""
    return {name: (torch.arange(MODEL.get_parameter(name).numel()) < count).view(SHAPES[name]).repeat(len(SEEDS), 1, 1)
            for name, count in counts.items()}  # fmt: skip


def ticket(number: int) -> parallel.States:
    masks = load_file(TICKETS / f"layers_{number}_masks.safetensors")
    found = {name: int(mask[0].sum()) for name, mask in masks.items()}
    if found != counts_after(number):
        raise ValueError(f"ticket {number} has {found} weights; expected {counts_after(number)}")
    return masks


def search_cost(number: int, steps: int) -> int:
    """Of all rounds before a ticket's own training."""
    forwards = [sum(counts_after(before).values()) for before in range(number)]
    return training_cost.ticket_products(forwards, steps * task.BATCH)


def tickets() -> list[dict]:
    """What the tickets of the other study look like and cost."""
    rows = json.loads(TICKET_ROWS.read_text())["values"]["results"]["ticket"]
    found = []
    for number in (0, *TARGETS):
        left = counts_after(number)
        own = training_cost.static_products(sum(left.values()), task.STEPS * task.BATCH)
        search = search_cost(number, task.STEPS) if number else 0
        masks = ticket(number)
        found.append({
            "round": number, "layers": left, "cost": share(search + own), "own cost": share(own),
            "widths": [architecture.widths([masks[name][i] for name in SHAPES]) for i in range(len(SEEDS))],
            "accuracy": rows[number]["accuracy"], "final": rows[number]["final"],
        })  # fmt: skip
    return found


def ticket_for_longer(images: task.Images) -> dict:
    """A ticket trained for as many steps as the long trainings of the others."""
    masks = ticket(LONG_TARGET)
    _, row = learn(images, task.initial(SEEDS), masks, steps=LONG * task.STEPS)
    own = training_cost.static_products(row["weights"][0], LONG * task.STEPS * task.BATCH)
    say("ticket, long", row)
    return {**row, "cost": share(search_cost(LONG_TARGET, task.STEPS) + own)}


def short_rounds(images: task.Images) -> list[dict]:
    """Tickets found with rounds of a fifth of the steps, and then trained in full."""
    start, steps, found = task.initial(SEEDS), task.STEPS // 5, []

    def train(state: parallel.States, masks: parallel.States) -> parallel.States:
        return learn(images, state, masks, steps=steps)[0]

    for done in lottery_ticket.iterative(start, train, fractions=task.FRACTIONS, rounds=LONG_TARGET):
        if done.number in (7, LONG_TARGET):
            _, row = learn(images, start, done.masks)
            own = training_cost.static_products(row["weights"][0], task.STEPS * task.BATCH)
            found.append({"round": done.number, **row, "cost": share(search_cost(done.number, steps) + own)})
            say(f"short rounds, {done.number}", row)
    return found


def say(label: str, row: dict) -> None:
    sys.stderr.write(f"{label}: {row['weights'][0]} {row['accuracy']} {row['final']}\n")


def snip(images: task.Images, count: int) -> parallel.States:
    start = task.initial(SEEDS)
    rows = torch.stack([torch.randperm(len(images.train[0]), generator=g)[:SCORED] for g in generators(300)])
    slopes, _ = parallel.gradients(MODEL, start, images.train[0][rows], images.train[1][rows])
    return stacked([
        sparse_training.snip_masks({name: start[name][i] for name in SHAPES}, [{n: slopes[n][i] for n in SHAPES}],
                                   count / 266_200)
        for i in range(len(SEEDS))
    ])  # fmt: skip


def drawn(wanted: dict[str, float], base: int) -> parallel.States:
    counts = densities.kept_counts(SHAPES, wanted)
    return stacked([densities.random_masks(SHAPES, counts, generator) for generator in generators(base)])


def start_mask(images: task.Images, arm: str, number: int) -> parallel.States:
    count = sum(counts_after(number).values())
    if arm == "SNIP":
        return snip(images, count)
    if arm == "SNIP, shuffled":  # as many in each layer, anywhere
        return lottery_ticket.random_masks(snip(images, count), [400 + seed for seed in SEEDS])
    if arm == "static, uniform":
        return drawn(densities.uniform_densities(SHAPES, count / 266_200), 500)
    return drawn(densities.erdos_renyi_densities(SHAPES, count / 266_200), 600)


def scratch(images: task.Images, arm: str, number: int, times: int = 1) -> dict:
    """One way to train sparse from the start, with as many weights as the ticket of a round."""
    masks, steps = start_mask(images, arm, number), times * task.STEPS
    end, final = int(UNTIL * steps), dict(masks)
    move = sparse_training.mover(masks, every=EVERY, end_step=end, fraction=FRACTION,
                                 generators=generators(700) if arm == "SET" else None)  # fmt: skip

    def remask(step: int, state: parallel.States, slopes: parallel.States) -> parallel.States | None:
        new = move(step, state, slopes) if arm in ("SET", "RigL") else None
        final.update(new or {})
        return new

    _, row = learn(images, task.initial(SEEDS), masks, steps=steps, remask=remask)
    examples = steps * task.BATCH
    costs = []
    for forward in products(masks):
        if arm == "RigL":
            dense = len(sparse_training.update_steps(every=EVERY, end_step=end)) * task.BATCH
            costs.append(training_cost.rigl_products(forward, 266_200, examples, dense))
        elif arm == "SNIP":
            costs.append(training_cost.snip_products(forward, 266_200, examples, SCORED))
        else:
            costs.append(training_cost.static_products(forward, examples))
    row["cost"] = share(sum(costs) / len(costs))
    row["layers"] = {name: [int(m.sum()) for m in mask] for name, mask in masks.items()}
    row["widths"] = [architecture.widths([final[name][i] for name in SHAPES]) for i in range(len(SEEDS))]
    row["moved"] = rounded(torch.stack([
        1 - sum((masks[n][i] & final[n][i]).sum() for n in SHAPES) / sum(masks[n][i].sum() for n in SHAPES)
        for i in range(len(SEEDS))
    ]))  # fmt: skip
    say(f"{arm} {number} × {times}", row)
    return row


def small(images: task.Images, arm: str, number: int, times: int = 1) -> dict:
    """A small dense network: LeNet's proportions, the ticket's pixels and proportions, or the ticket's widths."""
    masks_of = ticket(number)
    units = [architecture.live_units([masks_of[name][i] for name in SHAPES]) for i in range(len(SEEDS))]
    budget = sum(counts_after(number).values()) + sum(SIZES[1:])  # biases are parameters too
    sizes, pixels = [], []
    for live in units:
        read = [int(unit.sum()) for unit in live]
        pixels.append(torch.ones(784, dtype=torch.bool) if arm == "LeNet's proportions" else live[0])
        if arm == "the ticket's widths":
            sizes.append(read)
        else:
            proportions = SIZES[1:3] if arm == "LeNet's proportions" else read[1:3]
            sizes.append(architecture.dense_widths(budget, proportions, int(pixels[-1].sum()), SIZES[3]))
    hull = [784, *(max(one[level] for one in sizes) for level in (1, 2, 3))]
    model, states, masks = Chain(hull), [], []
    for seed, size, seen in zip(SEEDS, sizes, pixels, strict=True):
        state, mask = embedded(size, hull, seen, seed)
        states.append(state)
        masks.append(mask)
    _, row = learn(images, stacked(states), stacked(masks), model=model, steps=times * task.STEPS)
    row["sizes"], row["parameters"] = sizes, [architecture.parameters(size) for size in sizes]
    forward = [sum(a * b for a, b in itertools.pairwise(size)) for size in sizes]
    examples = times * task.STEPS * task.BATCH
    row["cost"] = share(sum(training_cost.static_products(f, examples) for f in forward) / len(SEEDS))
    say(f"small, {arm} {number} × {times}: {sizes[0]}", row)
    return row


def embedded(
    size: Sequence[int], hull: Sequence[int], pixels: Tensor, seed: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:  # fmt: skip
    """A network of ``size`` in the corner of a larger one, so that networks of other widths train beside it."""
    generator = torch.Generator().manual_seed(800 + seed)
    state, mask = {}, {}
    for layer in (1, 2, 3):
        inside = torch.zeros(hull[layer], hull[layer - 1], dtype=torch.bool)
        columns = pixels if layer == 1 else torch.arange(hull[layer - 1]) < size[layer - 1]
        inside[: size[layer]] = columns
        weight = torch.empty(size[layer], size[layer - 1])
        nn.init.xavier_normal_(weight, generator=generator)
        state[f"fc{layer}.weight"] = torch.zeros(inside.shape).masked_scatter(inside, weight)
        state[f"fc{layer}.bias"] = torch.zeros(hull[layer])
        mask[f"fc{layer}.weight"] = inside
    return state, mask


def early(images: task.Images) -> dict:
    """Masks that would be drawn after each pass of the dense training: how far apart they are, and whether stable."""
    wanted = {number: like(counts_after(number)) for number in TARGETS}
    start = task.initial(SEEDS)
    masks: dict[int, list[parallel.States]] = {n: [lottery_ticket.largest(start, wanted[n])] for n in TARGETS}

    def draw(step: int, state: parallel.States) -> None:
        if step % EPOCH == 0:
            for number in TARGETS:
                masks[number].append(lottery_ticket.largest(state, wanted[number]))

    learn(images, start, {}, after_step=draw)
    found = {}
    for number in TARGETS:
        if number == LONG_TARGET:
            for after in DRAWS:
                keep(f"early_{number}_{after}", masks[number][after])
        density = float(lottery_ticket.density(wanted[number])[0])
        chance = sum(  # layers have densities of their own
            early_bird.chance_distance(float(wanted[number][n][0].double().mean())) * wanted[number][n][0].numel()
            for n in SHAPES
        ) / 266_200  # fmt: skip
        rows = [along([{n: one[n][i] for n in SHAPES} for one in masks[number]], chance) for i in range(len(SEEDS))]
        found[str(number)] = {"density": round(density, 5), "chance": round(chance, 5), "seeds": rows}
        sys.stderr.write(f"early {number}: {[row['drawn'] for row in rows]}\n")
    return found


def along(masks: Sequence[dict[str, Tensor]], chance: float) -> dict:
    """Distances to the pass before, to the farthest of the four before, and to the last; and when the rule draws,
    with the authors' threshold and with a tenth of the distance by chance."""
    table = early_bird.distances(masks)
    return {
        "next": [round(float(table[i, i - 1]), 5) for i in range(1, len(table))],
        "window": [round(float(table[i, i - 4 : i].max()), 5) for i in range(4, len(table))],
        "last": [round(float(value), 5) for value in table[-1, :-1]],
        "drawn": early_bird.first_stable(table),
        "drawn, a tenth of chance": early_bird.first_stable(table, threshold=0.1 * chance),
    }


def channels(images: task.Images) -> dict:
    """Channel masks by batch-norm scale along the training of a small residual network, as in the paper."""
    x, y = images.train
    found: dict[str, list] = {str(ratio): [] for ratio in RATIOS}
    accuracies = []
    for seed in RESNET_SEEDS:
        torch.manual_seed(seed)
        model, generator = SmallResNet(8), torch.Generator().manual_seed(seed)
        scales = [m.weight for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
        masks: dict[float, list[dict[str, Tensor]]] = {ratio: [] for ratio in RATIOS}
        for epoch in range(RESNET_EPOCHS):
            optimizer.param_groups[0]["lr"] = 0.1 * 0.1 ** (
                (2 * epoch >= RESNET_EPOCHS) + (4 * epoch >= 3 * RESNET_EPOCHS)
            )
            for rows in torch.randperm(len(x), generator=generator).split(64):
                loss = functional.cross_entropy(model(x[rows]), y[rows]) + 1e-4 * sum(s.abs().sum() for s in scales)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            for ratio in RATIOS:
                masks[ratio].append(early_bird.channel_masks(model, ratio))
        model.eval()
        with torch.no_grad():
            right = [(model(a).argmax(1) == b).sum() for a, b in zip(images.test[0].split(500),
                                                                    images.test[1].split(500), strict=True)]  # fmt: skip
        accuracies.append(round(float(sum(right)) / len(images.test[1]), 5))
        for ratio in RATIOS:
            found[str(ratio)].append(along(masks[ratio], early_bird.chance_distance(1 - ratio)))
        sys.stderr.write(f"channels, seed {seed}: {accuracies[-1]} {[found[str(r)][-1]['drawn'] for r in RATIOS]}\n")
    return {"accuracy": accuracies, "ratios": found}


def jobs(images: task.Images) -> dict[str, Callable[[], object]]:
    found: dict[str, Callable[[], object]] = {}
    arms = ("RigL", "SNIP", "static, Erdős–Rényi", "SET", "SNIP, shuffled", "static, uniform")
    shapes = ("LeNet's proportions", "the ticket's pixels", "the ticket's widths")
    for number, arm in itertools.product((15, 7), arms):
        found[f"{arm}, {number}"] = lambda arm=arm, number=number: scratch(images, arm, number)  # type: ignore[misc]
    found["early bird"] = lambda: early(images)
    found["ticket"] = tickets
    for number, shape in [*itertools.product((15, 7), shapes), *itertools.product((12, 18), shapes[:2])]:
        found[f"small, {shape}, {number}"] = lambda shape=shape, number=number: small(images, shape, number)  # type: ignore[misc]
    for shape in shapes[:2]:
        found[f"small, {shape}, long"] = lambda shape=shape: small(images, shape, LONG_TARGET, LONG)  # type: ignore[misc]
    for arm in ("RigL", "static, Erdős–Rényi"):
        found[f"{arm}, long"] = lambda arm=arm: scratch(images, arm, LONG_TARGET, LONG)  # type: ignore[misc]
    found["short rounds"] = lambda: short_rounds(images)
    for after in DRAWS:
        found[f"drawn early, {after}"] = lambda after=after: learn(  # type: ignore[misc]
            images, task.initial(SEEDS), kept(f"early_{LONG_TARGET}_{after}"))[1]  # fmt: skip
    found["ticket, long"] = lambda: ticket_for_longer(images)
    for number, arm in itertools.product((12, 18), arms[:3]):
        found[f"{arm}, {number}"] = lambda arm=arm, number=number: scratch(images, arm, number)  # type: ignore[misc]
    found["channels"] = lambda: channels(images)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000, help="stop after so many")
    most = parser.parse_args().jobs
    torch.set_num_threads(1)
    settings = {
        "steps": task.STEPS, "batch": task.BATCH, "rate": task.RATE, "fractions": task.FRACTIONS,
        "targets": list(TARGETS), "long": LONG, "every": EVERY, "until": UNTIL, "fraction": FRACTION,
        "scored": SCORED, "epoch": EPOCH, "draws": list(DRAWS), "resnet": RESNET_EPOCHS,
    }  # fmt: skip
    values = recording.resumed(RESULT, settings)
    todo = jobs(task.data())
    sys.exit(0 if recording.finished(values, todo, most, write) else 3)


def write(values: dict) -> None:
    recording.write(
        RESULT,
        what="LeNet-300-100 on the digits stand-in, sparse from scratch (SNIP, SET, RigL, static masks), small dense "
        "networks and masks drawn early, beside the ticket with as many weights: five seeds, 4,000 test images",
        values=values,
        command="python studies/sparse_training.py",
        device=recording.ONE_THREAD,
        seed=list(SEEDS),
        indent=None,
    )


if __name__ == "__main__":
    main()
