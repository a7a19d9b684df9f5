"""One look for one method: the colours and markers that every figure of the book takes.

Seven colours that colour-blind readers tell apart (Okabe and Ito). There are more methods than colours, so two methods that never
meet in one figure may share one, with another marker. What is no method, such as a setting of a chapter, takes the next colour that is free.
"""

from collections.abc import Iterable
from typing import Any

BLACK, BLUE, VERMILION, GREEN = "#000000", "#0072B2", "#D55E00", "#009E73"
PINK, GOLD, SKY = "#CC79A7", "#E69F00", "#56B4E9"
CYCLE = (BLUE, VERMILION, GREEN, PINK, GOLD, SKY, BLACK)
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")

#: How a label begins, in small letters → colour and marker. Black crosses are what needs no method (rounding, the smallest weights).
METHODS = {
    "to nearest": (BLACK, "X"),
    "round to nearest": (BLACK, "X"),
    "awq": (GREEN, "s"),
    "gptq": (BLUE, "o"),
    "smoothquant": (VERMILION, "D"),
    "rotation": (PINK, "^"),
    "w16a16": (BLACK, "X"),
    "w8a8": (GOLD, "s"),
    "w4a16": (BLUE, "o"),
    "w4a8": (GREEN, "D"),
    "w3a16": (PINK, "^"),
    "magnitude": (BLACK, "X"),
    "one-shot": (BLACK, "X"),
    "wanda": (GREEN, "s"),
    "sparsegpt": (VERMILION, "D"),
    "movement": (VERMILION, "s"),
    "soft": (GOLD, "D"),
    "l0": (SKY, "v"),
    "random": (PINK, "^"),
    "at random": (PINK, "^"),
    "static": (PINK, "^"),
    "ticket": (BLUE, "o"),
    "new start": (VERMILION, "s"),
    "rigl": (GREEN, "D"),
    "set": (SKY, "P"),
    "snip": (GOLD, "v"),
    "2:4": (PINK, "^"),
    "csr": (BLUE, "o"),
    "blocks": (GREEN, "D"),
}


def method(label: str) -> str | None:
    """The key of ``METHODS`` that a label begins with, the longest, as whole words; None if it names no method."""
    words = label.lower().replace("_", " ")
    found = [name for name in METHODS if words == name or words.startswith((f"{name} ", f"{name},", f"{name}+"))]
    return max(found, key=len, default=None)


def looks(labels: Iterable[str]) -> list[dict[str, Any]]:
    """How the lines of one figure are drawn, in the order of ``labels``: colour, marker, filling and dashes.

    The second line of a method has its colour and marker too, but is dashed, its markers open.
    """
    names = [(label, method(label)) for label in labels]
    taken = {METHODS[name] for _, name in names if name}
    colours = [colour for colour in CYCLE if colour not in {used for used, _ in taken}]
    markers = [marker for marker in MARKERS if marker not in {used for _, used in taken}]
    drawn: list[dict[str, Any]] = []
    seen: set[str] = set()
    free = 0
    for _, name in names:
        if name:
            colour, marker = METHODS[name]
        else:
            colour, marker = colours[free % len(colours)], markers[free % len(markers)]
            free += 1
        again = name in seen
        drawn.append(
            {"color": colour, "marker": marker, "markerfacecolor": "white" if again else colour,
             "linestyle": "--" if again else "-"}
        )  # fmt: skip
        seen |= {name} if name else set()
    return drawn
