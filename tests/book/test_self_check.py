"""The self-check: questions on each part of the book, each answered with a place in a chapter of that part."""

import re

import book_paths
import yaml

ROOT = book_paths.ROOT
TEXT = (ROOT / "book/self_check.md").read_text()
PARTS = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE))
QUESTION = re.compile(r"^\*\*(\d+)\.\*\* ([^\n]+)\n\n```\{dropdown\} Answer\n(.*?)\n```$", re.DOTALL | re.MULTILINE)
PLACE = re.compile(r"\]\(\.\./notebooks/([\w/]+)\.ipynb#[\w-]+\)")


def parts_with_chapters():
    """Part of the table of contents → its chapters."""
    parts = yaml.safe_load((ROOT / "_toc.yml").read_text())["parts"]
    files = {
        p["caption"]: [c["file"] for c in p["chapters"] if c.get("file", "").startswith("notebooks/")] for p in parts
    }
    return {part: {f.removeprefix("notebooks/") for f in found} for part, found in files.items() if found}


def test_every_part_has_three_questions_or_more():
    assert list(PARTS) == list(parts_with_chapters())
    assert {
        title: len(QUESTION.findall(body)) for title, body in PARTS.items() if len(QUESTION.findall(body)) < 3
    } == {}


def test_every_question_is_numbered_and_answered_in_its_part():
    numbers = []
    for title, body in PARTS.items():
        for number, question, answer in QUESTION.findall(body):
            numbers.append(int(number))
            assert question.rstrip("*").endswith("?"), question
            places = set(PLACE.findall(answer))
            assert places, f"question {number} leads to no place in a chapter"
            assert places <= parts_with_chapters()[title], f"question {number} leads out of its part"
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) == TEXT.count("```{dropdown}")


def test_every_chapter_is_asked_about():
    asked = set(PLACE.findall(TEXT))
    assert set().union(*parts_with_chapters().values()) - asked == set()
