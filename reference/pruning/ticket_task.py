"""The task of the chapter on lottery tickets: LeNet-300-100, Adam, and handwritten digits that can be overfitted.

The first 1,100 scans for training, two forms of each; four forms of the other 197 to see when to stop; the test scans,
eight forms. In 1,500 steps of 60 images each training image is seen 41 times; on MNIST in the paper 55 times.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reference.data import digits
from reference.models.vision import LeNet300
from reference.pruning.parallel_training import States, evaluate, stack

STEPS, BATCH, RATE = 1500, 60, 1.2e-3
#: Fraction of the survivors removed in a round, a fifth, and of the output layer a tenth.
FRACTIONS = {"fc1.weight": 0.2, "fc2.weight": 0.2, "fc3.weight": 0.1}
_TRAINING_SCANS = 1100


class Images(NamedTuple):
    """Pairs of images, float32 ``[n, 1, 28, 28]``, and labels, int64 ``[n]``.

    Example:
        >>> pair = torch.zeros(2, 1, 28, 28), torch.tensor([3, 7])
        >>> images = Images(train=pair, validation=pair, test=pair)
        >>> pictures, labels = images.validation
        >>> labels.tolist()
        [3, 7]

    Chapter: pruning/lottery_ticket
    """

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def data() -> Images:
    """2,200 images for training, 788 for validation and 4,000 for the test; no scan is in two of them.

    Returns:
        Pixels from 0 to 1 and digits, training, validation and test.

    Example:
        >>> images = data()
        >>> [len(labels) for pictures, labels in images]
        [2200, 788, 4000]

    Chapter: pruning/lottery_ticket
    """
    found = []
    for variations, wanted in ((2, True), (4, False)):
        images, labels = digits.load("train", variations=variations)
        scan = torch.arange(len(labels)) % (len(labels) // variations)
        rows = (scan < _TRAINING_SCANS) == wanted
        found.append((images[rows], labels[rows]))
    return Images(found[0], found[1], digits.load("test"))


def initial(seeds: Sequence[int]) -> States:
    """LeNet-300-100 before training: Glorot's normal weights, biases zero.

    Args:
        seeds: one a network.

    Returns:
        name → ``[models, …]``.

    Source: Glorot and Bengio 2010, eq. 16, as a normal distribution.

    Example:
        >>> states = initial([0, 1])
        >>> {name: tuple(value.shape) for name, value in states.items() if name.startswith("fc3")}
        {'fc3.weight': (2, 10, 100), 'fc3.bias': (2, 10)}
        >>> [round(float(weight.std()), 2) for weight in states["fc1.weight"]]  # √(2 / (784 + 300)) is 0.043
        [0.04, 0.04]

    Chapter: pruning/lottery_ticket
    """
    models = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):  # what a layer draws when it is made is replaced below
            model = LeNet300()
        for value in model.parameters():
            if value.ndim > 1:
                nn.init.xavier_normal_(value, generator=generator)
            else:
                nn.init.zeros_(value)
        models.append(model)
    return stack(models)


class EarlyStop:
    """Watch the validation loss while networks train, and keep the test accuracy at its least.

    Called after each step, as ``after_step`` of :func:`reference.pruning.parallel_training.train`.

    Args:
        model: of the architecture; its own weights are not used.
        images: validation and test are used.
        every: steps between two looks.

    Attributes:
        steps: those at which it looked.
        losses: validation losses, float64 ``[models]`` each.
        best: state of each network at its least loss.

    Example:
        >>> pair = torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 1])
        >>> watch = EarlyStop(nn.Linear(1, 2, bias=False), Images(pair, pair, pair), every=10)
        >>> for step, value in ((10, 0.0), (15, 9.0), (20, 2.0), (30, 1.0)):
        ...     watch(step, {"weight": torch.tensor([[[value], [0.0]]])})
        >>> watch.steps, watch.step().tolist(), watch.accuracy().tolist()  # 15 is no multiple of 10
        ([10, 20, 30], [20], [1.0])

    Chapter: pruning/lottery_ticket
    """

    def __init__(self, model: nn.Module, images: Images, *, every: int = 25) -> None:
        self.steps: list[int] = []
        self.losses: list[Tensor] = []
        self.best: States = {}
        self._every = every
        self._images = images
        self._evaluate = partial(evaluate, model)

    def __call__(self, step: int, state: States) -> None:
        if step % self._every:
            return
        loss = self._evaluate(state, *self._images.validation)[0]
        better = loss < torch.stack(self.losses).amin(0) if self.losses else torch.ones_like(loss, dtype=torch.bool)
        self.steps.append(step)
        self.losses.append(loss)
        for name, value in state.items():
            kept = self.best.setdefault(name, value.clone())
            kept[better] = value[better]

    def step(self) -> Tensor:
        """The step of least validation loss, int64 ``[models]``."""
        return torch.tensor(self.steps)[torch.stack(self.losses).argmin(0)]

    def accuracy(self) -> Tensor:
        """Test accuracy at that step, float64 ``[models]``."""
        return self._evaluate(self.best, *self._images.test)[1]
