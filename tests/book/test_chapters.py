"""Every chapter keeps the rules of CONTRIBUTING.md, and each rule can be broken."""

import address
import book_paths
import chapter_rules
import pytest
import tidy_notebooks
from book_fixtures import PATH, QUIZ, URL, code, good, markdown

ROOT = book_paths.ROOT


def test_chapters_keep_the_rules():
    found = [
        text
        for path in book_paths.notebooks()
        for text in chapter_rules.breaches(chapter_rules.load(ROOT / path), path, address.address())
    ]
    assert found == []


def test_every_notebook_is_a_chapter_of_the_toc():
    present = {
        p.relative_to(ROOT) for p in (ROOT / "notebooks").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts
    }
    assert present == set(book_paths.notebooks())


def test_figure_names_are_unique_in_the_book():
    names = [n for path in book_paths.notebooks() for n in chapter_rules.figure_names(chapter_rules.load(ROOT / path))]
    assert len(names) == len(set(names))


def test_the_good_fixture_is_good():
    assert chapter_rules.breaches(good(), PATH, URL) == []


def cell(notebook, words, kind="source"):
    """The one cell whose source (or tags) has `words`."""
    (found,) = [c for c in notebook["cells"] if words in (c["source"] if kind == "source" else chapter_rules.tags(c))]
    return found


def replace(words, by):
    def change(notebook):
        target = cell(notebook, words)
        target["source"] = target["source"].replace(words, by)

    return change


def setting(path, value):
    """Set one entry of the figure cell's metadata."""

    def change(notebook):
        node = cell(notebook, "figure", "tags")["metadata"]
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value

    return change


def hide_where_axes_come_from(notebook):
    notebook["cells"].insert(5, code("axes = axes_of('error')", "remove-cell"))


def drop_tag(tag):
    def change(notebook):
        for target in notebook["cells"]:
            if tag in chapter_rules.tags(target):
                target["metadata"]["tags"].remove(tag)

    return change


BROKEN = {
    "an output": (lambda n: cell(n, "caption", "tags").update(outputs=[{}]), "has outputs"),
    "a count": (lambda n: cell(n, "caption", "tags").update(execution_count=3), "execution count"),
    "a long line": (replace("x, y =", "# " + 76 * "long" + "\nx, y ="), "longer than 76"),
    "another kernel": (lambda n: n["metadata"].update(kernelspec={"name": "julia"}), "metadata"),
    "no title": (replace("# Title", "Title"), "# Title"),
    "an old badge": (replace("/acme/book/", "/other/book/"), "badge line"),
    "no hardware": (replace(" · CPU, two cores", ""), "badge line"),
    "no objectives": (replace("**After this chapter you can**", "You can"), "After this chapter"),
    "no prerequisites": (replace("**You need**", "Needed:"), "You need"),
    "no reading time": (replace("5 minutes to read", ""), "minutes to read"),
    "another first cell": (replace("import google.colab", "import google"), "Colab cell"),
    "a shown Colab cell": (drop_tag("remove-cell"), "Colab cell"),
    "a name from nowhere": (hide_where_axes_come_from, "remove-cell defines: axes;"),
    "no question": (replace("## The question", "## A question"), "headings"),
    "wrong order": (lambda n: n["cells"].append(n["cells"].pop(2)), "headings"),
    "a long cell": (replace("axes.plot(", 41 * "x = 1\n" + "axes.plot("), "split it"),
    "no own model": (replace("## On your own model", "## Elsewhere"), "headings"),
    "no command": (replace("```bash", "```"), "one block"),
    "two commands": (replace("```bash", "```bash\nls\n```\n\n```bash"), "one block"),
    "a model of no hub": (replace("Qwen/Qwen3-0.6B", "tutorial"), "names no model on the hub"),
    "one quick check": (replace(f"{QUIZ}\n\n", ""), "two or more"),
    "a quick check without answer": (replace(":::{dropdown} Answer", ":::{note}"), "lacks"),
    "a quick check inside a line": (
        replace("::::{admonition} Quick", "So. ::::{admonition} Quick"),
        "lines of their own",
    ),
    "no symbols": (replace("| in code |", "| where |"), "table of symbols"),
    "no box": (replace("Differs from the paper", "Note"), "no box"),
    "a numbered formula of two lines": (
        replace("Differs from the paper", "Differs from the paper\n$$a \\\\ b \\tag{1}$$"),
        r"line break \\",
    ),
    "two exercises": (replace("### Exercise 2", "### Something"), "three to five"),
    "an unsolved exercise": (lambda n: n["cells"].remove(cell(n, "assert 2 + 2 == 4")), "exercise 1 has no cell"),
    "a shown solution": (drop_tag("hide-cell"), "hide-cell"),
    "a typed number to remember": (replace("{glue:text}`b:.2f`", "three"), "without a glued number"),
    "two things to remember": (replace("- {glue:text}`b:.2f`\n", ""), "three list items"),
    "no alt text": (setting(["mystnb", "image"], {}), "alt"),
    "no caption text": (setting(["mystnb", "figure", "caption"], " "), "caption"),
    "no name": (setting(["mystnb", "figure", "name"], "error"), "fig-"),
    "no caption cell": (drop_tag("caption"), "not tagged caption"),
    "a caption that asserts nothing": (replace("assert (y[1:] < y[:-1]).all()", "y"), "asserts nothing"),
    "a caption about other arrays": (
        replace("assert (y[1:] < y[:-1]).all()", "assert error[0] > 1"),
        "asserts nothing",
    ),
}


@pytest.mark.parametrize(("change", "words"), BROKEN.values(), ids=BROKEN.keys())
def test_each_rule_can_be_broken(change, words):
    notebook = good()
    change(notebook)
    found = chapter_rules.breaches(notebook, PATH, URL)
    assert any(words in text for text in found), found


@pytest.mark.parametrize(
    "source",
    [
        "assert plotted(axes)['a'][1][0] > 0",
        "lines = plotted(axes)\ny = lines['a'][1]\ntop = y.max()\nassert top > 0",
        "for x, y in plotted(axes).values():\n    assert y[0] > 0",
        "assert all(y[0] > 0 for x, y in plotted(axes).values())",
        "%matplotlib inline\nx, y = plotted(axes)['a']\nassert y[0] > 0",
    ],
)
def test_ways_to_assert_a_caption(source):
    assert chapter_rules.asserts_plotted(source)


def test_tidy_changes_nothing_the_second_time(tmp_path):
    path = tmp_path / "good.ipynb"
    tidy_notebooks.write(good(), path)
    once = path.read_text()
    tidy_notebooks.write(tidy_notebooks.tidy(chapter_rules.load(path), PATH, URL), path)
    assert path.read_text() == once


def test_tidy_strips_and_keeps_the_hardware():
    notebook = good()
    notebook["cells"][0]["source"] = notebook["cells"][0]["source"].replace("CPU, two cores", "one GPU")
    cell(notebook, "figure", "tags").update({"outputs": [{}], "execution_count": 4})
    tidied = tidy_notebooks.tidy(notebook, PATH, URL)
    assert chapter_rules.breaches(tidied, PATH, URL) == []
    assert " · one GPU\n" in tidied["cells"][0]["source"]
    assert len(chapter_rules.code_cells(tidied)) == len(chapter_rules.code_cells(good()))


def test_a_section_ends_at_the_next_heading():
    notebook = {"cells": [markdown("## A\none"), code("two"), markdown("three\n## B\nfour"), markdown("five")]}
    assert [c["source"].strip() for c in chapter_rules.section(notebook, "A")] == ["one", "two", "three"]
    assert [c["source"].strip() for c in chapter_rules.section(notebook, "B")] == ["four", "five"]
