"""MNIST and its kin from their own files, the IDX format."""

import gzip
import math
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

_PARTS = {"train": "train", "test": "t10k"}
_LIMIT = 2**30


def load(folder: str | Path, split: Literal["train", "test"] = "train") -> tuple[Tensor, Tensor]:
    """Images and labels from a folder with MNIST's files, plain or ``.gz``.

    Args:
        folder: holds ``train-images-idx3-ubyte`` and ``train-labels-idx1-ubyte`` (``t10k-…`` for
            the test split), as published.
        split: which pair.

    Returns:
        float32 ``[n, 1, height, width]`` from 0 to 1 and int64 ``[n]``.

    Raises:
        ValueError: ``split`` is another word, a file is not what its name says, or the numbers of
            images and labels differ.
        FileNotFoundError: a file is missing; the message names it.

    Source: LeCun, Cortes and Burges, "The MNIST database of handwritten digits".

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:  # one image of 1 × 2 pixels, a seven
        ...     image, label = bytes([0, 0, 8, 3, *[0, 0, 0, 1] * 2, 0, 0, 0, 2, 0, 255]), bytes([0, 0, 8, 1, 0, 0, 0, 1, 7])
        ...     _ = Path(folder, "train-images-idx3-ubyte").write_bytes(image)
        ...     _ = Path(folder, "train-labels-idx1-ubyte").write_bytes(label)
        ...     load(folder)
        (tensor([[[[0., 1.]]]]), tensor([7]))

    Chapter: pruning/magnitude
    """
    if split not in _PARTS:
        raise ValueError(f"split is {split!r}; it may be 'train' or 'test'")
    images = read_idx(_find(Path(folder), f"{_PARTS[split]}-images-idx3-ubyte"), dimensions=3)
    labels = read_idx(_find(Path(folder), f"{_PARTS[split]}-labels-idx1-ubyte"), dimensions=1)
    if len(images) != len(labels):
        raise ValueError(f"{folder} holds {len(images)} images but {len(labels)} labels of the {split} split")
    return torch.from_numpy(images).unsqueeze(1).float() / 255, torch.from_numpy(labels).long()


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The unsigned bytes of one IDX file.

    Args:
        path: the file; decompressed if its name ends in ``.gz``.
        dimensions: number of dimensions that it must have.

    Returns:
        uint8, with ``dimensions`` dimensions.

    Raises:
        ValueError: not an IDX file of bytes, another number of dimensions, or a length that does
            not fit the sizes in its header.

    Source: the format's description beside the MNIST database: two zero bytes, the type (8 is
    unsigned byte), the number of dimensions, big-endian 32-bit sizes, the data row by row.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "labels")
        ...     _ = file.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))  # bytes, 1 dimension of 3, the data
        ...     read_idx(file, dimensions=1)
        array([7, 2, 1], dtype=uint8)

    Chapter: none (plumbing: reads files)
    """
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        try:
            head = file.read(4)
            if len(head) < 4 or head[:3] != b"\0\0\x08":
                raise ValueError(f"{path} is not an IDX file of unsigned bytes (its first bytes are {head.hex()!r})")
            if head[3] != dimensions:
                raise ValueError(f"{path} has {head[3]} dimensions; {dimensions} are expected here")
            sizes = file.read(4 * dimensions)
            if len(sizes) < 4 * dimensions:
                raise ValueError(f"{path} ends inside its header")
            shape = tuple(int(size) for size in np.frombuffer(sizes, ">u4"))
            count = math.prod(shape)
            if count > _LIMIT:
                raise ValueError(f"{path} declares {count:,} bytes of data; more than {_LIMIT:,} are refused")
            data = file.read(count + 1)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path} cannot be decompressed: {error}") from None
    if len(data) != count:
        raise ValueError(
            f"{path} should hold {count:,} bytes of data but holds {'more' if len(data) > count else len(data)}"
        )
    return np.frombuffer(data, np.uint8).reshape(shape).copy()


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{folder} has neither {name} nor {name}.gz; put MNIST's four files there")
