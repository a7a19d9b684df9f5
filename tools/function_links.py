"""Functions ↔ chapters: each public function names its chapters, each chapter lists its functions.

Read from the source text, so that nothing needs to be importable.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import chapter_rules
from book_paths import ROOT, chapter_name

EXEMPT = (
    "reference.cli",
    "reference.cli_compress",
    "reference.cli_look",
    "reference.cli_options",
    "reference.cli_prune",
    "reference.cli_quantize",
    "reference.cli_shared",
    "reference.cli_workflow",
    "reference.figures",
    "reference.__main__",
)
LINE = re.compile(r"^\s*Chapter: (.+?)\s*$", re.MULTILINE)
ROLE = re.compile(r"\{py:(?:func|class)\}`(?:[^`<]*<)?~?([\w.]+)>?`")
NONE = re.compile(r"none \(.+\)")


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Import name → file, for the package and the kernels."""
    found = {}
    for folder, package in (("reference", "reference"), ("kernels", "reference.kernels")):
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join((package, *parts))] = path
    return found


def public(root: Path = ROOT) -> Iterator[tuple[str, str]]:
    """Full name and docstring of every public top-level function and class."""
    for module, path in modules(root).items():
        private = any(part.startswith("_") for part in module.split("."))
        if private or any(module == name or module.startswith(f"{name}.") for name in EXEMPT):
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                yield f"{module}.{node.name}", ast.get_docstring(node) or ""


def named_chapters(docstring: str) -> list[str] | None:
    """The chapters of a docstring's `Chapter:` line; [] for `none (reason)`, None where there is no such line."""
    found = LINE.search(docstring)
    if found is None:
        return None
    return [] if NONE.fullmatch(found[1]) else [name.strip() for name in found[1].split(",")]


def listed_functions(notebook: chapter_rules.Notebook) -> set[str]:
    """The full names in a chapter's section 'Functions of this chapter'."""
    cells = chapter_rules.section(notebook, "Functions of this chapter")
    return {name for cell in cells for name in ROLE.findall(cell["source"])}


def breaches(functions: dict[str, str], lists: dict[str, set[str]]) -> list[str]:
    """Where docstrings (full name → docstring) and chapters (name → functions listed) disagree."""
    found = []
    for function, docstring in functions.items():
        chapters = named_chapters(docstring)
        if chapters is None:
            found.append(f"{function}: its docstring has no line 'Chapter: …'")
        for chapter in chapters or []:
            if chapter not in lists:
                found.append(f"{function}: names the chapter {chapter!r}, which is not in _toc.yml")
            elif function not in lists[chapter]:
                found.append(f"{function}: names the chapter {chapter}, which does not list it")
    for chapter, names in lists.items():
        for name in sorted(names):
            if chapter not in (named_chapters(functions.get(name, "")) or []):
                found.append(f"{chapter}: lists {name}, whose docstring does not name this chapter (or there is none)")
    return found


def chapter_lists(notebooks: list[Path], root: Path = ROOT) -> dict[str, set[str]]:
    return {chapter_name(path): listed_functions(chapter_rules.load(root / path)) for path in notebooks}
