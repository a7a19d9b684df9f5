"""Figures of the chapter ``pruning/structured``."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, NullLocator

from reference.figures.palette import looks

MARKERS = ("o", "s", "D", "^", "v")


def equal_size(points: Mapping[str, Mapping[int, Sequence[float]]]) -> Axes:
    """Accuracy against weights that are not zero, a marker at the mean and a bar over the seeds.

    Args:
        points: method → weights → accuracy in percent of each seed.
    """
    _, axes = plt.subplots(figsize=(4.8, 3.8))
    for number, ((method, by_size), look) in enumerate(zip(points.items(), looks(points), strict=True)):
        sizes = sorted(by_size)
        places = [size * 1.03 ** (number - len(points) / 2) for size in sizes]  # side by side
        means = [sum(by_size[size]) / len(by_size[size]) for size in sizes]
        axes.plot(places, means, linewidth=1.2, label=method, **look)
        for place, size in zip(places, sizes, strict=True):
            axes.plot((place, place), (min(by_size[size]), max(by_size[size])), color=look["color"], linewidth=1.8)
    axes.set(xscale="log", xlabel="weights that are not zero", ylabel="accuracy, %")
    ticks = (10_000, 20_000, 50_000, 100_000)
    axes.set_xticks(ticks, [f"{tick // 1000} k" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.legend(fontsize=9.5)
    return axes


def sparse_speed(sparsity: Sequence[float], curves: Mapping[str, Sequence[float]]) -> Axes:
    """Speed over the dense product, against the percentage of weights removed; even at one.

    Args:
        sparsity: percentages removed.
        curves: label → ratio of the dense product's time to this one's.
    """
    _, axes = plt.subplots(figsize=(4.8, 3.8))
    axes.axhline(1, color="black", linewidth=1)
    for (label, values), marker in zip(curves.items(), MARKERS, strict=False):
        axes.plot(sparsity, values, marker=marker, linewidth=1.2, label=label)
    axes.set(yscale="log", xlabel="weights removed, %", ylabel="times as fast as dense")
    axes.set_yticks((0.1, 0.3, 1, 3, 10), ("0.1", "0.3", "1", "3", "10"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend(fontsize=9.5)
    return axes


def criteria(removed: Sequence[float], curves: Mapping[str, Sequence[float]]) -> Axes:
    """Loss added by removing neurons without retraining, a line a criterion.

    Args:
        removed: percentages of neurons.
        curves: criterion → added loss, nats per token.
    """
    _, axes = plt.subplots(figsize=(4.8, 3.6))
    for (label, values), marker in zip(curves.items(), MARKERS, strict=False):
        axes.plot(removed, values, marker=marker, linewidth=1.2, label=label)
    axes.set(yscale="log", xlabel="neurons removed, %", ylabel="added loss, nats per token")
    axes.legend(fontsize=9.5)
    return axes
