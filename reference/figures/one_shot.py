"""Figures of the chapter ``pruning/one_shot``."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, NullLocator

from reference.figures.palette import looks

LABELS = {"magnitude": "magnitude", "wanda": "Wanda", "sparsegpt": "SparseGPT"}
COLOURS = {name: looks([name])[0]["color"] for name in LABELS}
MARKERS = {name: looks([name])[0]["marker"] for name in LABELS}


def mask_and_repair(
    removed: Sequence[float], masks: Mapping[str, Sequence[float]], repaired: Mapping[str, Sequence[float]]
) -> Axes:
    """Error of the layers' outputs by sparsity, one colour a mask, dashed without repair, solid with it.

    Args:
        removed: percentages.
        masks: method that chose the mask → relative error with the other weights as they were.
        repaired: the same keys → with the other weights moved.
    """
    _, axes = plt.subplots(figsize=(4.8, 4.2))
    for curves, style, suffix in ((masks, "--", ""), (repaired, "-", ", repaired")):
        for method, values in curves.items():
            face = COLOURS[method] if style == "-" else "white"
            axes.plot(
                removed, values, style, marker=MARKERS[method], color=COLOURS[method], markerfacecolor=face,
                linewidth=1.3, label=LABELS[method] + suffix,
            )  # fmt: skip
    axes.set(yscale="log", xlabel="weights removed, %", ylabel="change of the outputs, relative")
    axes.set_yticks((0.03, 0.1, 0.3), ("0.03", "0.1", "0.3"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(bottom=0.35 * min(min(v) for v in repaired.values()))
    axes.legend(fontsize=9, ncols=2, loc="lower right")
    return axes


def loss_by_sparsity(removed: Sequence[float], curves: Mapping[str, Mapping[str, Sequence[float]]]) -> tuple[Axes, ...]:
    """Extra bits per byte of the model against the percentage removed, a panel a domain, a line a method.

    Args:
        removed: percentages.
        curves: domain → method → extra bits per byte.

    Returns:
        The axes, in the order of ``curves``.
    """
    figure, panels = plt.subplots(len(curves), 1, figsize=(4.8, 6.2), sharex=True, sharey=True)
    for axes, (domain, methods) in zip(panels, curves.items(), strict=True):
        for method, values in methods.items():
            axes.plot(
                removed, values, marker=MARKERS[method], color=COLOURS[method], linewidth=1.3, label=LABELS[method]
            )
        axes.set(yscale="log", ylabel="extra bits per byte", title=domain)
        axes.set_yticks((0.01, 0.1, 1), ("0.01", "0.1", "1"))
    panels[-1].set_xlabel("weights removed, %")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=9.5)
    return tuple(panels)


def equal_bytes(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], names: Mapping[str, list[str]]) -> Axes:
    """Extra bits per byte against bits stored for each weight: the first recipe as a line, the others as points, all named.

    Args:
        curves: recipe → (bits per weight, extra bits per byte).
        names: recipe → what stands beside each of its points.
    """
    _, axes = plt.subplots(figsize=(4.8, 3.9))
    places, heights = (np.asarray(column) for column in next(iter(curves.values())))
    for number, ((label, (bits, extra)), look) in enumerate(zip(curves.items(), looks(curves), strict=True)):
        look["linestyle"] = "none" if number else "-"
        axes.plot(bits, extra, linewidth=1.3, label=label, **look)
        for x, y, name in zip(bits, extra, names[label], strict=True):
            # The names of points keep clear of the line.
            below = number == 0 or y < np.interp(x, places, heights)
            place, side = ((-6, -13), "right") if below else ((6, 4), "left")
            axes.annotate(name, (x, y), place, textcoords="offset points", fontsize=9, color=look["color"], ha=side)
    axes.set(yscale="log", xlabel="bits stored for a weight", ylabel="extra bits per byte")
    axes.set_yticks((0.01, 0.1, 1), ("0.01", "0.1", "1"))
    axes.margins(x=0.15, y=0.1)
    axes.legend(fontsize=9.5)
    return axes


def recovery(
    before: Mapping[str, Mapping[str, float]], after: Mapping[str, Mapping[str, Sequence[float]]], trained: float
) -> Axes:
    """Extra bits per byte before and after retraining under the mask, side by side for each amount removed.

    Args:
        before: amount → method → mean over seeds.
        after: amount → method → one value a seed; the marker is the mean, the bar the range.
        trained: what the same training gives the whole model, a horizontal line.
    """
    figure, axes = plt.subplots(figsize=(4.8, 4.2))
    axes.axhline(trained, color="0.4", linestyle=":", label="whole, trained as long")
    places = []
    for block, (amount, methods) in enumerate(before.items()):
        for number, (method, start) in enumerate(methods.items()):
            x = block + 0.2 * (number - 1)
            seen = after[amount][method]
            mean = sum(seen) / len(seen)
            axes.annotate("", (x, mean), (x, start), arrowprops={"arrowstyle": "->", "color": "0.6"})
            axes.plot((x, x), (min(seen), max(seen)), color=COLOURS[method], linewidth=1.8)
        places.append(block)
    for method, marker in MARKERS.items():
        xs = [block + 0.2 * (list(MARKERS).index(method) - 1) for block in places]
        style: dict[str, Any] = {"marker": marker, "color": COLOURS[method], "linestyle": "none"}
        axes.plot(xs, [m[method] for m in before.values()], markerfacecolor="white", label=LABELS[method], **style)
        means = [sum(m[method]) / len(m[method]) for m in after.values()]
        axes.plot(xs, means, label=f"{LABELS[method]}, retrained", **style)
    axes.set_xticks(places, [f"{float(amount):.0%} removed".replace("%", " %") for amount in before])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(yscale="log", ylabel="extra bits per byte", xlim=(-0.5, len(places) - 0.5))
    axes.set_yticks((0.03, 0.1, 0.3, 1), ("0.03", "0.1", "0.3", "1"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=9)
    return axes
