"""Numbers in prose are glued, cited, or named in the allow-list."""

import book_paths
import prose_numbers
import pytest

ALLOWED = prose_numbers.allowed_patterns()


def found(text):
    return [number for _, number in prose_numbers.bare_numbers(text, ALLOWED)]


def test_the_book_has_no_bare_numbers():
    assert prose_numbers.breaches() == []


def test_pages_and_chapters_are_read():
    places = [place for place, _ in prose_numbers.texts()]
    assert "book/index.md" in places
    assert all(any(place.startswith(str(path)) for place in places) for path in book_paths.notebooks())


@pytest.mark.parametrize(
    "text",
    [
        "The loss rises by 0.03.",
        "It is 4× smaller.",
        "It is × 4.",
        "It saves 40 % of the bytes.",
        "It saves 40% of the bytes.",
        "The file has 12 MB.",
        "4.25 bits per weight",
        "1.5–2× faster",
        "10,000 tokens",
        "It takes 30 s.",
        ":::{note} 3 MB\n:name: x\ntext\n:::",
        ":::{note}\nsaves 5 %\n:::",
        "| a | 3.5 |",
        "cited on the line above {cite:p}`key`\nbut 40 % here",
        "in code `4.5`, but 4.5 outside",
    ],
)
def test_a_bare_number_is_found(text):
    assert found(text)


@pytest.mark.parametrize(
    "text",
    [
        "It is {glue:text}`ratio:.1f`× smaller.",
        "It is {glue:text}`../notebooks/overview.ipynb::ratio:.1f`× smaller.",
        "The paper has 3.24× {cite:p}`frantar2023gptq`.",
        "`x = 4.5` and ``12 MB``",
        "$x = 4.5$ and\n\n$$\n12.5 \\%\n$$",
        "```python\nx = 4.5\n```",
        "```{code-block} bash\npip install x==4.5\n```",
        "[paper](https://example.org/2210.17323)",
        "<img width='4.5'>",
        ":::{figure} x\n:scale: 50 %\n:::",
        "4-bit weights, 8, 4 or 3 bits, W4A16, INT8, FP16",
        "section 2.1, § 3.2, Python 3.10 to 3.13, CC BY 4.0, arXiv:2210.17323",
        "In 2016 there were 128 groups in 6 layers.",
        "25 minutes to read",
    ],
)
def test_what_may_stand(text):
    assert found(text) == []


def test_the_line_is_named():
    assert list(prose_numbers.bare_numbers("a\n```\n1.5\n```\n2.5", [])) == [(5, "2.5")]
