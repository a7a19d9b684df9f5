r"""Movement pruning: learn what to keep while fine-tuning, by a score for each weight.

A layer computes with :math:`W \odot M(S)`. Its score's gradient is :math:`\partial L/\partial W' \odot W`: gradient
descent raises the score of a weight that moves away from zero, and lowers that of one that moves towards it.

    =========== ================================= ========================= =================
    ``method``  mask                              scheduled value           scores learned
    =========== ================================= ========================= =================
    movement    largest scores                    density, 1 → ``final``    yes
    soft        σ(score) above τ                  τ, 0 → ``final``          yes, with a penalty
    l0          random gates (hard concrete)      none                      yes, with a penalty
    magnitude   largest weights                   density, 1 → ``final``    no
    random      largest of fixed random numbers   density, 1 → ``final``    no
    =========== ================================= ========================= =================

Use: ``pruner = attach(model, names, method=…, schedule=…)``, an optimiser on ``pruner.parameter_groups(…)``; in each
step ``pruner.step(t)``, then ``loss + pruner.penalty()``; at the end ``finalize(model)``.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from reference.distillation.losses import logits_loss
from reference.pruning import schedules
from reference.pruning.masked_linear import Block, MaskedLinear, Method, finalize, used_units
from reference.pruning.score_masks import global_topk_masks, l0_penalty, l1_penalty, threshold_mask, topk_mask

__all__ = [
    "Block",
    "MaskedLinear",
    "Method",
    "Pruner",
    "Schedule",
    "Scope",
    "attach",
    "finalize",
    "task_loss",
    "threshold_mask",
    "topk_mask",
    "used_units",
]

Scope = Literal["layer", "global"]


@dataclass(frozen=True)
class Schedule:
    r"""How the density, or :math:`\tau`, and the weight of the penalty go from the first step to the last.

    Attributes:
        total: steps of the run.
        final: density at the end, 0 to 1; for soft movement :math:`\tau` at the end; not read by L0.
        warmup: steps at the start without pruning.
        cooldown: steps at the end at the final value.
        penalty: weight of the penalty at the end, 0 or more; it rises with :math:`\tau`, and is constant for L0.

    Raises:
        ValueError: warm-up and cool-down leave no ramp, or a value is out of range.

    Source: Sanh et al. 2020, equation 4 and appendix; the authors' code.

    Example:
        >>> schedule = Schedule(total=10, final=0.1, warmup=2, cooldown=2)
        >>> [round(schedule.value(step, "movement"), 2) for step in (0, 2, 5, 8, 10)]
        [1.0, 1.0, 0.21, 0.1, 0.1]

    Chapter: pruning/movement
    """

    total: int
    final: float
    warmup: int = 0
    cooldown: int = 0
    penalty: float = 0.0

    def __post_init__(self) -> None:
        if self.penalty < 0:
            raise ValueError(f"penalty is {self.penalty}; it may be 0 or more")
        self.value(0, "movement")  # checks the others

    def value(self, step: int, method: Method) -> float:
        """Density or threshold at ``step``, from 0."""
        initial = 0.0 if method == "soft" else 1.0
        final = 1.0 if method == "l0" else self.final
        return schedules.cubic(step, self.total, initial, final, self.warmup, self.cooldown)

    def penalty_weight(self, step: int, method: Method) -> float:
        r""":math:`\lambda_t = \lambda\,\tau_t/\tau_f`; where :math:`\tau_f = 0`, or nothing is scheduled, :math:`\lambda`."""
        if method != "soft" or not self.final:
            return self.penalty
        return self.penalty * self.value(step, method) / self.final


class Pruner:
    """Follows a schedule on the masked layers of one model; made by :func:`attach`.

    Args:
        model, layers, method, schedule, scope: as :func:`attach` gives them.

    Attributes:
        layers: name → :class:`MaskedLinear`.

    Example:
        >>> model = nn.Sequential(nn.Linear(10, 10))
        >>> pruner = attach(model, ["0"], method="magnitude", schedule=Schedule(total=10, final=0.1))
        >>> pruner.step(0), pruner.density()
        (1.0, 1.0)
        >>> pruner.step(10), pruner.density()
        (0.1, 0.1)

    Chapter: pruning/movement
    """

    def __init__(
        self, model: nn.Module, layers: dict[str, MaskedLinear], method: Method, schedule: Schedule, scope: Scope
    ) -> None:
        self.model, self.layers, self.method, self.schedule, self.scope = model, layers, method, schedule, scope
        self.step(0)

    @torch.no_grad()
    def step(self, step: int) -> float:
        """Set density or threshold for ``step``, from 0; call it before the forward pass.

        Returns:
            The value set. With ``scope="global"`` the masks are chosen here, from the scores as they are now.
        """
        self._now = step
        value = self.schedule.value(step, self.method)
        for layer in self.layers.values():
            layer.value = value
        if self.scope == "global":
            masks = global_topk_masks([layer.importance() for layer in self.layers.values()], value)
            for layer, mask in zip(self.layers.values(), masks, strict=True):
                layer.shared = mask.bool()
        return value

    def penalty(self) -> Tensor:
        """What is added to the loss at the step set last: zero for methods without a penalty."""
        weight = self.schedule.penalty_weight(self._now, self.method)
        scores = [layer.scores for layer in self.layers.values()] if self.method in ("soft", "l0") else []
        if not weight or not scores:
            return next(iter(self.layers.values())).weight.new_zeros(())
        return weight * (l1_penalty if self.method == "soft" else l0_penalty)(scores)

    def parameter_groups(
        self, *, weight_lr: float, score_lr: float, weight_decay: float = 0.0
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Groups for an optimiser: the model's parameters that train, and the scores at a rate of their own, undecayed."""
        scores = [p for layer in self.layers.values() for n, p in layer.named_parameters() if n == "scores"]
        ours = {id(score) for score in scores}
        others = [p for p in self.model.parameters() if p.requires_grad and id(p) not in ours]
        groups = [{"params": others, "lr": weight_lr, "weight_decay": weight_decay}]
        return groups + ([{"params": scores, "lr": score_lr, "weight_decay": 0.0}] if scores else [])

    @torch.no_grad()
    def densities(self) -> dict[str, float]:
        """Fraction of each layer's weights that its mask of evaluation keeps; waits for the device."""
        found = {}
        for name, layer in self.layers.items():
            training = layer.training
            found[name] = float((layer.eval().block_mask() != 0).double().mean())
            layer.train(training)
        return found

    def density(self) -> float:
        """Fraction kept of the weights of all masked layers together; biases, norms and embeddings do not count."""
        sizes = {name: layer.weight.numel() for name, layer in self.layers.items()}
        return sum(share * sizes[name] for name, share in self.densities().items()) / sum(sizes.values())


def attach(
    model: nn.Module,
    names: Iterable[str],
    *,
    method: Method,
    schedule: Schedule,
    block: Block = (1, 1),
    scope: Scope = "layer",
    seed: int = 0,
) -> Pruner:
    """Replace linear layers of a model by masked ones, in place.

    Args:
        model: any module; call this before an optimiser is made, after the model is on its device.
        names: of ``nn.Linear`` layers, as ``named_modules`` gives them.
        method: see the module's table.
        schedule: of the density, or of the threshold.
        block: rows and columns that share a score, None for all: ``(None, 64)`` is one score for 64 whole columns,
            a head in the output projection of attention; ``(None, 1)`` one for what a neuron writes.
        scope: "layer", each layer at the density; "global", all layers together at it, their blocks counted.
        seed: of random scores.

    Returns:
        What follows the schedule, when its ``step`` is called before each forward pass.

    Raises:
        ValueError: a name is missing, given twice or no linear layer; none is given; a block does not divide a weight;
            or ``scope="global"`` with a method that has no density.

    Source: Sanh et al. 2020, section 4.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> pruner = attach(model, ["0"], method="movement", schedule=Schedule(total=10, final=0.25))
        >>> [type(layer).__name__ for layer in model]
        ['MaskedLinear', 'ReLU', 'Linear']
        >>> pruner.step(10), pruner.densities()
        (0.25, {'0': 0.25})

    Chapter: pruning/movement
    """
    names = list(names)
    modules = dict(model.named_modules())
    if not names or len(set(names)) != len(names):
        raise ValueError(f"names is {names}; it must hold one layer or more, each once")
    for name in names:
        if not isinstance(modules.get(name), nn.Linear) or isinstance(modules[name], MaskedLinear):
            raise ValueError(f"names holds {name!r}, which is {type(modules.get(name)).__name__}; it must be a Linear")
    if scope not in get_args(Scope):
        raise ValueError(f"scope is {scope!r}; it may be 'layer' or 'global'")
    if scope == "global" and method in ("soft", "l0"):
        raise ValueError(f"scope is 'global' with method {method!r}, which sets no density; use 'layer'")
    layers = {}
    for number, name in enumerate(names):
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        layers[name] = MaskedLinear(layer, method, block, seed + number)
    for name, masked in layers.items():  # after all of them could be made
        model.set_submodule(name, masked)
    return Pruner(model, layers, method, schedule, scope)


def task_loss(
    logits: Tensor, labels: Tensor, teacher: Tensor | None = None, *, alpha: float = 0.5, temperature: float = 2.0
) -> Tensor:
    """Cross-entropy, or its mean with the distance to a dense model's predictions.

    Args:
        logits: ``[examples, classes]``.
        labels: int64 ``[examples]``.
        teacher: logits of the dense, fine-tuned model; None is no distillation.
        alpha: share of the teacher, 0 to 1.
        temperature: of both distributions.

    Returns:
        A scalar, nats an example, float32.

    Raises:
        ValueError: ``alpha`` is out of range, or as :func:`reference.distillation.losses.logits_loss`.

    Source: Sanh et al. 2020, section 6 (distillation), defaults of the authors' code.

    Example:
        >>> logits, labels = torch.tensor([[0.0, 0.0]]), torch.tensor([1])
        >>> bool(task_loss(logits, labels).exp().round(decimals=3) == 2)  # ln 2
        True
        >>> alone, half = task_loss(logits, labels), task_loss(logits, labels, teacher=logits)
        >>> bool(torch.isclose(half, alone / 2))  # a teacher that says the same adds nothing to its half
        True

    Chapter: pruning/movement
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; it may be 0 to 1")
    task = functional.cross_entropy(logits.float(), labels)
    if teacher is None:
        return task
    return (1 - alpha) * task + alpha * logits_loss(logits, teacher.detach(), temperature)
