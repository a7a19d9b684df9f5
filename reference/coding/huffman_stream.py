r"""The bytes of a Huffman stream: layout, and every check that needs no decoding.

A stream, with all numbers little-endian::

    byte  0  4 bytes   "HUF1"
          4  uint32    CRC-32 of all the other bytes
          8  uint64    n, the number of symbols
         16  uint32    symbols in a chunk; the last chunk may hold fewer
         20  uint24    bytes of the table
         23  uint8     bytes of a symbol (1 or 2) + 16 · g; a code word stands for a block of g symbols, 1 to 8
         24  table     used symbols and lengths of the code words (see `reference.coding.code_table`)
             offsets   uint32 for each chunk but the first: the word of the payload where it begins
             payload   uint32 words

Bit k of a chunk is bit 31 - k mod 32 of its word k // 32: code words follow each other, each with its most
significant bit first, and the chunk's last word is filled with zeros. A decoder therefore reads two neighbouring
words, shifts them left by (bit position mod 32), and has the next 33 bits at the top of a 64-bit number. A chunk's
last block is filled up with the lowest used symbol. No chunk needs another one.

The words of l bits are the numbers from first(l) to first(l) + count(l) - 1, with first(l + 1) = 2·(first(l) + count(l))
and first(1) = 0; they belong, in order, to the blocks of length l by ascending number. So the 32 bits x at the head of
a window begin a word of the least l with x < (first(l) + count(l))·2^(32 - l).

A stream with one used symbol has a table (g = 1) and neither offsets nor payload: nothing is left to say. A stream
without symbols ends after byte 23.
"""

import struct
import zlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from reference.coding import code_table
from reference.coding.code_table import CorruptStream

_HEADER = struct.Struct("<4sIQII")
_MAGIC = b"HUF1"
_ONE_SYMBOL_LIMIT = 2**28

#: Most symbols in a chunk; most bytes in a block.
LARGEST_CHUNK, BLOCK_BYTES = 2**24, 8


class Sizes(NamedTuple):
    """What a stream holds and where its bytes go; the four sizes add up to the stream.

    Example:
        >>> from reference.coding.huffman import encode
        >>> sizes = describe(encode(np.arange(256, dtype=np.uint8).repeat(4)))
        >>> sizes.payload_bytes  # 256 symbols, equally frequent, 1,024 times: nothing to win
        1024
        >>> sizes.header_bytes
        24

    Chapter: pruning/deep_compression
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
        symbols: number of symbols, n.
        chunk: symbols in each chunk but the last.
        width: bytes of a symbol, 1 or 2.
        group: symbols in a block, g.
        used: int64 ``[m]``, the used symbols, ascending.
        lengths: uint8 ``[m ** g]``, code lengths of the blocks in bits, 0 for none.
        starts: int64 ``[chunks + 1]``, first word of each chunk, and the number of words.
        words: uint32 ``[words + 1]``, the payload, and a zero so that two words can be read anywhere.

    Example:
        >>> from reference.coding.huffman import encode
        >>> stream = read(encode(np.array([5, 5, 9, 5, 6, 5, 5, 5], dtype=np.uint8), group=1))
        >>> stream.symbols, stream.used.tolist(), stream.lengths.tolist()
        (8, [5, 6, 9], [1, 2, 2])
        >>> f"{stream.words[0]:032b}"[:10]  # 5 is 0, 6 is 10, 9 is 11
        '0011010000'

    Chapter: pruning/deep_compression
    """

    symbols: int
    chunk: int
    width: int
    group: int
    used: np.ndarray
    lengths: np.ndarray
    starts: np.ndarray
    words: np.ndarray


def write(stream: Stream) -> bytes:
    """The bytes of a stream; `read` undoes it.

    Args:
        stream: the parts. ``words`` without the zero at its end.

    Returns:
        The bytes, checksum included.

    Example:
        >>> from dataclasses import replace
        >>> from reference.coding.huffman import encode
        >>> blob = encode(np.array([5, 5, 9], dtype=np.uint8))
        >>> stream = read(blob)
        >>> write(replace(stream, words=stream.words[:-1])) == blob
        True

    Chapter: none (plumbing: the layout is the module's docstring)
    """
    table = code_table.pack(stream.used, stream.lengths) if stream.symbols else b""
    offsets, payload = stream.starts[1:-1].astype("<u4").tobytes(), stream.words.astype("<u4", copy=False).data
    fields = stream.symbols, stream.chunk, (stream.group << 4 | stream.width) << 24 | len(table)
    crc = zlib.crc32(_MAGIC)
    for part in (_HEADER.pack(_MAGIC, 0, *fields)[8:], table, offsets, payload):
        crc = zlib.crc32(part, crc)
    return b"".join([_HEADER.pack(_MAGIC, crc, *fields), table, offsets, payload])


def read(blob: bytes | memoryview, *, max_symbols: int | None = None) -> Stream:
    """Take a stream apart and check its checksum and every bound, without decoding symbols.

    Args:
        blob: the stream, from a source that need not be trusted.
        max_symbols: refuse a stream that declares more. None: what the payload can hold, and 2^28
            where only one symbol is used.

    Returns:
        The parts. Memory taken is at most 5 MB and a few times the size of ``blob``.

    Raises:
        CorruptStream: ``blob`` is not a whole, unaltered stream, or declares more than ``max_symbols``;
            only the bits of the chunks are not looked at.

    Example:
        >>> from reference.coding.huffman import encode
        >>> blob = encode(np.array([5, 5, 9], dtype=np.uint8))
        >>> read(blob).used
        array([5, 9])
        >>> read(blob, max_symbols=2)
        Traceback (most recent call last):
            ...
        reference.coding.code_table.CorruptStream: the stream declares 3 symbols, more than max_symbols, which is 2

    Chapter: pruning/deep_compression
    """
    n, chunk, width, group, table, offsets, payload = _split(blob)
    if max_symbols is not None and n > max_symbols:
        raise CorruptStream(f"the stream declares {n} symbols, more than max_symbols, which is {max_symbols}")
    if n == 0:
        nothing = np.empty(0, np.int64)
        return Stream(0, chunk, width, group, nothing, nothing, np.zeros(1, np.int64), np.zeros(1, np.uint32))
    used, lengths = code_table.unpack(table, 256**width, group)
    words = len(payload) // 4
    if len(used) == 1:
        if words or len(offsets) or group > 1:
            raise CorruptStream("the stream has one used symbol and yet a payload or blocks")
        if max_symbols is None and n > _ONE_SYMBOL_LIMIT:
            raise CorruptStream(f"the stream declares {n} times one symbol; pass max_symbols to allow more than 2^28")
        starts = np.broadcast_to(np.int64(0), -(-n // chunk) + 1)
    else:
        if -(-n // group) * int(lengths[lengths > 0].min()) > 32 * words:
            raise CorruptStream(f"the stream declares {n} symbols, more than its {len(payload)} bytes can hold")
        starts = np.concatenate([[0], np.frombuffer(offsets, "<u4"), [words]]).astype(np.int64)
        if (np.diff(starts) < 1).any():
            raise CorruptStream("the offsets of the chunks do not ascend within the payload")
    padded = np.zeros(words + 1, np.uint32)
    padded[:words] = np.frombuffer(payload, "<u4")
    return Stream(n, chunk, width, group, used, lengths, starts, padded)


def describe(blob: bytes | memoryview) -> Sizes:
    """Where the bytes of a stream go.

    Args:
        blob: the stream, from a source that need not be trusted.

    Returns:
        The number of symbols, and the bytes of header, table, offsets and payload.

    Raises:
        CorruptStream: ``blob`` is not a whole, unaltered stream.

    Example:
        >>> from reference.coding.huffman import encode
        >>> sizes = describe(blob := encode(np.zeros(1000, dtype=np.uint8)))
        >>> sizes.payload_bytes, sum(sizes[1:]) == len(blob)  # one symbol: the number of them says all
        (0, True)

    Chapter: pruning/deep_compression
    """
    n, _, _, _, table, offsets, payload = _split(blob)
    return Sizes(n, _HEADER.size, len(table), len(offsets), len(payload))


def _split(blob: bytes | memoryview) -> tuple[int, int, int, int, bytes, memoryview, memoryview]:
    """Number of symbols, chunk, width, group, and the bytes of table, offsets and payload."""
    if len(blob) < _HEADER.size:
        raise CorruptStream(f"the stream is cut off: {len(blob)} bytes, a header takes {_HEADER.size}")
    magic, crc, n, chunk, sizes = _HEADER.unpack_from(blob)
    if magic != _MAGIC:
        raise CorruptStream(f"the stream begins with {magic!r}, not with {_MAGIC!r}")
    view = memoryview(blob)
    if zlib.crc32(view[8:], zlib.crc32(_MAGIC)) != crc:
        raise CorruptStream("the stream's checksum does not fit: its bytes were altered or cut off")
    group, width, table_bytes = sizes >> 28, sizes >> 24 & 15, sizes & 0xFFFFFF
    if width not in (1, 2) or not 1 <= group * width <= BLOCK_BYTES or not 1 <= chunk <= LARGEST_CHUNK:
        raise CorruptStream(f"the stream declares blocks of {group} symbols of {width} bytes, in chunks of {chunk}")
    rest = view[_HEADER.size :]
    body = rest[table_bytes:]
    # without a payload, one symbol is used (or none), and there are no offsets
    offset_bytes = 4 * (-(-n // chunk) - 1) if n and len(body) else 0
    if table_bytes > len(rest) or offset_bytes > len(body) or (len(body) - offset_bytes) % 4:
        raise CorruptStream(f"the stream's {len(blob)} bytes do not hold the table and {n} symbols that it declares")
    if n == 0 and len(rest):
        raise CorruptStream("the stream declares no symbols and yet goes on")
    return n, chunk, width, group, bytes(rest[:table_bytes]), body[:offset_bytes], body[offset_bytes:]
