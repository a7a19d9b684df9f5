"""Figures of the chapter ``pruning/movement``."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, NullLocator

from reference.figures.palette import looks


def gains(pairs: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Axes:
    """Gain of the squared weight against the score learned, one point a weight.

    Args:
        pairs: label → scores and gains of the same weights, each in units of its largest.
    """
    figure, axes = plt.subplots(figsize=(4.8, 4.4))
    for number, (label, (scores, gain)) in enumerate(reversed(list(pairs.items()))):
        colour = f"C{len(pairs) - 1 - number}"
        axes.plot(scores, gain, ".", markersize=2.5, alpha=0.6, linestyle="none", label=label, color=colour)
    axes.axhline(0, color="0.5", linewidth=0.8)
    axes.axvline(0, color="0.5", linewidth=0.8)
    axes.set(xlabel="score, of the largest", ylabel="$W_T^2 - W_0^2$, of the largest")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=9.5, markerscale=4)
    return axes


def kept_by_size(curves: Mapping[str, Sequence[float]]) -> Axes:
    """Share of weights kept in each tenth of the weights, ordered by their size before fine-tuning.

    Args:
        curves: method → percentage kept of each tenth, the smallest first.
    """
    _, axes = plt.subplots(figsize=(4.8, 3.8))
    for (label, values), look in zip(curves.items(), looks(curves), strict=True):
        axes.plot(range(1, len(values) + 1), values, linewidth=1.5, label=label, **look)
    axes.set(xlabel="tenth of the weights, smallest first", ylabel="kept, %", ylim=(0, None))
    axes.set_xticks(range(1, 11))
    axes.legend(fontsize=9.5)
    return axes


def by_density(
    curves: Mapping[str, Mapping[float, Sequence[float]]], dense: float, lowest: float | None = None
) -> Axes:
    """Accuracy against the share kept, on a logarithmic axis that runs to the left; bars run over the seeds.

    Args:
        curves: method → percentage kept → accuracy in percent of each seed.
        dense: accuracy in percent with all weights, a dotted line.
        lowest: end of the accuracy axis; what lies below is cut off.
    """
    figure, axes = plt.subplots(figsize=(4.8, 4.2))
    places = sorted({kept for values in curves.values() for kept in values}, reverse=True)
    axes.axhline(dense, color="0.4", linestyle=":", linewidth=1.2)
    for (label, values), look in zip(curves.items(), looks(curves), strict=True):
        kept = sorted(values, reverse=True)
        axes.plot(kept, [float(np.mean(values[k])) for k in kept], linewidth=1.5, label=label, **look)
        for k in kept:
            axes.plot((k, k), (min(values[k]), max(values[k])), color=look["color"], linewidth=1.6)
    axes.annotate("dense", (places[0], dense), xytext=(0, 3), textcoords="offset points", fontsize=9)
    ticks = [tick for tick in (70, 50, 30, 15, 10, 5, 3, 1, 0.5) if places[-1] / 1.1 <= tick <= 1.1 * places[0]]
    axes.set(xscale="log", xlim=(1.2 * places[0], places[-1] / 1.2), xlabel="weights kept, %", ylabel="accuracy, %")
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(lowest, None)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=9.5)
    return axes
