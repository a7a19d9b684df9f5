"""The table of `tools/` on the architecture page: each file with the first sentence of its docstring."""

import ast
import re
from pathlib import Path

from book_paths import ROOT


def first_sentence(path: Path) -> str:
    """What a file says of itself first; a file without a docstring says it in its first comment."""
    text = path.read_text()
    docstring = ast.get_docstring(ast.parse(text))
    if docstring is None:
        comment = re.match(r"(?:# .*\n)+", text)
        if comment is None:
            raise ValueError(f"{path} says nothing of itself")
        docstring = comment[0].replace("# ", "")
    said = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"(?<=[.:]) (?=[A-Z])", said)[0].rstrip(".:")


def page(root: Path = ROOT) -> str:
    """The table, as Markdown."""
    rows = [(path.name, first_sentence(path)) for path in sorted((root / "tools").rglob("*.py"))]
    lines = ["| in `tools/` | what it does |", "|---|---|"]
    return "\n".join([*lines, *(f"| `{name}` | {said.replace('|', chr(92) + '|')} |" for name, said in rows)]) + "\n"
