"""What each chapter says to do with one's own model does it: a folder on this disk stands in for the name on the hub."""

import re
import shlex
from pathlib import Path

import book_paths
import chapter_rules
import pytest
import tiny_models

from reference.data import text

CHAPTERS = {book_paths.chapter_name(path): path for path in book_paths.notebooks()}
#: Names on the hub that chapters use, and what stands in for each.
STAND_INS = {
    "Qwen/Qwen3-0.6B": "qwen3",
    "HuggingFaceTB/SmolLM2-135M": "llama",
    "facebook/opt-125m": "opt",
    "sentence-transformers/all-MiniLM-L6-v2": "bert",
}


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("hub")
    return {
        name: tiny_models.save(tiny_models.build(kind, positions=1024), root / kind) for name, kind in STAND_INS.items()
    }


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The beginnings of the shipped texts, longer than any block asks for: a tokenizer takes two seconds for the whole of one."""
    folder = tmp_path_factory.mktemp("texts")
    for path in text.FOLDER.glob("*.txt"):
        (folder / path.name).write_text(path.read_text(encoding="utf-8")[:50_000], encoding="utf-8")
    return folder


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_on_your_own_model(chapter, stand_ins, texts, run, tmp_path, monkeypatch, capfd):
    ((language, block),) = chapter_rules.own_model(chapter_rules.load(book_paths.ROOT / CHAPTERS[chapter]))
    names = set(re.findall("|".join(map(re.escape, STAND_INS)), block))
    assert names, f"the block names none of {list(STAND_INS)}"
    for name in names:
        block = block.replace(name, str(stand_ins[name]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(text, "FOLDER", texts)
    if language == "python":
        exec(compile(block, f"{chapter}, on your own model", "exec"), {"__name__": "__main__"})
        said = capfd.readouterr().out
        assert said.strip() or any(tmp_path.iterdir()), "the block neither prints nor writes anything"
        return
    commands = [line for line in block.replace("\\\n", " ").splitlines() if line.strip() and line.strip()[0] != "#"]
    for command in commands:
        words = shlex.split(command)
        assert words[:3] == ["python", "-m", "reference"], command
        result = run(*words[3:])
        # A workflow on random weights may miss its target (1); wrong input would be 2.
        assert result.code == 0 or (words[3] == "workflow" and result.code == 1), (command, result.err)
        if "--output" in words:
            assert any((tmp_path / words[words.index("--output") + 1]).iterdir()), command
