"""The book as one PDF: a small invented site in every detail, and the whole book where `make pdf` has made it."""

import io
import os
import re
import unicodedata
from collections import defaultdict
from pathlib import Path

import book_paths
import book_pdf
import browser
import print_pages
import pypdf
import pytest
import yaml
import zip_site
from bs4 import BeautifulSoup
from PIL import Image

TOC = {
    "root": "start",
    "parts": [
        {"caption": "First part", "chapters": [{"file": "one/long"}]},
        {"caption": "Second (part)", "chapters": [{"file": "two/list", "sections": [{"glob": "two/*"}]}]},
    ],
}
HEAD = '<!doctype html><meta charset="utf-8"><title>x</title><nav>SIDEBAR</nav><article class="bd-article">'
LINE = "wide_line = " + " + ".join(f"argument_{i}" for i in range(40))


def plain(text: str) -> str:
    """Letters and digits only: how lines break, and which spaces a PDF stores, does not matter."""
    return re.sub(r"[\W_]", "", unicodedata.normalize("NFKC", text)).lower()


def leaves(outline, depth=0):
    """(depth, title, destination) of every item of an outline."""
    for item in outline:
        if isinstance(item, list):
            yield from leaves(item, depth + 1)
        else:
            yield depth, item.title, item


def links(pdf):
    """(sheet, what it leads to): another sheet's number and a height, or an address."""
    number = {page.indirect_reference.idnum: i for i, page in enumerate(pdf.pages)}
    for sheet, page in enumerate(pdf.pages):
        for reference in page.get("/Annots", []):
            link = reference.get_object()
            if "/Dest" in link:
                target = link["/Dest"]
                yield (
                    sheet,
                    (number[target[0].idnum if hasattr(target[0], "idnum") else target.raw_get(0).idnum], target[3]),
                )
            else:
                yield sheet, link["/A"].get_object()["/URI"]


def height_of(page, words):
    """Points from the foot of the sheet to the line that has the words."""
    found = []

    def look(text, matrix, text_matrix, font, size):
        if words in text:
            found.append(text_matrix[4] * matrix[1] + text_matrix[5] * matrix[3] + matrix[5])

    page.extract_text(visitor_text=look)
    return found[0]


@pytest.fixture(scope="module")
def invented(tmp_path_factory):
    if browser.find() is None:
        reason = f"no Chromium here ({', '.join(browser.NAMES)}, or $CHROMIUM)"
        (pytest.fail if os.environ.get("BROWSER") == "required" else pytest.skip)(reason)
    site = tmp_path_factory.mktemp("site")
    for folder in ("one", "two"):
        (site / folder).mkdir()
    Image.new("RGB", (40, 30), "red").save(site / "red.png")
    filler = "<p>Some text that fills the sheet.</p>" * 60
    cells = "".join(f"<td>column_{i}_of_a_wide_table</td>" for i in range(14))
    (site / "start.html").write_text(
        f'{HEAD}<h1>The start</h1><p><a href="one/long.html#far-away">Far</a> <a href="two/b.html">Near</a> '
        '<a href="https://example.org/outside">Outside</a> <a href="offline/copy.zip">Copy</a></p>'
        '<img src="red.png" alt="red"></article>'
    )
    (site / "one" / "long.html").write_text(
        f'{HEAD}<h1>A long page<a class="headerlink">LINKMARK</a></h1>{filler}'
        f'<section id="far-away"><h2>Far away</h2><p><a href="#end.of-it">Down</a></p></section>'
        "<details><summary>Answer</summary><p>Forty-two unfolded.</p></details>"
        '<details class="hide"><summary>Show code cell source</summary><pre>folded = 1</pre></details>'
        f"<pre>{LINE}</pre><table><tr>{cells}</tr></table>{filler}"
        '<section id="end.of-it"><h2>The end</h2></section></article>'
    )
    for name, links_to in (("list", "a.html"), ("a", "../start.html"), ("b", "list.html")):
        (site / "two" / f"{name}.html").write_text(f'{HEAD}<h1>Page {name}</h1><a href="{links_to}">Link</a></article>')
    target = site / "offline" / "book.pdf"
    dropped = book_pdf.make(site, TOC, target, "A title & more", "Version 7")
    return pypdf.PdfReader(target), dropped


def test_outline_and_order(invented):
    pdf, _ = invented
    rows = [(depth, title, pdf.get_destination_page_number(item)) for depth, title, item in leaves(pdf.outline)]
    assert [row[:2] for row in rows] == [
        (0, "The start"), (0, "First part"), (1, "A long page"), (2, "Far away"), (2, "The end"),
        (0, "Second (part)"), (1, "Page list"), (2, "Page a"), (2, "Page b"),
    ]  # fmt: skip
    for _, title, sheet in rows:
        if "part" not in title:
            assert plain(title) in plain(pdf.pages[sheet].extract_text())


def test_front_page_and_contents(invented):
    pdf, _ = invented
    assert "A title & more" in pdf.pages[0].extract_text()
    assert "Version 7" in pdf.pages[0].extract_text()
    contents = pdf.pages[1].extract_text()
    starts = {title: pdf.get_destination_page_number(item) for _, title, item in leaves(pdf.outline)}
    for title in ("The start", "A long page", "Page b"):
        assert re.search(rf"{title}\s*{starts[title] + 1}\b", contents), title


def test_every_sheet_but_the_first_is_numbered(invented):
    pdf, _ = invented
    assert pdf.pages[0].extract_text().split()[-1] != "1"
    assert [page.extract_text().split()[-1] for page in pdf.pages[1:]] == [str(n) for n in range(2, len(pdf.pages) + 1)]


def test_links_lead_to_the_place(invented):
    pdf, _ = invented
    starts = {title: pdf.get_destination_page_number(item) for _, title, item in leaves(pdf.outline)}
    found = defaultdict(list)
    for sheet, target in links(pdf):
        found[sheet].append(target)
    far, near, outside = found[starts["The start"]]
    assert (far[0], near[0], outside) == (starts["Far away"], starts["Page b"], "https://example.org/outside")
    assert starts["Far away"] > starts["A long page"], "the filler is long enough to be a test"
    page = pdf.pages[far[0]]
    assert 0 <= far[1] - height_of(page, "Far away") < 60, "the heading stands just below the top of the view"
    (down,) = found[starts["Far away"]]
    assert down[0] == starts["The end"] > starts["Far away"]
    assert found[starts["Page a"]][0][0] == starts["The start"]


def test_what_the_pdf_does_not_hold_is_no_link(invented):
    pdf, dropped = invented
    assert dropped == ["file:copy.zip"]
    assert [target for _, target in links(pdf) if "file:" in str(target)] == []


def test_paper_has_no_folds_and_nothing_is_cut(invented):
    pdf, _ = invented
    text = "".join(page.extract_text() for page in pdf.pages)
    assert "Forty-two unfolded." in text
    assert "folded = 1" in text
    assert plain(LINE) in plain(text)
    assert plain("column_13_of_a_wide_table") in plain(text)
    for furniture in ("SIDEBAR", "LINKMARK", "Show code cell source"):
        assert furniture not in text


def test_nothing_lies_beyond_the_edge(invented):
    pdf, _ = invented
    width = float(pdf.pages[0].mediabox.width)
    for page in pdf.pages:
        right = []
        page.extract_text(
            visitor_text=lambda t, m, tm, f, s, r=right: r.append((tm[4] * m[0] + m[4], t)) if t.strip() else None
        )
        assert [(x, t) for x, t in right if not 0 <= x < width] == []


def test_pictures_are_on_paper(invented):
    pdf, _ = invented
    (start,) = [pdf.get_destination_page_number(item) for _, title, item in leaves(pdf.outline) if title == "The start"]
    assert len(pdf.pages[start].images) == 1


def test_what_is_missing_is_named(invented, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"start\.html: run make book"):
        book_pdf.parts(TOC, tmp_path)
    (tmp_path / "start.html").write_text(f'{HEAD}<h1>x</h1><img src="none.png" alt="none"></article>')
    with browser.Browser() as running, pytest.raises(ValueError, match=r"none\.png"):
        print_pages.print_page(running, tmp_path / "start.html")


def test_without_a_browser_it_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "index.html").touch()
    monkeypatch.setattr(book_pdf, "HTML", tmp_path)
    monkeypatch.setattr(book_pdf, "find", lambda: None)
    with pytest.raises(SystemExit, match="apt-get install chromium"):
        book_pdf.main()


def test_without_a_site_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(book_pdf, "HTML", tmp_path)
    with pytest.raises(SystemExit, match="run make book"):
        book_pdf.main()


# The whole book: `make browser` makes it first.


@pytest.fixture(scope="module")
def whole(site):
    target = site / zip_site.FOLDER / zip_site.PDF
    if not target.is_file():
        reason = f"no {target}: run make pdf"
        (pytest.fail if os.environ.get("BROWSER") == "required" else pytest.skip)(reason)
    return pypdf.PdfReader(io.BytesIO(target.read_bytes()))


def words_of(heading):
    """A heading's words up to its first formula, which MathJax sets in a way of its own."""
    found = []
    for text in heading.strings:
        if text.find_parent(class_="math"):
            break
        if text.parent.get("class") != ["headerlink"]:
            found.append(text)
    return plain("".join(found))


def expected(site):
    """The outline that _toc.yml asks for: parts, chapters, pages below a chapter."""
    toc = yaml.safe_load((book_paths.ROOT / "_toc.yml").read_text())
    for part in book_pdf.parts(toc, site):
        if part.caption:
            yield 0, plain(part.caption), None
        for chapter in part.chapters:
            page = BeautifulSoup(chapter.path.read_text(), "lxml").find("article")
            depth = (1 if part.caption else 0) + chapter.depth
            yield depth, words_of(page.find("h1")), chapter.path
            for heading in page.select("section[id] > h2"):
                yield depth + 1, words_of(heading), None


@pytest.fixture(scope="module")
def book(whole, site):
    """(path, first sheet, sheet after its last) of every page of the site that is in the book."""
    wanted = list(expected(site))
    rows = [item for _, _, item in leaves(whole.outline)]
    assert len(rows) == len(wanted)
    starts = [
        (path, whole.get_destination_page_number(row)) for (_, _, path), row in zip(wanted, rows, strict=True) if path
    ]
    return [(p, a, b) for (p, a), b in zip(starts, [*[s for _, s in starts[1:]], len(whole.pages)], strict=True)]


def test_the_books_outline_is_its_table_of_contents(whole, site):
    found = [(depth, plain(title)) for depth, title, _ in leaves(whole.outline)]
    wanted = [(depth, words) for depth, words, _ in expected(site)]
    assert [depth for depth, _ in found] == [depth for depth, _ in wanted]
    assert [pair for pair in zip(found, wanted, strict=True) if not pair[0][1].startswith(pair[1][1])] == []


def test_the_books_links_lead_where_the_sites_do(whole, book, site):
    """Per page: the set of pages that it leads to is the same on paper; no link leads to a file."""
    owner = [
        next(p for p, first, last in book if first <= sheet < last) if sheet >= book[0][1] else None
        for sheet in range(len(whole.pages))
    ]
    paper = defaultdict(set)
    for sheet, target in links(whole):
        if isinstance(target, tuple):
            paper[owner[sheet]].add(owner[target[0]])
        else:
            assert not target.startswith("file"), target
    held = {path for path, *_ in book}
    assert paper[None] == held, "the contents page leads to every page"
    for path in held:
        article = BeautifulSoup(path.read_text(), "lxml").find("article")
        targets = [
            a["href"]
            for a in article.select("a[href]:not(.headerlink, .download, .copybtn)")
            if a.get_text(strip=True) or a.find("img")
        ]
        inside = {
            (path.parent / t.partition("#")[0]).resolve() if t[0] != "#" else path for t in targets if "://" not in t
        }
        assert paper[path] == inside & held, path


def test_the_books_text_is_all_there(whole, book):
    """Every heading, and every paragraph without formulas, of every page, on its own sheets."""
    missing = []
    for path, first, last in book:
        text = plain("".join(whole.pages[sheet].extract_text().rpartition("\n")[0] for sheet in range(first, last)))
        article = BeautifulSoup(path.read_text(), "lxml").find("article")
        # Sizes of the copies are filled in once the PDF is there.
        for part in article.select(".headerlink, script, style, .download, .offline-copy, details.hide > summary"):
            part.decompose()
        for part in article.select("h1, h2, h3, p, summary > .sd-summary-text"):
            if part.find(class_="math") or part.find("a", class_="external") or part.find_parent(class_="book-widget"):
                continue
            words = plain(part.get_text())[:40]
            if words not in text:
                missing.append((path.name, part.get_text()[:80]))
    assert missing == [], f"{len(missing)} passages: {missing[:20]}"


def test_the_books_figures_are_on_paper(whole, book):
    for path, first, last in book:
        wanted = len(BeautifulSoup(path.read_text(), "lxml").select("article figure img[src$='.png']"))
        pictures = sum(len(whole.pages[sheet].images) for sheet in range(first, last)) if wanted else 0
        assert pictures >= wanted, path


def test_the_book_is_of_a_sensible_size(whole, site):
    assert (site / zip_site.FOLDER / zip_site.PDF).stat().st_size < 40e6
    assert Path(site / "book" / "offline.html").read_text().count(f'href="../offline/{zip_site.PDF}"') == 1
