"""The one room with matplotlib: a style, a way to read back what was drawn, a module a chapter."""

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import NullLocator

STYLE = Path(__file__).with_name("book.mplstyle")


def use_style() -> None:
    """Set the book's style for all figures that follow; a notebook gets them with twice the pixels, for sharp screens."""
    plt.style.use(STYLE)
    if "inline" in matplotlib.get_backend():
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("retina")  # the output says its width, so that it is not shown twice as large


def plain_numbers(axis: Axis) -> None:
    """Ticks of a logarithmic axis as people write them: 1, 2 and 5 times powers of ten, or the powers alone if those are too many."""
    low, high = sorted(axis.get_view_interval())
    powers = [10.0**power for power in range(-6, 8)]
    ticks = [base * power for power in powers for base in (1, 2, 5) if low <= base * power <= high]
    if len(ticks) > 8:
        ticks = [tick for tick in ticks if tick in powers]
    axis.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    axis.set_minor_locator(NullLocator())


def plotted(axes: Axes) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What ``axes`` shows, label → (x, y): lines, scatters and bar groups that carry a label.

    The arrays are read back from the drawing, so that a caption is tested against what the
    reader sees. Bars give their centres and heights.
    """
    series: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for line in axes.get_lines():
        if not str(line.get_label()).startswith("_"):
            series[str(line.get_label())] = (np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float))
    for points in axes.collections:
        label = str(points.get_label())
        if label and not label.startswith("_"):
            offsets = np.ma.getdata(points.get_offsets())
            series[label] = (offsets[:, 0].astype(float), offsets[:, 1].astype(float))
    for bars in axes.containers:
        label = str(bars.get_label())
        if label and not label.startswith("_") and hasattr(bars, "patches"):
            centres = [bar.get_x() + bar.get_width() / 2 for bar in bars.patches]
            series[label] = (np.asarray(centres, float), np.asarray([bar.get_height() for bar in bars.patches], float))
    return series
