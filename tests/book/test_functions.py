"""Each public function names its chapters, each chapter lists its functions."""

import api_pages
import book_paths
import chapter_links
import function_links
from book_fixtures import good

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
