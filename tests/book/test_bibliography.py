"""The bibliography: each entry can be found by its reader and is cited; each citation has an entry."""

import re

import book_paths
import pytest
import yaml
from pybtex.database import parse_file

ROOT = book_paths.ROOT
ENTRIES = parse_file(str(ROOT / "book/references.bib")).entries
ROLE = re.compile(r"(?:\{cite(?::\w+)?\}|:cite(?::\w+)?:)`([^`]+)`")
#: Kinds of source that have no number of their own, only an address.
PAGES = {"misc"}
#: Papers from before DOIs whose publisher gives none; their proceedings' address is in their entry.
NO_NUMBER = {"lecun1990obd", "hassibi1993obs"}


def cited() -> dict[str, str]:
    """Key → a file that cites it."""
    files = [*(ROOT / "notebooks").rglob("*.ipynb"), *(ROOT / "book").glob("*.md")]
    files += [path for room in ("reference", "kernels") for path in (ROOT / room).rglob("*.py")]
    found = {}
    for path in files:
        for keys in ROLE.findall(path.read_text()):
            found |= {key.strip(): path.name for key in keys.split(",")}
    for row in yaml.safe_load((ROOT / "book/claims.yml").read_text()):
        found |= dict.fromkeys(row.get("cite") or [], "claims.yml")
    return found


@pytest.mark.parametrize("key", sorted(ENTRIES))
def test_an_entry_can_be_found(key):
    entry = ENTRIES[key]
    fields = {name.lower(): value for name, value in entry.fields.items()}
    assert fields.get("title"), "what it is"
    assert fields.get("year"), "when it was"
    assert entry.persons, "whose it is"
    if entry.type not in PAGES and key not in NO_NUMBER:
        assert "doi" in fields or "eprint" in fields, "a paper has a DOI or an arXiv number"
    assert fields.keys() & {"doi", "eprint", "url"}, "a DOI, an arXiv number or an address"
    assert "arxiv.org" not in fields.get("url", ""), "an arXiv number stands in eprint"
    if "eprint" in fields:
        assert re.fullmatch(r"\d{4}\.\d{4,5}(v\d+)?", fields["eprint"])
        assert fields["archiveprefix"] == "arXiv"
    assert re.fullmatch(r"10\.\d{4,}/\S+", fields.get("doi", "10.1000/1"))
    assert fields.get("url", "https://").startswith("https://")


def test_no_source_is_there_twice():
    for field in ("doi", "eprint", "url"):
        numbers = [entry.fields[field].lower() for entry in ENTRIES.values() if field in entry.fields]
        assert sorted(numbers) == sorted(set(numbers))


def test_every_entry_is_cited():
    assert sorted(ENTRIES.keys() - cited().keys()) == []


def test_every_citation_has_an_entry():
    assert {key: place for key, place in cited().items() if key not in ENTRIES} == {}
