"""Draw the picture of README.md from a recorded result: `python tools/readme_picture.py`.

The same numbers stand in the chapters GPTQ, SmoothQuant and AWQ; `book/data/post_training_methods.json` says how they were made.
"""

import re
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from book_paths import ROOT

from reference.data import recorded
from reference.figures import methods, use_style

PICTURE = ROOT / "book" / "_static" / "result.svg"


def extra_bits(domain: str = "code") -> dict[str, list[float]]:
    """Method → extra bits per byte at each of `methods.BITS`, mean over the draws of calibration text."""
    values = recorded.read("post_training_methods")
    drawn = {name: [methods.extra(values, bits, name, domain) for bits in methods.BITS] for name in methods.LABELS}
    return {name: [sum(draws) / len(draws) for draws in rows] for name, rows in drawn.items()}


def draw(path: Path = PICTURE) -> None:
    """Write the picture as SVG, the same bytes each time."""
    use_style()
    figure, axes = plt.subplots(figsize=(6.4, 3.2))
    for name, extra in extra_bits().items():
        axes.plot(
            methods.BITS, extra, color=methods.COLOURS[name], marker=methods.MARKERS[name], label=methods.LABELS[name]
        )
    axes.set(yscale="log", xlabel="bits of a weight", ylabel="extra bits per byte of code")
    axes.set_xlim(4.15, 1.85)
    axes.set_xticks(methods.BITS, [str(bits) for bits in methods.BITS])
    axes.set_yticks((0.01, 0.1, 1), ("0.01", "0.1", "1"))
    axes.set_title("What a weight of few bits costs, by method (lower is better)")
    axes.legend()
    figure.savefig(path, format="svg", metadata={"Date": None})
    plt.close(figure)
    path.write_text(re.sub(r"[ \t]+$", "", path.read_text(), flags=re.MULTILINE))


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE)
