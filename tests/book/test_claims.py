"""The claims ledger is whole: every section of the outline, known verdicts, evidence, sources that exist."""

import book_paths
import claims_page
import pytest

# Outline section → how many factual claims it makes at least, counted by reading it.
LEAST = {
    "0": 1,
    "1": 5,
    "2": 1,
    "2.1": 6,
    "2.2": 30,
    "2.3": 10,
    "2.4": 12,
    "3": 1,
    "3.1": 16,
    "3.2": 10,
    "3.3": 10,
    "4.1": 4,
    "4.2": 3,
    "4.3": 3,
    "5.1": 6,
    "5.2": 6,
    "6.1": 5,
    "6.2": 4,
    "7": 6,
}
GOOD = {
    "id": "1-a",
    "section": "1",
    "claim": "A claim.",
    "verdict": "holds",
    "evidence": "Table 1.",
    "cite": ["frantar2023gptq"],
    "checked": "text",
    "chapter": "overview",
    "ours": "holds",
    "shown_by": "overview",
}


def breaches(*claims, least=None):
    return claims_page.breaches(list(claims), {"overview"}, {"frantar2023gptq"}, least or {})


def test_the_ledger_is_whole():
    chapters = {book_paths.chapter_name(path) for path in book_paths.notebooks()}
    assert claims_page.breaches(claims_page.read(), chapters, claims_page.bibliography_keys(), LEAST) == []


def test_no_claim_is_left_open():
    """Every section has its chapter, so every claim has a verdict and what our runs say."""
    assert [c["id"] for c in claims_page.read() if "open" in (c["verdict"], c["ours"])] == []


def test_a_good_row_is_accepted():
    assert breaches(GOOD, least={"1": 1}) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"verdict": "true"}, "unknown verdict"),
        ({"ours": "perhaps"}, "unknown ours"),
        ({"evidence": " "}, "no evidence"),
        ({"cite": ["nobody2020"]}, "not in references.bib"),
        ({"cite": []}, "cites none"),
        ({"shown_by": "pruning/none"}, "no existing chapter"),
        ({"shown_by": None}, "no existing chapter"),
    ],
)
def test_a_bad_row_is_found(change, words):
    assert words in breaches(GOOD | change)[0]


@pytest.mark.parametrize("field", claims_page.FIELDS)
def test_a_missing_field_is_found(field):
    assert breaches({k: v for k, v in GOOD.items() if k != field})


def test_a_missing_row_and_a_double_one_are_found():
    assert "makes 2 claims" in breaches(GOOD, least={"1": 2})[0]
    assert "2 rows with this id" in breaches(GOOD, GOOD)[0]


def test_the_page_shows_every_claim():
    claims = claims_page.read()
    page = claims_page.table(claims, {"overview"})
    assert page.count("* - ") == len(claims) + len({claim["section"] for claim in claims})
    assert "(/notebooks/overview.ipynb)" in page
