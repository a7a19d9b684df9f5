"""Figures of the chapter ``quantization/post_training``."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

MARKERS = ("o", "s", "D", "^", "v", "P", "X")
MEASURED = "measured"
PREDICTED = "predicted"


def _ticks(axes: Axes, values: Sequence[float]) -> None:
    """Label exactly ``values`` on a logarithmic or linear x axis."""
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.xaxis.set_minor_locator(NullLocator())


def error_by_bits(
    bits: Sequence[int], measured: Mapping[str, Sequence[float]], noise: Mapping[str, Sequence[float]]
) -> Axes:
    """Relative squared error of the weights against bits: markers measured, dashed lines from the step.

    Args:
        bits: of a code.
        measured: label → relative squared error at each of ``bits``.
        noise: the same labels → the step squared over twelve, relative to the weights.
    """
    _, axes = plt.subplots(figsize=(4.8, 3.9))
    for (label, values), marker in zip(measured.items(), MARKERS, strict=False):
        (line,) = axes.plot(bits, values, marker, linestyle="none", markersize=6, label=label)
        axes.plot(bits, noise[label], "--", linewidth=1.3, color=line.get_color(), label=f"{label}, {PREDICTED}")
    axes.axhline(1, color="black", linewidth=1, linestyle=":")
    axes.annotate("all weights set to zero", (1, 1), xycoords=("axes fraction", "data"), xytext=(0, 3),
                  textcoords="offset points", ha="right", fontsize=9)  # fmt: skip
    axes.set(yscale="log", xlabel="bits of a code", ylabel="squared error / squared weights")
    _ticks(axes, bits)
    handles = {line.get_label(): line for line in axes.get_lines()}
    (dashed,) = axes.plot([], [], "--", color="black", linewidth=1.3)
    axes.legend([*(handles[label] for label in measured), dashed], [*measured, r"$\Delta^2/12$"], fontsize=9.5)
    return axes


def error_by_group_size(
    sizes: Sequence[int], measured: Mapping[str, Sequence[float]], predicted: Mapping[str, Sequence[float]]
) -> Axes:
    """Relative squared error against the number of weights that share a scale.

    Args:
        sizes: group sizes.
        measured: label → error at each size, drawn as markers.
        predicted: the same labels → the error of normal weights, drawn as dashed lines.
    """
    _, axes = plt.subplots(figsize=(4.8, 3.6))
    for (label, values), marker in zip(measured.items(), MARKERS, strict=False):
        (line,) = axes.plot(sizes, values, marker, linestyle="none", markersize=6, label=label)
        axes.plot(sizes, predicted[label], "--", linewidth=1.3, color=line.get_color(), label=f"{label}, {PREDICTED}")
    axes.set(
        xscale="log", xlabel="weights that share a scale", ylabel="squared error / squared weights", ylim=(0, None)
    )
    _ticks(axes, sizes)
    handles = {line.get_label(): line for line in axes.get_lines()}
    (dashed,) = axes.plot([], [], "--", color="black", linewidth=1.3)
    axes.legend([*(handles[label] for label in measured), dashed], [*measured, "normal weights"], fontsize=9.5)
    return axes


def error_by_shrink(shrink: Sequence[float], curves: Mapping[str, Sequence[float]]) -> Axes:
    """Error against the shrink of the range, relative to the whole range; a large marker at each minimum.

    Args:
        shrink: factors, 1 for the whole range.
        curves: label → error at each factor divided by the error at 1.
    """
    _, axes = plt.subplots(figsize=(4.8, 3.6))
    for (label, values), marker in zip(curves.items(), MARKERS, strict=False):
        (line,) = axes.plot(shrink, values, label=label)
        least = min(range(len(values)), key=lambda index: values[index])
        axes.plot(
            [shrink[least]], [values[least]], marker, markersize=9, color=line.get_color(), label=f"{label}, least"
        )
    axes.set(ylim=(0.4, 1.8), xlabel="range kept, as a fraction of min-max", ylabel="error / error of min-max")
    axes.invert_xaxis()
    handles = {line.get_label(): line for line in axes.get_lines()}
    axes.legend([handles[label] for label in curves], curves, fontsize=9.5)
    return axes


def loss_by_bits(
    bits: Sequence[int],
    curves: Mapping[str, Sequence[float]],
    spread: Mapping[str, Sequence[float]],
    law: Sequence[float],
) -> Axes:
    """Extra bits per byte of the quantised model against bits of a code, with two standard errors.

    Args:
        bits: of a code.
        curves: label → extra bits per byte at each of ``bits``.
        spread: label → standard error of each.
        law: extra bits per byte if the loss followed the squared step, drawn dashed.
    """
    _, axes = plt.subplots(figsize=(4.8, 3.9))
    for number, ((label, values), marker) in enumerate(zip(curves.items(), MARKERS, strict=False)):
        places = [b + 0.05 * (number - (len(curves) - 1) / 2) for b in bits]  # side by side, so that bars do not cover
        (line,) = axes.plot(places, values, marker=marker, linewidth=1, label=label)
        for x, value, error in zip(places, values, spread[label], strict=True):
            axes.plot((x, x), (value - 2 * error, value + 2 * error), linewidth=1.6, color=line.get_color())
    axes.plot(bits, law, "--", color="black", linewidth=1.3, label="squared step")
    axes.set(
        yscale="log", xlabel="bits of a code", ylabel="extra bits per byte", xlim=(max(bits) + 0.4, min(bits) - 0.4)
    )
    _ticks(axes, bits)
    axes.legend(fontsize=9.5)
    return axes


def layer_sensitivity(loss: Mapping[str, Sequence[float]], error: Mapping[str, Sequence[float]]) -> tuple[Axes, Axes]:
    """What quantising one layer alone costs: above the model's loss, below the error of that layer's weights.

    Args:
        loss: projection → increase of the loss, one a block.
        error: the same projections → relative squared error of the weights.
    """
    figure, (above, below) = plt.subplots(2, 1, figsize=(4.8, 5.8), sharex=True, height_ratios=(2, 1))
    for (label, values), marker in zip(loss.items(), MARKERS, strict=False):
        blocks = range(len(values))
        above.plot(blocks, values, marker=marker, linewidth=1, label=label)
        below.plot(blocks, error[label], marker=marker, linewidth=1, label=label)
    above.set(ylabel="increase of the loss, nats")
    below.set(ylabel="error of weights", xlabel="block", ylim=(0, None))
    _ticks(below, list(range(len(next(iter(loss.values()))))))
    figure.legend(*above.get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=9.5)
    return above, below


def channel_magnitudes(curves: Mapping[str, Sequence[float]], clips: Mapping[str, float]) -> Axes:
    """Largest magnitude of each input channel, sorted, with the ends of the calibrated ranges.

    Args:
        curves: label → magnitude of each channel, in falling order.
        clips: label → magnitude at which a range ends, drawn as a horizontal line.
    """
    _, axes = plt.subplots(figsize=(4.8, 3.6))
    for (label, values), marker in zip(curves.items(), MARKERS, strict=False):
        ranks = range(1, len(values) + 1)
        axes.plot(ranks, values, marker, linestyle="none", markersize=4, label=label)
    for label, level in clips.items():
        axes.axhline(level, color="black", linewidth=1, linestyle=":")
        axes.annotate(label, (1, level), xycoords=("axes fraction", "data"), xytext=(0, 3),
                      textcoords="offset points", ha="right", fontsize=9)  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="channel, largest first", ylabel="largest magnitude")
    axes.legend(fontsize=9.5)
    return axes
