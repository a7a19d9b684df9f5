"""Figures of the chapter ``quantization/quantization_aware``."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")


def oscillation(latent: Mapping[str, Sequence[float]], edge: float) -> Axes:
    """A weight that the estimator moves, step by step; dotted: the edge between two levels.

    Args:
        latent: label → the unrounded weight after each step.
        edge: where rounding changes its mind.
    """
    _, axes = plt.subplots(figsize=(5.2, 3.2))
    for (label, values), style in zip(latent.items(), ("-", "--"), strict=False):
        axes.plot(range(len(values)), values, style, linewidth=1.1, label=label)
    axes.axhline(edge, color="black", linestyle=":", linewidth=1)
    axes.set(xlabel="step", ylabel="weight before rounding")
    axes.legend(fontsize=9.5)
    return axes


def step_gradient(v: Sequence[float], curves: Mapping[str, Sequence[float]]) -> Axes:
    """Derivative of the rounded value by the step, against the input in steps.

    Args:
        v: inputs, in steps.
        curves: label → derivative at each.
    """
    _, axes = plt.subplots(figsize=(5.2, 3.2))
    for (label, values), style in zip(curves.items(), ("-", "--", ":"), strict=False):
        axes.plot(v, values, style, linewidth=1.3, label=label)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set(xlabel="input / step", ylabel="∂ rounded / ∂ step")
    axes.legend(fontsize=9.5)
    return axes


def first_steps(curves: Mapping[str, Sequence[float]]) -> Axes:
    """Loss over the first steps of training, on a logarithmic axis.

    Args:
        curves: label → loss at each step.
    """
    _, axes = plt.subplots(figsize=(5.2, 3.2))
    for (label, values), marker in zip(curves.items(), MARKERS, strict=False):
        axes.plot(range(len(values)), values, marker, linestyle="-", linewidth=1.1, markersize=4, label=label)
    axes.set(yscale="log", xlabel="step", ylabel="divergence from float, nats")
    axes.legend(fontsize=9.5)
    return axes


def by_bits(groups: Sequence[str], points: Mapping[str, Sequence[float]], level: float) -> Axes:
    """Bits per byte, a group of points a grid; dashed: the float model.

    Args:
        groups: names under the groups.
        points: label → a height for each group.
        level: of the float model.
    """
    _, axes = plt.subplots(figsize=(5.2, 3.6))
    for (label, heights), marker in zip(points.items(), MARKERS, strict=False):
        axes.plot(range(len(groups)), heights, marker, linestyle="none", markersize=8, label=label)
    axes.axhline(level, color="black", linestyle="--", linewidth=1, label="float")
    axes.set_xticks(range(len(groups)), groups)
    axes.set(ylabel="bits per byte")
    axes.legend(fontsize=9.5)
    return axes


def recipes(points: Mapping[str, tuple[float, float]], level: float) -> Axes:
    """Bits per byte against bits stored per weight, a point a recipe; dashed: the float model.

    Args:
        points: label → (bits a weight, bits per byte).
        level: of the float model.
    """
    _, axes = plt.subplots(figsize=(5.2, 4.0))
    for (label, (size, quality)), marker in zip(points.items(), MARKERS, strict=False):
        axes.plot([size], [quality], marker, markersize=7, label=label)
    axes.axhline(level, color="black", linestyle="--", linewidth=1)
    axes.set(xlabel="bits stored per weight of the blocks", ylabel="bits per byte")
    axes.legend(fontsize=9)
    return axes
