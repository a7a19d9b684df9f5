"""Dense bit streams: bytes written by hand, a numpy oracle, and the format's own implementation."""

import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from hypothesis import given
from hypothesis import strategies as st

from reference.tensors import pack, unpack


@st.composite
def rows_of_codes(draw: st.DrawFn) -> tuple[int, torch.Tensor]:
    bits = draw(st.integers(1, 8))
    rows, n = draw(st.integers(1, 4)), draw(st.integers(1, 100))
    flat = draw(st.lists(st.integers(0, 2**bits - 1), min_size=rows * n, max_size=rows * n))
    return bits, torch.tensor(flat, dtype=torch.uint8).reshape(rows, n)


def numpy_pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Bit k·b + j of a row's stream is bit j of value k; words are little-endian."""
    rows, n = codes.shape
    stream = ((codes[:, :, None] >> np.arange(bits)) & 1).reshape(rows, n * bits)
    stream = np.pad(stream, ((0, 0), (0, -n * bits % 32)))
    return np.packbits(stream.astype(np.uint8), axis=1, bitorder="little").view("<i4")


@given(rows_of_codes())
def test_unpack_undoes_pack(case: tuple) -> None:
    bits, codes = case
    back = unpack(pack(codes, bits), bits, codes.shape[1])
    assert back.dtype == torch.uint8
    assert torch.equal(back, codes)


@given(rows_of_codes())
def test_pack_is_the_stream_that_numpy_writes(case: tuple) -> None:
    bits, codes = case
    packed = pack(codes, bits)
    assert packed.dtype == torch.int32
    assert packed.is_contiguous()
    assert np.array_equal(packed.numpy(), numpy_pack(codes.numpy(), bits))


@given(rows_of_codes(), st.sampled_from([torch.int16, torch.int32, torch.int64]))
def test_the_integer_type_of_the_values_does_not_matter(case: tuple, dtype: torch.dtype) -> None:
    bits, codes = case
    assert torch.equal(pack(codes.to(dtype), bits), pack(codes, bits))


@given(rows_of_codes())
def test_strides_do_not_matter(case: tuple) -> None:
    """Also those of a single row or column, which mean nothing."""
    bits, codes = case
    packed = pack(codes, bits)
    assert torch.equal(pack(codes.T.contiguous().T, bits), packed)
    assert torch.equal(unpack(packed.T.contiguous().T, bits, codes.shape[1]), codes)


@given(rows_of_codes())
def test_results_are_in_memory_of_their_own(case: tuple) -> None:
    bits, codes = case
    packed = pack(codes, bits)
    back = unpack(packed, bits, codes.shape[1])
    for made, source in ((packed, codes), (back, packed)):
        assert made.untyped_storage().nbytes() == made.nbytes
        assert made.data_ptr() != source.data_ptr()


@pytest.mark.parametrize(
    ("bits", "values", "expected"),
    [
        (2, [1, 2, 3, 0, 3], "39 03 00 00"),  # 00 11 10 01 | 11
        (3, [1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 7], "d1 58 1f d1 01 00 00 00"),
        (4, [1, 2, 15, 0, 8], "21 0f 08 00"),
        (8, [1, 254, 0, 128, 7], "01 fe 00 80 07 00 00 00"),
    ],
)
def test_bytes_as_written_by_hand(bits: int, values: list[int], expected: str) -> None:
    packed = pack(torch.tensor([values]), bits)
    assert packed.numpy().tobytes().hex(" ") == expected


def test_32_values_of_3_bits_take_12_bytes() -> None:
    packed = pack(torch.arange(32).remainder(8).reshape(1, 32), 3)
    assert packed.nbytes == 12
    # Value 10 (2) lies across the first and second word, value 21 (5) across the second and third.
    words = [int(word) & 0xFFFFFFFF for word in packed[0]]
    assert (words[0] >> 30) | (words[1] & 1) << 2 == 10 % 8
    assert (words[1] >> 31) | (words[2] & 3) << 1 == 21 % 8


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("shape", [(3, 64), (5, 37), (48, 1), (7, 33)])
def test_equals_compressed_tensors_along_both_axes(bits: int, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, shape, generator=generator)
    signed = (codes - 2 ** (bits - 1)).to(torch.int8)
    assert torch.equal(pack(codes, bits), pack_to_int32(signed, bits, packed_dim=1))
    assert torch.equal(pack(codes.T.contiguous(), bits).T, pack_to_int32(signed, bits, packed_dim=0))
    back = unpack_from_int32(pack(codes, bits), bits, torch.Size(shape), packed_dim=1)
    assert torch.equal(back, signed)


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_values_that_do_not_fit_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match=f"values run from 0 to {2**bits}; {bits} bits hold 0 to {2**bits - 1}"):
        pack(torch.tensor([[0, 2**bits]]), bits)
    with pytest.raises(ValueError, match="values run from -1"):
        pack(torch.tensor([[0, -1]]), bits)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="values must be an integer matrix"):
        pack(torch.zeros(4, dtype=torch.int64), 4)
    with pytest.raises(ValueError, match=r"values must be an integer matrix, got torch\.float32"):
        pack(torch.zeros(1, 4), 4)
    for bits in (0, 9):
        with pytest.raises(ValueError, match=f"bits is {bits}; it may be 1 to 8"):
            pack(torch.zeros(1, 4, dtype=torch.int64), bits)
        with pytest.raises(ValueError, match=f"bits is {bits}; it may be 1 to 8"):
            unpack(torch.zeros(1, 4, dtype=torch.int32), bits, 4)
    with pytest.raises(ValueError, match="packed has 3 words a row; 32 values of 4 bits need 4"):
        unpack(torch.zeros(1, 3, dtype=torch.int32), 4, 32)


def test_no_values_take_no_bytes() -> None:
    assert pack(torch.zeros(3, 0, dtype=torch.uint8), 4).shape == (3, 0)
    assert unpack(torch.zeros(3, 0, dtype=torch.int32), 4, 0).shape == (3, 0)
