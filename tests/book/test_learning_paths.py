"""Learning paths: every chapter is on one, and the sums are those of the chapters."""

from pathlib import Path

import book_paths
import learning_paths

BOOK = book_paths.notebooks()


def test_every_chapter_is_on_a_path():
    listed = {name for steps in learning_paths.PATHS.values() for name, _ in steps}
    assert [n for n in map(book_paths.chapter_name, BOOK) if n not in listed] == []


def test_no_chapter_is_twice_on_a_path():
    for steps in learning_paths.PATHS.values():
        names = [name for name, _ in steps]
        assert len(names) == len(set(names))


def test_minutes_and_seconds_are_summed(monkeypatch):
    a, b = Path("notebooks/overview.ipynb"), Path("notebooks/quantization/gptq.ipynb")
    monkeypatch.setattr(
        learning_paths,
        "PATHS",
        {"One": [("overview", "first"), ("not/there", "left out"), ("quantization/gptq", "then")]},
    )
    text = learning_paths.page({a: 10.4, b: 20.3})
    total = sum(learning_paths.minutes(book_paths.ROOT / n) for n in (a, b))
    assert f"2 chapters, {total} minutes to read, 31 seconds to run." in text
    assert "[GPTQ](/notebooks/quantization/gptq.ipynb) | then |" in text
    assert "not/there" not in text
