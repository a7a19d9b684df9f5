"""How much each layer can lose: prune one layer at a time, and choose sparsities from the curves."""

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from reference.pruning import magnitude


def curves(
    model: nn.Module,
    names: Sequence[str],
    sparsities: Sequence[float],
    evaluate: Callable[[nn.Module], float],
    rule: Callable[[Tensor, float], Tensor] = magnitude.mask,
) -> dict[str, list[float]]:
    """Score of the model with one layer pruned at a time.

    Args:
        model: its parameters are changed while ``evaluate`` runs, and the same as before at the end, whatever
            happens.
        names: of parameters.
        sparsities: fractions removed, each ``0 <= sparsity < 1``.
        evaluate: from the model to a number, larger is better.
        rule: from a weight and a sparsity to a bool mask.

    Returns:
        name → score at each sparsity.

    Raises:
        ValueError: a name is no parameter, or what ``rule`` raises.

    Source: Han et al. 2015, section 3 and figure 6, where the curves choose the thresholds.

    Example:
        >>> model = nn.Linear(4, 1, bias=False)
        >>> model.weight.data = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
        >>> curves(model, ["weight"], [0.0, 0.25, 0.5], evaluate=lambda model: model.weight.sum())
        {'weight': [10.0, 9.0, 7.0]}
        >>> model.weight.sum().item()  # as before
        10.0

    Chapter: pruning/magnitude
    """
    parameters = dict(model.named_parameters())
    if unknown := [name for name in names if name not in parameters]:
        raise ValueError(f"names holds {unknown}, which are no parameters: {', '.join(parameters)}")
    result: dict[str, list[float]] = {}
    for name in names:
        weight = parameters[name].data
        before = weight.clone()
        try:
            result[name] = []
            for sparsity in sparsities:
                weight.copy_(before.masked_fill(~rule(before, sparsity), 0))
                with torch.no_grad():
                    result[name].append(float(evaluate(model)))
        finally:
            weight.copy_(before)
    return result


def by_tolerance(
    scores: Mapping[str, Sequence[float]], sparsities: Sequence[float], dense_score: float, tolerance: float
) -> dict[str, float]:
    """The largest sparsity of each layer at which the score has fallen by at most ``tolerance``.

    Between two measured sparsities the curve is a line; after the first fall below the limit it counts as fallen,
    even where noise lifts it again.

    Args:
        scores: from :func:`curves`.
        sparsities: those of the curves, rising.
        dense_score: score of the model before.
        tolerance: 0 or more, in the unit of the scores. Falls of several layers add up, so the whole model loses more.

    Returns:
        name → sparsity, from 0 to the last of ``sparsities``.

    Raises:
        ValueError: ``sparsities`` does not rise, lengths differ, a score is NaN or infinite, or ``tolerance`` is negative.

    Source: Han et al. 2015, section 3.

    Example:
        >>> round(by_tolerance({'a': [0.9, 0.89, 0.5]}, [0.0, 0.5, 0.9], 0.9, 0.02)['a'], 3)
        0.51

    Chapter: pruning/magnitude
    """
    grid = _grid(scores, sparsities)
    if not tolerance >= 0:
        raise ValueError(f"tolerance is {tolerance}; it may be 0 or more")
    return {name: _crossing(grid, dense_score - np.asarray(curve), tolerance) for name, curve in scores.items()}


def by_target(
    scores: Mapping[str, Sequence[float]],
    sparsities: Sequence[float],
    dense_score: float,
    sizes: Mapping[str, int],
    target: float,
) -> dict[str, float]:
    """Sparsities of all layers for one overall sparsity: every layer may lose the same amount of score.

    The tolerance is found by bisection; where a layer's sparsity jumps at that tolerance, the sparsities are mixed so
    that the overall one is met.

    Args:
        scores, sparsities, dense_score: see :func:`by_tolerance`.
        sizes: name → number of weights.
        target: overall fraction removed.

    Returns:
        name → sparsity; weighted by ``sizes`` they give ``target``, within 1e-9.

    Raises:
        ValueError: as :func:`by_tolerance`; names of ``sizes`` differ; or ``target`` is below 0, or beyond the
            largest of ``sparsities``.

    Example:
        >>> scores = {"robust": [0.9, 0.8], "fragile": [0.9, 0.5]}
        >>> found = by_target(scores, [0.0, 0.8], 0.9, {"robust": 100, "fragile": 100}, target=0.5)
        >>> {name: round(sparsity, 3) for name, sparsity in found.items()}  # each loses a tenth
        {'robust': 0.8, 'fragile': 0.2}

    Chapter: pruning/magnitude
    """
    grid = _grid(scores, sparsities)
    if set(sizes) != set(scores):
        raise ValueError(f"sizes names {sorted(sizes)}; the curves are of {sorted(scores)}")
    if not 0 <= target <= grid[-1]:
        raise ValueError(f"target is {target}; it may be 0 to {grid[-1]}, the largest of sparsities")
    share = {name: size / sum(sizes.values()) for name, size in sizes.items()}

    def overall(chosen: Mapping[str, float]) -> float:
        return sum(share[name] * sparsity for name, sparsity in chosen.items())

    drops = [dense_score - value for curve in scores.values() for value in curve]
    low, high = 0.0, max(0.0, *drops)
    for _ in range(60):
        middle = (low + high) / 2
        reached = overall(by_tolerance(scores, grid, dense_score, middle)) >= target
        low, high = (low, middle) if reached else (middle, high)
    less, more = (by_tolerance(scores, grid, dense_score, tolerance) for tolerance in (low, high))
    if overall(less) >= target:  # met with no loss at all
        less = dict.fromkeys(scores, 0.0)
    gap = overall(more) - overall(less)
    part = (target - overall(less)) / gap if gap > 0 else 0.0
    return {name: less[name] + part * (more[name] - less[name]) for name in scores}


def _grid(scores: Mapping[str, Sequence[float]], sparsities: Sequence[float]) -> list[float]:
    grid = [float(value) for value in sparsities]
    if not grid or any(b <= a for a, b in itertools.pairwise(grid)) or not 0 <= grid[0] <= grid[-1] < 1:
        raise ValueError(f"sparsities is {grid}; it must rise, from 0 or more to below 1")
    for name, curve in scores.items():
        if len(curve) != len(grid):
            raise ValueError(f"scores[{name!r}] has {len(curve)} values for {len(grid)} sparsities")
        if not np.isfinite(curve).all():  # NaN is not above any limit, and would pass for no fall at all
            raise ValueError(f"scores[{name!r}] is {[float(value) for value in curve]}; scores must be finite")
    return grid


def _crossing(grid: Sequence[float], drop: np.ndarray, tolerance: float) -> float:
    """Where the running maximum of ``drop``, from 0 at sparsity 0, first exceeds ``tolerance``."""
    x = np.concatenate([[0.0], grid]) if grid[0] > 0 else np.asarray(grid)
    y = np.maximum.accumulate(np.concatenate([[0.0], drop]) if grid[0] > 0 else np.maximum(drop, 0.0))
    above = np.flatnonzero(y > tolerance)
    if not len(above):
        return float(x[-1])
    if (k := above[0]) == 0:
        return float(x[0])
    return float(x[k - 1] + (x[k] - x[k - 1]) * (tolerance - y[k - 1]) / (y[k] - y[k - 1]))
