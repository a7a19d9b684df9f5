"""Figures of the part ``practice``, and of the reports that the workflow commands write."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from reference.figures import plain_numbers
from reference.figures.palette import looks

Row = Mapping[str, Any]


def sweep(rows: Sequence[Row], max_loss: float, max_bytes: float | None = None) -> Axes:
    """Rise of the perplexity over the size of what was tried; each solver has its marker, limits are lines.

    Args:
        rows: with ``candidate`` (its last word names the solver), ``bytes``, and ``rise`` as a fraction.
        max_loss: limit in percent.
        max_bytes: limit on the size, or None.
    """
    _, axes = plt.subplots(figsize=(4.8, 3.8))
    methods: dict[str, list[Row]] = {}
    for row in rows:
        methods.setdefault(str(row["candidate"]).partition(" ")[2], []).append(row)
    for (method, found), look in zip(methods.items(), looks(methods), strict=True):
        sizes, rise = [row["bytes"] / 1e6 for row in found], [max(100 * row["rise"], 1e-2) for row in found]
        axes.plot(sizes, rise, markersize=7, label=method.replace("_", " "), **{**look, "linestyle": "none"})
        for row, x, y in zip(found, sizes, rise, strict=True):
            label = str(row["candidate"]).partition(" ")[0]
            axes.annotate(label, (x, y), xytext=(6, 4), textcoords="offset points", fontsize=9)
    axes.axhline(max_loss, color="black", linewidth=1.2, linestyle="--", label="largest loss")
    if max_bytes is not None:
        axes.axvline(max_bytes / 1e6, color="black", linewidth=1.2, linestyle=":", label="largest size")
    axes.set(yscale="log", xlabel="checkpoint, MB", ylabel="rise of the perplexity, %")
    plain_numbers(axes.yaxis)
    axes.legend(fontsize=9.5)
    return axes


def rounds(rows: Sequence[Row], max_loss: float) -> Axes:
    """Rise of the perplexity over the share of weights removed, after each cut and after the training that follows.

    Args:
        rows: with ``removed``, ``rise before`` and ``rise after`` as fractions.
        max_loss: limit in percent.
    """
    _, axes = plt.subplots(figsize=(4.8, 3.8))
    share = [100 * row["removed"] for row in rows]
    for label, column, marker in (("after the cut", "rise before", "v"), ("after its training", "rise after", "o")):
        axes.plot(share, [max(100 * row[column], 1e-2) for row in rows], marker=marker, linewidth=1.2, label=label)
    axes.axhline(max_loss, color="black", linewidth=1.2, linestyle="--", label="largest loss")
    axes.set(yscale="log", xlabel="weights of the blocks removed, %", ylabel="rise of the perplexity, %")
    plain_numbers(axes.yaxis)
    axes.legend(fontsize=9.5)
    return axes


def kernels(rows: Sequence[Row]) -> Axes:
    """Speed over the dense product against the share of zeros, a line a format; even at one.

    Args:
        rows: with ``format``, ``sparsity`` as a fraction and ``times as fast``.
    """
    _, axes = plt.subplots(figsize=(4.8, 3.8))
    axes.axhline(1, color="black", linewidth=1)
    formats: dict[str, list[Row]] = {}
    for row in rows:
        formats.setdefault(str(row["format"]), []).append(row)
    for (name, found), look in zip(formats.items(), looks(formats), strict=True):
        places = [100 * row["sparsity"] for row in found]
        axes.plot(places, [row["times as fast"] for row in found], linewidth=1.2, label=name, **look)
    axes.set(yscale="log", xlabel="weights that are zero, %", ylabel="times as fast as dense")
    axes.set_yticks((0.1, 0.3, 1, 3, 10), ("0.1", "0.3", "1", "3", "10"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend(fontsize=9.5)
    return axes
