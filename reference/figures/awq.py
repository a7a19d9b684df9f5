"""Figures of the chapter ``quantization/awq``."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from reference.figures import methods

MARKERS = ("o", "s", "D", "^", "v", "P", "X")
LEAST = "least"


def _ticks(axes: Axes, values: Sequence[float]) -> None:
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.xaxis.set_minor_locator(NullLocator())


def channels(groups: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Axes:
    """One marker a channel: the size of its weights against the size of its activations.

    Args:
        groups: label → (root mean square of the columns, mean absolute input), two of them.
    """
    _, axes = plt.subplots(figsize=(4.8, 3.6))
    for (label, (weights, inputs)), marker, size in zip(groups.items(), "os", (4, 7), strict=True):
        filled = "none" if size > 4 else "full"  # so that a marker behind another is seen
        axes.plot(weights, inputs, marker, linestyle="none", markersize=size, fillstyle=filled, label=label)
    axes.set(
        xscale="log", yscale="log", xlabel="weights of the column, root mean square", ylabel="input, mean magnitude"
    )
    axes.legend(fontsize=9.5)
    return axes


def loss_by_scale(
    scales: Sequence[float], loss: Sequence[float], spread: Sequence[float], levels: Mapping[str, float]
) -> Axes:
    """Extra bits per byte against the factor of a few columns, bars of two standard errors.

    Args:
        scales: factors.
        loss: extra bits per byte at each.
        spread: standard error of each.
        levels: label → extra bits per byte to compare with, a horizontal line.
    """
    _, axes = plt.subplots(figsize=(4.8, 3.6))
    (line,) = axes.plot(scales, loss, "o-", linewidth=1.3, label="four columns scaled")
    for x, value, error in zip(scales, loss, spread, strict=True):
        axes.plot((x, x), (value - 2 * error, value + 2 * error), linewidth=1.6, color=line.get_color())
    for (label, level), style in zip(levels.items(), ("--", ":", "-."), strict=False):
        axes.axhline(level, color="black", linewidth=1.2, linestyle=style, label=label)
    axes.set(
        xscale="log", ylim=(0, None), xlabel="factor of the four columns in every layer behind a norm",
        ylabel="extra bits per byte",
    )  # fmt: skip
    _ticks(axes, scales)
    axes.legend(fontsize=9.5)
    return axes


def loss_by_ratio(ratios: Sequence[float], curves: Mapping[str, Sequence[float]]) -> Axes:
    """Squared error of an output against the exponent, relative to exponent 0; a large marker at each minimum.

    Args:
        ratios: exponents, the first is 0.
        curves: label → error at each, divided by the error at 0.
    """
    _, axes = plt.subplots(figsize=(4.8, 3.6))
    for (label, values), marker in zip(curves.items(), MARKERS, strict=False):
        (line,) = axes.plot(ratios, values, linewidth=1.3, label=label)
        best = min(range(len(values)), key=lambda index: values[index])
        axes.plot(
            [ratios[best]], [values[best]], marker, markersize=9, color=line.get_color(), label=f"{label}, {LEAST}"
        )
    axes.axhline(1, color="black", linewidth=1, linestyle=":")
    axes.set(ylim=(0, 1.5), xlabel=r"exponent $\alpha$", ylabel=r"squared error / that at $\alpha = 0$")
    handles = {line.get_label(): line for line in axes.get_lines()}
    axes.legend([handles[label] for label in curves], curves, fontsize=9.5)
    return axes


def loss_by_tokens(
    tokens: Sequence[int], loss: Sequence[float], spread: Sequence[float], levels: Mapping[str, float]
) -> Axes:
    """Extra bits per byte against the number of calibration tokens, bars of two standard errors.

    Args:
        tokens: that were calibrated on.
        loss: extra bits per byte.
        spread: standard error of each.
        levels: label → extra bits per byte to compare with, a horizontal line.
    """
    _, axes = plt.subplots(figsize=(4.8, 3.6))
    (line,) = axes.plot(tokens, loss, "s-", linewidth=1.3, color=methods.COLOURS["awq"], label=methods.LABELS["awq"])
    for x, value, error in zip(tokens, loss, spread, strict=True):
        axes.plot((x, x), (value - 2 * error, value + 2 * error), linewidth=1.6, color=line.get_color())
    for (label, level), style in zip(levels.items(), ("--", ":", "-."), strict=False):
        axes.axhline(level, color="black", linewidth=1.2, linestyle=style, label=label)
    axes.set(xscale="log", xlabel="calibration tokens", ylabel="extra bits per byte", ylim=(0, None))
    _ticks(axes, tokens)
    axes.legend(fontsize=9.5)
    return axes


def error_by_tokens(tokens: Sequence[int], curves: Mapping[str, Sequence[float]]) -> Axes:
    """Error of outputs on other text against the number of calibration tokens, a curve a method.

    Args:
        tokens: that were calibrated on.
        curves: label of :mod:`reference.figures.methods` → error in per cent of the output at each.
    """
    _, axes = plt.subplots(figsize=(4.8, 3.6))
    method_of = {label: method for method, label in methods.LABELS.items()}
    for label, values in curves.items():
        method = method_of[label]
        style = "--" if method == methods.NEAREST else "-"
        axes.plot(
            tokens, values, methods.MARKERS[method], color=methods.COLOURS[method], linestyle=style, linewidth=1.3,
            markersize=6, label=label,
        )  # fmt: skip
    axes.set(xscale="log", ylim=(0, None), xlabel="calibration tokens", ylabel="error on other text, % of the output")
    _ticks(axes, tokens)
    axes.legend(fontsize=9.5)
    return axes
