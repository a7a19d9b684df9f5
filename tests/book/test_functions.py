"""Each public function names its chapters, each chapter lists its functions."""

import api_pages
import book_paths
import chapter_links
import function_links
import yaml
from book_fixtures import good
from sphinx.application import Sphinx

DOUBLE = {"reference.part.double": "Twice.\n\nChapter: part/good"}
LISTS = {"part/good": {"reference.part.double"}}


def test_functions_and_chapters_agree():
    lists = function_links.chapter_lists(book_paths.notebooks())
    assert function_links.breaches(dict(function_links.public()), lists) == []


def test_the_package_is_read():
    names = dict(function_links.public())
    assert "reference.quantization.grid.QuantizationSpec" in names
    assert any(name.startswith("reference.kernels.") for name in names)
    assert not any(name.startswith(("reference.cli", "reference.figures")) for name in names)


def test_agreement_is_accepted():
    assert function_links.breaches(DOUBLE, LISTS) == []
    assert function_links.breaches({"reference.x": "Chapter: none (plumbing)"}, {}) == []
    two = {"reference.x": "Chapter: a, b"}
    assert function_links.breaches(two, {"a": {"reference.x"}, "b": {"reference.x"}}) == []


def test_each_disagreement_is_found():
    assert "no line" in function_links.breaches({"reference.x": "Twice."}, {})[0]
    assert "no line" not in function_links.breaches(DOUBLE, {})[0]
    assert "not in _toc.yml" in function_links.breaches(DOUBLE, {})[0]
    assert "does not list it" in function_links.breaches(DOUBLE, {"part/good": set()})[0]
    assert "does not name this chapter" in function_links.breaches({}, LISTS)[0]
    assert (
        "does not name this chapter"
        in function_links.breaches({"reference.part.double": "Chapter: none (x)"}, LISTS)[0]
    )
    assert function_links.breaches({"reference.x": "Chapter: none"}, {}), "a reason is needed"


def test_a_chapters_list_is_read():
    assert function_links.listed_functions(good()) == {"reference.part.double"}


def test_every_module_is_on_one_api_page():
    pages = [module for modules in api_pages.rooms().values() for module in modules]
    wanted = set(function_links.modules()) - {"reference", *api_pages.SKIPPED}
    assert sorted(pages) == sorted(m for m in wanted if not any(part.startswith("_") for part in m.split(".")))


def test_api_pages_link_to_chapters():
    assert chapter_links.linked("Chapter: part/good") == "Chapter: :doc:`/notebooks/part/good`"
    assert chapter_links.linked("Chapter: a, b/c") == "Chapter: :doc:`/notebooks/a`, :doc:`/notebooks/b/c`"
    for line in ("Chapter: none (plumbing)", "A chapter: of words", ""):
        assert chapter_links.linked(line) == line


def test_api_pages_tell_only_what_a_class_says_itself(tmp_path):
    """Without the setting autodoc lists an undocumented ``forward`` with torch's own words, of hooks and recipes."""
    settings = yaml.safe_load((book_paths.ROOT / "_config.yml").read_text())["sphinx"]["config"]
    autodoc = {name: value for name, value in settings.items() if name.startswith("autodoc_")}
    api_pages.write(tmp_path / "api")
    page = (tmp_path / "api" / "layers.md").read_text()
    directive = page.split("```{eval-rst}")[1].split("```")[0]
    (tmp_path / "index.rst").write_text(f"Layers\n======\n{directive}")
    (tmp_path / "conf.py").write_text("")
    settings = {"extensions": ["sphinx.ext.autodoc", "sphinx.ext.napoleon"], **autodoc}
    app = Sphinx(tmp_path, tmp_path, tmp_path / "out", tmp_path / "trees", "text", settings, status=None, warning=None)
    app.build()
    made = (tmp_path / "out" / "index.txt").read_text()
    assert "QuantizedLinear" in made
    assert "from_linear" in made
    assert "forward(" not in made
    assert "hooks" not in made
