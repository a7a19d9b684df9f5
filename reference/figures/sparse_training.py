"""Figures of the chapter ``pruning/lottery_ticket``: sparse training from scratch, and masks along a training."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from reference.figures.palette import looks
from reference.statistics import interval

MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
COSTS = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


def against_cost(
    curves: Mapping[str, tuple[Sequence[float], Sequence[Sequence[float]]]], *, level: float | None = None
) -> Axes:
    """Accuracy against what the training costs, a dot at the mean over the seeds and a bar of 95 % confidence.

    Args:
        curves: label → costs in dense trainings, and for each of them the accuracy in percent of each seed. Points of
            one label are joined: the same method with more steps.
        level: a dashed line across, such as the mean of the dense network.
    """
    _, axes = plt.subplots(figsize=(5.2, 4.0))
    if level is not None:
        axes.axhline(level, color="black", linewidth=1, linestyle="--")
    for (label, (costs, values)), look in zip(curves.items(), looks(curves), strict=True):
        means, halves = np.array([interval(row) for row in values]).T
        axes.plot(costs, means, markersize=5, linewidth=1.2, label=label, **look)
        for cost, mean, half in zip(costs, means, halves, strict=True):
            axes.plot((cost, cost), (mean - half, mean + half), color=look["color"], linewidth=1.4)
    axes.set(xscale="log", xlabel="cost of the training, dense trainings", ylabel="test accuracy, %")
    axes.set_xticks(COSTS, [str(tick) for tick in COSTS])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.legend(fontsize=9, loc="lower right")
    return axes


def mask_distances(
    curves: Mapping[str, Sequence[Sequence[float]]], first: int, chance: Mapping[str, float], threshold: float
) -> Axes:
    """Distance of each mask from the farthest in its window, as the training goes on: a line a density.

    Args:
        curves: label → for each seed, the distances of successive passes; drawn is their mean.
        first: pass of the first of them.
        chance: label → distance of two masks of this density that are drawn at random, a dotted line.
        threshold: of the rule, a dashed line.
    """
    _, axes = plt.subplots(figsize=(5.2, 3.8))
    axes.axhline(threshold, color="black", linewidth=1, linestyle="--")
    for number, (label, seeds) in enumerate(curves.items()):
        mean = np.mean(seeds, axis=0)
        passes = np.arange(first, first + len(mean))
        axes.plot(passes, mean, marker=MARKERS[number], markersize=3.5, linewidth=1.2, label=label, color=f"C{number}")
        if label in chance:
            axes.axhline(chance[label], color=f"C{number}", linewidth=1.2, linestyle=":")
    axes.set(yscale="log", xlabel="passes over the data", ylabel="positions that differ, a share of all")
    ticks = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
    axes.set_yticks(ticks, [str(tick) for tick in ticks])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.legend(fontsize=9.5)
    return axes
