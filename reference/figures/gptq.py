"""Figures of the chapter ``quantization/gptq``."""

import itertools
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, NullLocator

from reference.figures.methods import COLOURS, LABELS, NEAREST, OTHER, OWN

MARKERS = ("o", "s", "D", "^", "v", "P", "X")


def two_columns(
    weight: Sequence[float],
    hessian: Sequence[Sequence[float]],
    steps: Sequence[float],
    nearest: Sequence[float],
    path: Sequence[tuple[float, float]],
) -> Axes:
    """The grid of two weights, curves of equal loss around them, the nearest point and GPTQ's way to its own.

    Args:
        weight: the two weights.
        hessian: their ``[2, 2]``.
        steps: distance of grid points in both directions.
        nearest: grid point that rounding to nearest takes.
        path: points from the weights to the grid point that GPTQ takes.
    """
    figure, axes = plt.subplots(figsize=(4.8, 4.9))
    span = 2.2 * np.asarray(steps)
    low, high = np.asarray(weight) - span, np.asarray(weight) + span
    grid = [
        s * np.arange(np.ceil(a / s), np.floor(b / s) + 1) for s, a, b in zip(steps, low, high, strict=True)
    ]  # multiples of the step
    x, y = (mesh.ravel() for mesh in np.meshgrid(*grid))
    axes.plot(x, y, "o", color="0.65", markersize=3, label="grid")
    dense = np.meshgrid(*(np.linspace(a, b, 200) for a, b in zip(low, high, strict=True)))
    e = np.stack([mesh - w for mesh, w in zip(dense, weight, strict=True)])
    loss = np.einsum("iab,ij,jab->ab", e, np.asarray(hessian), e) / 2
    ends = np.stack([np.asarray(nearest), np.asarray(path[-1])]) - np.asarray(weight)
    levels = sorted({float(value) for value in np.einsum("ni,ij,nj->n", ends, np.asarray(hessian), ends) / 2})
    axes.contour(*dense, loss, levels=[value for value in levels if value > 0], colors="0.45", linewidths=1)
    axes.plot(*weight, "+", color="black", markersize=12, markeredgewidth=2, label="weights", linestyle="none")
    axes.plot(*nearest, "s", color=COLOURS[NEAREST], markersize=7, linestyle="none", label=LABELS[NEAREST])
    axes.plot(*path[-1], "o", color=COLOURS["gptq"], markersize=8, linestyle="none", label=LABELS["gptq"])
    for begin, end in itertools.pairwise(path):
        axes.annotate("", end, begin, arrowprops={"arrowstyle": "->", "color": COLOURS["gptq"], "lw": 1.5})
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xlabel="first weight", ylabel="second weight")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=9.5)
    return axes


def gain(predicted: Mapping[str, Sequence[float]], measured: Mapping[str, Sequence[float]]) -> Axes:
    """Squared output error of GPTQ over that of rounding, measured against predicted, one marker a layer.

    Args:
        predicted: projection → ratio for each block.
        measured: the same projections → measured ratio.
    """
    figure, axes = plt.subplots(figsize=(4.8, 4.7))
    axes.plot([0.008, 1], [0.008, 1], "--", color="black", linewidth=1, label="as predicted")
    for (label, values), marker in zip(measured.items(), MARKERS, strict=False):
        axes.plot(predicted[label], values, marker, linestyle="none", markersize=6, label=label)
    axes.set(xscale="log", yscale="log", xlabel="predicted from the inputs alone", ylabel="measured")
    axes.set_aspect("equal")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=9.5)
    return axes


def pivots(curves: Mapping[str, Sequence[float]]) -> Axes:
    """Running sums over the columns, in the order in which they are rounded.

    Args:
        curves: label → value of each column in that order; the first is drawn dashed.
    """
    _, axes = plt.subplots(figsize=(4.8, 3.6))
    for number, (label, values) in enumerate(curves.items()):
        (line,) = axes.plot(range(1, len(values) + 1), np.cumsum(values), label=label)
        if number == 0:
            line.set(linestyle="--", color="black")
    axes.set(xlabel="columns rounded", ylabel="loss, as a part of rounding's", ylim=(0, None), xlim=(0, None))
    axes.legend(fontsize=9.5)
    return axes


def walk(paths: Mapping[str, tuple[Sequence[int], Sequence[int]]], places: Sequence[str]) -> Axes:
    """Where one batch stands in a block, against how many parts of the block have been computed for it.

    Args:
        paths: label → (parts computed so far, place reached), one entry an event.
        places: names of the places, from the block's start to its end.
    """
    _, axes = plt.subplots(figsize=(4.8, 3.4))
    for (label, (done, place)), marker in zip(paths.items(), MARKERS, strict=False):
        axes.plot(done, place, marker=marker, markersize=4, linewidth=1.4, label=label)
    axes.set_yticks(range(len(places)), places)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="parts of the block computed for this batch")
    axes.legend(fontsize=9.5, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return axes


def loss_by_bits(
    bits: Sequence[int],
    curves: Mapping[tuple[str, str], Sequence[float]],
    spread: Mapping[tuple[str, str], Sequence[float]],
) -> Axes:
    """Extra bits per byte against bits of a code, with two standard errors.

    Args:
        bits: of a code.
        curves: domain and method → extra bits per byte at each of ``bits``.
        spread: the same keys → standard error of each.
    """
    _, axes = plt.subplots(figsize=(4.8, 3.9))
    domains = list(dict.fromkeys(domain for domain, _ in curves))
    for number, ((domain, method), values) in enumerate(curves.items()):
        places = [b + 0.05 * (number - (len(curves) - 1) / 2) for b in bits]  # side by side
        style = ("o-", "s--")[domains.index(domain)]
        axes.plot(places, values, style, color=COLOURS[method], linewidth=1, label=f"{domain}, {LABELS[method]}")
        for x, value, error in zip(places, values, spread[domain, method], strict=True):
            axes.plot((x, x), (value - 2 * error, value + 2 * error), linewidth=1.6, color=COLOURS[method])
    axes.set(
        yscale="log", xlabel="bits of a code", ylabel="extra bits per byte", xlim=(max(bits) + 0.4, min(bits) - 0.4)
    )
    axes.set_xticks(bits, [str(b) for b in bits])
    axes.set_yticks((0.01, 0.1, 1), ("0.01", "0.1", "1"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.legend(fontsize=9.5)
    return axes


def calibration(
    tokens: Sequence[int],
    draws: Mapping[str, Mapping[str, Sequence[Sequence[float]]]],
    levels: Mapping[str, float],
    columns: Sequence[int],
) -> tuple[Axes, ...]:
    """Extra bits per byte of GPTQ against the size of the calibration set, a panel for each domain measured.

    Args:
        tokens: of the calibration set.
        draws: domain → ``OWN`` or ``OTHER`` text → for each size the extra bits per byte of each draw. The
            line goes through the means, a bar over the range.
        levels: domain → extra bits per byte of rounding to nearest, a horizontal line.
        columns: widths of the model's layers, drawn as vertical lines.

    Returns:
        The axes, in the order of ``draws``.
    """
    figure, panels = plt.subplots(len(draws), 1, figsize=(4.8, 6.2), sharex=True, sharey=True)
    for axes, (domain, by_text) in zip(panels, draws.items(), strict=True):
        axes.plot([tokens[0], tokens[-1]], [levels[domain]] * 2, ":", color=COLOURS[NEAREST], label=LABELS[NEAREST])
        for text, style, face in ((OTHER, "o--", "white"), (OWN, "o-", COLOURS["gptq"])):
            means = [sum(seen) / len(seen) for seen in by_text[text]]
            label = f"{LABELS['gptq']}, calibrated on {text}"
            axes.plot(tokens, means, style, color=COLOURS["gptq"], markerfacecolor=face, linewidth=1.4, label=label)
            for place, seen in zip(tokens, by_text[text], strict=True):
                axes.plot((place, place), (min(seen), max(seen)), color=COLOURS["gptq"], linewidth=1.4, zorder=1.5)
        for width in columns:
            axes.axvline(width, color="0.6", linewidth=1)
            axes.annotate(f"{width} columns", (width, 0), xycoords=("data", "axes fraction"), xytext=(3, 3),
                          textcoords="offset points", fontsize=9, rotation=90, va="bottom")  # fmt: skip
        axes.set(xscale="log", yscale="log", ylabel="extra bits per byte", title=domain)
        axes.set_yticks((0.03, 0.1), ("0.03", "0.1"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xticks(tokens, [f"{value:,}" for value in tokens], rotation=30)
        axes.xaxis.set_minor_locator(NullLocator())
    panels[-1].set_xlabel("calibration tokens")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=1, fontsize=9.5)
    return tuple(panels)
