"""LeNet-5 pruned by magnitude at several sparsities, three seeds: without retraining, with, and gradually.

    python studies/magnitude.py            # about five minutes on one core

Writes ``book/data/magnitude.json``.
"""

import copy
import sys
from pathlib import Path

import recording
import torch

from reference.data import digits
from reference.evaluation import accuracy
from reference.models.vision import LeNet5
from reference.pruning import magnitude, schedules
from reference.pruning.masks import Masks
from reference.training import fit

SEEDS, SPARSITIES = (0, 1, 2), (0.9, 0.92, 0.95, 0.98, 0.99)
DENSE_EPOCHS, EPOCHS, BATCH, RATE, DECAY, EVERY = 5, 3, 64, 1e-3, 1e-4, 16
RESULT = Path(__file__).resolve().parents[1] / "book/data/magnitude.json"

IMAGES, LABELS = digits.load("train")
TEST = digits.load("test")


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.named_parameters() if value.ndim > 1}


def adam(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), RATE, weight_decay=DECAY)


def dense(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    model, held = LeNet5(), DENSE_EPOCHS
    schedule = lambda step, total: min(1.0, 2 * (1 - step / total))  # noqa: E731
    fit(model, IMAGES, LABELS, epochs=held, optimizer=adam(model), batch=BATCH, seed=seed, schedule=schedule)
    return model


def retrain(model: torch.nn.Module, sparsity: float, seed: int, *, gradually: bool) -> None:
    optimizer = adam(model)
    masks = Masks(model, {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights(model).items()}, optimizer)
    updates = int(0.6 * EPOCHS * -(-len(IMAGES) // BATCH)) // EVERY
    step = 0

    def after() -> None:
        nonlocal step
        step += 1
        masks()
        if gradually and step % EVERY == 0 and step <= updates * EVERY:
            now = schedules.gradual(step, initial=0, final=sparsity, begin_step=0, n_updates=updates, every=EVERY)
            masks.update(magnitude.global_masks(weights(model), now))

    if not gradually:
        masks.update(magnitude.global_masks(weights(model), sparsity))
    fit(
        model, IMAGES, LABELS, epochs=EPOCHS, optimizer=optimizer, batch=BATCH, seed=seed + 100,
        after_step=after, schedule=lambda step, total: 1 - step / total,
    )  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    values: dict = {"dense": [], "without retraining": {}, "retrained": {}, "gradually": {}}
    for seed in SEEDS:
        original = dense(seed)
        values["dense"].append(accuracy(original, *TEST))
        sys.stderr.write(f"seed {seed}: {values['dense']}\n")
        for sparsity in SPARSITIES:
            for label in ("without retraining", "retrained", "gradually"):
                model = copy.deepcopy(original)
                if label == "without retraining":
                    Masks(model, magnitude.global_masks(weights(model), sparsity))
                else:
                    retrain(model, sparsity, seed, gradually=label == "gradually")
                values[label].setdefault(str(sparsity), []).append(accuracy(model, *TEST))
            sys.stderr.write(f"{sparsity}: {[values[k][str(sparsity)][-1] for k in list(values)[1:]]}\n")
    recording.write(
        RESULT,
        what="Accuracy of LeNet-5 on the test images of the digits, one number a seed: dense, and pruned by global "
        f"magnitude at each sparsity, without retraining, retrained for {EPOCHS} epochs, and pruned gradually (cubic) "
        "during the same number of epochs",
        values=values,
        command="python studies/magnitude.py",
        device=recording.ONE_THREAD,
        seed=list(SEEDS),
    )


if __name__ == "__main__":
    main()
