"""The rules that a chapter's notebook keeps (CONTRIBUTING.md lists them); each function returns the breaches.

A notebook is a plain dictionary as in its JSON file, with `source` joined to one string.
"""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import address

HEADINGS = ("The question", "On your own model", "Exercises", "Remember", "Functions of this chapter")
CODE_WIDTH = 76
#: Lines of a code cell that the page shows; a longer one has no idea of its own.
CODE_LINES = 40
HIDDEN = {"hide-cell", "hide-input", "remove-cell", "remove-input"}
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
HUB_NAME = re.compile(r"\b[A-Za-z][\w-]*/[A-Za-z][\w.-]*\b")
FENCE = re.compile(r"^(`{3,}|~{3,}|:{3,}).*?^\1", re.MULTILINE | re.DOTALL)

Notebook = dict[str, Any]
Cell = dict[str, Any]


def load(path: Path) -> Notebook:
    """Read a notebook; each cell's source becomes one string."""
    notebook = json.loads(path.read_text())
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"])
    return notebook


def tags(cell: Cell) -> list[str]:
    return cell["metadata"].get("tags", [])


def code_cells(notebook: Notebook) -> list[Cell]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def headings(cell: Cell, level: int) -> list[str]:
    """The texts of the headings of one level in a Markdown cell, outside fences."""
    if cell["cell_type"] != "markdown":
        return []
    return re.findall(rf"^{'#' * level} +(.+?) *$", FENCE.sub("", cell["source"]), re.MULTILINE)


def section(notebook: Notebook, title: str) -> list[Cell]:
    """The cells from the second-level heading `title` on, to the next such heading; the first is cut to begin there."""
    found: list[Cell] = []
    for cell in notebook["cells"]:
        if title in headings(cell, 2):
            found = [cell | {"source": cell["source"].partition(f"## {title}")[2]}]
            rest = re.split(r"^## ", found[0]["source"], maxsplit=1, flags=re.MULTILINE)
            if len(rest) > 1:
                return [cell | {"source": rest[0]}]
        elif found:
            if headings(cell, 2):
                before = re.split(r"^## ", cell["source"], maxsplit=1, flags=re.MULTILINE)[0]
                return [*found, cell | {"source": before}]
            found.append(cell)
    return found


def hygiene(notebook: Notebook) -> Iterator[str]:
    """No outputs, no counts, lines that fit a phone, the common kernel."""
    for number, cell in enumerate(notebook["cells"], 1):
        if cell.get("outputs"):
            yield f"cell {number} has outputs: run make tidy"
        if cell.get("execution_count") is not None:
            yield f"cell {number} has an execution count: run make tidy"
        if cell["cell_type"] == "code":
            for line in cell["source"].splitlines():
                if len(line) > CODE_WIDTH:
                    yield f"cell {number}: a line is longer than {CODE_WIDTH} characters: {line.strip()[:40]}…"
            lines = len(cell["source"].splitlines())
            if lines > CODE_LINES and not HIDDEN & set(tags(cell)):
                yield f"cell {number} shows {lines} lines of code, more than {CODE_LINES}: split it, with words between"
    if notebook["metadata"] != METADATA:
        yield "the metadata differ from the common kernel's: run make tidy"


def opening(notebook: Notebook, path: Path, url: str) -> Iterator[str]:
    """Title, badge line, objectives, prerequisites, then the Colab cell."""
    first = notebook["cells"][0]
    lines = [line for line in first["source"].splitlines() if line.strip()]
    if first["cell_type"] != "markdown" or not lines[0].startswith("# "):
        yield "the first cell is not Markdown that begins with '# Title'"
        return
    expected = address.badge_line(path, url, "")
    if len(lines) < 2 or not lines[1].startswith(expected) or len(lines[1]) == len(expected):
        yield f"the line below the title is not the badge line '{expected}hardware': run make tidy"
    for words in ("**After this chapter you can**", "**You need**"):
        if not any(line.startswith(words) for line in lines):
            yield f"the first cell has no line that starts with {words}"
    if "minutes to read" not in first["source"]:
        yield "the first cell does not say '… minutes to read'"
    code = code_cells(notebook)
    if not code or code[0]["source"] != address.colab_cell(url) or tags(code[0]) != ["colab", "remove-cell"]:
        yield "the first code cell is not the Colab cell with its tags: run make tidy"


def order(notebook: Notebook) -> Iterator[str]:
    """The required headings, each once, in order."""
    found = [title for cell in notebook["cells"] for title in headings(cell, 2) if title in HEADINGS]
    if found != list(HEADINGS):
        yield f"the headings should be {HEADINGS} in this order, found {found}"


def own_model(notebook: Notebook) -> list[tuple[str, str]]:
    """Language and text of the fenced blocks in the section 'On your own model'."""
    words = "\n".join(cell["source"] for cell in section(notebook, "On your own model"))
    return re.findall(r"^```(\w+)\n(.*?)^```", words, re.MULTILINE | re.DOTALL)


def own(notebook: Notebook) -> Iterator[str]:
    """One block to copy: the command, or the few lines of Python, with a name on the hub."""
    blocks = own_model(notebook)
    if [language for language, _ in blocks] not in (["bash"], ["python"]):
        yield f"'On your own model' should have one block, ```bash or ```python, found {[b[0] for b in blocks]}"
    elif not HUB_NAME.search(blocks[0][1]):
        yield "the block of 'On your own model' names no model on the hub, such as Qwen/Qwen3-0.6B"


def quizzes(notebook: Notebook) -> Iterator[str]:
    """Two or more quick checks, each with its answer folded away, and before the exercises."""
    found = 0
    for cell in notebook["cells"]:
        if "Exercises" in headings(cell, 2):
            break
        if cell["cell_type"] == "markdown":
            blocks = re.findall(
                r"^(:{4,})\{admonition\} Quick check\n(.*?)^\1$", cell["source"], re.MULTILINE | re.DOTALL
            )
            if len(blocks) < cell["source"].count("{admonition} Quick check"):
                yield "a quick check does not begin and end with '::::' on lines of their own"
            for block in blocks:
                found += 1
                if not block[1].startswith(":class: quiz\n") or "\n:::{dropdown} Answer\n" not in block[1]:
                    yield f"a quick check lacks ':class: quiz' or ':::{{dropdown}} Answer': {block[1].strip()[:50]}"
    if found < 2:
        yield f"there should be two or more '::::{{admonition}} Quick check' before the exercises, found {found}"


def boxes(notebook: Notebook) -> Iterator[str]:
    """A table that joins symbols and names in code, and a box that says where this differs from its source."""
    words = "\n".join(cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    if not re.search(r"^\|.*\| in code \|$", words, re.MULTILINE):
        yield "there is no table of symbols: a row of heads that ends in '| in code |'"
    if not re.search(r"^:{3,}\{admonition\} Differs from the ", words, re.MULTILINE):
        yield "there is no box ':::{admonition} Differs from the paper'"


def exercises(notebook: Notebook) -> Iterator[str]:
    """Three to five exercises, each with a hidden, executed, asserted solution."""
    solved: list[bool] = []
    for cell in section(notebook, "Exercises"):
        solved += [False] * sum(title.startswith("Exercise") for title in headings(cell, 3))
        if "solution" in tags(cell):
            if "hide-cell" not in tags(cell):
                yield "a solution is not tagged hide-cell"
            if solved and _asserts(cell):
                solved[-1] = True
    if not 3 <= len(solved) <= 5:
        yield f"there should be three to five '### Exercise', found {len(solved)}"
    for number, done in enumerate(solved, 1):
        if not done:
            yield f"exercise {number} has no cell tagged solution with an assert"


def remember(notebook: Notebook) -> Iterator[str]:
    """Three lines to remember, each with a glued number."""
    text = "\n".join(cell["source"] for cell in section(notebook, "Remember"))
    items = re.split(r"^(?:[-*+]|\d+\.) ", text, flags=re.MULTILINE)[1:]
    if len(items) != 3:
        yield f"'Remember' should have three list items, found {len(items)}"
    yield from (f"'Remember' has an item without a glued number: {i.strip()[:50]}" for i in items if "{glue:" not in i)


def figures(notebook: Notebook) -> Iterator[str]:
    """Each figure has alt text, a caption and a name; the next code cell asserts the caption on the plotted arrays."""
    code = code_cells(notebook)
    for position, cell in enumerate(code):
        if "figure" not in tags(cell):
            continue
        settings = cell["metadata"].get("mystnb", {})
        figure, image = settings.get("figure", {}), settings.get("image", {})
        name = figure.get("name", "")
        label = name or cell["source"].strip().splitlines()[-1]
        if not name.startswith("fig-"):
            yield f"figure {label!r}: metadata mystnb.figure.name does not start with fig-"
        if not figure.get("caption", "").strip():
            yield f"figure {label!r}: no metadata mystnb.figure.caption"
        if len(image.get("alt", "")) < 20:
            yield f"figure {label!r}: metadata mystnb.image.alt is missing or shorter than 20 characters"
        following = code[position + 1] if position + 1 < len(code) else None
        if following is None or "caption" not in tags(following):
            yield f"figure {label!r}: the next code cell is not tagged caption"
        elif not asserts_plotted(following["source"]):
            yield f"figure {label!r}: its caption cell asserts nothing about what plotted() returns"


def formulas(notebook: Notebook) -> Iterator[str]:
    r"""A numbered formula breaks its lines with ``\cr``: one with ``\\`` Sphinx wraps so that it may have no number."""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            for formula in re.findall(r"\$\$(.+?)\$\$", cell["source"], re.DOTALL):
                if r"\tag" in formula and r"\\" in formula:
                    yield rf"a numbered formula has a line break \\; write \cr: {formula.strip()[:50]}"


def removed(notebook: Notebook) -> Iterator[str]:
    """What a cell on the page uses is defined on the page, open or folded; all cells may `glue`."""
    there: set[str] = set()
    away: set[str] = set()
    for cell in code_cells(notebook):
        defined, used = _names(cell["source"])
        if "remove-cell" in tags(cell):
            away |= defined
            continue
        there |= defined
        lost = sorted((used & away) - there - {"glue"})
        if lost:
            yield f"names that only a cell tagged remove-cell defines: {', '.join(lost)}; tag that hide-cell"


def _names(source: str) -> tuple[set[str], set[str]]:
    """The names that a cell binds, anywhere in it, and those that it reads."""
    bound: set[str] = set()
    read: set[str] = set()
    for node in ast.walk(_tree(source)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.Name):
            (bound if isinstance(node.ctx, ast.Store) else read).add(node.id)
    return bound, read


def figure_names(notebook: Notebook) -> list[str]:
    cells = [cell for cell in code_cells(notebook) if "figure" in tags(cell)]
    return [cell["metadata"].get("mystnb", {}).get("figure", {}).get("name", "") for cell in cells]


def _asserts(cell: Cell) -> bool:
    return any(isinstance(node, ast.Assert) for node in ast.walk(_tree(cell["source"])))


def _tree(source: str) -> ast.Module:
    # IPython's % and ! lines are not Python.
    return ast.parse("\n".join("" if re.match(r"\s*[%!](?!=)", line) else line for line in source.splitlines()))


def asserts_plotted(source: str) -> bool:
    """Whether an `assert` reads what `plotted(…)` returned, directly or through assigned names."""
    tree = _tree(source)
    known: set[str] = set()

    def depends(node: ast.AST) -> bool:
        return any(
            (isinstance(part, ast.Call) and isinstance(part.func, ast.Name) and part.func.id == "plotted")
            or (isinstance(part, ast.Name) and part.id in known)
            for part in ast.walk(node)
        )

    def bind(target: ast.AST) -> None:
        known.update(part.id for part in ast.walk(target) if isinstance(part, ast.Name))

    # Assignments and loops in the order of the text; a claim that needs more than this is too long for a caption.
    for node in sorted((n for n in ast.walk(tree) if hasattr(n, "lineno")), key=lambda n: (n.lineno, n.col_offset)):
        if isinstance(node, ast.Assign) and depends(node.value):
            for target in node.targets:
                bind(target)
        elif isinstance(node, (ast.For, ast.comprehension)) and depends(node.iter):
            bind(node.target)
    return any(depends(node.test) for node in ast.walk(tree) if isinstance(node, ast.Assert))


def breaches(notebook: Notebook, path: Path, url: str) -> list[str]:
    """Everything that is wrong with the chapter at `path` (relative to the repository)."""
    rules = (own, quizzes, boxes, exercises, remember, removed, formulas, figures)
    found = [*hygiene(notebook), *opening(notebook, path, url), *order(notebook)]
    found += [text for rule in rules for text in rule(notebook)]
    return [f"{path}: {text}" for text in found]
