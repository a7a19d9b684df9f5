"""Figures of the chapter ``advanced/dynamic``."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from reference.figures import palette
from reference.figures.palette import looks

MARKERS = ("o", "s", "D", "^", "v")


def predictions(measured: Sequence[float], predicted: Mapping[str, Sequence[float]]) -> Axes:
    """Predicted against measured sensitivity, a point a layer and colour a rule; the diagonal is agreement.

    Args:
        measured: of each layer, above 0.
        predicted: rule → one number for each layer.
    """
    _, axes = plt.subplots(figsize=(4.8, 3.9))
    low, high = min(measured) / 2, max(measured) * 2
    axes.plot((low, high), (low, high), color="black", linewidth=1)
    for (label, values), marker in zip(predicted.items(), MARKERS, strict=False):
        axes.scatter(measured, values, s=16, marker=marker, label=label)
    axes.set(xscale="log", yscale="log", xlabel="measured divergence, nats per token", ylabel="predicted")
    axes.legend(fontsize=9.5)
    return axes


def budgets(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Axes:
    """Divergence on held-out text against stored bits per weight, a line a way to choose them.

    Args:
        curves: label → (bits per weight, nats per token).
    """
    _, axes = plt.subplots(figsize=(4.8, 3.9))
    taken: set[str] = set()
    for label, (bits, values) in curves.items():
        look = looks([label.rpartition(", ")[2].replace("nearest", "to nearest", 1)])[0]
        dashed = label.startswith("uniform")
        if not dashed and look["color"] in taken:
            look |= {"color": palette.SKY, "markerfacecolor": palette.SKY, "marker": "D"}
        taken |= set() if dashed else {look["color"]}
        look |= {"linestyle": "--", "markerfacecolor": "white"} if dashed else {}
        axes.plot(bits, values, linewidth=1.2, label=label, **look)
    axes.set(yscale="log", xlabel="stored bits per weight", ylabel="divergence, nats per token")
    axes.legend(fontsize=9.5)
    return axes


def exits(fixed: tuple[Sequence[float], Sequence[float]], early: tuple[Sequence[float], Sequence[float]]) -> Axes:
    """Accuracy against the mean number of blocks, for a head in one place and for exits by confidence.

    Args:
        fixed, early: (blocks, accuracy in percent).
    """
    _, axes = plt.subplots(figsize=(4.8, 3.7))
    axes.plot(
        (fixed[0][0], fixed[0][-1]), (fixed[1][0], fixed[1][-1]), "k:", linewidth=1, label="a coin between the ends"
    )
    axes.plot(*fixed, marker="s", linestyle="--", linewidth=1.2, label="one head for all")
    axes.plot(*early, marker="o", linewidth=1.2, label="the sure ones leave at 0")
    axes.set(xlabel="blocks computed, mean", ylabel="accuracy, %")
    axes.legend(fontsize=9.5, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return axes


def routes(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Axes:
    """Mean loss against the share of requests that the large model answers.

    Args:
        curves: label → (share in percent, nats per token).
    """
    _, axes = plt.subplots(figsize=(4.8, 3.7))
    for label, (share, loss) in curves.items():
        axes.plot(share, loss, ":" if label == "random" else "-", linewidth=1.4, label=label)
    axes.set(xlabel="answered by the large model, %", ylabel="loss, nats per token")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend(fontsize=9.5)
    return axes
