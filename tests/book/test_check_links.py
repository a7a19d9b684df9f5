"""Which addresses the weekly link check asks, and what it calls alive."""

import urllib.error
import urllib.request

import check_links
import pytest


def test_the_addresses_of_pages_chapters_and_bibliography_are_found(tmp_path):
    for name, text in {
        "pyproject.toml": 'Repository = "https://github.com/acme/book"',
        "book/a.md": "[x](https://example.org/a). <https://example.org/b#part>, https://github.com/acme/book/issues",
        "book/references.bib": "url = {https://example.org/c},",
        "notebooks/n.ipynb": '{"source": ["[y](https://example.org/a)\\n"]}',
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = check_links.links(tmp_path)
    assert set(found) == {"https://example.org/a", "https://example.org/b", "https://example.org/c"}
    assert found["https://example.org/a"] == ["book/a.md", "notebooks/n.ipynb"]


def test_placeholders_are_no_addresses():
    assert [target for target in check_links.links() if "…" in target] == []


@pytest.mark.parametrize(("code", "reason"), [(404, "status 404"), (403, None), (429, None), (500, "status 500")])
def test_a_robot_that_is_refused_has_found_a_page(monkeypatch, code, reason):
    def answer(request, timeout):
        raise urllib.error.HTTPError(request.full_url, code, "", {}, None)

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    monkeypatch.setattr(check_links.time, "sleep", lambda seconds: None)
    assert check_links.broken("https://example.org") == reason
