"""huffman: every bit of bf16 weights back, whatever they are; damage found, and nothing outside the tensors touched."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

triton = pytest.importorskip("triton", reason="the kernels run with Triton, which is not installed")

from reference.coding import huffman as codec  # noqa: E402
from reference.coding import lossless  # noqa: E402
from reference.coding.code_table import CorruptStream  # noqa: E402
from reference.coding.resident import ResidentTensor, decode_table  # noqa: E402
from reference.kernels import _triton  # noqa: E402
from reference.kernels.huffman import Lanes, huffman  # noqa: E402

if not _triton.INTERPRETED.value:
    pytest.skip("TRITON_INTERPRET=1 was not set when the kernels were imported", allow_module_level=True)


def bits(tensor: Tensor) -> Tensor:
    return tensor.view(torch.int16)


def weights(*shape: int, generator: torch.Generator) -> Tensor:
    return (torch.randn(shape, generator=generator) * 0.02).bfloat16()


def outside(touched: list[np.ndarray], *tensors: Tensor) -> int:
    """How many of the touched addresses lie in none of the tensors."""
    addresses = np.unique(np.concatenate([a.reshape(-1) for a in touched]))
    lost = np.ones(len(addresses), dtype=bool)
    for tensor in tensors:
        lost &= (addresses < tensor.data_ptr()) | (addresses >= tensor.data_ptr() + tensor.nbytes)
    return int(lost.sum())


def arguments(symbols: np.ndarray, *, chunk: int, max_length: int | None = None) -> dict:
    """Of the kernel, for symbols of one byte and no raw part."""
    stream = codec.read(codec.encode(symbols, chunk=chunk, group=1, max_length=max_length))
    return {
        "words": torch.from_numpy(stream.words[:-1].view(np.int32).copy()),
        "starts": torch.from_numpy(stream.starts.astype(np.int32)),
        "table": torch.from_numpy(decode_table(stream)),
        "symbols": len(symbols),
        "chunk": chunk,
    }


@pytest.mark.parametrize(
    ("shape", "chunk", "max_length"),
    [((13, 41), 64, 8), ((2, 3, 100), 32, 12), ((280,), 256, 16), ((33,), 16, 16), ((48,), 16, 5), ((1,), 16, 8)],
)
@pytest.mark.parametrize("warps", [1, 2])
def test_weights_come_back_bit_for_bit(shape, chunk, max_length, warps, generator) -> None:
    weight = weights(*shape, generator=generator)
    coded = ResidentTensor.from_tensor(weight, "cpu", chunk=chunk, max_length=max_length)
    values, damaged = huffman(
        coded.words, coded.starts, coded.table, coded.raw, symbols=weight.numel(), chunk=chunk, plan=Lanes(warps)
    )
    assert torch.equal(bits(values), bits(weight.flatten()))
    assert not damaged.any()
    assert torch.equal(bits(coded.decode()), bits(weight))


def test_all_65536_bit_patterns_survive_among_them_nan_infinity_denormals_and_minus_zero(generator) -> None:
    pattern = torch.randperm(65_536, generator=generator)[:2_048].to(torch.int32)
    pattern[:8] = torch.tensor([0, 0x8000, 0x7F80, 0xFF80, 0x7FC0, 0xFFFF, 0x0001, 0x807F])
    weight = torch.where(pattern >= 2**15, pattern - 2**16, pattern).to(torch.int16).view(torch.bfloat16)
    coded = ResidentTensor.from_tensor(weight, "cpu", chunk=32, max_length=12)
    assert torch.equal(bits(coded.decode()), bits(weight))


@pytest.mark.parametrize("exponents", [[], [0x3F80], [0x3F80] * 40, [0x3F80] * 17 + [0x4000]])
def test_no_symbol_one_symbol_and_two(exponents) -> None:
    weight = torch.tensor(exponents, dtype=torch.int16).view(torch.bfloat16)
    coded = ResidentTensor.from_tensor(weight, "cpu", chunk=16)
    assert torch.equal(bits(coded.decode()), bits(weight))


@settings(max_examples=10, deadline=None)
@given(
    symbols=st.lists(st.integers(0, 255), min_size=1, max_size=150),
    chunk=st.sampled_from([16, 32, 80]),
)
def test_any_symbols_come_back(symbols, chunk) -> None:
    array = np.array(symbols, np.uint8)
    found, damaged = huffman(**arguments(array, chunk=chunk))
    assert found.dtype == torch.uint8
    assert np.array_equal(found.numpy(), array)
    assert not damaged.any()


def test_longest_words_are_sixteen_bits() -> None:
    counts = [1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610, 987]  # Fibonacci's: as deep as a tree can be
    array = np.repeat(np.arange(len(counts), dtype=np.uint8), np.minimum(counts, 40))
    array = np.concatenate([array, np.full(500, 15, np.uint8)])
    frequencies = arguments(array, chunk=64, max_length=16)
    found, damaged = huffman(**frequencies)
    assert np.array_equal(found.numpy(), array)
    assert not damaged.any()
    skewed = np.repeat(np.arange(17, dtype=np.uint8), [2**k for k in range(17)])
    complete = decode_table(codec.read(codec.encode(skewed, group=1)))
    assert len(complete) == 2**16


def test_nothing_outside_the_tensors_is_touched(generator, touched) -> None:
    weight = weights(13, 40, generator=generator)  # 520: 16 chunks of 32, and 8 more
    coded = ResidentTensor.from_tensor(weight, "cpu", chunk=32, max_length=10)
    values, damaged = huffman(coded.words, coded.starts, coded.table, coded.raw, symbols=520, chunk=32)
    assert torch.equal(bits(values), bits(weight.flatten()))
    whole = values.untyped_storage()  # up to the multiple of 16
    out = torch.empty(0, dtype=torch.bfloat16).set_(whole, 0, (528,))
    assert outside(touched, coded.words, coded.starts, coded.table, coded.raw, out, damaged) == 0
    addresses = np.concatenate([a.reshape(-1) for a in touched])
    for tensor in (coded.words, coded.starts, damaged):
        assert np.isin([tensor.data_ptr(), tensor[-1].data_ptr()], addresses).all()


def verdict(stream: codec.Stream, chunk: int) -> np.ndarray | None:
    try:
        return codec.decode_chunk(stream, chunk)
    except CorruptStream:
        return None


@pytest.mark.parametrize("flips", [1, 3, 40])
def test_damage_is_found_where_the_decoder_of_the_cpu_finds_it(flips, generator) -> None:
    symbols = torch.randn(512, generator=generator).bfloat16().view(torch.int16).numpy().view(np.uint16) >> 7 & 255
    stream = codec.read(codec.encode(symbols.astype(np.uint8), chunk=64, group=1, max_length=10))
    words = stream.words.copy()
    for first, end in itertools.pairwise(stream.starts.tolist()):
        for bit in torch.randint(0, 32 * (end - first), (flips,), generator=generator).tolist():
            words[first + bit // 32] ^= np.uint32(1 << bit % 32)
    flipped = dataclasses.replace(stream, words=words)
    values, damaged = huffman(
        torch.from_numpy(words[:-1].view(np.int32).copy()), torch.from_numpy(stream.starts.astype(np.int32)),
        torch.from_numpy(decode_table(stream)), symbols=512, chunk=64,
    )  # fmt: skip
    for chunk in range(8):
        expected = verdict(flipped, chunk)
        assert bool(damaged[chunk]) == (expected is None)
        if expected is not None:  # other words of the same length in all
            assert np.array_equal(values[64 * chunk : 64 * (chunk + 1)].numpy(), expected)


def test_a_word_of_zeros_after_a_chunk_is_damage(generator) -> None:
    """All symbols are right, and yet the bits do not end where the next chunk begins."""
    symbols = torch.randint(0, 9, (64,), generator=generator, dtype=torch.uint8).numpy()
    given = arguments(symbols, chunk=16)
    end = int(given["starts"][2])
    longer = torch.cat([given["words"][:end], torch.zeros(1, dtype=torch.int32), given["words"][end:]])
    starts = given["starts"] + torch.tensor([0, 0, 1, 1, 1], dtype=torch.int32)
    found, damaged = huffman(**given | {"words": longer, "starts": starts})
    assert np.array_equal(found.numpy(), symbols)
    assert damaged.tolist() == [False, True, False, False]


def test_decode_raises_where_a_chunk_is_damaged(generator) -> None:
    coded = ResidentTensor.from_tensor(weights(128, generator=generator), "cpu", chunk=64, max_length=10)
    short = coded.starts.clone()
    short[1] -= 1
    broken = ResidentTensor(coded.words, short, coded.table, coded.raw, 64, (128,))
    with pytest.raises(CorruptStream, match="chunk 0 does not end where the next one begins"):
        broken.decode()
    broken.decode(check=False)


@pytest.mark.parametrize("seed", range(4))
def test_hostile_tensors_are_bounded(seed, touched) -> None:
    """Random words, starts anywhere, a table of any entries: no address outside, and an end."""
    generator = np.random.default_rng(seed)
    words = torch.from_numpy(generator.integers(-(2**31), 2**31, 40).astype(np.int32))
    starts = torch.from_numpy(generator.integers(-(2**31), 2**31, 9).astype(np.int32))
    starts[:4] = torch.tensor([0, 1_000, -5, 39])
    table = torch.from_numpy(generator.integers(-(2**15), 2**15, 2**6).astype(np.int16))
    values, damaged = huffman(words, starts, table, symbols=8 * 32, chunk=32)
    assert values.shape == (256,)
    assert damaged.any()
    assert outside(touched, words, starts, table, values, damaged) == 0


def test_streams_of_other_forms_are_refused(generator) -> None:
    weight = weights(64, generator=generator)
    with pytest.raises(ValueError, match="chunks of 65536|chunks of 40"):
        ResidentTensor.from_bytes(lossless.encode(weight, group=1, chunk=40), (64,), "cpu")
    blocks = np.tile(np.arange(4, dtype=np.uint8), 5000)
    with pytest.raises(ValueError, match="in groups of 2"):
        decode_table(codec.read(codec.encode(blocks, group=2)))
    with pytest.raises(TypeError, match="tensor is torch.float32; it may be bfloat16"):
        ResidentTensor.from_tensor(weight.float(), "cpu")
    for change, words in (({"chunk": 24}, "chunk is 24"), ({"max_length": 17}, "max_length is 17")):
        with pytest.raises(ValueError, match=words):
            ResidentTensor.from_tensor(weight, "cpu", **change)
    blob = lossless.encode(weight, group=1, chunk=64)
    with pytest.raises(CorruptStream):
        ResidentTensor.from_bytes(blob[:-1], (64,), "cpu")
    with pytest.raises(CorruptStream):
        ResidentTensor.from_bytes(blob, (65,), "cpu")


def test_bytes_on_the_device_are_counted(generator) -> None:
    weight = weights(64, 64, generator=generator)
    coded = ResidentTensor.from_tensor(weight, "cpu", chunk=256, max_length=8)
    parts = 4 * len(coded.words) + 4 * 17 + 2 * 256 + 4096
    assert coded.nbytes == parts
    assert parts < 0.75 * weight.nbytes


GOOD = {
    "words": torch.zeros(4, dtype=torch.int32),
    "starts": torch.tensor([0, 2, 4], dtype=torch.int32),
    "table": torch.zeros(4, dtype=torch.int16),
    "raw": torch.zeros(32, dtype=torch.uint8),
    "symbols": 30,
    "chunk": 16,
}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"words": torch.zeros(4)}, TypeError, "words was torch.float32, may be torch.int32"),
        ({"words": torch.zeros(2, 2, dtype=torch.int32)}, ValueError, r"words had shape \[2, 2\], may have one axis"),
        ({"starts": torch.zeros(6, dtype=torch.int32)[::2]}, ValueError, r"starts had strides \(2,\)"),
        ({"starts": torch.zeros(4, dtype=torch.int32)}, ValueError, "starts had 4 entries, may have 3"),
        ({"table": torch.zeros(3, dtype=torch.int16)}, ValueError, "table had 3 entries"),
        ({"table": torch.zeros(1, dtype=torch.int16)}, ValueError, "table had 1 entries"),
        ({"raw": torch.zeros(30, dtype=torch.uint8)}, ValueError, r"raw had shape \[30\], may have \[32\]"),
        ({"raw": torch.zeros(32, dtype=torch.uint8, device="meta")}, ValueError, "raw was on meta"),
        (
            {"raw": torch.zeros(34, dtype=torch.uint8)[2:]},
            ValueError,
            "raw began at an odd address, may begin at a multiple of 4 bytes",
        ),
        ({"symbols": -1}, ValueError, "symbols was -1"),
        ({"symbols": 30.0}, TypeError, "symbols was float"),
        ({"chunk": 24}, ValueError, "chunk was 24, may be a multiple of 16"),
        ({"chunk": 0}, ValueError, "chunk was 0"),
    ],
)
def test_wrong_arguments_are_refused_by_name(change, error, words) -> None:
    with pytest.raises(error, match=words):
        huffman(**(GOOD | change))
