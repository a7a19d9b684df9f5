"""Execute every notebook a second time and compare: `make twice`.

Every text output and glued value must be the same as in the book's execution, except in cells tagged
`timing`. Images are not compared: what they show is asserted in their caption cells.
"""

import difflib
from collections.abc import Iterator
from pathlib import Path

import book_execute
import nbformat
from book_paths import CACHE, notebooks

SCRATCH = CACHE / "twice"


def texts(notebook: nbformat.NotebookNode) -> Iterator[tuple[str, str]]:
    """Place and text of every output that must repeat."""
    for number, cell in enumerate(notebook.cells, 1):
        if "timing" in cell.metadata.get("tags", []):
            continue
        streams: dict[str, str] = {}  # joined: where a stream is cut into outputs is a matter of time
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                streams[output.name] = streams.get(output.name, "") + output.text
            for kind, data in output.get("data", {}).items():
                if not kind.startswith("image/"):
                    glued = output.metadata.get("scrapbook", {}).get("name", "")
                    yield f"cell {number} {kind} {glued}".rstrip(), data if isinstance(data, str) else repr(data)
        for name, text in streams.items():
            yield f"cell {number} {name}", text


def differences(first: nbformat.NotebookNode, second: nbformat.NotebookNode) -> list[str]:
    """A diff of what two executions printed and glued; empty where they agree."""
    before, after = (
        [f"{place}: {line}" for place, text in texts(notebook) for line in text.splitlines() or [""]]
        for notebook in (first, second)
    )
    return list(difflib.unified_diff(before, after, "first execution", "second execution", n=0, lineterm=""))


def main() -> None:
    books = notebooks()
    book_execute.execute(books)
    finished = book_execute.run(books, SCRATCH)
    different = [f"{book}: failed, see above" for book in books if book not in finished]
    for book in finished:
        found = differences(*(_read(folder / book) for folder in (book_execute.EXECUTED, SCRATCH)))
        different += [f"{book}:", *found] if found else []
    if different:
        raise SystemExit("\n".join(["two executions differ", *different]))
    print(f"{len(finished)} notebooks gave the same outputs twice")


def _read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


if __name__ == "__main__":
    main()
