"""The repository's public address, and the texts that are made from it.

The one place where it stands is `[project.urls]` in pyproject.toml. Every other place is checked
against it by tests/book/test_address.py and written by `python tools/address.py URL` (`make address`).
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from book_paths import ROOT

PLACES = ("pyproject.toml", "README.md", "CITATION.cff", "_config.yml", "book/**/*.md", "notebooks/**/*.ipynb")
TEMPLATE = "https://github.com/OWNER/REPOSITORY"
PATTERN = re.compile(r"https://github\.com/([\w.-]+/[\w.-]+)")


def address(root: Path = ROOT) -> str:
    """The address in pyproject.toml."""
    # Read with a pattern, not tomllib: Python 3.10 has none.
    found = re.search(r'^Repository = "(.+)"$', (root / "pyproject.toml").read_text(), re.MULTILINE)
    if found is None:
        raise ValueError("pyproject.toml has no line 'Repository = \"…\"' under [project.urls]")
    return found[1]


def slug(url: str) -> str:
    """`https://github.com/owner/name` → `owner/name`; Colab opens notebooks of GitHub by it."""
    found = PATTERN.fullmatch(url.rstrip("/").removesuffix(".git"))
    if found is None:
        raise ValueError(f"{url!r} is not of the form https://github.com/owner/name")
    return found[1]


def colab_cell(url: str) -> str:
    """The first code cell of every chapter."""
    return (Path(__file__).parent / "colab_cell.py").read_text().strip().replace(TEMPLATE, url)


def badge_line(notebook: Path, url: str, hardware: str) -> str:
    """The line below a chapter's title. The build puts the measured seconds in place of the words."""
    up = "../" * (len(notebook.parts) - 1)
    target = f"https://colab.research.google.com/github/{slug(url)}/blob/main/{notebook.as_posix()}"
    return (
        f"[![Open in Colab]({up}book/_static/colab.svg)]({target}) · {{download}}`Download <{notebook.name}>` · "
        f"[measured run time]({up}book/status.md) · {hardware}"
    )


def places(root: Path) -> Iterator[Path]:
    """The files that may contain the address."""
    for pattern in PLACES:
        yield from sorted(path for path in root.glob(pattern) if path.is_file())


def set_address(url: str, root: Path = ROOT) -> list[Path]:
    """Write `url` in every place; the files that changed."""
    old, new = slug(address(root)), slug(url)
    # In an address (after "github.com/" or Colab's "/github/"), or standing alone; never inside another word.
    pattern = re.compile(rf"(?:(?<=github\.com/)|(?<=/github/)|(?<![\w./-])){re.escape(old)}(?![\w-])")
    changed = []
    for path in places(root):
        before = path.read_text()
        after = pattern.sub(new, before)
        if after != before:
            path.write_text(after)
            changed.append(path.relative_to(root))
    return changed


def main() -> int:
    parser = argparse.ArgumentParser(description="Set the repository's public address in every place.")
    parser.add_argument("url", help="https://github.com/owner/name")
    try:
        changed = set_address(parser.parse_args().url)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(map(str, changed)) or "nothing changed")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
