r"""A cascade: several models behind one interface, the cheapest first::

    model 0  ── sure ──▶ answer
       │ not sure
    model 1  ── sure ──▶ answer
       │ not sure
    model 2  ──────────▶ answer

A row that is passed on has paid for every model that it went through. "Sure" is the probability of the most likely
class after temperature scaling, compared with a threshold. :func:`replay` computes from stored answers what a cascade
would have done, so that thresholds are chosen without running it again.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from reference.distillation.confidence import confidence

#: Share of a budget by which the mean of equal costs can lie above it, being rounded.
_ROUNDING = 1e-12


class Answer(NamedTuple):
    """What a cascade returns for a batch.

    ``logits``: float ``[rows, classes]`` of the model that answered, divided by its temperature. ``level``: int64
    ``[rows]``, which model that was.

    Example:
        >>> answer = Answer(torch.tensor([[0.0, 2.0], [1.0, 0.0]]), torch.tensor([0, 1]))
        >>> answer.logits.argmax(1).tolist(), answer.level.tolist()  # the second row was passed on
        ([1, 0], [0, 1])

    Chapter: advanced/distillation
    """

    logits: Tensor
    level: Tensor


class Cascade:
    """Asks the next model only for the rows of which those before were not sure.

    Args:
        models: cheapest first; each maps a batch ``[rows, …]`` to logits ``[rows, classes]``.
        thresholds: one for each model but the last: the confidence from which its answer stands. 0 lets it answer
            everything; above 1 nothing.
        temperatures: one for each model, of :func:`~reference.distillation.confidence.fit_temperature`; None for 1.

    Raises:
        ValueError: no model, another number of thresholds or temperatures, or a temperature that is not positive.

    Example:
        >>> cheap, dear = (lambda x: torch.cat([x, -x], 1)), (lambda x: torch.cat([-x, x], 1))
        >>> cascade = Cascade([cheap, dear], thresholds=[0.9])
        >>> cascade(torch.tensor([[5.0], [0.1]])).level.tolist()  # the cheap model is not sure of the second
        [0, 1]

    Chapter: advanced/distillation
    """

    def __init__(
        self,
        models: Sequence[Callable[[Tensor], Tensor]],
        thresholds: Sequence[float],
        temperatures: Sequence[float] | None = None,
    ) -> None:
        if not models:
            raise ValueError("models is empty; it may have one entry or more")
        if len(thresholds) != len(models) - 1:
            raise ValueError(f"thresholds has {len(thresholds)} entries; {len(models)} models need {len(models) - 1}")
        scales = [1.0] * len(models) if temperatures is None else list(temperatures)
        if len(scales) != len(models) or min(scales) <= 0:
            raise ValueError(f"temperatures is {scales}; it may be {len(models)} positive numbers")
        self.models, self.thresholds, self.temperatures = list(models), list(thresholds), scales

    @torch.no_grad()
    def __call__(self, batch: Tensor) -> Answer:
        """Answers for ``batch`` ``[rows, …]``; a model that no row reaches is not called."""
        waiting = torch.arange(len(batch), device=batch.device)
        level = torch.zeros(len(batch), dtype=torch.int64, device=batch.device)
        logits: Tensor | None = None
        for number, (model, temperature) in enumerate(zip(self.models, self.temperatures, strict=True)):
            answers = model(batch[waiting]).float() / temperature
            if logits is None:
                logits = answers.clone()
            else:
                logits[waiting] = answers
            level[waiting] = number
            if number < len(self.thresholds):
                waiting = waiting[confidence(answers) < self.thresholds[number]]
            if not len(waiting):
                break
        assert logits is not None
        return Answer(logits, level)


class Outcome(NamedTuple):
    """What became of each row: ``quality``, ``cost`` (float ``[rows]``) and ``level`` (int64 ``[rows]``).

    Example:
        >>> outcome = Outcome(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 11.0]), torch.tensor([0, 1]))
        >>> float(outcome.quality.mean()), float(outcome.cost.mean())
        (0.5, 6.0)

    Chapter: advanced/distillation
    """

    quality: Tensor
    cost: Tensor
    level: Tensor


def replay(
    confidences: Sequence[Tensor], quality: Sequence[Tensor], costs: Sequence[float], thresholds: Sequence[float]
) -> Outcome:
    """What a cascade does with rows of which every model's answer is known.

    Args:
        confidences: ``[rows]`` of each model; the last one's is not used and may be left out.
        quality: ``[rows]`` of each model's answer, for example 1 where it is right.
        costs: of one row by each model.
        thresholds: as for :class:`Cascade`.

    Returns:
        Quality, cost and level of each row; a row that is passed on has paid for every model on its way.

    Raises:
        ValueError: the numbers of models do not agree.

    Example:
        >>> sure, right = torch.tensor([0.95, 0.6]), [torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])]
        >>> outcome = replay([sure], right, costs=[1.0, 10.0], thresholds=[0.9])
        >>> outcome.quality.tolist(), outcome.cost.tolist()  # the second row pays for both models
        ([1.0, 1.0], [1.0, 11.0])

    Chapter: advanced/distillation
    """
    models = len(quality)
    if not models or len(costs) != models or len(thresholds) != models - 1 or len(confidences) < models - 1:
        raise ValueError(
            f"quality is of {models} models, costs of {len(costs)}, thresholds of {len(thresholds)}, confidences of "
            f"{len(confidences)}; they may be n, n, n - 1 and n - 1 or n, with n of 1 or more"
        )
    waiting = torch.ones(len(quality[0]), dtype=torch.bool, device=quality[0].device)
    level = torch.zeros(len(waiting), dtype=torch.int64, device=waiting.device)
    got, paid = quality[0].double().clone(), torch.full_like(quality[0], costs[0], dtype=torch.float64)
    for number in range(1, models):
        waiting = waiting & (confidences[number - 1] < thresholds[number - 1])
        level[waiting] = number
        got = torch.where(waiting, quality[number].double(), got)
        paid = paid + costs[number] * waiting
    return Outcome(got, paid, level)


def choose_thresholds(
    confidences: Sequence[Tensor],
    quality: Sequence[Tensor],
    costs: Sequence[float],
    budget: float,
    *,
    steps: int = 40,
) -> tuple[float, ...]:
    """The thresholds of best mean quality whose mean cost is within a budget, on held-out rows.

    Args:
        confidences, quality, costs: as for :func:`replay`.
        budget: mean cost of a row; at least that of the first model.
        steps: quantiles of each model's confidence that are tried, beside "answer everything" and "nothing".

    Returns:
        One for each model but the last; of equals, those of least cost.

    Raises:
        ValueError: even the first model alone costs more, or as :func:`replay`.

    Example:
        >>> sure, right = torch.tensor([0.95, 0.6]), [torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])]
        >>> [threshold] = choose_thresholds([sure], right, costs=[1.0, 10.0], budget=6.0)
        >>> 0.6 < threshold <= 0.95  # one of two rows goes on: 1 + 10 / 2
        True

    Chapter: advanced/distillation
    """
    if budget < costs[0]:
        raise ValueError(f"budget is {budget}; the first model alone costs {costs[0]}")
    if steps < 1:
        raise ValueError(f"steps is {steps}; it may be 1 or more")
    at = torch.linspace(0, 1, steps, dtype=torch.float64)
    tried = [[0.0, *torch.quantile(c.double(), at).unique().tolist(), 2.0] for c in confidences[: len(quality) - 1]]
    best: tuple[float, float] | None = None
    found: tuple[float, ...] = ()
    for thresholds in itertools.product(*tried):
        outcome = replay(confidences, quality, costs, thresholds)
        spent = float(outcome.cost.mean())
        score = (float(outcome.quality.mean()), -spent)
        if spent <= budget * (1 + _ROUNDING) and (best is None or score > best):
            best, found = score, thresholds
    return found


def mixture(quality: Sequence[float], costs: Sequence[float], budget: float) -> list[float]:
    """The best router that does not look at its row: each model gets a share of them, drawn at random.

    Quality and cost of a draw are means over the shares, so its points are the upper hull of the single models'; a
    cascade that lies below the hull is worth nothing.

    Args:
        quality: mean of each model.
        costs: of one row.
        budget: mean cost of a row.

    Returns:
        The shares, summing to one, at most two of them not zero.

    Raises:
        ValueError: numbers of models differ, or the cheapest costs more than the budget.

    Example:
        >>> mixture([0.5, 0.9], costs=[1.0, 11.0], budget=6.0)
        [0.5, 0.5]

    Chapter: advanced/distillation
    """
    if len(quality) != len(costs):
        raise ValueError(f"quality is of {len(quality)} models, costs of {len(costs)}; they must agree")
    if not costs or budget < min(costs):
        raise ValueError(f"budget is {budget}; the cheapest model costs {min(costs, default=0)}")
    best, shares = -float("inf"), [0.0] * len(costs)
    for cheap, dear in itertools.product(range(len(costs)), repeat=2):
        if costs[cheap] > budget:
            continue
        gap = costs[dear] - costs[cheap]
        part = 1.0 if gap <= 0 else min(1.0, (budget - costs[cheap]) / gap)
        if gap <= 0 and costs[dear] > budget:
            continue
        value = part * quality[dear] + (1 - part) * quality[cheap]
        if value > best:
            best, shares = value, [0.0] * len(costs)
            shares[cheap] += 1 - part
            shares[dear] += part
    return shares
