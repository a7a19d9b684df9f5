r"""Huffman coding of weights, codes and gaps: from symbols to a stream and back.

A stream (`reference.coding.huffman_stream` has it bit by bit) holds a canonical code, optimal among prefix codes with
a length limit, and the code words, in chunks that are decoded one by one or side by side.

No prefix code spends less than one bit on a code word, and none but by chance spends the entropy: one symbol of
probability 0.9 and another take 1 bit each against 0.47, the exponents of Gaussian weights 2.59 against 2.55. Where it
makes the stream shorter, a code word therefore stands for a block of symbols: the loss is spread over the block. The
price is a larger table, so short streams code symbol by symbol.
"""

import math
from types import ModuleType

import numpy as np

from reference.coding.code_table import LONGEST, MOST_BLOCKS, CorruptStream
from reference.coding.huffman_stream import BLOCK_BYTES, LARGEST_CHUNK, Stream, read, write
from reference.coding.huffman_stream import Sizes as Sizes
from reference.coding.huffman_stream import describe as describe
from reference.coding.prefix_code import canonical_codes, code_lengths
from reference.coding.prefix_code import entropy as entropy

#: Symbols from which the size of the blocks is chosen, and the part of the size for which no larger block is taken.
_SAMPLE, _SLACK = 2**20, 0.001


def encode(
    symbols: np.ndarray, *, max_length: int | None = None, chunk: int = 65_536, group: int | None = None
) -> bytes:
    """Code symbols with their own optimal canonical code.

    Args:
        symbols: ``[n]``, uint8 or uint16.
        max_length: longest code word in bits, 1 to 24; None: 16 for up to 256 code words, 24 for more.
        chunk: symbols in a chunk, 1 to 2^24. Small chunks: more can be decoded at once, more offsets.
        group: symbols that one code word stands for: 1 to 8 of uint8, 1 to 4 of uint16, and
            ``used symbols ** group`` at most 65,536. None: what makes the stream short. 1 is the plain
            Huffman code, for decoders that want one small table, and what a single block repeated gets.

    Returns:
        The stream; `describe` says where its bytes go.

    Raises:
        TypeError: ``symbols`` is not a uint8 or uint16 array.
        ValueError: ``symbols`` is not one-dimensional; ``max_length``, ``chunk`` or ``group`` is out of
            range; ``max_length`` is too short for the number of code words; or the payload takes
            more than 16 GiB.

    Source: Han, Mao and Dally 2016, section 4; Huffman 1952.

    Example:
        >>> symbols = np.array([0, 0, 1, 0, 2], dtype=np.uint8)
        >>> bool((decode(encode(symbols)) == symbols).all())
        True

    Chapter: pruning/deep_compression
    """
    _check(symbols, max_length, chunk, group)
    width, n = symbols.dtype.itemsize, len(symbols)
    nothing = np.empty(0, np.uint32)
    if n == 0:
        return write(Stream(0, chunk, width, 1, nothing, nothing, np.zeros(1, np.int64), nothing))
    kernels = _kernels()
    symbols = np.ascontiguousarray(symbols, dtype=symbols.dtype.newbyteorder("="))
    freq = kernels.histogram(symbols, 256**width)
    used = np.flatnonzero(freq)
    if len(used) == 1:
        return write(Stream(n, chunk, width, 1, used, np.ones(1, np.uint8), np.zeros(2, np.int64), nothing))
    if group is None:
        group = _choose_group(symbols, used, max_length)
    elif len(used) ** group > MOST_BLOCKS:
        raise ValueError(f"group is {group}; {len(used)} symbols make more than {MOST_BLOCKS} such blocks")
    if group > 1:
        blocks, chunk_blocks = _blocks(symbols, used, chunk, group), -(-chunk // group)
        block_freq = kernels.histogram(blocks, len(used) ** group)
    if group > 1 and block_freq.max() < len(blocks):
        freq = block_freq
    else:  # one block repeated has no code: its symbols have
        group, blocks, chunk_blocks = 1, symbols, chunk
    lengths = code_lengths(freq, max_length or _default_limit(len(used) ** group))
    entries = (canonical_codes(lengths) << 5 | lengths).astype(np.uint64)
    starts = np.empty(-(-n // chunk) + 1, np.int64)
    words = np.empty(int(freq @ lengths.astype(np.int64)) // 32 + len(starts), np.uint32)
    starts[-1] = kernels.encode_chunks(blocks, chunk_blocks, entries, words, starts[:-1])
    if starts[-1] >= 2**32:
        raise ValueError(f"symbols take {4 * starts[-1]} bytes; a stream holds 16 GiB: encode them in parts")
    lengths = lengths if group > 1 else lengths[used]
    return write(Stream(n, chunk, width, group, used, lengths, starts, words[: starts[-1]]))


def decode(blob: bytes | memoryview, *, max_symbols: int | None = None) -> np.ndarray:
    """The symbols of a stream.

    Args:
        blob: the stream, from a source that need not be trusted.
        max_symbols: refuse a stream of more symbols before memory is taken for them. None: what the
            payload can hold (a code word has a bit at least), and 2^28 where only one symbol is used.

    Returns:
        uint8 or uint16 ``[n]``, as encoded.

    Raises:
        CorruptStream: ``blob`` is not a whole, unaltered stream, or declares more than ``max_symbols``.

    Example:
        >>> symbols = np.array([7, 7, 7, 9, 7, 8, 7, 7], dtype=np.uint8)
        >>> decode(encode(symbols))
        array([7, 7, 7, 9, 7, 8, 7, 7], dtype=uint8)

    Chapter: pruning/deep_compression
    """
    stream = read(blob, max_symbols=max_symbols)
    return _decode(stream, 0, len(stream.starts) - 1)


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

    Example:
        >>> stream = read(encode(np.arange(10, dtype=np.uint8), chunk=4))
        >>> [decode_chunk(stream, index).tolist() for index in range(3)]
        [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]

    Chapter: pruning/deep_compression
    """
    if not 0 <= index < len(stream.starts) - 1:
        raise IndexError(f"index is {index}; the stream has {len(stream.starts) - 1} chunks")
    return _decode(stream, index, index + 1)


def _decode(stream: Stream, first: int, last: int) -> np.ndarray:
    """The chunks from ``first`` to before ``last``."""
    n = min(last * stream.chunk, stream.symbols) - first * stream.chunk
    dtype = np.dtype(f"<u{stream.width}")
    native = dtype.newbyteorder("=")
    if len(stream.used) < 2:
        return np.full(n, stream.used[0] if n else 0, native)
    order = np.flatnonzero(stream.lengths)
    order = order[np.argsort(stream.lengths[order], kind="stable")]
    bits = stream.lengths[order].astype(np.int64)
    codes = canonical_codes(bits)
    values = np.zeros(len(order), np.uint64)
    for k in range(stream.group):
        symbol = stream.used[order // len(stream.used) ** k % len(stream.used)].astype(np.uint64)
        values |= symbol << np.uint64(8 * stream.width * k)
    # words of l bits are those below limit[l] when 32 bits are read; base[l] + word is the place in `order`
    limit, base = np.zeros(LONGEST + 1, np.int64), np.zeros(LONGEST + 1, np.int64)
    limit[bits] = (codes + 1) << (32 - bits)
    limit = np.maximum.accumulate(limit)
    base[bits] = np.arange(len(order)) - codes
    kernels = _kernels()
    lookup_bits, block_bytes = min(int(bits[-1]), kernels.LOOKUP_BITS), stream.group * stream.width
    lookup, advance = kernels.fill_lookup(lookup_bits, values, bits, block_bytes)
    out = np.empty(n * stream.width, np.uint8)
    bad = kernels.decode_chunks(
        stream.words, stream.starts[first : last + 1], stream.chunk * stream.width, block_bytes,
        lookup, advance, 64 - lookup_bits, values, limit, base, out,
    )  # fmt: skip
    if bad >= 0:
        raise CorruptStream(f"chunk {first + bad} does not end where the next one begins")
    return out.view(dtype).astype(native, copy=False)


def _check(symbols: np.ndarray, max_length: int | None, chunk: int, group: int | None) -> None:
    if not isinstance(symbols, np.ndarray) or symbols.dtype.kind != "u" or symbols.dtype.itemsize > 2:
        found = symbols.dtype if isinstance(symbols, np.ndarray) else type(symbols).__name__
        raise TypeError(f"symbols is {found}; it must be a numpy array of uint8 or uint16")
    if symbols.ndim != 1:
        raise ValueError(f"symbols has {symbols.ndim} dimensions; it must have one")
    if max_length is not None and not 1 <= max_length <= LONGEST:
        raise ValueError(f"max_length is {max_length}; it may be 1 to {LONGEST}")
    if not 1 <= chunk <= LARGEST_CHUNK:
        raise ValueError(f"chunk is {chunk}; it may be 1 to 2^24")
    if group is not None and not 1 <= group <= BLOCK_BYTES // symbols.dtype.itemsize:
        raise ValueError(f"group is {group}; it may be 1 to {BLOCK_BYTES // symbols.dtype.itemsize}")


def _kernels() -> ModuleType:
    """The compiled loops: numba is imported at first use, not with the package."""
    from reference.coding import _huffman_kernels

    return _huffman_kernels


def _default_limit(code_words: int) -> int:
    return 16 if code_words <= 256 else LONGEST


def _blocks(symbols: np.ndarray, used: np.ndarray, chunk: int, group: int) -> np.ndarray:
    """uint16 ``[blocks]``, the number of each block, chunk by chunk."""
    m, width = len(used), symbols.dtype.itemsize
    scaled = np.zeros((group, 256**width), np.int64)
    scaled[:, used] = m ** np.arange(group)[:, None] * np.arange(m)
    whole, last = divmod(len(symbols), chunk)
    blocks = np.empty(whole * -(-chunk // group) + -(-last // group), np.uint16)
    _kernels().number_blocks(symbols, chunk, group, scaled, blocks)
    return blocks


def _choose_group(symbols: np.ndarray, used: np.ndarray, max_length: int | None) -> int:
    """The block size of the shortest stream, estimated from parts all over the symbols; smaller if it is as good."""
    n, m = len(symbols), len(used)
    parts, each = 16, _SAMPLE // 16
    sample = symbols
    if n > _SAMPLE:
        sample = np.concatenate([symbols[k * (n - each) // (parts - 1) :][:each] for k in range(parts)])
    sizes: list[float] = []
    for group in range(1, BLOCK_BYTES // symbols.dtype.itemsize + 1):
        limit = max_length or _default_limit(m**group)
        if group > 1 and (m**group > min(MOST_BLOCKS, 2**limit) or 8 * m**group > n):
            break
        freq = _kernels().histogram(_blocks(sample, used, LARGEST_CHUNK, group), m**group)
        words = int((freq > 0).sum())
        # a sample's own code fits it too well, by about 1/(2 ln 2) bits a word; a word takes some 3 bits of table
        bits = int(freq @ code_lengths(freq, limit).astype(np.int64)) + words / math.log(4)
        sizes.append(bits * n / len(sample) + 3 * words)
    return 1 + next(k for k, size in enumerate(sizes) if size < (1 + _SLACK) * min(sizes))
