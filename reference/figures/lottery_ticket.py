"""Figures of the chapter ``pruning/lottery_ticket``."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from reference.figures.palette import looks
from reference.statistics import interval

KEPT = (100, 50, 20, 10, 5, 2)


def against_density(
    curves: Mapping[str, tuple[Sequence[float], Sequence[Sequence[float]]]], ylabel: str, *, level: float | None = None
) -> Axes:
    """Means over seeds against the percentage of weights kept, sparser to the right, with bands of 95 % confidence.

    Args:
        curves: label → percentages kept, and for each of them one value a seed.
        ylabel: what the values are.
        level: a dashed line across, such as the mean of the dense network.
    """
    _, axes = plt.subplots(figsize=(5.2, 3.8))
    if level is not None:
        axes.axhline(level, color="black", linewidth=1, linestyle="--")
    for (label, (kept, values)), look in zip(curves.items(), looks(curves), strict=True):
        means, halves = np.array([interval(row) for row in values]).T
        axes.plot(kept, means, markersize=4, linewidth=1.2, label=label, **look)
        axes.fill_between(kept, means - halves, means + halves, color=look["color"], alpha=0.18, linewidth=0)
    _percent_kept(axes)
    axes.set_ylabel(ylabel)
    axes.legend(fontsize=9.5)
    return axes


def along_line(curves: Mapping[str, Sequence[Sequence[float]]]) -> Axes:
    """Error on the straight line between two trained networks, a line a pair and thick their mean.

    Args:
        curves: label → for each pair of networks, the errors in percent at equal steps from one to the other.
    """
    _, axes = plt.subplots(figsize=(4.8, 3.6))
    for number, (label, pairs) in enumerate(curves.items()):
        alphas = np.linspace(0, 1, len(pairs[0]))
        for pair in pairs:
            axes.plot(alphas, pair, color=f"C{number}", linewidth=0.6, alpha=0.5)
        axes.plot(alphas, np.mean(pairs, axis=0), color=f"C{number}", linewidth=2, label=label)
    axes.set(yscale="log", xlabel="place on the line, α", ylabel="test error, %")
    ticks = (5, 10, 20, 50, 90)
    axes.set_yticks(ticks, [str(tick) for tick in ticks])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.legend(fontsize=9.5)
    return axes


def _percent_kept(axes: Axes) -> None:
    axes.set(xscale="log", xlabel="weights kept, %")
    axes.set_xticks(KEPT, [str(tick) for tick in KEPT])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.invert_xaxis()
