"""The IDX loader on files made here, byte by byte."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from reference.data import mnist


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for part, count in (("train", 7), ("t10k", 4)):
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = generator.integers(0, 10, count, dtype=np.uint8)
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return tmp_path


def test_pixels_and_labels_come_back(folder: Path) -> None:
    images, labels = mnist.load(folder)
    raw = (folder / "train-images-idx3-ubyte").read_bytes()[16:]
    assert images.shape == (7, 1, 28, 28)
    assert bytes((images * 255).round().to(torch.uint8).flatten().tolist()) == raw
    assert labels.tolist() == list(gzip.decompress((folder / "train-labels-idx1-ubyte.gz").read_bytes())[8:])
    assert len(mnist.load(folder, "test")[0]) == 4


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte nor"):
        mnist.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\r\n\x1a\n", "not an IDX file"),
        (b"", "not an IDX file"),
        (bytes([0, 0, 8, 1]) + struct.pack(">I", 3), "has 1 dimensions; 3"),
        (bytes([0, 0, 8, 3, 0, 0]), "ends inside its header"),
        (bytes([0, 0, 8, 3]) + struct.pack(">3I", 2, 2, 2) + b"1234567", "should hold 8 bytes of data but holds 7"),
        (bytes([0, 0, 8, 3]) + struct.pack(">3I", 2, 2, 2) + b"123456789", "holds more"),
        (bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**31, 2**31, 2**31), "more than 1,073,741,824 are refused"),
    ],
)
def test_a_broken_file_is_refused(folder: Path, content: bytes, message: str) -> None:
    (folder / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        mnist.load(folder)


def test_a_broken_gzip_is_refused(folder: Path) -> None:
    path = folder / "train-labels-idx1-ubyte.gz"
    content = path.read_bytes()
    wrong_block = bytearray(content)
    wrong_block[10] |= 0b110  # the third kind of block, which there is none of: zlib's own error, not gzip's
    for broken in (content[:-6], bytes(wrong_block)):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="cannot be decompressed"):
            mnist.load(folder)


def test_unequal_counts_are_refused(folder: Path) -> None:
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(6, np.uint8))))
    with pytest.raises(ValueError, match="7 images but 6 labels"):
        mnist.load(folder)
