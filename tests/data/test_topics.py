"""The transfer task: split by document, no passage in two splits, and what is said when the file is damaged."""

import json
import lzma
import re
from pathlib import Path

import pytest
import torch

from reference.data import topics


def test_the_task_is_as_large_as_promised_and_every_topic_is_in_every_split() -> None:
    assert len(topics.names()) == 10
    counts = {split: topics.load(split)[1].bincount(minlength=10) for split in topics.SPLITS}
    assert sum(int(count.sum()) for count in counts.values()) >= 8000
    for split, smallest in {"train": 300, "validation": 60, "test": 100}.items():
        assert int(counts[split].min()) >= smallest
    everything = counts["train"] + counts["validation"] + counts["test"]
    assert int(everything.max()) < 3.5 * int(everything.min())


def test_no_document_and_no_run_of_eight_words_is_in_two_splits() -> None:
    def runs(split: str) -> set[tuple[str, ...]]:
        words = [re.findall(r"\w+", text.lower()) for text in topics.load(split)[0]]
        return {tuple(row[i : i + 8]) for row in words for i in range(len(row) - 7)}

    parts = {split: (set(topics.documents(split)), runs(split)) for split in topics.SPLITS}
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        for ours, theirs in zip(parts[first], parts[second], strict=True):
            assert ours
            assert not ours & theirs


def test_passages_have_25_to_100_words_and_no_markup_heading_or_file_name() -> None:
    for split in topics.SPLITS:
        for text in topics.load(split)[0]:
            assert 25 <= len(text.split()) <= 100
            assert not re.search(r":\w+:`|``|^\.\. |\.rst\.txt|[=~^#-]{6}", text), text


def test_labels_are_those_of_the_documents_and_loading_repeats() -> None:
    of, names = topics.manifest()["documents"], topics.names()
    for split in topics.SPLITS:
        texts, labels = topics.load(split)
        documents = topics.documents(split)
        assert len(texts) == len(labels) == len(documents)
        assert labels.dtype == torch.int64
        assert [names[label] for label in labels.tolist()] == [of[name]["topic"] for name in documents]
        again, labels_again = topics.load(split)
        assert texts == again
        assert torch.equal(labels, labels_again)
        assert len(set(texts)) == len(texts)
    # The manual's own order of chapters, checked by hand.
    known = {"library/json": "internet data", "c-api/list": "C API", "library/turtle": "interfaces"}
    assert {name: of[name]["topic"] for name in known} == known


def test_the_manifest_counts_what_is_there_and_the_licence_lies_beside_it() -> None:
    found: dict[str, int] = {}
    for split in topics.SPLITS:
        for name in topics.documents(split):
            found[name] = found.get(name, 0) + 1
    assert found == {name: row["passages"] for name, row in topics.manifest()["documents"].items()}
    assert topics.manifest()["license"] == "PSF-2.0"
    assert "Python Software Foundation" in (topics.FOLDER / "NOTICE.txt").read_text(encoding="utf-8")
    assert sum(path.stat().st_size for path in topics.FOLDER.iterdir()) < 1_200_000


def test_another_split_and_a_damaged_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="split is 'dev'; it may be train, validation, test"):
        topics.load("dev")
    for file in topics.FOLDER.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(topics, "FOLDER", tmp_path)
    rows = lzma.compress((json.dumps(["library/json", "other"]) + "\n").encode())
    (tmp_path / "passages.jsonl.xz").write_bytes(rows)
    with pytest.raises(ValueError, match="checksum"):
        topics.load("test")
    (tmp_path / "passages.jsonl.xz").write_bytes(b"no archive")
    topics._passages.cache_clear()
    with pytest.raises(ValueError, match="passages.jsonl.xz is damaged"):
        topics.load("test")
    topics._passages.cache_clear()
