"""Figures of the chapter ``quantization/trade_offs``."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from reference.figures import methods
from reference.figures.palette import looks

LABELS = methods.LABELS | {"rotation+gptq": "rotation, GPTQ"}
COLOURS = {name: looks([name])[0]["color"] for name in LABELS}
MARKERS = {name: looks([name])[0]["marker"] for name in LABELS}
#: Activations of a setting → how its markers are named and filled.
FACES = {"A16": "16-bit inputs", "A8": "8-bit inputs", "A4": "4-bit inputs"}


def pareto(points: Mapping[str, Mapping[str, Mapping[str, tuple[float, float]]]]) -> tuple[Axes, ...]:
    """Divergence against bytes on disk, one panel a text; down and to the left is better.

    ``plotted`` finds the settings of a method, in the order given, under its label.

    Args:
        points: text → setting → method → megabytes and nats per token.

    Returns:
        The axes, in the order of ``points``.
    """
    _, panels = plt.subplots(len(points), 1, figsize=(4.8, 7.2), sharex=True, sharey=True)
    for axes, (title, settings) in zip(panels, points.items(), strict=True):
        for method, label in LABELS.items():
            found = [(name, *by_method[method]) for name, by_method in settings.items() if method in by_method]
            places = [x for _, x, _ in found]
            # The line that tests read has no marker of its own: faces differ from point to point.
            axes.plot(places, [y for _, _, y in found], linestyle="none", color=COLOURS[method], label=label)
            for name, x, y in found:
                axes.plot([x], [y], MARKERS[method], markersize=5.5, label="_", **_face(name[2:], COLOURS[method]))
        axes.set(yscale="log", ylabel="divergence, nats a token", title=title)
    panels[-1].set_xlabel("bytes on disk, MB")
    key = [Line2D([], [], marker=MARKERS[m], color=COLOURS[m], linestyle="none", label=LABELS[m]) for m in LABELS]
    for bits, label in FACES.items():
        key.append(Line2D([], [], marker="o", linestyle="none", label=label, **_face(bits, "0.5")))
    panels[0].figure.legend(handles=key, loc="outside upper center", ncols=2, fontsize=9.5)
    return tuple(panels)


def _face(activations: str, colour: str) -> dict[str, Any]:
    """Full for 16-bit activations, half for 8, open for 4."""
    half = {"fillstyle": "bottom", "markerfacecoloralt": "white"} if activations == "A8" else {}
    return {"color": colour, "markerfacecolor": "white" if activations == "A4" else colour, **half}


def predicted(batches: Sequence[int], speedup: Mapping[str, Mapping[str, Sequence[float | None]]]) -> tuple[Axes, ...]:
    """Predicted speed over 16 bits against the batch, one panel a device.

    A line ends where the 16-bit model no longer fits. ``plotted`` finds a scheme under its name.

    Args:
        batches: sequences.
        speedup: device → scheme → ratio at each batch, None where either does not fit.

    Returns:
        The axes, in the order of ``speedup``.
    """
    _, panels = plt.subplots(len(speedup), 1, figsize=(4.8, 2.1 * len(speedup) + 1.2), sharex=True, sharey=True)
    for axes, (title, schemes) in zip(panels, speedup.items(), strict=True):
        axes.axhline(1, color="black", linewidth=1)
        for (name, values), look in zip(schemes.items(), looks(schemes), strict=True):
            shown = [(batch, value) for batch, value in zip(batches, values, strict=True) if value is not None]
            axes.plot(*zip(*shown, strict=True), linewidth=1.2, markersize=4.5, label=name, **look)
        axes.set(xscale="log", ylabel="times 16 bits", title=title, ylim=(0.8, 3.4))
        axes.set_xticks(batches, [str(batch) for batch in batches])
        axes.xaxis.set_minor_locator(NullLocator())
    panels[-1].set_xlabel("sequences in a batch")
    panels[0].legend(fontsize=9.5)
    return tuple(panels)
