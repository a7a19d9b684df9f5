"""Figures of the chapter on deployment trade-offs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.ticker import StrMethodFormatter

from reference.deployment.calculator import CHUNK, MODELS, losses
from reference.figures.palette import looks
from reference.figures.widget import widget
from reference.hardware.devices import devices
from reference.hardware.roofline import SCHEMES


def calculator_data(**start: object) -> dict:
    """What ``widgets/calculator.js`` reads: shapes, schemes, ceilings and losses, and what is chosen at first."""
    chosen = {
        "model": "Llama-3-8B",
        "scheme": "W4A16",
        "device": "RTX 4090",
        "cache_bits": 16,
        "batch": 1,
        "context": 4096,
    }
    if not start.keys() <= chosen.keys():
        raise ValueError(f"start names {sorted(start.keys() - chosen.keys())}; it may name {', '.join(chosen)}")
    return {
        "models": {name: {**asdict(shape), "linears": shape.linears()} for name, shape in MODELS.items()},
        "schemes": {name: asdict(scheme) for name, scheme in SCHEMES.items()},
        "devices": {
            name: {"memory": card.memory, "bandwidth": card.bandwidth, "rates": dict(card.rates)}
            for name, card in devices().items()
        },
        "losses": {
            model: {
                scheme: [
                    {"per_cent": loss.per_cent, "metric": loss.metric, "method": loss.method.replace("_", " ")}
                    for loss in losses(model, scheme)
                ]
                for scheme in SCHEMES
            }
            for model in MODELS
        },
        "chunk": CHUNK,
        "start": {**chosen, **start},
    }


def calculator(without: str, **start: object) -> HTML:
    """The calculator as a widget.

    Args:
        without: what readers see who have no JavaScript.
        start: what is chosen at first, such as ``model="Llama-2-7B"``.
    """
    data = calculator_data(**start)
    return widget("calculator", data, label="Calculator of memory, speed and loss", without=without)


def memory_by_scheme(memory: Mapping[str, Sequence[float]], capacity: float, *, ax: Axes | None = None) -> Axes:
    """Stacked bars of weights, cache and activations in GB, with a line at what there is.

    Args:
        memory: scheme → bytes of weights, cache and activations.
        capacity: bytes.
        ax: axes to draw into; new ones if None.
    """
    axes = ax or plt.subplots(figsize=(4.8, 3.9))[1]
    places, below = np.arange(len(memory)), np.zeros(len(memory))
    for part, values in zip(("weights", "cache", "activations"), np.array(list(memory.values())).T / 1e9, strict=True):
        axes.bar(places, values, 0.6, bottom=below, label=part)
        below += values
    axes.axhline(capacity / 1e9, color="black", linewidth=1.2, linestyle="--", label="capacity")
    axes.set(xticks=places, ylabel="memory, GB", ylim=(0, 1.3 * max(capacity / 1e9, below.max())))
    axes.set_xticklabels(list(memory), fontsize=9)
    axes.legend(ncols=2, loc="upper right", fontsize=9.5)
    return axes


def speed_by_batch(lines: Mapping[str, tuple[Sequence[int], Sequence[float]]], *, ax: Axes | None = None) -> Axes:
    """Tokens per second of all sequences over the number of sequences, both logarithmic; each line ends where memory does.

    Args:
        lines: scheme → batches and tokens per second.
        ax: axes to draw into; new ones if None.
    """
    axes = ax or plt.subplots(figsize=(4.8, 3.9))[1]
    for (name, (batches, speed)), look in zip(lines.items(), looks(lines), strict=True):
        axes.plot(batches, speed, label=name, **look)
    axes.set(yscale="log", xlabel="sequences at once", ylabel="tokens per second, at most")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.legend(fontsize=9.5)
    return axes
