"""120,000 corrupted, truncated and hostile streams: a clear error or symbols within bounds, never anything else.

Seven of eight get a checksum that fits, so that the parser and the decoder behind it are reached.
"""

import random
import struct
import sys
import time
import tracemalloc
import zlib

import numpy as np

from reference.coding import huffman

BLOBS = 120_000
MOST = 5_000


def originals() -> list[bytes]:
    """Small streams of every kind: empty, one symbol, both widths, blocks, long words, many chunks."""
    rng = np.random.default_rng(0)
    made = [huffman.encode(np.empty(0, np.uint8)), huffman.encode(np.full(40, 7, np.uint16))]
    for n, most, chunk in ((1, 2, 1), (9, 4, 3), (60, 5, 16), (200, 30, 64), (300, 200, 1000)):
        for dtype in (np.uint8, np.uint16):
            symbols = (most * rng.random(n) ** 3).astype(dtype)
            made += [huffman.encode(symbols, chunk=chunk, group=group) for group in (1, 2)]
    deep = np.repeat(np.arange(14), np.minimum(2 ** np.arange(14), 300)).astype(np.uint8)
    rng.shuffle(deep)
    made += [huffman.encode(deep, chunk=100), huffman.encode(np.tile(deep[:50] % 2, 4), group=8, chunk=33)]
    return made


def damaged(source: random.Random, blobs: list[bytes]) -> bytes:
    """One stream with bytes changed, cut off, repeated, joined to another, or with a hostile header."""
    blob = bytearray(source.choice(blobs))
    for _ in range(source.choice((1, 1, 1, 2, 4))):
        kind, at = source.choices(range(7), (8, 6, 2, 1, 2, 1, 1))[0], source.randrange(len(blob) + 1)
        if kind == 0 and at < len(blob):
            blob[at] ^= 1 << source.randrange(8)
        elif kind == 1 and at < len(blob):
            blob[at] = source.choice((0, 1, 127, 128, 255, source.randrange(256)))
        elif kind == 2:
            del blob[at:]
        elif kind == 3:
            blob[at:at] = source.randbytes(source.randrange(1, 9))
        elif kind == 4:
            blob[at:] = source.choice(blobs)[at:]
        elif kind == 5 and len(blob) >= 24:
            value = source.choice((0, 1, 2**16, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1, source.randrange(1000)))
            blob[8:16] = struct.pack("<Q", value)
        elif kind == 6 and len(blob) >= 24:
            blob[16:24] = struct.pack("<II", source.choice((0, 1, 7, 2**24, 2**32 - 1)), source.getrandbits(32))
        if not blob:
            break
    if source.random() < 0.02:
        blob = bytearray(source.randbytes(source.randrange(80)))
    if len(blob) >= 8 and source.random() < 7 / 8:
        blob[:4] = b"HUF1"
        blob[4:8] = struct.pack("<I", zlib.crc32(blob[8:], zlib.crc32(blob[:4])))
    return bytes(blob)


def test_damaged_streams_are_refused_or_bounded() -> None:
    source, blobs = random.Random(0), originals()
    for blob in blobs:
        huffman.decode(blob)
    refused: dict[str, int] = {}
    decoded, slowest = 0, 0.0
    for _ in range(BLOBS):
        blob = damaged(source, blobs)
        begin = time.perf_counter()
        try:
            symbols = huffman.decode(blob, max_symbols=MOST)
        except huffman.CorruptStream as error:
            words = str(error).partition("begins with")[0]
            words = " ".join(word for word in words.split() if word.isalpha())
            refused[words] = refused.get(words, 0) + 1
        else:
            decoded += 1
            assert len(symbols) <= MOST
            assert symbols.dtype in (np.uint8, np.uint16)
        slowest = max(slowest, time.perf_counter() - begin)
    assert sum(refused.values()) + decoded == BLOBS
    assert decoded > 1000, "changed symbols under a checksum that fits are a stream like any other"
    assert len(refused) >= 16, f"every check is reached: {refused}"
    assert sum(number for words, number in refused.items() if "chunk" in words or "table" in words) > BLOBS / 4
    assert slowest < 2


def test_their_memory_is_bounded() -> None:
    """No limit is given: what is taken stays below 6 MB and 64 times the stream, except for one symbol repeated."""
    source, blobs = random.Random(1), originals()
    huffman.decode(blobs[-1])
    tracemalloc.start()
    try:
        for _ in range(2_000):
            blob = damaged(source, blobs)
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            try:
                repeated = huffman.describe(blob).payload_bytes == 0
                if not repeated:
                    huffman.decode(blob)
            except huffman.CorruptStream:
                pass
            assert tracemalloc.get_traced_memory()[1] - before < 6_000_000 + 64 * sys.getsizeof(blob)
    finally:
        tracemalloc.stop()
