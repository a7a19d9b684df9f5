"""Shipped texts, text files, and what is said when a text is not there."""

from pathlib import Path

import pytest
import torch

from reference.data import text
from reference.models import tutorial


def test_checksums_of_the_shipped_texts_hold() -> None:
    assert text.checksums_hold()


def test_a_changed_text_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in text.FOLDER.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(text, "FOLDER", tmp_path)
    assert text.checksums_hold()
    (tmp_path / "code_evaluation.txt").write_text("other")
    assert not text.checksums_hold()


@pytest.mark.parametrize("domain", text.DOMAINS)
def test_parts_of_a_domain_are_250_to_500_kilobytes_and_share_no_long_line(domain: str) -> None:
    parts = [text.read(domain, part) for part in text.PARTS]
    for part in parts:
        assert 250_000 <= len(part.encode()) <= 500_000
    lines = [{line.strip() for line in part.splitlines() if len(line.strip()) > 90} for part in parts]
    assert len(lines[0] & lines[1]) <= 0.02 * min(map(len, lines))


def test_a_file_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_bytes("naïve\r\ntext\n".encode())
    assert text.read(str(tmp_path / "mine.txt")) == "naïve\ntext\n"


def test_encoding_loses_nothing_and_adds_nothing() -> None:
    tokenizer, sample = tutorial.tokenizer(), text.read("documentation")[:5000]
    ids = text.encode(sample, tokenizer)
    assert ids.dtype == torch.int64
    assert ids.ndim == 1
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == sample


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="text 'novel' is neither a file nor one of code, documentation, wikitext2, c4"
    ):
        text.read("novel")
    with pytest.raises(ValueError, match="part is 'test'; it may be evaluation or calibration"):
        text.read("code", "test")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="binary' is not UTF-8"):
        text.read(str(tmp_path / "binary"))
    (tmp_path / "blank").write_text(" \n")
    with pytest.raises(ValueError, match="blank' is empty"):
        text.read(str(tmp_path / "blank"))
