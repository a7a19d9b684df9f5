"""Figures of the chapter ``deployment/production``."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from reference.figures.palette import looks


def served(quantities: Sequence[str], ratios: Mapping[str, Sequence[float]]) -> Axes:
    """How many times what the float model takes, one row a quantity.

    ``plotted`` finds the ratios of a server under its name, in the order of the quantities.

    Args:
        quantities: names of the rows.
        ratios: server → one ratio a quantity.
    """
    _, axes = plt.subplots(figsize=(4.8, 3.8))
    axes.axvline(1, color="0.5", linewidth=1, label="_")
    for place, ((name, values), look) in enumerate(zip(ratios.items(), looks(ratios), strict=True)):
        shift = 0.16 * (place - (len(ratios) - 1) / 2)  # equal values must not hide each other
        rows = [row + shift for row in range(len(values))]
        axes.plot(values, rows, markersize=6, label=name, **{**look, "linestyle": "none"})
    axes.set(xscale="log", xlabel="times the float model's")
    low, high = (pick(pick(values) for values in ratios.values()) for pick in (min, max))
    axes.set_xlim(low / 1.5, high * 1.5)
    ticks = [tick for tick in (0.125, 0.25, 0.5, 1, 2, 4, 8, 16) if low / 1.5 < tick < high * 1.5]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(quantities)), quantities)
    axes.invert_yaxis()
    axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=9.5)
    return axes


def together(batches: Sequence[int], ratios: Mapping[str, np.ndarray]) -> Axes:
    """Work over the float model's, against the requests that are answered together.

    ``plotted`` finds the middle ratios of a format under its name, in the order of the numbers of requests.

    Args:
        batches: numbers of requests.
        ratios: format → low, middle and high ratio ``[3, batches]``.
    """
    _, axes = plt.subplots(figsize=(4.8, 3.4))
    axes.axhline(1, color="0.5", linewidth=1, label="_")
    for place, ((name, (low, middle, high)), look) in enumerate(zip(ratios.items(), looks(ratios), strict=True)):
        at = np.asarray(batches) * 1.06 ** (place - (len(ratios) - 1) / 2)  # bars must not hide each other
        axes.plot(at, middle, label=name, **look)
        axes.vlines(at, low, high, color=look["color"], linewidth=2, label="_")
    axes.set(xscale="log", ylim=(0, None), xlabel="requests answered together", ylabel="work, times the float model's")
    axes.set_xticks(batches, [f"{batch:g}" for batch in batches])
    axes.minorticks_off()
    axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=1, fontsize=9.5)
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
    _, drawn = plt.subplots(len(panels), 1, figsize=(4.8, 2.5 * len(panels) + 0.4), squeeze=False, sharex=True)
    for axes, (title, (limit, candidates)) in zip(drawn[:, 0], panels.items(), strict=True):
        for (name, (low, high)), look in zip(candidates.items(), looks(candidates), strict=True):
            colour = look["color"]
            n = np.arange(1, len(low) + 1)[first - 1 :]
            axes.fill_between(n, low[first - 1 :], high[first - 1 :], color=colour, alpha=0.25, label="_")
            axes.plot(n, low[first - 1 :], color=colour, linewidth=1, label=f"{name}, low")
            axes.plot(n, high[first - 1 :], color=colour, linewidth=1, label=f"{name}, high")
            axes.annotate(name, (n[-1], high[-1]), xytext=(0, 7), textcoords="offset points",
                          color="black", ha="right", va="bottom", fontsize=9)  # fmt: skip
        axes.plot([first, n[-1]], [limit, limit], "--", color="black", linewidth=1.2, label="limit")
        axes.set(title=title)
    drawn[-1, 0].set_xlabel("requests seen")
    return tuple(drawn[:, 0])


def peeking(seen: Sequence[int], wrong: Mapping[str, Sequence[float]], stated: float) -> Axes:
    """Share of wrong verdicts against the number of requests at which somebody has looked.

    ``plotted`` finds each interval's shares under its name, and ``"stated"``.
    """
    _, axes = plt.subplots(figsize=(4.8, 3.0))
    for (name, shares), look in zip(wrong.items(), looks(wrong), strict=True):
        axes.plot(seen, shares, label=name, **look)
    axes.plot([seen[0], seen[-1]], [stated, stated], "--", color="black", linewidth=1.2, label="stated")
    axes.set(xlabel="requests, a look after each", ylabel="share of wrong verdicts", ylim=(0, None))
    axes.legend()
    return axes


def updates(names: Sequence[str], divergence: Mapping[str, Sequence[float | None]]) -> Axes:
    """Divergence from the new float model, one row an artefact, one marker a way to get it.

    ``plotted`` finds each way's values under its name, in the order of the artefacts; where an artefact has no such way
    there is no marker.
    """
    _, axes = plt.subplots(figsize=(4.8, 0.5 * len(names) + 1.6))
    for place, ((way, values), look) in enumerate(zip(divergence.items(), looks(divergence), strict=True)):
        shift = 0.2 * (place - (len(divergence) - 1) / 2)  # equal values must not hide each other
        rows = [row + shift for row, value in enumerate(values) if value is not None]
        found = [value for value in values if value is not None]
        axes.plot(found, rows, markersize=6, label=way, **{**look, "linestyle": "none"})
    axes.set(xscale="log")
    axes.set_xlabel("divergence from the new float model, nats a token", fontsize=9.5)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=9.5)
    return axes
