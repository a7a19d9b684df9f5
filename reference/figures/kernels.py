"""Figures of the chapter ``advanced/kernels``."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes


def instructions(steps: Sequence[str], counts: Sequence[float], budgets: Mapping[str, float]) -> Axes:
    """Bars of instructions per weight, a bar a step, and what each device has time for as lines.

    Args:
        steps: names.
        counts: instructions per weight.
        budgets: device → instructions per weight at its full bandwidth.
    """
    _, axes = plt.subplots(figsize=(4.8, 3.6))
    axes.bar(range(len(steps)), counts, color="C0", label="machine code")
    for number, (name, budget) in enumerate(budgets.items()):
        axes.plot((-0.5, len(steps) - 0.5), (budget, budget), color=f"C{number + 1}", linewidth=1.4, label=name)
    axes.set_xticks(range(len(steps)), steps)
    axes.set(xlabel="step", ylabel="instructions per weight")
    axes.legend(fontsize=9.5)
    return axes


def ladder(
    steps: Sequence[str], predicted: Sequence[float], bound: float, measured: Mapping[str, float] | None = None
) -> Axes:
    """Predicted time of each step, the bound that bytes set, and measured times where there are any.

    Args:
        steps: names.
        predicted: microseconds at least, by bytes and instructions.
        bound: microseconds at least, by bytes alone.
        measured: step → microseconds; steps that are missing are not drawn.
    """
    _, axes = plt.subplots(figsize=(4.8, 3.6))
    places = range(len(steps))
    axes.plot(places, predicted, marker="o", linewidth=1.2, label="predicted")
    axes.plot((places[0], places[-1]), (bound, bound), color="black", linewidth=1, linestyle=":", label="bytes alone")
    found = [(place, measured[name]) for place, name in enumerate(steps) if measured and name in measured]
    if found:
        axes.plot(*zip(*found, strict=True), marker="s", linestyle="none", label="measured")
    axes.set_xticks(places, steps)
    axes.set(xlabel="step", ylabel="time, microseconds", ylim=(0, None))
    axes.legend(fontsize=9.5)
    return axes
