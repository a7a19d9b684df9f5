"""README: its picture is of the recorded numbers, its links and commands exist."""

import re

import book_paths
import readme_picture

ROOT = book_paths.ROOT
README = (ROOT / "README.md").read_text()


def test_the_picture_is_what_the_script_draws(tmp_path):
    readme_picture.draw(tmp_path / "again.svg")

    def shapes(path):
        # Paths of curves and letters; another processor may round the last digit of a coordinate.
        return re.sub(r"(\d+\.\d{2})\d+", r"\1", path.read_text())

    assert shapes(tmp_path / "again.svg") == shapes(readme_picture.PICTURE)


def test_the_picture_says_what_the_text_says():
    extra = readme_picture.extra_bits()
    simple = extra["round_to_nearest"]
    for name, found in extra.items():
        if name != "round_to_nearest":
            assert all(ours < nearest for ours, nearest in zip(found, simple, strict=True)), name
    assert all(rows == sorted(rows) for rows in extra.values()), "fewer bits cost more"


def test_links_lead_somewhere():
    targets = [t for t in re.findall(r"\]\(([^)]+)\)", README) if "://" not in t]
    assert targets
    assert [t for t in targets if not (ROOT / t.partition("#")[0]).exists()] == []


def test_make_commands_exist():
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"\bmake ([a-z]+)\b", README))
    assert {"book", "test"} <= named
    assert [name for name in named if not re.search(rf"^{name}:", makefile, re.MULTILINE)] == []
