"""A small chapter and a small recorded result that keep all rules, for tests that break one at a time."""

from pathlib import Path
from typing import Any

import address
import tidy_notebooks

URL = "https://github.com/acme/book"
PATH = Path("notebooks/part/good.ipynb")

QUIZ = "::::{admonition} Quick check\n:class: quiz\nHow many?\n\n:::{dropdown} Answer\nTwo.\n:::\n::::"


def markdown(source: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": source}


def code(source: str, *tags: str, **metadata: Any) -> dict[str, Any]:
    """A code cell without outputs."""
    metadata = {"tags": list(tags)} | metadata if tags else metadata
    return {"cell_type": "code", "metadata": metadata, "source": source, "outputs": [], "execution_count": None}


def good() -> dict[str, Any]:
    """The chapter, as `make tidy` leaves it."""
    figure = {
        "image": {"alt": "The error falls from three to one."},
        "figure": {"name": "fig-error", "caption": "The error falls."},
    }
    cells = [
        markdown("# Title\n\n**After this chapter you can**\n- measure\n\n**You need** nothing. 5 minutes to read."),
        markdown("## The question\nWhy?\n\n| symbol | meaning | in code |\n|---|---|---|\n| $x$ | input | `x` |"),
        markdown(":::{admonition} Differs from the paper\nIn nothing.\n:::"),
        markdown(f"{QUIZ}\n\n{QUIZ}"),
        code("axes.plot([1, 2], [3, 1], label='error');", "figure", mystnb=figure),
        code("x, y = plotted(axes)['error']\nassert (y[1:] < y[:-1]).all()", "caption"),
        markdown("## On your own model\n\n```bash\npython -m reference inspect Qwen/Qwen3-0.6B\n```"),
        markdown("## Exercises\n\n### Exercise 1\nDo."),
        code("assert 2 + 2 == 4", "solution", "hide-cell"),
        markdown("### Exercise 2: more\nDo."),
        code("assert 1 + 1 == 2", "solution", "hide-cell"),
        markdown("### Exercise 3\nDo.\n\n:::{dropdown} Solution\nWords.\n:::"),
        code("assert 1 + 1 == 2", "solution", "hide-cell"),
        markdown("## Remember\n- {glue:text}`a:.2f`\n- {glue:text}`b:.2f`\n- {glue:text}`c:.2f`"),
        markdown("## Functions of this chapter\n\n- {py:func}`reference.part.double`"),
    ]
    assert address.slug(URL) == "acme/book"
    return tidy_notebooks.tidy({"cells": cells, "metadata": {}}, PATH, URL)


def compute() -> dict[str, Any]:
    """What the recorded result's check returns."""
    return {"loss": 0.5, "bits": [4, 3], "method": "none"}


RECORDED = {
    "name": "good",
    "what": "One number",
    "values": compute(),
    "command": "python studies/good.py",
    "device": "a CPU, 2 cores",
    "date": "2026-01-31",
    "versions": {"python": "3.11.7"},
    "seed": 0,
    "cheap": True,
    "check": "book_fixtures.compute",
}
