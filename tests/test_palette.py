"""The same method has the same colour in every figure, and the colours are ones that readers tell apart."""

import re
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_hex

from reference import figures
from reference.figures import (
    awq,
    deployment,
    gptq,
    hardware_aware,
    lottery_ticket,
    magnitude,
    methods,
    movement,
    one_shot,
    palette,
    practice,
    production,
    sparse_training,
    structured,
    trade_offs,
)

FOLDER = Path(figures.__file__).parent
STEPS = (1, 2, 4)
UP = (0.1, 0.2, 0.4)
SEEDS = [[1.0, 2.0], [2.0, 3.0], [3.0, 4.0]]


@pytest.fixture(autouse=True)
def closed():
    with mpl.rc_context():
        figures.use_style()
        yield
    plt.close("all")


def rows(kind):
    return [
        {"candidate": f"W4A16 {kind}", "bytes": 1e6, "rise": 0.1, "format": kind, "sparsity": s, "times as fast": 1.0}
        for s in (0.5, 0.9)
    ]


DRAWN = {
    "lottery ticket": lambda: lottery_ticket.against_density(
        dict.fromkeys(("ticket", "new start", "random mask", "one-shot", "signs only"), (STEPS, SEEDS)), "accuracy"
    ),
    "sparse training": lambda: sparse_training.against_cost(
        dict.fromkeys(("ticket, rounds", "RigL", "SET", "static", "SNIP", "small"), (STEPS, SEEDS))
    ),
    "movement": lambda: movement.by_density(
        {name: dict(zip(STEPS, SEEDS, strict=True)) for name in ("magnitude", "movement", "random", "soft", "L0")}, 90
    ),
    "movement, by size": lambda: movement.kept_by_size({name: range(10) for name in ("magnitude", "movement")}),
    "rows": lambda: hardware_aware.time_by_rows(STEPS, dict.fromkeys(("W16A16", "W8A8", "W4A16"), UP)),
    "serving": lambda: hardware_aware.tokens_by_batch(
        STEPS, dict.fromkeys(("W16A16", "W8A8", "W4A16", "W4A8, 8-bit cache"), UP)
    ),
    "deployment": lambda: deployment.speed_by_batch(
        dict.fromkeys(("W16A16", "W8A8", "W4A16", "W4A16, 8-bit cache"), (STEPS, UP))
    ),
    "production": lambda: production.served(
        ("files", "memory", "time"), dict.fromkeys(("W4A16, as loaded", "W4A16, packed", "W8A8, packed"), UP)
    ),
    "together": lambda: production.together(
        STEPS, dict.fromkeys(("W4A16", "W4A8 (the W4A16 folder)", "W8A8"), [UP] * 3)
    ),
    "predicted": lambda: trade_offs.predicted(
        STEPS, {d: dict.fromkeys(("W8A8", "W4A16", "W4A8"), UP) for d in ("one device", "another")}
    )[0],
    "sweep": lambda: practice.sweep([*rows("round_to_nearest"), *rows("gptq")], 4),
    "kernels": lambda: practice.kernels([*rows("2:4, 1"), *rows("CSR, 1"), *rows("blocks, 1"), *rows("CSR, 64")]),
    "structured": lambda: structured.equal_size(
        {name: dict(zip(STEPS, SEEDS, strict=True)) for name in ("structured", "unstructured", "2:4")}
    ),
    "magnitude": lambda: magnitude.one_shot(UP, dict.fromkeys(("each layer", "each row", "at random"), SEEDS), {}),
    "one-shot": lambda: one_shot.loss_by_sparsity(STEPS, {"code": dict.fromkeys(one_shot.LABELS, UP), "docs": {}})[0],
    "equal bytes": lambda: one_shot.equal_bytes(
        dict.fromkeys(("GPTQ, every weight", "SparseGPT, part of them"), (STEPS, UP)),
        {"GPTQ, every weight": ["a"] * 3, "SparseGPT, part of them": ["b"] * 3},
    ),
    "awq": lambda: awq.error_by_tokens(STEPS, dict.fromkeys(("to nearest", "AWQ", "GPTQ"), UP)),
    "gptq": lambda: gptq.loss_by_bits(
        STEPS, {("code", m): UP for m in ("awq", "gptq")}, {("code", m): UP for m in ("awq", "gptq")}
    ),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_method_has_its_colour(name):
    axes = DRAWN[name]()
    colours = {str(line.get_label()): to_hex(line.get_color()).upper() for line in axes.get_lines()}
    known = {
        label: palette.METHODS[found][0] for label in colours if (found := palette.method(label.removeprefix("code, ")))
    }
    assert known, "the figure names a method"
    assert {label: colours[label] for label in known} == known
    others = [colour for label, colour in colours.items() if label not in known and not label.startswith("_")]
    assert not set(others) & (set(known.values()) - {palette.BLACK}), "what is no method takes no method's colour"


def test_methods_that_share_a_colour_differ_in_their_marker():
    families = (
        ("to nearest", "awq", "gptq", "smoothquant", "rotation"),
        ("w16a16", "w8a8", "w4a16", "w4a8", "w3a16"),
        ("magnitude", "wanda", "sparsegpt", "gptq"),
        ("magnitude", "movement", "random", "soft", "l0"),
        ("ticket", "new start", "random", "one-shot"),
        ("ticket", "rigl", "set", "snip", "static"),
        ("2:4", "csr", "blocks"),
    )
    for family in families:
        drawn = [palette.METHODS[name] for name in family]
        assert len({colour for colour, _ in drawn}) == len({marker for _, marker in drawn}) == len(family), family


def test_every_quantization_method_has_a_look():
    assert {palette.method(name) for name in [*methods.LABELS, *trade_offs.LABELS, *methods.LABELS.values()]} == {
        "to nearest", "round to nearest", "awq", "gptq", "smoothquant", "rotation",
    }  # fmt: skip
    for name, label in trade_offs.LABELS.items():
        assert palette.looks([name]) == palette.looks([label])


@pytest.mark.parametrize(
    ("label", "expected"),
    [("setting", None), ("W4A16, packed", "w4a16"), ("smoothquant+gptq", "smoothquant"), ("L1", None), ("", None)],
)
def test_a_method_is_a_whole_word(label, expected):
    assert palette.method(label) == expected


def test_the_second_line_of_a_method_is_open_and_dashed():
    first, second = palette.looks(["CSR, 1 column", "CSR, 64 columns"])
    assert first["color"] == second["color"]
    assert (first["linestyle"], second["linestyle"], second["markerfacecolor"]) == ("-", "--", "white")


def test_colours_stand_in_one_place():
    """A figure that names a colour of its own would drift from the others; greys and black are free."""
    own = {
        path.name: found
        for path in FOLDER.glob("*.py")
        if path.name != "palette.py" and (found := re.findall(r"\"#[0-9A-Fa-f]{3,8}\"", path.read_text()))
    }
    assert own == {}
    style = mpl.rc_params_from_file(figures.STYLE, use_default_template=False)
    assert tuple(str(c).upper() for c in style["axes.prop_cycle"].by_key()["color"]) == palette.CYCLE
    css = (FOLDER / "widgets" / "widget.css").read_text().upper()
    for name, colour in (("BLUE", palette.BLUE), ("ORANGE", palette.VERMILION), ("GREEN", palette.GREEN)):
        assert f"--W-{name}: {colour}" in css


def test_no_figure_is_wider_than_a_phone_can_show():
    """A phone shows a figure 350 pixels wide; letters of 9 points must keep 8 pixels there."""
    dpi = mpl.rc_params_from_file(figures.STYLE, use_default_template=False)["figure.dpi"]
    margin = 12  # what saving adds
    most = (9 * dpi / 72 * 350 / 8 - margin) / dpi
    found = {
        (path.name, float(width))
        for path in FOLDER.glob("*.py")
        for width in re.findall(r"figsize=\(([\d.]+),", path.read_text())
    }
    assert len(found) > 20
    assert {place for place in found if place[1] > most} == set()


def test_no_letter_is_smaller_than_nine_points():
    sizes = {
        (path.name, float(size))
        for path in FOLDER.glob("*.py")
        for size in re.findall(r"fontsize=([\d.]+)", path.read_text())
    }
    assert {place for place in sizes if place[1] < 9} == set()
