"""Where the book's files are, and hashes of what its results depend on."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "book"
HTML = ROOT / "_build" / "html"


def toc_entries(root: Path = ROOT) -> list[str]:
    """Every `root`, `file` and `glob` of _toc.yml, in order."""

    def walk(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            for key in ("root", "file", "glob"):
                if key in node:
                    yield node[key]
            for value in node.values():
                yield from walk(value)
        elif isinstance(node, list):
            for value in node:
                yield from walk(value)

    return list(walk(yaml.safe_load((root / "_toc.yml").read_text())))


def toc_pages(root: Path = ROOT) -> list[Path]:
    """The source files of _toc.yml, relative to `root`. A glob may match nothing, a named page must exist."""
    pages: list[Path] = []
    for entry in toc_entries(root):
        found = sorted([*root.glob(f"{entry}.md"), *root.glob(f"{entry}.ipynb")])
        if not found and "*" not in entry:
            raise FileNotFoundError(f"_toc.yml names {entry}, but there is no {entry}.md and no {entry}.ipynb")
        pages += [page.relative_to(root) for page in found if page.relative_to(root) not in pages]
    return pages


def notebooks(root: Path = ROOT) -> list[Path]:
    """The notebooks of the book, relative to `root`, in the order of _toc.yml."""
    return [page for page in toc_pages(root) if page.suffix == ".ipynb"]


def chapter_name(notebook: Path) -> str:
    """`notebooks/quantization/gptq.ipynb` → `quantization/gptq`."""
    return notebook.relative_to("notebooks").with_suffix("").as_posix()


def files_below(*places: Path) -> Iterator[Path]:
    """The files at and below `places`, sorted, without what Python generates."""
    for place in places:
        if place.is_file():
            yield place
        else:
            yield from sorted(p for p in place.rglob("*") if p.is_file() and "__pycache__" not in p.parts)


def digest(files: Iterable[Path], *more: str) -> str:
    """One hash of names and contents."""
    total = hashlib.sha256()
    for file in files:
        name = file.relative_to(ROOT) if file.is_relative_to(ROOT) else file
        total.update(f"{name}\0".encode())
        total.update(hashlib.sha256(file.read_bytes()).digest())
    for text in more:
        total.update(f"{text}\0".encode())
    return total.hexdigest()
