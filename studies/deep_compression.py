"""Both LeNets through the three stages of Deep Compression, three seeds, everything counted.

    python studies/deep_compression.py     # about five minutes on one core

Writes ``book/data/deep_compression.json``. Each net and seed is written as soon as it is done; a second start
goes on with what is missing.
"""

import copy
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import recording
import torch
from torch import nn

from reference.coding import deep_compression as pipeline
from reference.data import digits
from reference.evaluation import accuracy
from reference.models.vision import LeNet5, LeNet300
from reference.training import fit, trapezoid

SEEDS = (0, 1, 2)
ROUNDS = (0.7, 0.9, 1.0)  # shares of the final sparsity
RATE, CENTROID_RATE, DECAY = 1e-3, 2e-4, 1e-2
RESULT = Path(__file__).resolve().parents[1] / "book/data/deep_compression.json"
CLASSES: dict[str, type[nn.Module]] = {"LeNet-300-100": LeNet300, "LeNet-5": LeNet5}
# weight → density, bits of a code; epochs of training, of each round of retraining, of the centroids
NETS: dict[str, dict] = {
    "LeNet-300-100": {
        "epochs": [30, 8, 4],
        "layers": {"fc1.weight": [0.08, 5], "fc2.weight": [0.12, 5], "fc3.weight": [0.4, 5]},
    },
    "LeNet-5": {
        "epochs": [8, 2, 1],
        "layers": {"conv1.weight": [0.5, 6], "conv2.weight": [0.12, 5], "fc1.weight": [0.05, 4],
                   "fc2.weight": [0.2, 5]},
    },
}  # fmt: skip


def fall(step: int, total: int) -> float:
    """The rate rises for 20 steps and falls over the last 70 %."""
    return trapezoid(step, total, warmup=20, decay=0.7)


def one(name: str, seed: int) -> dict:
    """Accuracies and bytes of one net."""
    plan, train, test = NETS[name], digits.load("train"), digits.load("test")
    first, later, last = plan["epochs"]
    began = time.perf_counter()

    def learn(model: nn.Module, epochs: int, order: int, after_step: Callable[[], None] | None = None) -> None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
        fit(model, *train, epochs=epochs, optimizer=optimizer, seed=order, schedule=fall, after_step=after_step)

    def learn_centroids(model: nn.Module) -> None:
        optimizer = torch.optim.Adam(model.parameters(), lr=CENTROID_RATE)
        fit(model, *train, epochs=last, optimizer=optimizer, seed=seed + 99, schedule=fall)

    torch.manual_seed(seed)
    model = CLASSES[name]()
    learn(model, first, seed)
    result: dict = {"dense": accuracy(model, *test)}
    longer = copy.deepcopy(model)  # the control: the same further epochs in the same rounds, without a mask
    for turn in range(len(ROUNDS)):
        learn(longer, later, seed + 10 * (turn + 1))
    result["dense, trained on"] = accuracy(longer, *test)
    result["parameters"] = sum(p.numel() for p in model.parameters())
    turns = itertools.count(1)
    layers = pipeline.compress(
        model,
        sparsity={layer: 1 - density for layer, (density, _) in plan["layers"].items()},
        bits={layer: bits for layer, (_, bits) in plan["layers"].items()},
        retrain=lambda net, after_step: learn(net, later, seed + 10 * next(turns), after_step),
        retrain_shared=learn_centroids,
        rounds=ROUNDS,
        on_stage=lambda stage, net: result.update({stage: accuracy(net, *test)}),
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "net.dcz"
        pipeline.save(file, layers)
        result["bytes"], result["file"] = pipeline.describe(file), file.stat().st_size
        loaded = pipeline.restore(CLASSES[name](), pipeline.load(file))
    result["loaded"] = accuracy(loaded, *test)
    sys.stderr.write(f"{name}, seed {seed}: {time.perf_counter() - began:.0f} s {result}\n")
    return result


def main() -> None:
    torch.set_num_threads(1)
    settings = {"nets": NETS, "rounds": list(ROUNDS), "rates": [RATE, CENTROID_RATE], "decay": DECAY}
    values: dict = {"settings": settings, "runs": {name: {} for name in NETS}}
    if RESULT.exists():
        before = json.loads(RESULT.read_text())["values"]
        values = before if before["settings"] == settings else values
    for name in NETS:
        for seed in SEEDS:
            if str(seed) not in values["runs"][name]:
                values["runs"][name][str(seed)] = one(name, seed)
                write(values)


def write(values: dict) -> None:
    recording.write(
        RESULT,
        what="LeNet-300-100 and LeNet-5 on the digits stand-in: accuracy on 4,000 test images after each stage of "
        "Deep Compression, bytes of the container by purpose, three seeds",
        values=values,
        command="python studies/deep_compression.py",
        device=recording.ONE_THREAD,
        seed=list(SEEDS),
    )


if __name__ == "__main__":
    main()
