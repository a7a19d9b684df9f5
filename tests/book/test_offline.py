"""The page *Take it with you* says what is there, and the zip of the site is a site."""

import re
import zipfile

import book_paths
import pytest
import zip_site

SOURCE = (book_paths.ROOT / "book" / "offline.md").read_text()
SLOTS = {name: f'<span class="offline-copy" data-file="{name}"></span>' for name in ("a.zip", "b.pdf")}
PAGE = f"<p>{SLOTS['a.zip']}</p><p>{SLOTS['b.pdf']}</p>"


def test_the_page_has_a_place_for_each_copy():
    assert set(re.findall(r'data-file="([^"]+)"', SOURCE)) == {zip_site.SITE, zip_site.NOTEBOOKS, zip_site.PDF}


def test_the_page_links_what_is_there_with_its_size():
    shown = zip_site.filled(PAGE, {"a.zip": 1_250_000})
    assert '<a href="../offline/a.zip" download>a.zip</a>, 1.2 MB' in shown
    assert shown.count("<a ") == 1
    assert zip_site.NOT_MADE in shown


def test_a_page_that_is_filled_is_filled_again():
    once = zip_site.filled(PAGE, {"a.zip": 1_000_000})
    assert zip_site.filled(once, {"a.zip": 1_000_000}) == once
    assert zip_site.filled(once, {}) == zip_site.filled(PAGE, {})


@pytest.fixture
def site(tmp_path, monkeypatch):
    (tmp_path / "book").mkdir()
    (tmp_path / "offline").mkdir()
    (tmp_path / "index.html").write_text("index")
    (tmp_path / "offline" / "b.pdf").write_bytes(bytes(2_000_000))
    names = (zip_site.SITE, zip_site.NOTEBOOKS, "b.pdf")
    slots = "".join(f'<span class="offline-copy" data-file="{name}"></span>' for name in names)
    (tmp_path / zip_site.PAGE).write_text(slots)
    executed = tmp_path.parent / "executed" / "notebooks"
    executed.mkdir(parents=True, exist_ok=True)
    (executed / "overview.ipynb").write_text("outputs")
    monkeypatch.setattr(zip_site.book_execute, "EXECUTED", executed.parent)
    return tmp_path


def test_both_zips_are_written_beside_the_site(site):
    sizes = zip_site.write(site)
    assert set(sizes) == {zip_site.SITE, zip_site.NOTEBOOKS, "b.pdf"}
    page = (site / zip_site.PAGE).read_text()
    assert page.count("<a ") == 3
    assert "b.pdf</a>, 2.0 MB" in page
    with zipfile.ZipFile(site / "offline" / zip_site.NOTEBOOKS) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {"notebooks/overview.ipynb": b"outputs"}


def test_the_zip_of_the_site_does_not_hold_the_copies_nor_link_them(site):
    zip_site.write(site)
    first = (site / "offline" / zip_site.SITE).read_bytes()
    with zipfile.ZipFile(site / "offline" / zip_site.SITE) as archive:
        assert sorted(archive.namelist()) == ["model-compression/book/offline.html", "model-compression/index.html"]
        page = archive.read("model-compression/book/offline.html").decode()
    assert "<a " not in page
    assert page.count(zip_site.NOT_INSIDE) == 3
    zip_site.write(site)
    assert (site / "offline" / zip_site.SITE).read_bytes() == first, "the same files give the same bytes"
