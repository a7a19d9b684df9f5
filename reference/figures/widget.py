"""Figures that answer: a cell's HTML output with numbers from Python and a little JavaScript, without a server.

A widget is a file ``widgets/NAME.js`` that defines ``function widget(root, data)``: it fills the empty element ``root`` from
``data``, which is what Python gave, by way of JSON. ``widgets/parts.js`` stands in front of it with the pieces that all
share: labelled controls, an announced result, colours that follow the page. Nothing is fetched, now or later, and everything that
reacts is a native control, so that keyboard and screen reader reach it. The arithmetic should be functions on plain
numbers, which a test can run in Node; ``script`` gives what the page runs.
"""

import hashlib
import html
import json
from pathlib import Path

from IPython.display import HTML

FOLDER = Path(__file__).with_name("widgets")


def script(name: str) -> str:
    """The JavaScript of a widget as a page runs it: the shared parts, then its own.

    Args:
        name: of a file in ``widgets/``, without suffix.

    Raises:
        ValueError: there is no such widget.
    """
    found = sorted(path.stem for path in FOLDER.glob("*.js") if path.stem != "parts")
    if name not in found:
        raise ValueError(f"name is {name!r}; it may be one of {', '.join(found)}")
    return "\n".join((FOLDER / f"{part}.js").read_text(encoding="utf-8") for part in ("parts", name))


def widget(name: str, data: object, *, label: str, without: str) -> HTML:
    """Make a widget the output of a cell: the last expression in it.

    Args:
        name: of a file in ``widgets/``, without suffix.
        data: what JSON can hold; numbers must be finite.
        label: what it is, for those who cannot see it; a few words.
        without: what a reader sees where scripts do not run, for example in an editor's preview: the answer in a sentence.

    Returns:
        HTML that shows in Jupyter and in the built book; the same for the same data.

    Raises:
        ValueError: no such widget, no label, or a number that is not finite.
    """
    for argument, value in (("label", label), ("without", without)):
        if not value.strip():
            raise ValueError(f"{argument} is empty; it may be words that stand for the widget")
    code = script(name)
    # In a page "</script>" would end the data, wherever it stands.
    held = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    key = f"widget-{name}-{hashlib.sha256((code + held + label).encode()).hexdigest()[:8]}"
    style = (FOLDER / "widget.css").read_text(encoding="utf-8")
    return HTML(
        f'<div class="book-widget" id="{key}" role="group" aria-label="{html.escape(label)}">'
        f"<style>{style}</style>"
        f'<div class="book-widget-root"><p>{html.escape(without)}</p></div>'
        f'<script type="application/json">{held}</script>'
        f"<script>(() => {{\n{code}\nstart({json.dumps(key)});\n}})();</script></div>"
    )
