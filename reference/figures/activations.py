"""Figures of the chapter ``quantization/activations``."""

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor

from reference.figures import plain_numbers

MARKERS = ("o", "s", "D", "^")


def clipping(limits: Sequence[float], errors: Sequence[float], rules: Mapping[str, tuple[float, float]]) -> Axes:
    """Error against the clipping threshold, and where each rule puts it.

    Args:
        limits, errors: the curve.
        rules: name → (threshold, error).
    """
    _, axes = plt.subplots(figsize=(4.8, 3.6))
    axes.plot(limits, errors, color="0.5", linewidth=1.4, label="error")
    for number, (name, (limit, error)) in enumerate(rules.items()):
        axes.plot(
            [limit], [error], MARKERS[number], color=f"C{number}", markersize=7, label=name, linestyle="none"
        )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="clipping threshold", ylabel="mean square error")
    plain_numbers(axes.xaxis)
    plain_numbers(axes.yaxis)
    axes.legend(fontsize=9.5)
    return axes


def channel_maxima(maxima: Mapping[str, Tensor]) -> Axes:
    """Largest magnitude of each channel, channels sorted, a line a variant.

    Args:
        maxima: label → ``[channels]``.
    """
    _, axes = plt.subplots(figsize=(4.8, 3.4))
    for label, values in maxima.items():
        ordered = values.sort(descending=True).values
        axes.plot(range(1, len(ordered) + 1), ordered.tolist(), linewidth=1.8, label=label)
    axes.set(xscale="log", yscale="log", xlabel="channel, by size", ylabel="largest magnitude")
    axes.legend(fontsize=9.5)
    return axes


def cache(bits: Sequence[float], curves: Mapping[str, Sequence[float]]) -> Axes:
    """Loss added by a quantised cache against bits per value, a line a grouping.

    Args:
        bits: stored per value.
        curves: label → nats per token.
    """
    _, axes = plt.subplots(figsize=(4.8, 3.8))
    for (label, values), marker in zip(curves.items(), MARKERS, strict=False):
        axes.plot(bits, values, marker=marker, linewidth=1.4, label=label)
    axes.set(yscale="log", xlabel="bits stored per value", ylabel="added loss, nats per token")
    axes.invert_xaxis()
    axes.legend(fontsize=9.5)
    return axes


def formats(points: Mapping[str, tuple[float, float]]) -> Axes:
    """Loss against bits per weight, a labelled point a format.

    Args:
        points: name → (bits per weight, nats per token).
    """
    _, axes = plt.subplots(figsize=(4.8, 4.0))
    for number, (name, (bits, loss)) in enumerate(points.items()):
        axes.plot([bits], [loss], MARKERS[number % 4], color=f"C{number % 7}", linestyle="none", label=name)
    axes.set(yscale="log", xlabel="bits stored per weight", ylabel="added loss, nats per token")
    axes.set_xlim(right=max(bits for bits, _ in points.values()) + 1.2)
    plain_numbers(axes.yaxis)
    low, high = (math.log(end) for end in axes.get_ylim())
    heights: list[tuple[float, float]] = []  # names of points that lie close together stand one above the other
    for name, (bits, loss) in sorted(points.items(), key=lambda item: item[1][1]):
        beside = max(other for other, _ in points.values() if abs(other - bits) < 1) + 0.25
        height = max([(math.log(loss) - low) / (high - low), *(y + 0.055 for x, y in heights if abs(x - bits) < 1)])
        heights.append((bits, height))
        axes.annotate(name, (bits, loss), xytext=(beside, math.exp(low + height * (high - low))), va="center",
                      fontsize=9.5, arrowprops={"arrowstyle": "-", "color": "0.6", "lw": 0.7, "shrinkA": 0, "shrinkB": 4})  # fmt: skip
    return axes
