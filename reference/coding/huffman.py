r"""Huffman streams: symbols as canonical code words, in chunks that can be decoded one by one.

A stream (`encode`) is, with all numbers little-endian:

    byte  0  4 bytes   "HUF1"
          4  uint32    CRC-32 of all the other bytes
          8  uint64    n, the number of symbols
         16  uint32    symbols in a chunk; the last chunk may hold fewer
         20  uint24    bytes of the table
         23  uint8     bytes of a symbol, 1 or 2
         24  table     the code's lengths (see `reference.coding.prefix_code`)
             offsets   uint32 for each chunk but the first: the word of the payload where it begins
             payload   uint32 words

Bit k of a chunk is bit 31 - k mod 32 of its word k // 32: code words follow each other, each with its most
significant bit first, and the chunk's last word is filled with zeros. A decoder therefore reads two neighbouring
words, shifts them left by (bit position mod 32), and has the next 33 bits at the top of a 64-bit number. No chunk
needs another one. A stream with one used symbol has a table and no offsets and no payload: nothing is left to say.
A stream without symbols ends after byte 23.

The code is optimal among prefix codes with the length limit. No prefix code spends less than one bit a symbol: where
one symbol has more than half of the probability, or a few symbols have nearly all, the entropy is not reached
(p = 0.9: 1 bit against 0.47). Symbols taken in pairs, ``encode(symbols.view(np.uint16))``, halve that loss.
"""

import struct
import zlib
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import numpy as np

from reference.coding.prefix_code import (
    LONGEST,
    CorruptStream,
    canonical_codes,
    code_lengths,
    entropy,
    pack_lengths,
    unpack_lengths,
)

__all__ = ["CorruptStream", "Sizes", "Stream", "canonical_codes", "code_lengths", "decode", "decode_chunk", "describe",
           "encode", "entropy", "read"]  # fmt: skip

_HEADER = struct.Struct("<4sIQII")
_MAGIC = b"HUF1"
_ONE_SYMBOL_LIMIT = 2**28


class Sizes(NamedTuple):
    """What a stream holds and where its bytes go; the four sizes add up to the stream.

    Chapter: none (chapter to come: pruning/deep_compression)
    """

    symbols: int
    header_bytes: int
    table_bytes: int
    offset_bytes: int
    payload_bytes: int


@dataclass(frozen=True, eq=False)
class Stream:
    """A stream taken apart by `read`, its bounds checked: what a decoder needs.

    Attributes:
        symbols: number of symbols.
        chunk: symbols in each chunk but the last.
        width: bytes of a symbol, 1 or 2.
        lengths: uint8 ``[256]`` or ``[65536]``, code lengths in bits.
        starts: int64 ``[chunks + 1]``, first word of each chunk, and the number of words.
        words: uint32 ``[words + 1]``, the payload, and a zero so that two words can be read anywhere.

    Chapter: none (chapter to come: pruning/deep_compression)
    """

    symbols: int
    chunk: int
    width: int
    lengths: np.ndarray
    starts: np.ndarray
    words: np.ndarray


def encode(symbols: np.ndarray, *, max_length: int | None = None, chunk: int = 16_384) -> bytes:
    """Code symbols with their own optimal canonical code.

    Args:
        symbols: ``[n]``, uint8 or uint16.
        max_length: longest code word in bits, 1 to 24; None: 16 for uint8, 24 for uint16.
        chunk: symbols in a chunk, 1 to 2^24. Small chunks: more can be decoded at once, more offsets.

    Returns:
        The stream; `describe` says where its bytes go.

    Raises:
        TypeError: ``symbols`` is not a uint8 or uint16 array.
        ValueError: ``symbols`` is not one-dimensional, ``max_length`` or ``chunk`` is out of range,
            ``max_length`` is too short for the number of different symbols, or the payload takes
            more than 16 GiB.

    Source: Han, Mao and Dally 2016, section 4; Huffman 1952.

    Chapter: none (chapter to come: pruning/deep_compression)
    """
    if not isinstance(symbols, np.ndarray) or symbols.dtype.kind != "u" or symbols.dtype.itemsize > 2:
        found = symbols.dtype if isinstance(symbols, np.ndarray) else type(symbols).__name__
        raise TypeError(f"symbols is {found}; it must be a numpy array of uint8 or uint16")
    if symbols.ndim != 1:
        raise ValueError(f"symbols has {symbols.ndim} dimensions; it must have one")
    if max_length is not None and not 1 <= max_length <= LONGEST:
        raise ValueError(f"max_length is {max_length}; it may be 1 to {LONGEST}")
    if not 1 <= chunk <= 2**24:
        raise ValueError(f"chunk is {chunk}; it may be 1 to 2^24")
    width, n = symbols.dtype.itemsize, len(symbols)
    if n == 0:
        return _assemble(n, chunk, width, b"", b"")
    kernels = _kernels()
    symbols = np.ascontiguousarray(symbols, dtype=symbols.dtype.newbyteorder("="))
    freq = kernels.histogram(symbols, 256**width)
    lengths = code_lengths(freq, max_length or (16, 24)[width - 1])
    table = pack_lengths(lengths)
    if freq.max() == n:
        return _assemble(n, chunk, width, table, b"")
    chunks = -(-n // chunk)
    words = np.empty(int(freq @ lengths.astype(np.int64)) // 32 + chunks, np.uint32)
    starts = np.empty(chunks, np.int64)
    entries = (canonical_codes(lengths) << 5 | lengths).astype(np.uint64)
    used = kernels.encode_chunks(symbols, chunk, entries, words, starts)
    if used >= 2**32:
        raise ValueError(f"symbols take {4 * used} bytes; a stream holds 16 GiB: encode them in parts")
    body = starts[1:].astype("<u4").tobytes() + words[:used].astype("<u4", copy=False).tobytes()
    return _assemble(n, chunk, width, table, body)


def decode(blob: bytes | memoryview, *, max_symbols: int | None = None) -> np.ndarray:
    """The symbols of a stream.

    Args:
        blob: the stream, from a source that need not be trusted.
        max_symbols: refuse a stream of more symbols before memory is taken for them. None: what the
            payload can hold (at least a bit each), and 2^28 where only one symbol is used.

    Returns:
        uint8 or uint16 ``[n]``, as encoded.

    Raises:
        CorruptStream: ``blob`` is not a whole, unaltered stream, or declares more than ``max_symbols``.

    Chapter: none (chapter to come: pruning/deep_compression)
    """
    return _decode(read(blob, max_symbols=max_symbols), None)


def decode_chunk(stream: Stream, index: int) -> np.ndarray:
    """The symbols of one chunk, without a look at the others.

    Args:
        stream: what `read` found in the bytes.
        index: number of the chunk, 0 to ``len(stream.starts) - 2``.

    Returns:
        uint8 or uint16 ``[stream.chunk]``, or fewer in the last chunk.

    Raises:
        IndexError: there is no such chunk.
        CorruptStream: the chunk's bits do not end where the next chunk begins.

    Chapter: none (chapter to come: pruning/deep_compression)
    """
    if not 0 <= index < len(stream.starts) - 1:
        raise IndexError(f"index is {index}; the stream has {len(stream.starts) - 1} chunks")
    return _decode(stream, index)


def describe(blob: bytes | memoryview) -> Sizes:
    """Where the bytes of a stream go.

    Args:
        blob: the stream, from a source that need not be trusted.

    Returns:
        The number of symbols, and the bytes of header, table, offsets and payload.

    Raises:
        CorruptStream: ``blob`` is not a whole, unaltered stream.

    Chapter: none (chapter to come: pruning/deep_compression)
    """
    n, chunk, _, table, _, payload = _split(blob)
    offsets = 4 * (-(-n // chunk) - 1) if len(payload) else 0
    return Sizes(n, _HEADER.size, len(table), offsets, len(payload))


def read(blob: bytes | memoryview, *, max_symbols: int | None = None) -> Stream:
    """Take a stream apart and check its checksum and every bound, without decoding symbols.

    Args:
        blob: the stream, from a source that need not be trusted.
        max_symbols: as in `decode`.

    Returns:
        The parts. Memory taken is at most a few times the size of ``blob``.

    Raises:
        CorruptStream: as in `decode`; only the bits of the chunks are not looked at.

    Chapter: none (chapter to come: pruning/deep_compression)
    """
    n, chunk, width, table, offsets, payload = _split(blob)
    if max_symbols is not None and n > max_symbols:
        raise CorruptStream(f"the stream declares {n} symbols, more than max_symbols, which is {max_symbols}")
    if n == 0:
        return Stream(0, chunk, width, np.zeros(256**width, np.uint8), np.zeros(1, np.int64), np.zeros(1, np.uint32))
    lengths = unpack_lengths(table, 256**width)
    used = lengths[lengths > 0]
    words = len(payload) // 4
    if len(used) == 1:
        if words or len(offsets):
            raise CorruptStream("the stream has one used symbol and yet a payload")
        if max_symbols is None and n > _ONE_SYMBOL_LIMIT:
            raise CorruptStream(f"the stream declares {n} times one symbol; pass max_symbols to allow more than 2^28")
        starts = np.broadcast_to(np.int64(0), -(-n // chunk) + 1)
    else:
        if n * int(used.min()) > 32 * words:
            raise CorruptStream(f"the stream declares {n} symbols, more than its {len(payload)} bytes can hold")
        starts = np.concatenate([[0], np.frombuffer(offsets, "<u4"), [words]]).astype(np.int64)
        if (np.diff(starts) < 1).any():
            raise CorruptStream("the offsets of the chunks do not ascend within the payload")
    padded = np.zeros(words + 1, np.uint32)
    padded[:words] = np.frombuffer(payload, "<u4")
    return Stream(n, chunk, width, lengths, starts, padded)


def _kernels() -> ModuleType:
    """The compiled loops: numba is imported at first use, not with the package."""
    from reference.coding import _huffman_kernels

    return _huffman_kernels


def _assemble(n: int, chunk: int, width: int, table: bytes, body: bytes) -> bytes:
    head = _HEADER.pack(_MAGIC, 0, n, chunk, width << 24 | len(table))
    crc = _checksum(head, table + body) if len(body) < 2**20 else zlib.crc32(body, _checksum(head, table))
    return b"".join([_HEADER.pack(_MAGIC, crc, n, chunk, width << 24 | len(table)), table, body])


def _checksum(head: bytes | memoryview, rest: bytes | memoryview) -> int:
    return zlib.crc32(rest, zlib.crc32(head[8:], zlib.crc32(head[:4])))


def _split(blob: bytes | memoryview) -> tuple[int, int, int, bytes, memoryview, memoryview]:
    """Number of symbols, chunk, width, and the bytes of table, offsets and payload."""
    if len(blob) < _HEADER.size:
        raise CorruptStream(f"the stream is cut off: {len(blob)} bytes, a header takes {_HEADER.size}")
    magic, crc, n, chunk, sizes = _HEADER.unpack_from(blob)
    if magic != _MAGIC:
        raise CorruptStream(f"the stream begins with {magic!r}, not with {_MAGIC!r}")
    rest = memoryview(blob)[_HEADER.size :]
    if _checksum(blob[: _HEADER.size], rest) != crc:
        raise CorruptStream("the stream's checksum does not fit: its bytes were altered or cut off")
    width, table_bytes = sizes >> 24, sizes & 0xFFFFFF
    if width not in (1, 2) or not 1 <= chunk <= 2**24:
        raise CorruptStream(f"the stream declares symbols of {width} bytes in chunks of {chunk}")
    body = rest[table_bytes:]
    # without a payload, one symbol is used (or none), and there are no offsets
    offset_bytes = 4 * (-(-n // chunk) - 1) if n and len(body) else 0
    if table_bytes > len(rest) or offset_bytes > len(body) or (len(body) - offset_bytes) % 4:
        raise CorruptStream(f"the stream's {len(blob)} bytes do not hold the table and {n} symbols that it declares")
    if n == 0 and len(rest):
        raise CorruptStream("the stream declares no symbols and yet goes on")
    return n, chunk, width, bytes(rest[:table_bytes]), body[:offset_bytes], body[offset_bytes:]


def _decode(stream: Stream, index: int | None) -> np.ndarray:
    """One chunk, or all for None."""
    first = 0 if index is None else index * stream.chunk
    n = stream.symbols - first if index is None else min(stream.chunk, stream.symbols - first)
    dtype = np.dtype(f"<u{stream.width}").newbyteorder("=")
    order = np.flatnonzero(stream.lengths)
    if len(order) < 2:
        return np.full(n, order[0] if n else 0, dtype)
    order = order[np.argsort(stream.lengths[order], kind="stable")]
    bits = stream.lengths[order].astype(np.int64)
    codes = canonical_codes(stream.lengths)[order]
    longest = int(bits[-1])
    # words of l bits are those below limit[l] when 32 bits are read; base[l] + word is the place in `order`
    limit, base = np.zeros(longest + 1, np.int64), np.zeros(longest + 1, np.int64)
    limit[bits] = (codes + 1) << (32 - bits)
    limit = np.maximum.accumulate(limit)
    base[bits[::-1]] = (np.arange(len(order)) - codes)[::-1]
    kernels = _kernels()
    lookup_bits = min(longest, kernels.LOOKUP_BITS)
    lookup = kernels.fill_lookup(lookup_bits, order, bits, stream.width)
    starts = stream.starts if index is None else stream.starts[index : index + 2]
    out = np.empty(n * stream.width, np.uint8)
    bad = kernels.decode_chunks(
        stream.words,
        starts,
        stream.chunk * stream.width,
        stream.width,
        lookup,
        64 - lookup_bits,
        order,
        limit,
        base,
        out,
    )
    if bad >= 0:
        raise CorruptStream(f"chunk {bad if index is None else index} does not end where the next one begins")
    return out.view(f"<u{stream.width}").astype(dtype, copy=False)
