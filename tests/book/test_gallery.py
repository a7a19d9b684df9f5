"""The gallery shows every figure of an executed notebook; the zips hold what was built."""

import base64
import copy
import json
import zipfile
from pathlib import Path

import gallery
import zip_site
from book_fixtures import PATH, good

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def executed():
    """The good chapter, its figure drawn."""
    notebook = copy.deepcopy(good())
    for cell in notebook["cells"]:
        if "figure" in cell["metadata"].get("tags", []):
            cell["outputs"] = [
                {"output_type": "display_data", "data": {"image/png": base64.b64encode(PNG).decode()}, "metadata": {}}
            ]
            cell["metadata"]["mystnb"]["figure"]["caption"] = "It falls to {glue:text}`least:.2f`."
    return notebook


def test_a_figure_is_shown_with_its_claim_and_leads_to_its_cell(tmp_path):
    source = tmp_path / "run.ipynb"
    source.write_text(json.dumps(executed()))
    assert gallery.write({PATH: source}, tmp_path / "generated") == 1
    page = (tmp_path / "generated" / "gallery.md").read_text()
    assert "(_generated/gallery/fig-error.png)](#fig-error)" in page
    assert "{numref}`fig-error`: It falls to {glue:text}`../notebooks/part/good.ipynb::least:.2f`." in page
    assert (tmp_path / "generated" / "gallery" / "fig-error.png").read_bytes() == PNG


def test_figures_can_be_chosen_by_part(tmp_path):
    source = tmp_path / "run.ipynb"
    source.write_text(json.dumps(executed()))
    gallery.write({PATH: source}, tmp_path / "generated")
    page = (tmp_path / "generated" / "gallery.md").read_text()
    assert '<button type="button" data-part="part" aria-pressed="false">part</button>' in page
    assert ":class-container: part-part" in page
    assert gallery.part_of(Path("notebooks/overview.ipynb")) == "overview"


def test_a_notebook_that_was_not_run_shows_none(tmp_path):
    source = tmp_path / "run.ipynb"
    source.write_text(json.dumps(good()))
    assert gallery.write({PATH: source}, tmp_path / "generated") == 0


def test_a_zip_repeats_and_holds_its_files(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    files = [(tmp_path / "a.txt", "folder/a.txt")]
    zip_site.pack(tmp_path / "one.zip", files)
    (tmp_path / "a.txt").touch()
    zip_site.pack(tmp_path / "two.zip", files)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        assert archive.namelist() == ["folder/a.txt"]
        assert archive.read("folder/a.txt") == b"a"
    assert not list(Path(tmp_path).glob("*.part"))
