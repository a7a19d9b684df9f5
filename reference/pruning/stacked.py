"""Movement pruning of many runs at once: :mod:`reference.pruning.movement` on a :class:`StackedEncoder`.

Each run has its own density, rates, penalty and data; all runs of a stack share the method. Two things differ from the
layers of :mod:`reference.pruning.masked_linear`: masks that need a sort are made anew every ``refresh`` steps, not in
every forward pass, and equal scores at the cut all stay until the end. With ``refresh=1`` and different scores the
runs are those that :func:`reference.pruning.movement.attach` gives, one by one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from reference.distillation.losses import logits_loss
from reference.models.stacked import PRUNABLE, StackedEncoder
from reference.pruning.masked_linear import L0_START, Method
from reference.pruning.movement import Schedule
from reference.pruning.score_masks import L0_BETA, L0_HIGH, L0_LOW, l0_mask, straight_through, threshold_mask, topk_mask

StackMethod = Method | Literal["dense"]
_FLOOR = 0.005


@dataclass(frozen=True)
class Run:
    """Settings of one run of a stack.

    Attributes:
        schedule: as in :class:`reference.pruning.movement.Schedule`; not read by "dense".
        weight_rate, score_rate: of the optimiser, at their peak.
        seed: of random scores.

    Example:
        >>> run = Run(Schedule(total=10, final=0.1), weight_rate=1e-4, score_rate=1e-2)
        >>> run.schedule.value(10, "movement")
        0.1

    Chapter: none (study plumbing)
    """

    schedule: Schedule
    weight_rate: float
    score_rate: float = 0.0
    seed: int = 0


class PrunedStack:
    """Trains a stack of runs while pruning it.

    Args:
        model: on its device; changed in place.
        method: of all runs: one of :mod:`reference.pruning.movement`, or "dense".
        runs: one for each run of ``model``.
        refresh: steps between two masks of methods that sort.
        clip: largest norm of a run's gradient, over all its parameters and scores.

    Attributes:
        scores: name → ``[rows, R, out, in]``, parameters for the methods that learn them; empty for others.

    Raises:
        ValueError: an unknown method, or another number of runs.

    Source: Sanh et al. 2020, section 4, and the authors' code; see :mod:`reference.pruning.movement`.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(vocab_size=8, hidden_size=4, intermediate_size=8,
        ...                     num_hidden_layers=1, num_attention_heads=1)
        >>> model = StackedEncoder(BertModel(config).state_dict(), seeds=[0, 1], classes=2, heads=1)
        >>> runs = [Run(Schedule(total=10, final=kept), weight_rate=1e-4) for kept in (0.5, 0.25)]
        >>> density(PrunedStack(model, "magnitude", runs).final_weights())
        tensor([0.5000, 0.2500], dtype=torch.float64)

    Chapter: none (study plumbing)
    """

    def __init__(
        self, model: StackedEncoder, method: StackMethod, runs: Sequence[Run], *, refresh: int = 1, clip: float = 1.0
    ) -> None:
        if method != "dense" and method not in get_args(Method):
            raise ValueError(f"method is {method!r}; it may be dense, {', '.join(get_args(Method))}")
        if len(runs) != model.runs:
            raise ValueError(f"runs holds {len(runs)} settings; the model has {model.runs} runs")
        self.model, self.method, self.runs, self.refresh, self.clip = model, method, list(runs), refresh, clip
        self.device = model.words.device
        self.scores: dict[str, Tensor] = {}
        for place, (name, weight) in enumerate(model.weights().items()):
            if method == "random":
                drawn = [
                    torch.rand(weight[:, 0].shape, generator=torch.Generator().manual_seed(3 * run.seed + place))
                    for run in runs
                ]
                self.scores[name] = torch.stack(drawn, 1).to(self.device)
            elif method in ("movement", "soft", "l0"):
                start = L0_START if method == "l0" else 0.0
                self.scores[name] = nn.Parameter(torch.full_like(weight, start))
        self.keep = {
            name: torch.full_like(weight, method != "soft", dtype=torch.bool)
            for name, weight in model.weights().items()
            if method not in ("dense", "l0")
        }
        learned = [score for score in self.scores.values() if score.requires_grad]
        self.rates = [max(run.weight_rate for run in runs), max(run.score_rate for run in runs)]
        groups = [{"params": [p for p in model.parameters() if p.requires_grad], "lr": self.rates[0]}]
        if learned:
            groups.append({"params": learned, "lr": self.rates[1]})
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
        # Adam's step is proportional to its rate, so a run with a smaller rate takes a part of the largest step.
        self.parts = [
            torch.tensor([getattr(run, f"{kind}_rate") / rate if rate else 0.0 for run in runs], device=self.device)
            for kind, rate in zip(("weight", "score"), self.rates, strict=True)
        ]
        self.equal = [bool((part == 1).all()) for part in self.parts]
        self._tabulate()

    def step(
        self,
        step: int,
        token_ids: Tensor,
        real: Tensor,
        labels: Tensor,
        teacher: Tensor | None = None,
        factor: float = 1.0,
    ) -> Tensor:
        """One step of every run.

        Args:
            step: from 0; sets density, threshold and penalty.
            token_ids, real: as :meth:`StackedEncoder.forward` takes them.
            labels: int64 ``[R, texts]``.
            teacher: logits ``[R, texts, classes]`` to distil, or None.
            factor: on both rates.

        Returns:
            The loss of each run ``[R]``, its distance to the teacher averaged over runs; on the device, without a wait.
        """
        self.model.train()
        self.set(step)
        logits = self.model(token_ids, real, self.effective(training=True))
        losses = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        losses = losses.view(labels.shape).mean(1)
        if teacher is not None:  # a mean over all texts of all runs, so that it counts once for each run
            losses = 0.5 * losses + 0.5 * logits_loss(logits.flatten(0, 1), teacher.flatten(0, 1), 2.0)
        (losses + self.penalty(step)).sum().backward()
        self._clip()
        self._update(factor)
        return losses.detach()

    def _tabulate(self) -> None:
        """All that the schedules say, on the device beforehand: copying a number there would wait for it."""
        steps = range(max(run.schedule.total for run in self.runs) + 1)
        kind = self.method
        if kind == "dense":
            return
        values = [[run.schedule.value(t, kind) for run in self.runs] for t in steps]
        weights = [[run.schedule.penalty_weight(t, kind) for run in self.runs] for t in steps]
        self._values = torch.tensor(values, device=self.device)
        self._penalties = torch.tensor(weights, device=self.device)
        self._counts = {}
        for name, weight in self.model.weights().items():
            n = weight[0, 0].numel()
            count = [[int(_FLOOR * n) + 1 if kind == "soft" else int(v * n) for v in row] for row in values]
            self._counts[name] = (
                torch.tensor(count, device=self.device).unsqueeze(2),
                [min(row) == n for row in count],
            )
        final = {run.schedule.total - run.schedule.cooldown + 1 for run in self.runs}
        self._due = [t % self.refresh == 0 or t in final for t in steps]

    @torch.no_grad()
    def set(self, step: int) -> None:
        """Masks for ``step``: those that need a sort on every ``refresh``-th step, thresholds on every step."""
        if not self.keep:
            return
        if self._due[step]:
            for name, keep in self.keep.items():
                importance, (counts, whole) = self.importance(name), self._counts[name]
                for row in range(len(keep)):
                    if whole[step]:
                        keep[row] = True
                    else:
                        _largest(importance[row], counts[step], keep[row])
        self._now = step

    def importance(self, name: str) -> Tensor:
        """What masks are chosen by."""
        return self.model.weights()[name].detach().abs() if self.method == "magnitude" else self.scores[name].detach()

    def effective(self, *, training: bool) -> dict[str, Tensor]:
        """Weights times masks, with the gradient of the method."""
        found = {}
        for name, weight in self.model.weights().items():
            if self.method == "dense":
                found[name] = weight
            elif self.method == "l0":
                scores = self.scores[name]
                found[name] = weight * l0_mask(scores, torch.rand_like(scores) if training else None)
            elif self.method in ("magnitude", "random"):
                found[name] = weight * self.keep[name]
            else:
                keep = self.keep[name]
                if self.method == "soft":
                    tau = self._values[self._now].view(1, -1, 1, 1)
                    keep = keep | (self.scores[name].detach().sigmoid() > tau)
                found[name] = weight * straight_through(self.scores[name], keep)
        return found

    def penalty(self, step: int) -> Tensor:
        """The penalty of each run ``[R]``, times its weight at ``step``."""
        if self.method not in ("soft", "l0"):
            return torch.zeros(len(self.runs), device=self.device)
        shift = L0_BETA * math.log(-L0_LOW / L0_HIGH) if self.method == "l0" else 0.0
        rows = sum(len(score) for score in self.scores.values())
        means = sum((score - shift).sigmoid().mean((2, 3)).sum(0) for score in self.scores.values()) / rows
        return self._penalties[step] * means

    @torch.no_grad()
    def _clip(self) -> None:
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"]]
        squares = sum(torch.linalg.vector_norm(g.flatten(2), dim=2).square().sum(0) for g in gradients)
        scale = (self.clip / (torch.as_tensor(squares).sqrt() + 1e-6)).clamp(max=1).view(1, -1, 1, 1)
        for gradient in gradients:
            gradient.mul_(scale)

    @torch.no_grad()
    def _update(self, factor: float) -> None:
        before = []
        for group, rate, equal in zip(self.optimizer.param_groups, self.rates, self.equal, strict=False):
            group["lr"] = rate * factor
            before.append([] if equal else [p.clone() for p in group["params"]])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for group, old, part in zip(self.optimizer.param_groups, before, self.parts, strict=False):
            for parameter, value in zip(group["params"], old, strict=False):
                parameter.copy_(torch.lerp(value, parameter, part.view(1, -1, 1, 1)))

    @torch.no_grad()
    def final_weights(self) -> dict[str, Tensor]:
        """Weights times the masks of evaluation, exact in count; what is pruned is zero. ``[rows, R, out, in]``."""
        found = {}
        for name, weight in self.model.weights().items():
            found[name] = weight.detach().clone()
            for row in range(len(weight)) if self.method != "dense" else ():
                for i, run in enumerate(self.runs):
                    mask = self._final_mask(self.importance(name)[row, i], run.schedule.final)
                    found[name][row, i] = (found[name][row, i] * mask).masked_fill(mask == 0, 0)
        return found

    def _final_mask(self, importance: Tensor, value: float) -> Tensor:
        if self.method == "l0":
            return l0_mask(importance)
        return threshold_mask(importance, value) if self.method == "soft" else topk_mask(importance, value)


def _largest(importance: Tensor, counts: Tensor, out: Tensor) -> None:
    """Write a bool mask ``[R, out, in]`` that keeps the ``counts`` ``[R, 1]`` largest of each run, and ties."""
    flat = importance.flatten(1)
    cut = flat.sort(dim=1, descending=True).values.gather(1, (counts - 1).clamp(min=0))
    out.copy_(((flat >= cut) & (counts > 0)).view_as(out))


def density(weights: Mapping[str, Tensor]) -> Tensor:
    """Share of nonzeros of each run, over all matrices of a stack: float64 ``[R]``.

    Args:
        weights: name → ``[rows, R, out, in]``, as :meth:`PrunedStack.final_weights` gives them.

    Example:
        >>> one, none = torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
        >>> both, first = torch.cat([one, one], 1), torch.cat([one, none], 1)
        >>> weights = {"attention": both, "up": first, "down": first}
        >>> density(weights).mul(3)  # of three matrices the first run has three, the second one
        tensor([3., 1.], dtype=torch.float64)

    Chapter: none (study plumbing)
    """
    kept = torch.stack([(weights[name] != 0).double().sum((0, 2, 3)) for name in PRUNABLE]).sum(0)
    return kept / sum(weights[name][:, 0].numel() for name in PRUNABLE)
