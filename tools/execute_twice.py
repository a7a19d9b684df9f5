"""Execute notebooks a second time and compare: `make twice`, `make again`.

Every text output and glued value must be the same as in the book's execution, except in cells tagged
`timing`. Images are not compared: what they show is asserted in their caption cells.

What two executions agreed on is kept, as one hash a notebook, in `tests/book/outputs.json`. A notebook that gives
these outputs again, in a later execution, on any machine, has been executed twice with the same numbers: the
execution that was recorded and this one. So `make again` executes a second time only where the outputs are others
than the recorded ones: after a change that moves numbers, and on processors that round differently.
"""

import argparse
import difflib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import book_execute
import nbformat
from book_paths import CACHE, ROOT, notebooks

SCRATCH = CACHE / "twice"
RECORD = ROOT / "tests" / "book" / "outputs.json"


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


def fingerprint(notebook: nbformat.NotebookNode) -> str:
    """A hash of what must repeat, without the cells' numbers: a paragraph more does not change it."""
    total = hashlib.sha256()
    for place, text in texts(notebook):
        kind = place.split(" ", 2)[2]
        total.update(f"{kind}\0{text}\0".encode())
    return total.hexdigest()


def recorded() -> dict[str, str]:
    """Fingerprints by notebook, of outputs that two executions agreed on."""
    return json.loads(RECORD.read_text()) if RECORD.is_file() else {}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Execute notebooks a second time; their outputs must be the same.")
    parser.add_argument("--unrecorded", action="store_true", help="only those whose outputs are not the recorded ones")
    options = parser.parse_args(arguments)
    books = notebooks()
    book_execute.execute(books)
    now = {book: fingerprint(_read(book_execute.EXECUTED / book)) for book in books}
    before = recorded()
    again = [book for book in books if not options.unrecorded or before.get(book.as_posix()) != now[book]]
    finished = book_execute.run(again, SCRATCH) if again else {}
    different = [f"{book}: failed, see above" for book in again if book not in finished]
    for book in finished:
        found = differences(*(_read(folder / book) for folder in (book_execute.EXECUTED, SCRATCH)))
        different += [f"{book}:", *found] if found else []
    if different:
        raise SystemExit("\n".join(["two executions differ", *different]))
    RECORD.write_text(json.dumps({book.as_posix(): now[book] for book in sorted(books)}, indent=2) + "\n")
    if options.unrecorded:
        print(f"{len(books) - len(again)} notebooks gave the recorded outputs")
    print(f"{len(again)} notebooks gave the same outputs twice{': ' if again else ''}{', '.join(map(str, again))}")
    if recorded() != before:
        print(f"commit {RECORD.relative_to(ROOT)}: it has new outputs")


def _read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


if __name__ == "__main__":
    main()
