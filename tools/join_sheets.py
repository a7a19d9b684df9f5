"""Join printed chapters into one PDF: the sheets' numbers, the outline, and links that jump inside the file."""

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

from print_pages import A4, INCH, MARGIN, SCALE
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

TOP, POINTS_OF_MARGIN = (length / INCH * 72 for length in (A4[1], MARGIN))  # points


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


def join(opening: PdfReader, book: list[Part], target: Path, title: str) -> list[str]:
    """Write one PDF of the opening sheets and every chapter's, which `place` has placed behind them.

    Args:
        opening: title page and contents.
        book: printed chapters.
        target: the file to write.
        title: of the document, as a reader's window shows it.

    Returns:
        Names of files that links named and the PDF does not hold; their links are plain text.
    """
    writer = PdfWriter()
    owners: list[Chapter | None] = [None] * len(opening.pages)
    for page in opening.pages:
        writer.add_page(page)
    chapters = {chapter.path: chapter for part in book for chapter in part.chapters}
    for chapter in chapters.values():
        assert chapter.pdf is not None
        assert chapter.first == len(owners), "the chapters were placed for another opening"
        for page in chapter.pdf.pages:
            writer.add_page(page)
        owners += [chapter] * len(chapter.pdf.pages)
    dropped = {name for sheet, own in enumerate(owners) for name in mend_links(writer, sheet, own, chapters)}
    number_sheets(writer, [own.title if own else "Contents" for own in owners])
    add_outline(writer, book)
    writer.page_mode = "/UseOutlines"
    writer.root_object[NameObject("/Lang")] = TextStringObject("en")
    writer.add_metadata({"/Title": title, "/Author": "The authors of the repository"})
    writer.compress_identical_objects(remove_duplicates=True, remove_unreferenced=True)
    writer.write(target)
    return sorted(dropped)
