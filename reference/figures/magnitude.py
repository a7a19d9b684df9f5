"""Figures of the chapter ``pruning/magnitude``."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, NullLocator

from reference.figures.palette import looks

MARKERS = ("o", "s", "D", "^", "v", "P")
Seeds = Sequence[Sequence[float]]


def _with_range(axes: Axes, x: Sequence[float], seeds: Seeds, label: str, look: Mapping[str, Any]) -> Line2D:
    """The mean over the seeds as a line, a bar from the smallest to the largest; ``plotted`` finds the means."""
    (line,) = axes.plot(x, [float(np.mean(found)) for found in seeds], label=label, linewidth=1.5, **look)
    for place, found in zip(x, seeds, strict=True):
        axes.plot((place, place), (min(found), max(found)), color=line.get_color(), linewidth=1.6)
    return line


def saliency(measured: Sequence[float], predictions: Mapping[str, Sequence[float]]) -> Axes:
    """Change of the loss when one weight is removed, measured against predicted, one point a weight.

    Args:
        measured: of each weight, any sign; drawn is the size.
        predictions: label → of each weight, positive.
    """
    figure, axes = plt.subplots(figsize=(4.8, 4.6))
    size = np.abs(np.asarray(measured))
    for (label, values), marker in zip(predictions.items(), MARKERS, strict=False):
        axes.plot(values, size, marker, markersize=2.6, alpha=0.6, linestyle="none", label=label)
    ends = (1e-9, 1e-1)
    axes.plot(ends, ends, "--", color="black", linewidth=1, label="_equal")
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    axes.set(xlabel="predicted change of the loss", ylabel="measured change of the loss, its size")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=9.5, markerscale=2)
    return axes


def one_shot(
    sparsities: Sequence[float], curves: Mapping[str, Seeds], patterns: Mapping[str, tuple[float, Sequence[float]]]
) -> Axes:
    """Accuracy against sparsity without retraining.

    Args:
        sparsities: fractions removed.
        curves: label → for each sparsity the accuracy in % of each seed.
        patterns: label → sparsity and accuracies of one pattern, drawn as a single marker.
    """
    figure, axes = plt.subplots(figsize=(4.8, 4.3))
    removed = [100 * value for value in sparsities]
    for (label, seeds), look in zip(curves.items(), looks(curves), strict=True):
        _with_range(axes, removed, seeds, label, look)
    for (label, (sparsity, found)), marker in zip(patterns.items(), ("*", "X"), strict=False):
        axes.plot(100 * sparsity, np.mean(found), marker, color="black", markersize=9, linestyle="none", label=label)
    axes.set(xlabel="weights removed, %", ylabel="accuracy, %", ylim=(0, 100))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=9.5)
    return axes


def retrained(curves: Mapping[str, tuple[Sequence[float], Seeds]], dense: float, lowest: float) -> Axes:
    """Accuracy against the fraction kept, on a logarithmic axis that runs to the left.

    Args:
        curves: label → sparsities, and for each the accuracy in % of each seed.
        dense: accuracy in % before pruning, a horizontal line.
        lowest: end of the accuracy axis; what lies below is cut off.
    """
    figure, axes = plt.subplots(figsize=(4.8, 4.1))
    places = sorted({round(100 * (1 - s), 6) for sparsities, _ in curves.values() for s in sparsities}, reverse=True)
    axes.axhline(dense, color="0.4", linestyle=":", linewidth=1.2)
    axes.annotate("dense", (places[0], dense), xytext=(0, 3), textcoords="offset points", fontsize=9)
    for (label, (sparsities, seeds)), look in zip(curves.items(), looks(curves), strict=True):
        _with_range(axes, [100 * (1 - s) for s in sparsities], seeds, label, look)
    axes.set(xscale="log", ylim=(lowest, 100), xlim=(1.15 * places[0], places[-1] / 1.15))
    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="weights kept, %", ylabel="accuracy, %")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=9.5)
    return axes


def layers(
    sparsities: Sequence[float], curves: Mapping[str, Sequence[float]], chosen: Mapping[str, float], dense: float
) -> Axes:
    """Accuracy with one layer pruned, and where the common tolerance cuts each curve.

    Args:
        sparsities: fractions removed of the one layer.
        curves: layer → accuracy in % at each.
        chosen: layer → sparsity chosen for it, a vertical tick on its curve.
        dense: accuracy in % of the whole network.
    """
    figure, axes = plt.subplots(figsize=(4.8, 4.1))
    removed = [0, *(100 * value for value in sparsities)]
    for (label, values), marker in zip(curves.items(), MARKERS, strict=False):
        (line,) = axes.plot(removed, [dense, *values], marker=marker, label=label, linewidth=1.5)
        height = np.interp(100 * chosen[label], removed, [dense, *values])
        axes.plot(100 * chosen[label], height, "|", color=line.get_color(), markersize=22, markeredgewidth=2.2)
    axes.set(xlabel="weights of this layer removed, %", ylabel="accuracy, %")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=9.5)
    return axes


def language(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Axes:
    """Bits per byte of a language model against sparsity.

    Args:
        curves: label → sparsities and bits per byte.
    """
    figure, axes = plt.subplots(figsize=(4.8, 4.1))
    for (label, (sparsities, values)), marker in zip(curves.items(), MARKERS, strict=False):
        axes.plot([100 * s for s in sparsities], values, marker=marker, label=label, linewidth=1.5)
    axes.set(xlabel="weights removed, %", ylabel="bits per byte", ylim=(0, None))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=9.5)
    return axes
