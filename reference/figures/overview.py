"""Figures of the chapter ``overview``."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

MARKERS = ("o", "s", "D", "^", "v", "P", "X")


def error_by_bits(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], dense_bits: float) -> Axes:
    """Relative squared error of the weights against bits stored per weight, one line a way of storing.

    Args:
        curves: label → (bits per weight, relative error).
        dense_bits: bits per weight of the uncompressed storage, drawn as a vertical line.
    """
    _, axes = plt.subplots(figsize=(4.8, 4.0))
    for (label, (bits, error)), marker in zip(curves.items(), MARKERS, strict=False):
        axes.plot(bits, error, marker=marker, label=label)
    axes.axvline(dense_bits, color="black", linewidth=1, linestyle=":")
    axes.annotate("dense", (dense_bits, 1), xycoords=("data", "axes fraction"), xytext=(3, -2),
                  textcoords="offset points", va="top", fontsize=9)  # fmt: skip
    axes.set(yscale="log", xlabel="bits stored per weight", ylabel="squared error / squared weights")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=9.5)
    return axes


def recovery(steps: Sequence[int], curves: Mapping[str, Sequence[float]], original: float, coder: float) -> Axes:
    """Held-out bits per byte while a student trains, one line a loss.

    Args:
        steps: at which the curves were measured.
        curves: label → bits per byte.
        original: bits per byte of the teacher, drawn as a horizontal line.
        coder: bits per byte of ``xz``, drawn as another.
    """
    _, axes = plt.subplots(figsize=(4.8, 3.6))
    for (label, values), marker in zip(curves.items(), MARKERS, strict=False):
        axes.plot(steps, values, marker=marker, label=label)
    for level, name in ((original, "original, six blocks"), (coder, "xz")):
        axes.axhline(level, color="black", linewidth=1, linestyle=":")
        axes.annotate(name, (1, level), xycoords=("axes fraction", "data"), xytext=(0, 3),
                      textcoords="offset points", ha="right", fontsize=9)  # fmt: skip
    axes.set(xlabel="training steps", ylabel="bits per byte, held-out code")
    axes.legend(fontsize=9.5)
    return axes


def size_quality_speed(
    megabytes: Mapping[str, float],
    bits_per_byte: Mapping[str, float],
    spread: Mapping[str, float],
    speed: Mapping[str, tuple[float, float, float]],
) -> tuple[Axes, Axes]:
    """Quality against size above, the same quality against speed below, one marker a model.

    Args:
        megabytes: label → size of the file.
        bits_per_byte: label → quality, lower is better.
        spread: label → standard error of the difference in quality to the original.
        speed: label → (lowest, middle, highest) ratio of the original's time to the model's.
    """
    figure, (above, below) = plt.subplots(2, 1, figsize=(4.8, 6.8), sharey=True)
    for (label, quality), marker in zip(bits_per_byte.items(), MARKERS, strict=False):
        low, middle, high = speed[label]
        (point,) = above.plot(megabytes[label], quality, marker, markersize=8, linestyle="none", label=label)
        below.plot(middle, quality, marker, markersize=8, linestyle="none", label=label, color=point.get_color())
        below.plot((low, high), (quality, quality), linewidth=1.2, color=point.get_color())
        bar = (quality - 2 * spread[label], quality + 2 * spread[label])
        above.plot((megabytes[label],) * 2, bar, linewidth=1.2, color=point.get_color())
    above.set(xlabel="megabytes on disk (left is better)", ylabel="bits per byte, code", xlim=(0, None))
    below.set(xlabel="speed for one token, original = 1 (right is better)", ylabel="bits per byte, code")
    below.axvline(1, color="black", linewidth=1, linestyle=":")
    above.invert_yaxis()  # shared: better is up
    figure.legend(*above.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=9.5)
    return above, below
