"""Structured, unstructured and 2:4 pruning of one small residual network at equal numbers of weights, three seeds.

    python studies/structured.py            # about five minutes on one core

Writes ``book/data/structured.json``: accuracy before and after retraining, and what each network costs.
"""

import copy
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import recording
import torch
from torch import Tensor, nn
from torch.nn import functional

from reference.data import digits
from reference.evaluation import accuracy
from reference.models.vision import SmallResNet
from reference.pruning import importance, structured
from reference.pruning.dependency import groups
from reference.pruning.magnitude import global_masks, n_of_m
from reference.pruning.masks import Masks
from reference.training import fit, trapezoid

SEEDS, WIDTH, EPOCHS, RETRAIN, RATE = (0, 1, 2), 16, 6, 3, 2e-3
RATIOS = (0.25, 0.5, 0.75)
RESULT = Path(__file__).resolve().parents[1] / "book/data/structured.json"
TRAIN, TEST = digits.load("train", variations=2), digits.load("test", variations=4)
EXAMPLE = TEST[0][:1]


def train(model: nn.Module, seed: int, epochs: int, rate: float, masks: dict[str, Tensor] | None = None) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), rate)
    fit(model, *TRAIN, epochs=epochs, optimizer=optimizer, seed=seed,
        after_step=Masks(model, masks, optimizer) if masks else None,
        schedule=lambda step, total: trapezoid(step, total, warmup=10, decay=0.7))  # fmt: skip
    return model.eval()


def weights(model: nn.Module) -> dict[str, Tensor]:
    """What unstructured pruning may remove: convolutions but the first."""
    return {name: p.detach() for name, p in model.named_parameters() if p.ndim == 4 and p.shape[1] > 1}


def record(method: str, ratio: float, before: float, model: nn.Module, nonzeros: int) -> dict:
    cost = structured.cost(model, EXAMPLE)
    return {"method": method, "ratio": ratio, "before": before, "after": accuracy(model, *TEST),
            "nonzeros": nonzeros, "parameters": cost.parameters, "products": cost.products}  # fmt: skip


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def scores_of(model: nn.Module, found: list, seed: int) -> dict[str, Callable[[], dict[str, Tensor]]]:
    batches = [(TRAIN[0][i : i + 64], TRAIN[1][i : i + 64]) for i in range(0, 512, 64)]
    generator = torch.Generator().manual_seed(seed)
    return {
        "L1": lambda: importance.norm_scores(model, found, 1),
        "L2": lambda: importance.norm_scores(model, found, 2),
        "Taylor": lambda: importance.taylor_scores(model, found, loss, batches),
        "activation": lambda: importance.activation_scores(model, found, lambda m, b: m(b[0]), batches),
        "random": lambda: {g.name: torch.rand(g.size, generator=generator) for g in found if not g.fixed},
    }


def one_seed(seed: int) -> dict:
    torch.manual_seed(seed)
    dense = train(SmallResNet(WIDTH), seed, EPOCHS, RATE)
    total = sum(p.numel() for p in dense.parameters())
    found = groups(dense, EXAMPLE)
    criteria = {
        name: [accuracy(structured.shrink(dense, found, structured.keep_best(score(), ratio)), *TEST)
               for ratio in RATIOS]
        for name, score in scores_of(dense, found, seed).items()
    }  # fmt: skip
    rows = [record("dense", 0.0, accuracy(dense, *TEST), train(copy.deepcopy(dense), seed, RETRAIN, RATE / 2), total)]
    taylor = scores_of(dense, found, seed)["Taylor"]()
    for ratio in RATIOS:
        small = structured.shrink(dense, found, structured.keep_best(taylor, ratio))
        size = sum(p.numel() for p in small.parameters())
        before = accuracy(small, *TEST)
        rows.append(record("structured", ratio, before, train(small, seed, RETRAIN, RATE / 2), size))
        if ratio == 0.5:
            torch.manual_seed(seed + 100)
            fresh = structured.shrink(SmallResNet(WIDTH), found, structured.keep_best(taylor, ratio))
            rows.append(record("from scratch", ratio, 0.1, train(fresh, seed, EPOCHS + RETRAIN, RATE), size))
        sparse, prunable = copy.deepcopy(dense), weights(dense)
        masks = global_masks(prunable, (total - size) / sum(w.numel() for w in prunable.values()))
        Masks(sparse, masks).release()
        rows.append(record("unstructured", ratio, accuracy(sparse, *TEST),
                           train(sparse, seed, RETRAIN, RATE / 2, masks), size))  # fmt: skip
    masks = {name: n_of_m(weight, 2, 4) for name, weight in weights(dense).items()}
    sparse = copy.deepcopy(dense)
    Masks(sparse, masks).release()
    nonzeros = total - sum(int((~m).sum()) for m in masks.values())
    rows.append(record("2:4", 0.5, accuracy(sparse, *TEST), train(sparse, seed, RETRAIN, RATE / 2, masks), nonzeros))
    for row in rows:
        print(seed, row, flush=True)
    return {"rows": rows, "criteria": criteria}


RESULT.parent.mkdir(exist_ok=True)
by_seed = [one_seed(seed) for seed in SEEDS]
recording.write(
    RESULT,
    what="SmallResNet on the enlarged digits: accuracy of structured, unstructured and 2:4 pruning, three seeds",
    values={"ratios": RATIOS, "seeds": by_seed, "test": len(TEST[1])},
    command="python studies/structured.py",
    device=f"{platform.machine()}, one core",
    seed=list(SEEDS),
    packages=("numpy", "scikit-learn"),
)
print(sys.argv[0], "wrote", RESULT)
