"""Figures of the chapter ``quantization/smoothquant``."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

MARKERS = ("o", "s", "D", "^")
NAIVE = "not smoothed"


def channel_maxima(curves: Mapping[str, Sequence[float]]) -> Axes:
    """Largest input of each channel in steps of one shared scale, from the largest channel to the smallest.

    Args:
        curves: label → codes that the largest value of each channel gets, sorted.
    """
    _, axes = plt.subplots(figsize=(4.8, 3.6))
    for (label, values), style in zip(curves.items(), ("-", "--", "-."), strict=True):
        share = [100 * (index + 0.5) / len(values) for index in range(len(values))]
        axes.plot(share, values, style, linewidth=1.6, label=label)
    axes.axhline(1, color="black", linewidth=1, linestyle=":")
    axes.set(yscale="log", xlabel="channels, % (largest first)", ylabel="code of the channel's largest value")
    axes.set_yticks((1, 10, 127), ("1", "10", "127"))
    axes.legend(fontsize=9.5)
    return axes


def loss_by_alpha(
    alphas: Sequence[float],
    curves: Mapping[str, Sequence[tuple[float, float]]],
    naive: Mapping[str, tuple[float, float]],
) -> Axes:
    """Extra bits per byte against alpha, bars of two standard errors; dashed: the model that is not smoothed.

    Args:
        alphas: strengths of smoothing.
        curves: label → (extra bits per byte, its standard error) at each.
        naive: label → the same without smoothing.
    """
    _, axes = plt.subplots(figsize=(4.8, 3.6))
    for number, ((label, values), marker) in enumerate(zip(curves.items(), MARKERS, strict=False)):
        places = [alpha + 0.02 * (number - (len(curves) - 1) / 2) for alpha in alphas]
        (line,) = axes.plot(places, [mean for mean, _ in values], marker, linestyle="-", linewidth=1, label=label)
        for place, (mean, error) in zip(places, values, strict=True):
            axes.plot((place, place), (mean - 2 * error, mean + 2 * error), color=line.get_color(), linewidth=1.6)
        level = naive[label][0]
        axes.plot(
            (alphas[0], alphas[-1]),
            (level, level),
            "--",
            color=line.get_color(),
            linewidth=1.3,
            label=f"{label}, {NAIVE}",
        )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel=r"strength $\alpha$", ylabel="extra bits per byte")
    axes.legend(fontsize=9.5)
    return axes


def distance_by_alpha(
    alphas: Sequence[float], curves: Mapping[str, Sequence[float]], naive: Mapping[str, float]
) -> Axes:
    """How far an encoder's vectors move against alpha; dashed in the same colour: not smoothed.

    Args:
        alphas: strengths of smoothing.
        curves: label → 1 - cosine at each.
        naive: label → 1 - cosine without smoothing.
    """
    _, axes = plt.subplots(figsize=(4.8, 4.2))
    for (label, values), marker in zip(curves.items(), MARKERS, strict=False):
        (line,) = axes.plot(alphas, values, marker, linestyle="-", linewidth=1.3, label=label)
        axes.plot(
            (alphas[0], alphas[-1]), (naive[label],) * 2, "--", color=line.get_color(), linewidth=1.1,
            label=f"{label}, {NAIVE}",
        )  # fmt: skip
    axes.set(yscale="log", xlabel=r"strength $\alpha$", ylabel="1 − cosine to the float vectors")
    handles = {line.get_label(): line for line in axes.get_lines()}
    handles[f"dashed: {NAIVE}"] = Line2D([], [], color="0.4", linestyle="--")
    shown = [*curves, f"dashed: {NAIVE}"]
    axes.figure.legend([handles[label] for label in shown], shown, loc="outside upper center", fontsize=9.5)
    return axes
