"""Streams: round trips, a second decoder written from the documented layout, sizes, chunks, refusals."""

import os
import struct
import subprocess
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.coding import huffman

DTYPES = [np.uint8, np.uint16]


def gaussian_exponents(n: int, seed: int = 0) -> np.ndarray:
    """The exponent bytes of n bfloat16 weights of standard deviation 0.02."""
    values = np.random.default_rng(seed).normal(0, 0.02, n).astype(np.float32)
    return (values.view(np.uint32) >> 23 & 0xFF).astype(np.uint8)


def by_hand(blob: bytes) -> list[int]:
    """Read the documented layout bit by bit, with strings and dictionaries."""
    magic, crc, n, chunk, sizes = struct.unpack("<4sIQII", blob[:24])
    assert magic == b"HUF1"
    assert crc == zlib.crc32(blob[8:], zlib.crc32(blob[:4]))
    width, at = sizes >> 24, 24 + (sizes & 0xFFFFFF)
    table = "".join(f"{byte:08b}" for byte in blob[24:at])

    def gamma() -> int:
        nonlocal table
        zeros = table.index("1")
        value, table = int(table[zeros : 2 * zeros + 1], 2), table[2 * zeros + 1 :]
        return value

    lengths: dict[int, int] = {}
    if n:
        symbol, length = gamma() - 1, 0
        last = symbol + gamma() - 1
        while symbol <= last:
            if table.startswith("110"):
                table = table[3:]
                symbol += gamma()
                continue
            if table[0] == "0":
                table = table[1:]
            elif table.startswith("10"):
                length, table = length + (1 if table[2] == "0" else -1), table[3:]
            else:
                length, table = int(table[3:8], 2), table[8:]
            lengths[symbol] = length
            symbol += 1
    assert all(symbol < 256**width for symbol in lengths)
    if len(lengths) < 2:
        assert len(blob) == at
        return list(lengths) * n
    words, code, before = {}, 0, 0
    for symbol in sorted(lengths, key=lambda s: (lengths[s], s)):
        code <<= lengths[symbol] - before
        before = lengths[symbol]
        words[f"{code:0{before}b}"] = symbol
        code += 1
    chunks = -(-n // chunk)
    payload = at + 4 * (chunks - 1)
    starts = [0, *struct.unpack(f"<{chunks - 1}I", blob[at:payload])]
    found = []
    for c, start in enumerate(starts):
        end = payload + 4 * starts[c + 1] if c + 1 < chunks else len(blob)
        body = blob[payload + 4 * start : end]
        bits = "".join(f"{word:032b}" for word in struct.unpack(f"<{len(body) // 4}I", body))
        for _ in range(min(chunk, n - c * chunk)):
            size = next(k for k in range(1, 25) if bits[:k] in words)
            found.append(words[bits[:size]])
            bits = bits[size:]
        assert len(bits) < 32
        assert "1" not in bits
    return found


@st.composite
def streams(draw: st.DrawFn) -> np.ndarray:
    dtype = draw(st.sampled_from(DTYPES))
    most = np.iinfo(dtype).max
    alphabet = draw(st.lists(st.integers(0, most), min_size=1, max_size=30))
    symbols = draw(st.lists(st.sampled_from(alphabet), max_size=300))
    return np.array(symbols, dtype)


@given(streams(), st.integers(1, 400))
def test_whatever_is_encoded_comes_back(symbols: np.ndarray, chunk: int) -> None:
    blob = huffman.encode(symbols, chunk=chunk)
    back = huffman.decode(blob)
    assert back.dtype == symbols.dtype
    np.testing.assert_array_equal(back, symbols)
    assert sum(huffman.describe(blob)[1:]) == len(blob)
    assert huffman.describe(blob).symbols == len(symbols)


@settings(max_examples=50)
@given(streams(), st.integers(1, 400))
def test_a_decoder_written_from_the_layout_agrees(symbols: np.ndarray, chunk: int) -> None:
    assert by_hand(huffman.encode(symbols, chunk=chunk)) == symbols.tolist()


@settings(max_examples=50)
@given(streams(), st.integers(1, 100))
def test_chunks_are_decoded_alone(symbols: np.ndarray, chunk: int) -> None:
    stream = huffman.read(huffman.encode(symbols, chunk=chunk))
    parts = [huffman.decode_chunk(stream, c).tolist() for c in range(len(stream.starts) - 1)]
    assert parts == [symbols[k : k + chunk].tolist() for k in range(0, len(symbols), chunk)]
    with pytest.raises(IndexError):
        huffman.decode_chunk(stream, len(parts))


@pytest.mark.parametrize("chunk", [1, 1000, 2**24])
@pytest.mark.parametrize("n", [1, 999, 1000, 1001, 50_000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_long_code_words(dtype: type, n: int, chunk: int) -> None:
    """Counts that fall by powers of two ask for words longer than the decoder's table."""
    rng = np.random.default_rng(n)
    symbols = (rng.geometric(0.5, n) - 1).clip(0, 200).astype(dtype)
    symbols[: min(n, 30)] = np.arange(min(n, 30))
    blob = huffman.encode(symbols, chunk=chunk)
    np.testing.assert_array_equal(huffman.decode(blob), symbols)
    if n == 50_000:
        assert huffman.read(blob).lengths.max() > 13


@pytest.mark.parametrize("limit", [5, 8, 12, 16, 24])
def test_every_limit_comes_back(limit: int) -> None:
    symbols = (np.random.default_rng(0).geometric(0.5, 50_000) - 1).clip(0, 30).astype(np.uint8)
    blob = huffman.encode(symbols, max_length=limit)
    assert huffman.read(blob).lengths.max() <= limit
    np.testing.assert_array_equal(huffman.decode(blob), symbols)


def test_all_65536_symbols() -> None:
    rng = np.random.default_rng(0)
    symbols = np.concatenate([np.arange(65_536), rng.geometric(0.001, 200_000) % 65_536]).astype(np.uint16)
    rng.shuffle(symbols)
    np.testing.assert_array_equal(huffman.decode(huffman.encode(symbols)), symbols)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_and_one_symbol_take_no_payload(dtype: type) -> None:
    assert len(huffman.encode(np.empty(0, dtype))) == 24
    for n in (1, 1_000_000):
        blob = huffman.encode(np.full(n, 200, dtype))
        assert len(blob) < 32
        assert (huffman.decode(blob) == np.full(n, 200, dtype)).all()


def test_views_are_encoded_as_their_values() -> None:
    symbols = np.arange(200, dtype=np.uint8)
    np.testing.assert_array_equal(huffman.decode(huffman.encode(symbols[::-3])), symbols[::-3])
    big = np.arange(1000, 1200, dtype=">u2")
    np.testing.assert_array_equal(huffman.decode(huffman.encode(big)), big)


def test_the_size_is_the_codes_plus_what_is_counted() -> None:
    symbols = gaussian_exponents(100_000)
    blob = huffman.encode(symbols)
    stream, sizes = huffman.read(blob), huffman.describe(blob)
    bits = int(stream.lengths[symbols].sum())
    assert sizes.offset_bytes == 4 * 6
    assert sizes.header_bytes == 24
    assert 0 <= 8 * sizes.payload_bytes - bits < 32 * 7
    assert sizes.table_bytes < 30


def test_within_half_a_percent_of_the_best_prefix_code() -> None:
    symbols = gaussian_exponents(4_000_000)
    freq = np.bincount(symbols)
    best = int(freq @ huffman.code_lengths(freq)) / 8
    assert len(huffman.encode(symbols)) < 1.005 * best


def test_a_skewed_source_keeps_to_huffmans_bound() -> None:
    """p = 0.9: 1 bit a symbol is the least, the entropy is 0.47; pairs and groups of four come nearer."""
    symbols = (np.random.default_rng(0).random(1_000_000) < 0.1).astype(np.uint8)
    bound = huffman.entropy(np.bincount(symbols))
    assert bound < 8 * len(huffman.encode(symbols)) / len(symbols) < bound + 1
    pairs = symbols.view(np.uint16)
    assert 8 * len(huffman.encode(pairs)) / len(symbols) < bound + 0.5


@pytest.mark.parametrize("at", [0, 4, 8, 16, 20, 23, 24, 30, 40, -1])
def test_an_altered_byte_is_refused(at: int) -> None:
    blob = bytearray(huffman.encode(gaussian_exponents(1000), chunk=300))
    blob[at] ^= 1
    with pytest.raises(huffman.CorruptStream):
        huffman.decode(bytes(blob))


def sealed(n: int, chunk: int, width: int, table: bytes, body: bytes = b"") -> bytes:
    """A stream of our making with a checksum that fits."""
    rest = struct.pack("<QII", n, chunk, width << 24 | len(table)) + table + body
    return b"HUF1" + struct.pack("<I", zlib.crc32(rest, zlib.crc32(b"HUF1"))) + rest


ONE, TWO = b"\xf8\x40", b"\xae\x10"  # tables: symbol 0 alone; symbols 0 and 1


@pytest.mark.parametrize(
    ("blob", "words"),
    [
        (sealed(2**63, 1, 1, TWO, bytes(4)), "do not hold"),
        (sealed(2**63, 2**24, 1, TWO, bytes(4)), "do not hold"),
        (sealed(2**24, 2**24, 1, TWO, bytes(4)), "can hold"),
        (sealed(33, 2**24, 1, TWO, bytes(4)), "can hold"),
        (sealed(2**40, 1, 1, ONE), "pass max_symbols"),
        (sealed(2**64 - 1, 2**24, 2, ONE), "pass max_symbols"),
        (sealed(5, 16, 1, ONE, bytes(4)), "yet a payload"),
        (sealed(0, 16, 1, ONE), "no symbols"),
        (sealed(5, 16, 1, b""), "cut off"),
        (sealed(5, 16, 1, TWO), "can hold"),
        (sealed(5, 0, 1, TWO, bytes(4)), "chunks of 0"),
        (sealed(5, 2**25, 1, TWO, bytes(4)), "chunks of"),
        (sealed(5, 16, 3, TWO, bytes(4)), "symbols of 3"),
        (sealed(5, 16, 0, TWO, bytes(4)), "symbols of 0"),
        (sealed(5, 16, 1, TWO, bytes(5)), "do not hold"),
        (sealed(4, 2, 1, TWO, struct.pack("<I", 0) + bytes(8)), "ascend"),
        (sealed(4, 2, 1, TWO, struct.pack("<I", 2) + bytes(8)), "ascend"),
        (sealed(4, 2, 1, TWO, struct.pack("<I", 2**32 - 1) + bytes(8)), "ascend"),
        (sealed(40, 20, 1, TWO, struct.pack("<I", 1) + bytes(12)), "chunk 1 "),
        (sealed(5, 16, 1, TWO, struct.pack("<I", 1)), "chunk 0 "),
    ],
)
def test_hostile_sizes_are_refused_before_memory_is_taken(blob: bytes, words: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(huffman.CorruptStream, match=words):
            huffman.decode(blob)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_max_symbols_bounds_the_memory() -> None:
    blob = huffman.encode(np.zeros(10_000_000, np.uint8))
    tracemalloc.start()
    try:
        with pytest.raises(huffman.CorruptStream, match="more than max_symbols, which is 9999999"):
            huffman.decode(blob, max_symbols=9_999_999)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
    assert len(huffman.decode(blob, max_symbols=10_000_000)) == 10_000_000


def test_bad_arguments_are_named() -> None:
    with pytest.raises(TypeError, match="symbols is int64"):
        huffman.encode(np.arange(3))
    with pytest.raises(TypeError, match="symbols is list"):
        huffman.encode([1, 2])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="symbols has 2 dimensions"):
        huffman.encode(np.zeros((2, 2), np.uint8))
    with pytest.raises(ValueError, match="max_length is 25"):
        huffman.encode(np.zeros(2, np.uint8), max_length=25)
    with pytest.raises(ValueError, match="need at least 8"):
        huffman.encode(np.arange(200, dtype=np.uint8), max_length=7)
    with pytest.raises(ValueError, match="chunk is 0"):
        huffman.encode(np.zeros(2, np.uint8), chunk=0)


def test_numba_is_not_imported_with_the_module() -> None:
    check = "import sys, reference.coding.huffman, reference.coding.lossless; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], stdin=subprocess.DEVNULL).returncode == 0


def test_a_cache_that_cannot_be_written_is_done_without() -> None:
    """Numba refuses to cache where it finds no folder for it: the loops are then compiled each time."""
    check = """
import numba, numpy as np
real = numba.njit
def njit(*args, **options):
    if options.get("cache"):
        raise RuntimeError("cannot cache function: no locator available")
    return real(*args, **options)
numba.njit = njit
from reference.coding import huffman
symbols = np.arange(100, dtype=np.uint8)
assert (huffman.decode(huffman.encode(symbols)) == symbols).all()
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    outcome = subprocess.run([sys.executable, "-c", check], env=environment, stdin=subprocess.DEVNULL)
    assert outcome.returncode == 0
