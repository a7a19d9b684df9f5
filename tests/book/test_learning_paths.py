"""Learning paths: every chapter is on one, and the sums are those of the chapters."""

import json
from pathlib import Path

import book_paths
import learning_paths
import pytest

BOOK = book_paths.notebooks()


def test_every_chapter_is_on_a_path():
    listed = {name for steps in learning_paths.PATHS.values() for name, _ in steps}
    assert listed == set(map(book_paths.chapter_name, BOOK))


def test_no_chapter_is_twice_on_a_path():
    for steps in learning_paths.PATHS.values():
        names = [name for name, _ in steps]
        assert len(names) == len(set(names))


def test_minutes_and_seconds_are_summed(monkeypatch):
    a, b = Path("notebooks/overview.ipynb"), Path("notebooks/quantization/gptq.ipynb")
    monkeypatch.setattr(
        learning_paths,
        "PATHS",
        {"One": [("overview", "first"), ("quantization/gptq", "then")]},
    )
    text = learning_paths.page({a: 10.4, b: 20.3})
    total = sum(learning_paths.minutes(book_paths.ROOT / n) for n in (a, b))
    assert f"2 chapters, {total // 60} h {total % 60} min to read, 1 min to run." in text
    assert "[GPTQ](/notebooks/quantization/gptq.ipynb) | then |" in text


@pytest.mark.parametrize("notebook", BOOK, ids=book_paths.chapter_name)
def test_the_stated_minutes_are_those_of_the_text(notebook):
    stated = learning_paths.minutes(book_paths.ROOT / notebook)
    counted = learning_paths.counted_minutes(book_paths.ROOT / notebook)
    assert 0.6 < stated / counted < 1.8, f"states {stated} minutes; its words, formulas and code take {counted:.0f}"


def test_words_formulas_and_lines_are_counted_and_exercises_are_not(tmp_path):
    cells = [
        ("markdown", "# One two\n" + "word " * 398 + "{cite:p}`not2counted`", ()),
        ("code", "x = 1\ny = 2", ()),
        ("code", "hidden = 3", ("hide-input",)),
        ("markdown", "$$a = b$$", ()),
        ("markdown", "## Exercises\n" + "word " * 999, ()),
        ("code", "solution = 4", ("solution",)),
    ]
    path = tmp_path / "n.ipynb"
    path.write_text(
        json.dumps({"cells": [{"cell_type": k, "source": s, "metadata": {"tags": t}} for k, s, t in cells]})
    )
    assert learning_paths.counted_minutes(path) == pytest.approx(2 + 0.5 + 2 * 0.05)
