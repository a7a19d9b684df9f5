"""Every command line of ours that the book, the README, the notebooks and --help print gets as far as to work."""

import re
import shlex
from pathlib import Path

import book_paths
import chapter_rules
import pytest
import typer
from typer.core import TyperGroup

from reference import cli, cli_look, evaluation, pipeline
from reference.coding import container, deep_compression
from reference.data import text as texts_by_name
from reference.models import loading, tutorial
from reference.practice import pruning, quantization

ROOT = book_paths.ROOT
COMMAND = re.compile(r"python -m reference ((?:workflow )?(?!workflow)[a-z]+ [^`]+)")
#: What a placeholder of the text stands for.
PLACEHOLDERS = {"MODEL": "tutorial", "FOLDER": "tutorial", "Qwen/Qwen3-0.6B": "tutorial", "DIR": "out"}


def commands_in(text: str) -> list[str]:
    """Whole lines, and what stands between backticks; not what stands for several commands."""
    lines = text.replace("\\\n", " ").splitlines()
    found = [
        COMMAND.search(part)
        for line in lines
        for part in ([line] if line.lstrip().startswith((".", "p", "elsewhere")) else line.split("`"))
    ]
    return [" ".join(match[1].split()) for match in found if match and not re.search(r"[{…]|\.\.\.", match[1])]


def help_texts(group: TyperGroup) -> list[str]:
    return [
        text
        for one in group.commands.values()
        for text in (help_texts(one) if isinstance(one, TyperGroup) else [one.help])
    ]


def printed() -> dict[str, str]:
    """Command line → where it is printed first. What chapters say of one's own model, tests/book/test_own_model.py runs."""
    texts = {
        path: (ROOT / path).read_text(encoding="utf-8")
        for path in ["README.md", *(f"book/{p.name}" for p in (ROOT / "book").glob("*.md"))]
    }
    for path in book_paths.notebooks():
        notebook = chapter_rules.load(ROOT / path)
        texts[str(path)] = "\n".join(cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    for text in help_texts(typer.main.get_command(cli.app)):
        # An example may go over two lines; it ends with its paragraph.
        texts.setdefault("--help", "")
        texts["--help"] += (
            "\n".join(" ".join(part.split()).removeprefix("Example: ") for part in text.split("\n\n")) + "\n"
        )
    own = {path: chapter_rules.own_model(chapter_rules.load(ROOT / path)) for path in book_paths.notebooks()}
    blocks = [block for found in own.values() for _, block in found]
    found: dict[str, str] = {}
    for path, text in texts.items():
        for block in blocks:
            text = text.replace(block, "")
        for command in commands_in(text):
            found.setdefault(command, path)
    return found


PRINTED = printed()


def test_the_well_known_ones_are_among_them():
    assert {
        "quantize tutorial --method gptq --bits 4 --group-size 128 --output out",
        "inspect small.dcz",
    } <= PRINTED.keys()
    assert {"README.md", "book/how_to_run.md", "--help"} <= set(PRINTED.values())


@pytest.mark.parametrize("line", PRINTED)
def test_a_printed_command_gets_to_work(line, run, tmp_path, monkeypatch):
    reached = []

    def work(*_, **__):
        reached.append(1)
        raise KeyboardInterrupt

    for module, name in [(pipeline, "quantize_folder"), (pipeline, "prune_folder"), (loading, "load_float"), (quantization, "run"),
                         (pruning, "run"), (deep_compression, "share_state"), (container, "save"), (container, "entries"),
                         (container, "describe"), (evaluation, "tensor_bytes")]:  # fmt: skip
        monkeypatch.setattr(module, name, work)
    monkeypatch.setattr(cli_look, "_device", lambda name: None)  # there may be no GPU here
    monkeypatch.chdir(tmp_path)
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(line)]
    where = 2 if words[0] == "workflow" else 1
    if words[where].startswith("-"):  # options alone, as a table names them
        words[where:where] = {"compress": ["tutorial", "out.dcz"]}.get(words[0], ["tutorial"])
    if words[0] in ("quantize", "prune", "workflow") and "--output" not in words:
        words += ["--output", "out"]
    if words[where].endswith(".dcz"):
        Path(words[where]).touch()
    elif words[where].endswith(".safetensors"):
        Path(words[where]).symlink_to(tutorial.PATH / "model.safetensors")
    elif words[where] != "tutorial":  # what an earlier command wrote
        Path(words[where]).symlink_to(tutorial.PATH)
    for word in words:
        if word.endswith(".txt"):  # a reader's own text
            Path(word).write_text(texts_by_name.read("documentation"), encoding="utf-8")
    result = run(*words)
    assert (result.code, bool(reached)) == (130, True), result.err
