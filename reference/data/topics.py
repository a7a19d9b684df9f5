"""A transfer task that ships: passages of Python's documentation, labelled by the part of the manual they come from.

Ten topics, split by document: no file of the manual has passages in two splits, so what is learned must hold for
modules that were never seen. Made by ``studies/topics.py``, which says what was left out.
"""

import hashlib
import json
import lzma
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "topics"
SPLITS = ("train", "validation", "test")


def manifest() -> dict[str, Any]:
    """Source, license, topics in the order of their labels, documents with topic, split and count, and the checksum.

    Example:
        >>> manifest()["license"], manifest()["documents"]["library/json"]["topic"]
        ('PSF-2.0', 'internet data')

    Chapter: none (data)
    """
    return json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))


def names() -> list[str]:
    """The topics; a label is an index into them.

    Example:
        >>> names()[:3], len(names())
        (['C API', 'packaging', 'data types'], 10)

    Chapter: none (data)
    """
    return manifest()["topics"]


def load(split: str = "train") -> tuple[list[str], Tensor]:
    """Passages and labels of one split.

    Args:
        split: "train", "validation" or "test".

    Returns:
        Passages of 25 to 100 words in the order of their documents, and int64 labels ``[passages]``.

    Raises:
        ValueError: ``split`` is another word, or the file is damaged: it has not the checksum of the manifest.

    Source: the documentation of Python 3.11, license PSF-2.0.

    Example:
        >>> texts, labels = load("test")
        >>> " ".join(texts[0].split()[:4]), names()[labels[0]]
        ('The functions in this', 'C API')

    Chapter: none (data)
    """
    rows = _rows(split)
    topics, of = names(), manifest()["documents"]
    return [text for _, text in rows], torch.tensor([topics.index(of[document]["topic"]) for document, _ in rows])


def documents(split: str = "train") -> list[str]:
    """The document of each passage that :func:`load` returns, such as ``"library/json"``.

    Args:
        split: "train", "validation" or "test".

    Raises:
        ValueError: as :func:`load`.

    Example:
        >>> documents("test")[0]
        'c-api/abstract'
        >>> set(documents("test")) & set(documents("train"))  # no document lies in two splits
        set()

    Chapter: none (data)
    """
    return [document for document, _ in _rows(split)]


def _rows(split: str) -> list[tuple[str, str]]:
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it may be {', '.join(SPLITS)}")
    of = manifest()["documents"]
    return [(document, text) for document, text in _passages(FOLDER) if of[document]["split"] == split]


@cache
def _passages(folder: Path) -> tuple[tuple[str, str], ...]:
    file = folder / "passages.jsonl.xz"
    try:
        content = lzma.decompress(file.read_bytes())
    except lzma.LZMAError as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    if hashlib.sha256(content).hexdigest() != manifest()["sha256"]:
        raise ValueError(f"{file} is damaged: it has not the checksum of the manifest")
    return tuple((document, text) for document, text in map(json.loads, content.decode().splitlines()))
