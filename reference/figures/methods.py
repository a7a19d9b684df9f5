"""The figure that ends the chapters GPTQ, SmoothQuant and AWQ: four methods side by side."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from reference.figures.palette import looks

NEAREST = "round_to_nearest"
LABELS = {NEAREST: "to nearest", "awq": "AWQ", "gptq": "GPTQ", "smoothquant+gptq": "SmoothQuant, GPTQ"}
COLOURS = {name: looks([name])[0]["color"] for name in LABELS}
MARKERS = {name: looks([name])[0]["marker"] for name in LABELS}
OWN, OTHER = "its own text", "the other text"
BITS = (4, 3, 2)


def extra(values: Mapping, bits: int, method: str, domain: str, text: str = OWN) -> list[float]:
    """Bits per byte more than the float model's, one number for each draw of the calibration text.

    Args:
        values: ``recorded.read("post_training_methods")``.
        bits: 4, 3 or 2.
        method: a key of ``LABELS``.
        domain: of the text that is measured, ``"code"`` or ``"documentation"``.
        text: ``OWN`` if calibrated on text of the same domain, ``OTHER`` if on the other's. Rounding to nearest
            reads no text: one number, the same for both.
    """
    if text not in (OWN, OTHER):
        raise ValueError(f"text is {text!r}, it may be {OWN!r} or {OTHER!r}")
    (other,) = (name for name in values["float"] if name != domain)
    key = "no calibration" if method == NEAREST else f"calibrated on {domain if text == OWN else other}"
    return [found - values["float"][domain] for found in values[f"{bits} bits"][method][key][domain]]


def side_by_side(values: Mapping) -> tuple[Axes, ...]:
    """Extra bits per byte of four methods at 4, 3 and 2 bits, one panel for each domain that is measured.

    Filled markers: calibrated on text of the measured domain; open: on the other domain's. A marker is the mean
    over the draws of calibration text, the bar through it their range. ``plotted`` finds the means under
    ``"GPTQ, its own text"`` and so on, and ``"to nearest"``.

    Args:
        values: ``recorded.read("post_training_methods")``.

    Returns:
        The axes, in the order of ``values["float"]``.
    """
    figure, panels = plt.subplots(len(values["float"]), 1, figsize=(4.8, 6.6), sharex=True, sharey=True)
    drawn = [(NEAREST, OWN), *((method, text) for method in LABELS if method != NEAREST for text in (OWN, OTHER))]
    for axes, (domain, start) in zip(panels, values["float"].items(), strict=True):
        for number, (method, text) in enumerate(drawn):
            places = [b + 0.09 * ((len(drawn) - 1) / 2 - number) for b in BITS]  # left to right: the axis is inverted
            found = [extra(values, b, method, domain, text) for b in BITS]
            colour, label = COLOURS[method], LABELS[method]
            axes.plot(
                places, [sum(draws) / len(draws) for draws in found], MARKERS[method], color=colour, linestyle="none", markersize=4.5,
                markerfacecolor=colour if text == OWN else "white", label=label if method == NEAREST else f"{label}, {text}",
            )  # fmt: skip
            for place, draws in zip(places, found, strict=True):
                axes.plot((place, place), (min(draws), max(draws)), color=colour, linewidth=1.4, zorder=1.5)
        axes.set(yscale="log", ylabel="extra bits per byte", title=f"{domain}, {start:.2f} bits per byte in float")
        axes.set_xlim(max(BITS) + 0.5, min(BITS) - 0.5)
        axes.set_xticks(BITS, [str(b) for b in BITS])
        axes.set_yticks((0.01, 0.1, 1), ("0.01", "0.1", "1"))
        axes.xaxis.set_minor_locator(NullLocator())
    panels[-1].set_xlabel("bits of a code")
    key = [Line2D([], [], marker=MARKERS[m], color=COLOURS[m], linestyle="none", label=LABELS[m]) for m in LABELS]
    for label, face in ((f"calibrated on {OWN}", "0.5"), (f"on {OTHER}", "white")):
        key.append(Line2D([], [], marker="o", color="0.5", markerfacecolor=face, linestyle="none", label=label))
    figure.legend(handles=key, loc="outside upper center", ncols=2, fontsize=9.5)
    return tuple(panels)
