"""Figures of the chapter ``advanced/hardware_aware``."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from reference.figures import plain_numbers
from reference.figures.palette import looks

MARKERS = ("o", "s", "D", "^", "v")


def time_by_rows(
    rows: Sequence[float], microseconds: Mapping[str, Sequence[float]], *, bends: Sequence[float] = ()
) -> Axes:
    """Time of a layer against rows of activations, both logarithmic, a line a scheme.

    Args:
        rows: numbers of rows.
        microseconds: scheme → time at each.
        bends: rows at which two schemes change places, drawn as thin vertical lines.
    """
    _, axes = plt.subplots(figsize=(4.8, 3.8))
    for (label, values), look in zip(microseconds.items(), looks(microseconds), strict=True):
        axes.plot(rows, values, markersize=4, linewidth=1.2, label=label, **look)
    for bend in bends:
        axes.axvline(bend, color="black", linewidth=0.8, linestyle=":")
    axes.set(xscale="log", yscale="log", xlabel="rows of activations", ylabel="time, microseconds")
    plain_numbers(axes.yaxis)
    ticks = [row for row in rows if float(row).is_integer()][:: max(1, len(rows) // 8)]
    axes.set_xticks(ticks, [f"{int(tick)}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.legend(fontsize=9.5)
    return axes


def misses_by_cache(kilobytes: Sequence[float], shares: Mapping[str, Sequence[float]]) -> Axes:
    """Share of reads that a cache must fetch, against its size, a line a pattern.

    Args:
        kilobytes: sizes of the cache.
        shares: pattern → misses over reads, in percent.
    """
    _, axes = plt.subplots(figsize=(4.8, 3.6))
    for (label, values), marker in zip(shares.items(), MARKERS, strict=False):
        axes.plot(kilobytes, values, marker=marker, markersize=4, linewidth=1.2, label=label)
    axes.set(xscale="log", xlabel="cache, KiB", ylabel="reads that miss, %")
    axes.set_xticks(kilobytes, [f"{int(size)}" for size in kilobytes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.legend(fontsize=9.5)
    return axes


def patterns(masks: Mapping[str, Sequence[Sequence[bool]]]) -> list[Axes]:
    """Masks side by side, kept weights dark."""
    _, axes = plt.subplots(1, len(masks), figsize=(4.8, 1.9))
    for panel, (label, mask) in zip(axes, masks.items(), strict=True):
        panel.imshow(mask, cmap="Greys", interpolation="nearest")
        panel.set_title(label)
        panel.spines[:].set_visible(True)
        panel.set_xticks([])
        panel.set_yticks([])
    return list(axes)


def tokens_by_batch(batches: Sequence[int], rates: Mapping[str, Sequence[float | None]]) -> Axes:
    """Tokens per second of all sequences together against the batch; a line ends where memory is full.

    Args:
        batches: numbers of sequences.
        rates: scheme → tokens per second, None where it does not fit.
    """
    _, axes = plt.subplots(figsize=(4.8, 3.8))
    for (label, values), look in zip(rates.items(), looks(rates), strict=True):
        fits = [(batch, value) for batch, value in zip(batches, values, strict=True) if value is not None]
        axes.plot(*zip(*fits, strict=True), markersize=4, linewidth=1.2, label=label, **look)
    axes.set(xscale="log", yscale="log", xlabel="sequences", ylabel="tokens per second, at most")
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.legend(fontsize=9.5)
    return axes
