"""Figures of the chapter ``pruning/deep_compression``."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

MARKERS = ("o", "s", "D", "^", "v")
STYLES = ("-", "--", "-.", ":")


def layer_sizes(printed: Mapping[str, Sequence[float]], computed: Mapping[str, Sequence[float]]) -> Axes:
    """Size of each layer in per cent of 32-bit weights, as computed against as printed in a paper.

    Args:
        printed: network → one number for each layer.
        computed: the same keys and lengths.
    """
    figure, axes = plt.subplots(figsize=(4.8, 4.7))
    axes.plot((0.8, 100), (0.8, 100), "--", color="black", linewidth=1, label="equal")
    for (name, values), marker in zip(printed.items(), MARKERS, strict=False):
        axes.plot(values, computed[name], marker, linestyle="none", markersize=6, label=name, alpha=0.85)
    axes.set(xscale="log", yscale="log", xlabel="printed, % of 32-bit weights", ylabel="computed, %")
    axes.set_aspect("equal")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=9.5)
    return axes


def position_cost(density: Sequence[float], curves: Mapping[str, Sequence[float]]) -> Axes:
    """Bits that the position of one kept weight costs, against the density.

    Args:
        density: share of kept weights.
        curves: layout → bits for each kept weight at each density; the last is drawn as a dotted bound.
    """
    figure, axes = plt.subplots(figsize=(5.2, 4.9))
    for number, (label, values) in enumerate(curves.items()):
        last = number == len(curves) - 1
        style = ":" if last else STYLES[number % 2]
        axes.plot(density, values, style, label=label, color="black" if last else None)
    ticks = [d for d in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if density[0] <= d <= density[-1]]
    axes.set(
        xscale="log", xlabel="share of weights kept", ylabel="bits for the position of a kept weight", ylim=(0, 16)
    )
    axes.set_xticks(ticks, [f"{100 * d:g} %" for d in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=9.5)
    return axes


def above_optimum(bits: Sequence[int], curves: Mapping[str, Sequence[float]]) -> Axes:
    """Squared error of k-means over the least possible one, against the bits of a code.

    Args:
        bits: of a code.
        curves: start → ratio at each of ``bits``.
    """
    _, axes = plt.subplots(figsize=(4.8, 3.6))
    for (label, values), marker in zip(curves.items(), MARKERS, strict=False):
        axes.plot(bits, values, marker=marker, label=label)
    axes.axhline(1, color="black", linewidth=1)
    axes.set(xlabel="bits of a code", ylabel="squared error over the least possible", yscale="log")
    axes.set_xticks(bits)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.legend(fontsize=9.5)
    return axes


def accuracy_by_bits(bits: Sequence[int], curves: Mapping[str, Sequence[float]], before: float) -> Axes:
    """Accuracy against the bits of a code, in per cent.

    Args:
        bits: of a code.
        curves: label → per cent at each of ``bits``.
        before: per cent without sharing, a horizontal line.
    """
    _, axes = plt.subplots(figsize=(4.8, 3.8))
    axes.axhline(before, color="black", linewidth=1, linestyle=":", label="not shared")
    for (label, values), marker in zip(curves.items(), MARKERS, strict=False):
        axes.plot(bits, values, marker=marker, label=label)
    axes.set(xlabel="bits of a code", ylabel="accuracy, %")
    axes.set_xticks(bits)
    axes.legend(fontsize=9.5, loc="lower right")
    return axes


def stages(names: Sequence[str], parts: Mapping[str, Sequence[float]]) -> Axes:
    """Bits for each original weight after each stage, as stacked bars.

    Args:
        names: of the stages.
        parts: what the bits are for → one number a stage.
    """
    figure, axes = plt.subplots(figsize=(5.2, 3.9))
    places, base = np.arange(len(names)), np.zeros(len(names))
    for label, values in parts.items():
        axes.bar(places, values, 0.62, bottom=base, label=label)
        base = base + np.asarray(values)
    for place, total in zip(places, base, strict=True):
        axes.annotate(f"{total:.2f}", (place, total), ha="center", va="bottom", fontsize=9.5)
    axes.set(ylabel="bits for each weight of the network")
    axes.set_xticks(places, names)
    axes.grid(axis="x", visible=False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=9.5)
    return axes
