"""The copies that a reader takes along: the zip of the site opens from a folder, and downloads hold the outputs."""

import json
import re
import zipfile
from urllib.parse import unquote

import book_paths
import pytest
import zip_site


@pytest.fixture(scope="module")
def unpacked(site, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(site / zip_site.FOLDER / zip_site.SITE) as archive:
        archive.extractall(folder)
    return folder / "model-compression"


@pytest.mark.parametrize("page", ["book/offline.html", "notebooks/quantization/gptq.html"])
def test_the_unpacked_site_needs_no_network(chromium, unpacked, page):
    seen = chromium.open(unpacked / page)
    assert (seen.errors, seen.failed, seen.external) == ([], [], [])
    assert chromium.evaluate("document.querySelectorAll('article h1').length") == 1


def test_the_unpacked_sites_front_door(chromium, unpacked):
    """`index.html` leads on at once; opened itself, it would be gone while it is looked at."""
    leads_to = re.search(r'content="0; url=([^"]+)"', (unpacked / "index.html").read_text())[1]
    assert chromium.open(unpacked / leads_to).failed == []
    assert chromium.evaluate("document.querySelectorAll('article h1').length") == 1


def test_the_page_links_copies_that_are_there(site):
    page = site / zip_site.PAGE
    links = re.findall(r'href="(\.\./offline/[^"]+)"', page.read_text())
    assert {zip_site.SITE, zip_site.NOTEBOOKS} <= {link.rpartition("/")[2] for link in links}
    assert [link for link in links if not (page.parent / link).is_file()] == []


def has_outputs(text):
    return any(cell.get("outputs") for cell in json.loads(text)["cells"])


def test_every_download_of_a_chapter_is_the_executed_one(site):
    with zipfile.ZipFile(site / zip_site.FOLDER / zip_site.NOTEBOOKS) as archive:
        zipped = {name: archive.read(name) for name in archive.namelist()}
    assert set(zipped) == {path.as_posix() for path in book_paths.notebooks()}
    assert [name for name, text in zipped.items() if not has_outputs(text)] == []
    for path in book_paths.notebooks():
        page = (site / path).with_suffix(".html")
        found = re.findall(r'href="([^"]*(?:_downloads|_sources)/[^"]+\.ipynb)"', page.read_text())
        assert len(found) >= 2, f"{path} has the badge line's download and the button's"
        for link in found:
            assert has_outputs((page.parent / unquote(link)).read_text()), link
