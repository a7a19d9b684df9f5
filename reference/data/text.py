"""Held-out text by name: shipped with the package, a file, or a data set of the hub."""

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from reference.data import hub

FOLDER = Path(__file__).parent / "text"
DOMAINS = ("code", "documentation")
PARTS = ("evaluation", "calibration")


def read(name: str, part: str = "evaluation") -> str:
    """The text called ``name``.

    Args:
        name: ``"code"`` or ``"documentation"`` (shipped), ``"wikitext2"`` or ``"c4"`` (from the
            hub, :mod:`reference.data.hub`), or the path of a UTF-8 text file.
        part: ``"evaluation"`` or ``"calibration"``; a file is the same for both.

    Raises:
        ValueError: no such name, part or file, the file is not UTF-8, or the text is empty.

    Example:
        >>> read("code").splitlines()[0]
        '"Test format, coverage 99%."'
        >>> read("documentation", "calibration") == read("documentation", "evaluation")
        False

    Chapter: quantization/post_training
    """
    if part not in PARTS:
        raise ValueError(f"part is {part!r}; it may be {' or '.join(PARTS)}")
    if name in DOMAINS:
        return (FOLDER / f"{name}_{part}.txt").read_text(encoding="utf-8")
    if name in hub.DATASETS:
        return hub.read(name, part)
    path = Path(name)
    if not path.is_file():
        known = ", ".join((*DOMAINS, *hub.DATASETS))
        raise ValueError(f"text {name!r} is neither a file nor one of {known}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"text file {name!r} is not UTF-8: {error}") from error
    if not text.strip():
        raise ValueError(f"text file {name!r} is empty")
    return text


def encode(text: str, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Token ids of ``text`` without special tokens, int64 ``[tokens]``.

    Args:
        text: any length.
        tokenizer: of the model that will read it.

    Example:
        >>> from reference.models import tutorial
        >>> encode("def main():", tutorial.tokenizer())  # "def", " main", "():"
        tensor([ 666, 2250,  971])

    Chapter: quantization/post_training
    """
    return torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.int64)


def checksums_hold() -> bool:
    """Whether every shipped text has the SHA-256 that the manifest recorded when it was split off.

    Example:
        >>> checksums_hold()
        True

    Chapter: none (integrity check)
    """
    manifest = json.loads((FOLDER / "manifest.json").read_text())
    return all(
        hashlib.sha256((FOLDER / f"{domain}_{part}.txt").read_bytes()).hexdigest()
        == manifest[f"{domain}_{part}"]["sha256"]
        for domain in DOMAINS
        for part in PARTS
    )
