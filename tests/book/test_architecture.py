"""The architecture page: every room of the package stands there, and everything that it names exists."""

import re

import book_paths
import tools_page

ROOT = book_paths.ROOT
TEXT = (ROOT / "book/architecture.md").read_text()
ROOMS = TEXT.partition("## Rooms")[2].partition("## ")[0]
ROWS = re.findall(r"^\| (`.+?) \| (.+) \|$", re.sub(r"\{cite:p\}`\w+`", "", ROOMS), re.MULTILINE)
#: Files of the package that are no rooms: its data and its front door.
NOT_ROOMS = {"__init__", "__main__", "recorded", "py"}
NAME = re.compile(r"`(\w+)`")


def rooms():
    found = {path.stem for path in (ROOT / "reference").iterdir() if path.suffix == ".py" or path.is_dir()}
    return {name for name in found if not name.startswith(("__", "."))} - NOT_ROOMS


def modules(room):
    """What may be named in a room's row: its modules, and those of the kernels."""
    folder = ROOT / ("kernels" if room == "kernels" else f"reference/{room}")
    return {path.stem for path in folder.glob("*.py")} if folder.is_dir() else set()


def test_every_room_has_a_row_and_every_row_a_room():
    named = [name for heads, _ in ROWS for name in NAME.findall(heads)]
    assert sorted(named) == sorted(rooms())


def test_every_module_named_in_a_row_exists():
    missing = {}
    for heads, holds in ROWS:
        there = set().union(*(modules(room) for room in NAME.findall(heads)))
        names = {name for name in NAME.findall(holds) if name.islower()}
        if there and (gone := names - there - {"widgets"}):
            missing[heads] = gone
    assert missing == {}


def test_the_drawn_map_names_rooms_only():
    drawn = (ROOT / "book/_static/map.html").read_text()
    heads = re.findall(r'font-weight="700">([^<]+)<', drawn)
    named = {name.strip().partition(".")[0] for head in heads for name in head.split(",")}
    assert named - {"solvers"} <= rooms()
    assert {"quantization", "pruning", "coding"} <= set(re.findall(r"\w+", drawn)), "the solvers' box names its rooms"


def test_every_tool_says_what_it_does():
    table = tools_page.page()
    for path in (ROOT / "tools").rglob("*.py"):
        (said,) = re.findall(rf"^\| `{path.name}` \| (.+) \|$", table, re.MULTILINE)
        assert 20 < len(said) < 140, path.name
    assert "what it does" in table
