"""The whole book as one PDF, made from the built site: `make pdf`, after `make book`.

Chromium prints page by page (tools/print_pages.py), two at a time; here the sheets are joined in the order of _toc.yml, numbered,
given an outline, and the links between pages are turned from addresses of files into places in this PDF.
"""

import html
import io
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from queue import Empty, SimpleQueue
from urllib.parse import unquote, urldefrag, urlsplit

import yaml
import zip_site
from book_paths import HTML, ROOT
from browser import Browser, BrowserError, find
from print_pages import A4, INCH, MARGIN, SCALE, print_page, sheets
from pypdf import PdfReader, PdfWriter
from pypdf.generic import (
    ArrayObject,
    DecodedStreamObject,
    DictionaryObject,
    Fit,
    FloatObject,
    NameObject,
    NullObject,
    TextStringObject,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TOP, POINTS_OF_MARGIN = (length / INCH * 72 for length in (A4[1], MARGIN))  # points
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


@dataclass
class Chapter:
    """A page of the site in the book: where it stands, and once it is printed what it became."""

    path: Path
    depth: int = 0  # 1: below the chapter before it
    title: str = ""
    sections: list[tuple[str, str]] = field(default_factory=list)  # id and heading
    pdf: PdfReader | None = None
    first: int = 0  # its first sheet in the book, from 0
    places: dict[str, tuple[int, float]] = field(default_factory=dict)  # id → sheet in the book, height on it


@dataclass
class Part:
    caption: str | None
    chapters: list[Chapter]


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


def on_paper(height: float) -> float:
    """The height on the sheet of a place that Chromium names: it leaves out the margin and the scale."""
    return TOP - POINTS_OF_MARGIN - SCALE * (TOP - height)


def place(book: list[Part], offset: int) -> int:
    """Give every chapter its first sheet, from `offset` on, and its names their places; the number of all sheets."""
    for part in book:
        for chapter in part.chapters:
            assert chapter.pdf is not None
            chapter.first = offset
            offset += len(chapter.pdf.pages)
            for name, target in chapter.pdf.named_destinations.items():
                number = chapter.pdf.get_destination_page_number(target)
                if number is not None:
                    chapter.places[unquote(name.lstrip("/"))] = (
                        chapter.first + number,
                        on_paper(float(target.top or 0)),
                    )
    return offset


def target_of(link: DictionaryObject, own: Chapter | None, chapters: dict[Path, Chapter]) -> tuple[int, float] | str:
    """Where a link leads: a place in the book (sheet, height), an address outside, or the name of a file that is not in it."""
    if "/Dest" in link:
        assert own is not None
        name = unquote(str(link["/Dest"]).lstrip("/"))
        return own.places.get(name, (own.first, TOP))
    uri = str(link["/A"].get_object().get("/URI", ""))
    address, fragment = urldefrag(uri)
    if urlsplit(address).scheme != "file":
        return uri
    path = Path(unquote(urlsplit(address).path))
    if path not in chapters:
        return f"file:{path.name}"
    chapter = chapters[path]
    return chapter.places.get(unquote(fragment), (chapter.first, TOP))


def mend_links(writer: PdfWriter, sheet: int, own: Chapter | None, chapters: dict[Path, Chapter]) -> list[str]:
    """Turn the links of one sheet; those to files that the PDF does not hold become plain text, and are returned."""
    page = writer.pages[sheet]
    kept, dropped = ArrayObject(), []
    for reference in page.get("/Annots", ArrayObject()):
        link = reference.get_object()
        target = target_of(link, own, chapters)
        if isinstance(target, str):
            if target.startswith("file:"):
                dropped.append(target)
                continue
        else:
            number, top = target
            link.pop("/A", None)
            where = [NameObject("/XYZ"), NullObject(), FloatObject(top), NullObject()]
            link[NameObject("/Dest")] = ArrayObject([writer.pages[number].indirect_reference, *where])
        kept.append(reference)
    if "/Annots" in page:
        page[NameObject("/Annots")] = kept
    return dropped


def stream(text: str) -> DecodedStreamObject:
    made = DecodedStreamObject()
    made.set_data(text.encode("cp1252", "replace"))
    return made


def number_sheets(writer: PdfWriter, titles: list[str]) -> None:
    """At the foot of each sheet but the first, its number and the chapter's title, in a font that every reader has."""
    kinds = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica", "/Encoding": "/WinAnsiEncoding"}
    font = writer._add_object(DictionaryObject({NameObject(k): NameObject(v) for k, v in kinds.items()}))
    before = writer._add_object(stream("q\n"))
    width, side, foot = A4[0] / INCH * 72, MARGIN / INCH * 72, 28
    for number, (page, title) in enumerate(zip(writer.pages, titles, strict=True), 1):
        if number == 1:
            continue
        resources = page["/Resources"].get_object()
        fonts = resources.setdefault(NameObject("/Font"), DictionaryObject()).get_object()
        fonts[NameObject("/Foot")] = font
        safe = title.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")
        place_of_number = width - side - 4.5 * len(str(number))
        text = f"\nQ q 0.35 g BT /Foot 8 Tf {side:.1f} {foot} Td ({safe}) Tj ET "
        text += f"BT /Foot 8 Tf {place_of_number:.1f} {foot} Td ({number}) Tj ET Q\n"
        old = page.get("/Contents")
        contents = old.get_object() if old is not None else ArrayObject()
        streams = list(contents) if isinstance(contents, ArrayObject) else [page.raw_get("/Contents")]
        page[NameObject("/Contents")] = ArrayObject([before, *streams, writer._add_object(stream(text))])


def add_outline(writer: PdfWriter, book: list[Part]) -> None:
    """Parts, chapters, sections."""
    for part in book:
        root = (
            writer.add_outline_item(title=part.caption, page_number=part.chapters[0].first, is_open=True)
            if part.caption
            else None
        )
        above = root
        for chapter in part.chapters:
            parent = above if chapter.depth else root
            item = writer.add_outline_item(title=chapter.title, page_number=chapter.first, parent=parent, is_open=False)
            above = above if chapter.depth else item
            for name, heading in chapter.sections:
                number, top = chapter.places.get(name, (chapter.first, TOP))
                writer.add_outline_item(
                    title=heading, page_number=number, parent=item, fit=Fit.xyz(top=top), is_open=False
                )


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
        target.parent.mkdir(parents=True, exist_ok=True)
        place(book, 0)
        length = len(front(browser, book, title, lines).pages)
        count = place(book, length)
        opening = front(browser, book, title, lines)
    writer = PdfWriter()
    owners: list[Chapter | None] = [None] * length
    for page in opening.pages:
        writer.add_page(page)
    for chapter in chapters.values():
        assert chapter.pdf is not None
        for page in chapter.pdf.pages:
            writer.add_page(page)
        owners += [chapter] * len(chapter.pdf.pages)
    assert len(owners) == count == len(writer.pages)
    dropped = [name for sheet, own in enumerate(owners) for name in mend_links(writer, sheet, own, chapters)]
    number_sheets(writer, [own.title if own else "Contents" for own in owners])
    add_outline(writer, book)
    writer.page_mode = "/UseOutlines"
    writer.root_object[NameObject("/Lang")] = TextStringObject("en")
    writer.add_metadata({"/Title": title, "/Author": "The authors of the repository"})
    writer.compress_identical_objects(remove_duplicates=True, remove_unreferenced=True)
    part = target.with_suffix(".part")
    writer.write(part)
    part.replace(target)
    return sorted(set(dropped))


def main() -> None:
    index = HTML / "index.html"
    if not index.is_file():
        raise SystemExit(f"no built site in {HTML}: run make book")
    target = HTML / zip_site.FOLDER / zip_site.PDF
    own = (Path(__file__), Path(__file__).with_name("print_pages.py"), index)
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
