"""A Sphinx extension: the line `Chapter: part/name` of a docstring becomes a link with the chapter's title."""

from typing import Any

import function_links


def linked(line: str) -> str:
    """The line with its chapters as links; other lines, and `Chapter: none (…)`, as they are."""
    chapters = function_links.named_chapters(line)
    if not chapters:
        return line
    return "Chapter: " + ", ".join(f":doc:`/notebooks/{chapter}`" for chapter in chapters)


def link(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    lines[:] = map(linked, lines)


def setup(app: Any) -> dict[str, bool]:
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", link, priority=900)  # after napoleon
    return {"parallel_read_safe": True, "parallel_write_safe": True}
