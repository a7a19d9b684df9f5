"""The page: whole in itself, escaped, readable in the dark, with every decision."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from reference.practice import report

ROW = {
    "candidate": "W4A16 gptq",
    "bytes": 4_500_000,
    "times smaller": 2.5,
    "rise": 0.0165,
    "error": 0.003,
    "seconds": 4.0,
}
TITLES = ("Baseline measurement", "Post-training sweep", "Calibration check", "Quantization-aware training",
          "Hardware validation")  # fmt: skip
FOUND = {
    "workflow": "quantize", "model": "<script>alert(1)</script>", "output": "out", "met": True, "answer": "W4A16 gptq",
    "target": {"max_loss": 0.02, "max_bytes": 5_000_000},
    "found": {"rise": 0.0165, "error": 0.003, "bytes": 4_500_000, "ratio": 2.5},
    "steps": [{"title": t, "decision": f"{t}: a & b < c", "rows": [ROW | {"verdict": "\"x\" <y>"}] if i == 1 else []}
              for i, t in enumerate(TITLES)],
    "machine": {"processor": "a <b>", "threads": 1},
}  # fmt: skip


class Page(HTMLParser):
    VOID = ("meta", "br", "link", "img", "hr", "path", "use", "rect")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "link", "img", "hr"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def page() -> str:
    return report.page(FOUND)


def test_it_asks_for_nothing_and_runs_nothing(page: str) -> None:
    found = Page(page)
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in found.tags}
    assert not re.search(r"url\(\s*['\"]?(?!#)|@import|\son\w+=", page)
    for tag, attributes in found.tags:
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith("#"), (tag, attributes)


def test_text_is_escaped(page: str) -> None:
    words = "".join(Page(page).words)
    for text in ("<script>alert(1)</script>", "a & b < c", '"x" <y>', "a <b>"):
        assert text in words


def test_each_decision_stands_with_its_numbers(page: str) -> None:
    words = "\n".join(Page(page).words)
    for number, title in enumerate(TITLES, start=1):
        assert f"{number}. {title}" in words
        assert f"{title}: a & b < c" in words
    for cell in ("W4A16 gptq", "4,500,000", "1.65%", "2.5"):
        assert cell in words
    assert "Target met (at most 2.00% of perplexity lost in at most 5,000,000 bytes) by W4A16 gptq" in words


def test_it_has_a_dark_side_and_a_figure_with_words(page: str) -> None:
    assert "prefers-color-scheme: dark" in page
    assert '<meta name="viewport"' in page
    svg = next(attributes for tag, attributes in Page(page).tags if tag == "svg")
    assert (svg["role"], svg["aria-label"][:22]) == ("img", "Rise of the perplexity")


def test_the_same_report_gives_the_same_page(page: str) -> None:
    assert report.page(FOUND) == page


def test_a_miss_names_the_best() -> None:
    missed = FOUND | {"met": False, "target": {"max_loss": 0.01, "max_bytes": None}}
    assert report.outcome(missed) == (
        "Target missed (at most 1.00% of perplexity lost). The best found is W4A16 gptq: 1.65% lost, 4,500,000 bytes, "
        "2.50 times smaller."
    )
    assert 'class="missed"' in report.page(missed)


@pytest.mark.parametrize(
    ("column", "cell", "shown"),
    [("rise", 0.0165, "1.65%"), ("bytes", 4_500_000, "4,500,000"), ("seconds", float("nan"), "–"),
     ("rise", float("inf"), "∞"), ("tokens a second", 12345.6, "12,346"), ("taken", "yes", "yes")],
)  # fmt: skip
def test_cells_are_shown_as_people_write_them(column: str, cell: object, shown: str) -> None:
    assert report.value(column, cell) == shown


def test_a_notebook_still_shows_its_figures_after_a_report() -> None:
    """The notebook's backend loads with the first figure, and what it sets must outlive the report's style."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from IPython.core.interactiveshell import InteractiveShell\n"
        "InteractiveShell.instance(); import matplotlib, test_report; from reference.practice import report\n"
        "report.page(test_report.FOUND); print(matplotlib.get_backend(), matplotlib.is_interactive())"
    )
    environment = os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split()[-2:] == ["module://matplotlib_inline.backend_inline", "True"], done.stderr[-2000:]
