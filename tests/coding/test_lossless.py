"""Tensors come back bit for bit, and what is not a whole stream is refused."""

import math
import struct
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from reference.coding import huffman, lossless

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
INTEGER = {2: torch.int16, 4: torch.int32}
SPECIAL = [0.0, -0.0, math.nan, math.inf, -math.inf, 1.0, 1e-40, 5.9e-8, -1e-45, 65_504.0]


def assert_same_bits(a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    assert torch.equal(a.contiguous().view(INTEGER[a.itemsize]), b.contiguous().view(INTEGER[b.itemsize]))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (10,), (5, 7), (3, 41, 17)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_shape_with_special_values(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    flat = torch.randn(math.prod(shape), generator=torch.Generator().manual_seed(0))
    for i, value in enumerate(SPECIAL[: len(flat)]):
        flat[i] = value
    tensor = flat.to(dtype).reshape(shape)
    assert_same_bits(lossless.decode(lossless.encode(tensor), dtype, shape), tensor)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_all_bit_patterns_of_16_bits(dtype: torch.dtype) -> None:
    tensor = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    assert_same_bits(lossless.decode(lossless.encode(tensor), dtype, tensor.shape), tensor)


@settings(max_examples=50)
@given(arrays.arrays("int32", st.integers(0, 50)))
def test_any_bits_of_float32(bits: object) -> None:
    tensor = torch.from_numpy(bits).view(torch.float32)
    assert_same_bits(lossless.decode(lossless.encode(tensor), torch.float32, tensor.shape), tensor)


def test_views_that_are_not_contiguous() -> None:
    tensor = torch.randn(6, 8).bfloat16().T[::2]
    assert_same_bits(lossless.decode(lossless.encode(tensor), torch.bfloat16, tensor.shape), tensor)


@pytest.mark.parametrize(("dtype", "ratio"), [(torch.bfloat16, 0.67), (torch.float16, 0.86), (torch.float32, 0.84)])
def test_size_of_gaussian_weights(dtype: torch.dtype, ratio: float) -> None:
    weight = (0.02 * torch.randn(512, 512, generator=torch.Generator().manual_seed(0))).to(dtype)
    assert len(lossless.encode(weight)) < ratio * weight.nbytes


def test_the_layout_as_documented() -> None:
    tensor = torch.tensor([1.0, -1.5, 0.0]).bfloat16()  # 0x3F80, 0xBFC0, 0x0000
    blob = lossless.encode(tensor)
    magic, crc, kind, size = struct.unpack("<4sIBQ", blob[:17])
    assert (magic, kind) == (b"EXP1", 1)
    assert crc == zlib.crc32(blob[8:])
    assert huffman.decode(blob[17 : 17 + size]).tolist() == [127, 127, 0]
    assert blob[17 + size :] == bytes([0x00, 0xC0, 0x00])


def test_every_cut_and_every_altered_byte_is_refused() -> None:
    blob = lossless.encode(torch.randn(40, generator=torch.Generator().manual_seed(0)).bfloat16())
    for at in range(len(blob)):
        altered = blob[:at] + bytes([blob[at] ^ 4]) + blob[at + 1 :]
        for bad in (blob[:at], altered):
            with pytest.raises(huffman.CorruptStream):
                lossless.decode(bad, torch.bfloat16, (40,))


def test_another_dtype_or_size_is_refused() -> None:
    blob = lossless.encode(torch.randn(40).bfloat16())
    with pytest.raises(huffman.CorruptStream, match="kind 1, not 2"):
        lossless.decode(blob, torch.float16, (40,))
    for n in (39, 41, 2**50):
        with pytest.raises(huffman.CorruptStream, match=f"not those of {n} elements"):
            lossless.decode(blob, torch.bfloat16, (n,))
    with pytest.raises(ValueError, match="shape is"):
        lossless.decode(blob, torch.bfloat16, (-5, -8))


def test_a_stream_of_another_size_inside_is_refused() -> None:
    """The checksum fits, the number of coded bytes does not."""
    for n in (39, 41):
        stream = huffman.encode(torch.zeros(n, dtype=torch.uint8).numpy())
        body = struct.pack("<BQ", 1, len(stream)) + stream + bytes(40)
        with pytest.raises(huffman.CorruptStream):
            lossless.decode(b"EXP1" + struct.pack("<I", zlib.crc32(body)) + body, torch.bfloat16, (40,))


def test_other_dtypes_are_named() -> None:
    with pytest.raises(TypeError, match="tensor is torch.int32"):
        lossless.encode(torch.zeros(3, dtype=torch.int32))
    with pytest.raises(TypeError, match="dtype is torch.float64"):
        lossless.decode(b"", torch.float64, (3,))
