"""What the norms remember: a quarter of all channels cut by each criterion, before and after the norms see images again.

    python studies/structured_norms.py      # about two minutes on one core

The network is that of ``studies/structured.py``, seed 0, before any retraining. Writes ``book/data/structured_norms.json``: test
accuracy of the cut network, with the running statistics of the whole one and with its own, and no step of training.
"""

import copy
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
from reference.training import fit, trapezoid

SEED, WIDTH, EPOCHS, RATE, RATIO, SEEN = 0, 16, 6, 2e-3, 0.25, 1024
RESULT = Path(__file__).resolve().parents[1] / "book/data/structured_norms.json"
TRAIN, TEST = digits.load("train", variations=2), digits.load("test", variations=4)
EXAMPLE = TEST[0][:1]


@torch.no_grad()
def with_own_statistics(model: nn.Module) -> nn.Module:
    """A copy whose batch norms hold the mean statistics of some training images, as the cut network makes them."""
    model = copy.deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None  # a plain mean over the batches
    model.train()
    for images in TRAIN[0][:SEEN].split(64):
        model(images)
    return model.eval()


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def one_seed(seed: int) -> dict:
    torch.manual_seed(seed)
    model = SmallResNet(WIDTH)
    fit(model, *TRAIN, epochs=EPOCHS, optimizer=torch.optim.Adam(model.parameters(), RATE), seed=seed,
        schedule=lambda step, total: trapezoid(step, total, warmup=10, decay=0.7))  # fmt: skip
    found = groups(model.eval(), EXAMPLE)
    batches = [(TRAIN[0][i : i + 64], TRAIN[1][i : i + 64]) for i in range(0, 512, 64)]
    generator = torch.Generator().manual_seed(seed)
    scores = {
        "L1": importance.norm_scores(model, found, 1),
        "L2": importance.norm_scores(model, found, 2),
        "Taylor": importance.taylor_scores(model, found, loss, batches),
        "activation": importance.activation_scores(model, found, lambda m, b: m(b[0]), batches),
        "random": {g.name: torch.rand(g.size, generator=generator) for g in found if not g.fixed},
    }
    result = {"dense": accuracy(model, *TEST), "dense, own": accuracy(with_own_statistics(model), *TEST)}
    for name, score in scores.items():
        small = structured.shrink(model, found, structured.keep_best(score, RATIO))
        result[name] = [accuracy(small, *TEST), accuracy(with_own_statistics(small), *TEST)]
    return result


recording.write(
    RESULT,
    what="SmallResNet on the enlarged digits, a quarter of its channels cut and nothing trained: test accuracy with the "
    "batch statistics of the whole network, and with those that 1,024 training images give in the cut one",
    values={"ratio": RATIO, "images": SEEN, "accuracy": one_seed(SEED)},
    command="python studies/structured_norms.py",
    device=recording.ONE_THREAD,
    seed=SEED,
    packages=("numpy", "scikit-learn"),
)
