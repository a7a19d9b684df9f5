"""The whole book as one PDF, made from the built site: `make pdf`, after `make book`.

Chromium prints page by page (tools/print_pages.py), two at a time, in the order of _toc.yml; tools/join_sheets.py makes one file
of the sheets.
"""

import html
import io
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from queue import Empty, SimpleQueue

import yaml
import zip_site
from book_paths import HTML, ROOT
from browser import Browser, BrowserError, find
from join_sheets import Chapter, Part, join, place
from print_pages import print_page, sheets
from pypdf import PdfReader

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NO_BROWSER = (
    "make pdf prints with Chromium, and none is installed here. Debian and Ubuntu: apt-get install chromium; "
    "macOS: brew install --cask chromium; or name one that you have: CHROMIUM=/path/to/chrome make pdf"
)
FRONT = """<!doctype html><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 16px/1.45 system-ui, sans-serif; margin: 0; color: #000; }}
a {{ color: inherit; text-decoration: none; }}
.cover {{ height: 1000px; padding-top: 330px; break-after: page; box-sizing: border-box; }}
.cover h1 {{ font-size: 3rem; margin: 0 0 1rem; }} .cover p {{ font-size: 1.15rem; max-width: 34rem; }}
h2 {{ margin: 0 0 1rem; }} h3 {{ margin: 1.1rem 0 .2rem; font-size: 1rem; break-after: avoid; }}
.row {{ display: flex; break-inside: avoid; }} .row i {{ flex: 1; border-bottom: 1px dotted #888; margin: 0 .4rem .35rem; }}
.deep {{ padding-left: 1.5rem; }}
</style><div class="cover"><h1>{title}</h1><p>{lines}</p></div><h2>Contents</h2>{rows}"""


def parts(toc: dict, site: Path) -> list[Part]:
    """The book's order. A glob names every page that matches and has no place of its own before.

    Args:
        toc: what _toc.yml says.
        site: the built site.

    Raises:
        FileNotFoundError: the site lacks a page that the table names.
    """
    seen: set[Path] = set()

    def walk(nodes: list[dict], depth: int) -> Iterator[Chapter]:
        for node in nodes:
            entry = node.get("file") or node["glob"]
            found = sorted(site.glob(f"{entry}.html")) if "*" in entry else [site / f"{entry}.html"]
            for path in found:
                if not path.is_file():
                    raise FileNotFoundError(f"the site has no page {path}: run make book")
                if path not in seen:
                    seen.add(path)
                    yield Chapter(path, depth)
            yield from walk(node.get("sections", []), depth + 1)

    start = Part(None, list(walk([{"file": toc["root"]}], 0)))
    return [start, *(Part(part.get("caption"), list(walk(part["chapters"], 0))) for part in toc["parts"])]


def print_all(chapters: list[Chapter], workers: int = 2) -> None:
    """Print every chapter, the longest first so that the workers end together."""
    waiting: SimpleQueue[Chapter] = SimpleQueue()
    for chapter in sorted(chapters, key=lambda c: -c.path.stat().st_size):
        waiting.put(chapter)

    def work(_: int) -> None:
        with Browser() as browser:
            while True:
                try:
                    chapter = waiting.get_nowait()
                except Empty:
                    return
                chapter.pdf, found = print_page(browser, chapter.path)
                chapter.title, chapter.sections = found["title"], [(name, text) for name, text in found["sections"]]

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, range(workers)))


def front(browser: Browser, book: list[Part], title: str, lines: str) -> PdfReader:
    """Title page and contents; the numbers are those of the sheets as `Chapter.first` has them."""

    def rows() -> Iterator[str]:
        for part in book:
            if part.caption:
                yield f"<h3>{html.escape(part.caption)}</h3>"
            for c in part.chapters:
                yield (
                    f'<div class="row {"deep" if c.depth else ""}"><a href="{c.path.as_uri()}">{html.escape(c.title)}</a>'
                    f"<i></i>{c.first + 1}</div>"
                )

    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "front.html")
        page.write_text(FRONT.format(title=html.escape(title), lines=lines, rows="".join(rows())))
        browser.open(page)
    return PdfReader(io.BytesIO(sheets(browser)))


def make(site: Path, toc: dict, target: Path, title: str, lines: str) -> list[str]:
    """Write the book.

    Args:
        site: a built site.
        toc: its _toc.yml, read.
        target: the file to write.
        title, lines: of the first page; `lines` is HTML.

    Returns:
        Names of files that links named and the PDF does not hold.

    Raises:
        ValueError: a page shows an image that is not there.
        FileNotFoundError: the site lacks a page.
        BrowserError: no Chromium, or it failed.
    """
    site = site.resolve()
    book = parts(toc, site)
    chapters = {chapter.path: chapter for part in book for chapter in part.chapters}
    print_all(list(chapters.values()))
    with Browser() as browser:
        place(book, 0)
        place(book, len(front(browser, book, title, lines).pages))
        opening = front(browser, book, title, lines)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    dropped = join(opening, book, part, title)
    part.replace(target)
    return dropped


def main() -> None:
    index = HTML / "index.html"
    if not index.is_file():
        raise SystemExit(f"no built site in {HTML}: run make book")
    target = HTML / zip_site.FOLDER / zip_site.PDF
    own = (*(Path(__file__).with_name(f"{name}.py") for name in ("book_pdf", "join_sheets", "print_pages")), index)
    if target.is_file() and all(target.stat().st_mtime > path.stat().st_mtime for path in own):
        print(f"{target} is newer than the site: nothing to do")
        return
    if find() is None:
        raise SystemExit(NO_BROWSER)
    start = time.monotonic()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    lines = f"Derived, run and measured.<br><br>Version {version}, {datetime.now(timezone.utc):%d %B %Y}"
    try:
        dropped = make(HTML, toc, target, "Model compression", lines)
    except (BrowserError, ValueError, FileNotFoundError) as error:
        raise SystemExit(f"make pdf: {error}") from error
    if dropped:
        print(f"not in the PDF, so their links are plain text: {', '.join(dropped)}")
    zip_site.fill_page()
    sheets_made = len(PdfReader(target).pages)
    print(f"{target}: {sheets_made} sheets, {target.stat().st_size / 1e6:.1f} MB, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
