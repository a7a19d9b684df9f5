"""The table of qualities names checks that exist."""

import re

import book_paths

ROOT = book_paths.ROOT
ROWS = re.findall(r"^\| (\d+) \|([^|]+)\|([^|]+)\|", (ROOT / "book" / "status.md").read_text(), re.MULTILINE)


def test_there_are_twenty_five():
    assert [int(number) for number, *_ in ROWS] == list(range(1, 26))


def test_what_holds_a_quality_exists():
    for _, quality, held in ROWS:
        places = re.findall(r"`([^`]+)`", held)
        assert places or "none" in held or "notebooks" in held, quality
        assert [place for place in places if "/" in place and not (ROOT / place).exists()] == [], quality
