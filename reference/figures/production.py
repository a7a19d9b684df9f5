"""Figures of the chapter ``deployment/production``."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v")


def served(quantities: Sequence[str], ratios: Mapping[str, Sequence[float]]) -> Axes:
    """How many times what the float model takes, one row a quantity.

    ``plotted`` finds the ratios of a server under its name, in the order of the quantities.

    Args:
        quantities: names of the rows.
        ratios: server → one ratio a quantity.
    """
    _, axes = plt.subplots(figsize=(6.4, 3.4))
    axes.axvline(1, color="0.5", linewidth=1, label="_")
    for place, ((name, values), colour, marker) in enumerate(zip(ratios.items(), COLOURS, MARKERS, strict=False)):
        shift = 0.16 * (place - (len(ratios) - 1) / 2)  # equal values must not hide each other
        axes.plot(values, [row + shift for row in range(len(values))], marker, color=colour, markersize=6, label=name)
    axes.set(xscale="log", xlabel="times the float model's")
    low, high = (pick(pick(values) for values in ratios.values()) for pick in (min, max))
    axes.set_xlim(low / 1.5, high * 1.5)
    ticks = [tick for tick in (0.125, 0.25, 0.5, 1, 2, 4, 8, 16) if low / 1.5 < tick < high * 1.5]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(quantities)), quantities)
    axes.invert_yaxis()
    axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(ratios))
    return axes


def canary(
    panels: Mapping[str, tuple[float, Mapping[str, tuple[np.ndarray, np.ndarray]]]], first: int
) -> tuple[Axes, ...]:
    """Intervals that narrow with each request, and the limit, one panel a quantity.

    ``plotted`` finds the lower ends of a candidate under ``"NAME, low"``, the upper ends under ``"NAME, high"``, and
    the limit under ``"limit"``.

    Args:
        panels: quantity → its limit, and candidate → lower and upper ends ``[n]``.
        first: request of the first look; what lies before is not drawn.

    Returns:
        The axes, in the order of ``panels``.
    """
    _, drawn = plt.subplots(1, len(panels), figsize=(7.2, 3.2), squeeze=False)
    for axes, (title, (limit, candidates)) in zip(drawn[0], panels.items(), strict=True):
        for (name, (low, high)), colour in zip(candidates.items(), COLOURS, strict=False):
            n = np.arange(1, len(low) + 1)[first - 1 :]
            axes.fill_between(n, low[first - 1 :], high[first - 1 :], color=colour, alpha=0.25, label="_")
            axes.plot(n, low[first - 1 :], color=colour, linewidth=1, label=f"{name}, low")
            axes.plot(n, high[first - 1 :], color=colour, linewidth=1, label=f"{name}, high")
            axes.annotate(name, (n[-1], high[-1]), xytext=(0, 7), textcoords="offset points",
                          color="black", ha="right", va="bottom", fontsize=9)  # fmt: skip
        axes.plot([first, n[-1]], [limit, limit], "--", color="black", linewidth=1.2, label="limit")
        axes.set(title=title, xlabel="requests seen")
    return tuple(drawn[0])


def peeking(looks: Sequence[int], wrong: Mapping[str, Sequence[float]], stated: float) -> Axes:
    """Share of wrong verdicts against the number of requests at which somebody has looked.

    ``plotted`` finds each interval's shares under its name, and ``"stated"``.
    """
    _, axes = plt.subplots(figsize=(4.8, 3.0))
    for (name, shares), colour, marker in zip(wrong.items(), COLOURS, MARKERS, strict=False):
        axes.plot(looks, shares, marker=marker, color=colour, label=name)
    axes.plot([looks[0], looks[-1]], [stated, stated], "--", color="black", linewidth=1.2, label="stated")
    axes.set(xlabel="requests, a look after each", ylabel="share of wrong verdicts", ylim=(0, None))
    axes.legend()
    return axes


def updates(names: Sequence[str], divergence: Mapping[str, Sequence[float | None]]) -> Axes:
    """Divergence from the new float model, one row an artefact, one marker a way to get it.

    ``plotted`` finds each way's values under its name, in the order of the artefacts; where an artefact has no such way
    there is no marker.
    """
    _, axes = plt.subplots(figsize=(6.4, 0.5 * len(names) + 1.4))
    for place, ((way, values), colour, marker) in enumerate(zip(divergence.items(), COLOURS, MARKERS, strict=False)):
        shift = 0.2 * (place - (len(divergence) - 1) / 2)  # equal values must not hide each other
        rows = [row + shift for row, value in enumerate(values) if value is not None]
        axes.plot([v for v in values if v is not None], rows, marker, color=colour, markersize=6, label=way)
    axes.set(xscale="log", xlabel="divergence from the new float model, nats a token")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(divergence))
    return axes
