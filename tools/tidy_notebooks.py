"""Write every notebook of the book in its committed form: `make tidy`.

Outputs, execution counts and the executor's time stamps go; the Colab cell and the badge line get
their canonical text; the metadata are the same everywhere.
"""

import copy
import json
import re
import sys
import uuid
from pathlib import Path

import address
import chapter_rules
from book_paths import ROOT

BADGE = "[![Open in Colab]"
HARDWARE = "CPU, two cores"


def tidy(notebook: chapter_rules.Notebook, path: Path, url: str) -> chapter_rules.Notebook:
    """The same notebook without outputs and with the canonical opening."""
    cells = notebook["cells"]
    for cell in cells:
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
            cell["source"] = cell["source"].strip("\n")
        for key in ("execution", "collapsed", "scrolled"):
            cell["metadata"].pop(key, None)
        cell.setdefault("id", uuid.uuid4().hex[:8])
    first = cells[0]
    first["source"] = with_badge(first["source"], path, url)
    code = chapter_rules.code_cells(notebook)
    if not code or "colab" not in chapter_rules.tags(code[0]):
        cells.insert(1, {"cell_type": "code", "id": "colab", "outputs": [], "execution_count": None, "metadata": {}})
        code = chapter_rules.code_cells(notebook)
    code[0] |= {"source": address.colab_cell(url), "metadata": {"tags": ["colab", "remove-cell"]}}
    return {"cells": cells, "metadata": copy.deepcopy(chapter_rules.METADATA), "nbformat": 4, "nbformat_minor": 5}


def with_badge(source: str, path: Path, url: str) -> str:
    """The opening cell with the canonical badge line below the title; its last part, the hardware, is kept."""
    lines = source.splitlines()
    old = next((line for line in lines if BADGE in line), "")
    hardware = old.rsplit(" · ", 1)[-1] if " · " in old else HARDWARE
    lines = [line for line in lines if line != old or not old]
    body = "\n".join(lines[1:]).strip("\n")
    return f"{lines[0]}\n\n{address.badge_line(path, url, hardware)}\n\n{body}"


def write(notebook: chapter_rules.Notebook, path: Path) -> None:
    """As Jupyter writes it: one line of source an item, one space of indent."""
    cells = [cell | {"source": cell["source"].splitlines(keepends=True)} for cell in notebook["cells"]]
    text = json.dumps(notebook | {"cells": cells}, indent=1, ensure_ascii=False, sort_keys=True)
    path.write_text(re.sub(r"\[\s+\]", "[]", text) + "\n")


def main() -> int:
    check = "--check" in sys.argv[1:]  # say what would change, and change nothing
    changed = 0
    for path in sorted((ROOT / "notebooks").rglob("*.ipynb")):
        if ".ipynb_checkpoints" in path.parts:
            continue
        before = path.read_text()
        write(tidy(chapter_rules.load(path), path.relative_to(ROOT), address.address()), path)
        if path.read_text() != before:
            changed += 1
            print(path.relative_to(ROOT))
            if check:
                path.write_text(before)
    return int(check and changed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
