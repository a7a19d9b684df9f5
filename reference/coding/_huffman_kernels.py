"""The loops of the Huffman codec, compiled by numba: imported only when a stream is coded or decoded."""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

#: Bits looked up at once, at most; 2,048 entries of 12 bytes stay in the first-level cache.
LOOKUP_BITS = 11


def _compiled(function: Callable) -> Any:
    """Compile at the first call and keep the machine code on disk, where there is a folder to write to."""
    try:
        return numba.njit(cache=True)(function)
    except RuntimeError:
        return numba.njit(function)


@_compiled
def histogram(symbols, alphabet):  # type: ignore[no-untyped-def]
    """Four tables in turns, so that a count is not added to while it is still being written."""
    count = np.zeros((4, alphabet), np.int64)
    whole = len(symbols) // 4 * 4
    for i in range(0, whole, 4):
        count[0, symbols[i]] += 1
        count[1, symbols[i + 1]] += 1
        count[2, symbols[i + 2]] += 1
        count[3, symbols[i + 3]] += 1
    for i in range(whole, len(symbols)):
        count[0, symbols[i]] += 1
    return count[0] + count[1] + count[2] + count[3]


@_compiled
def number_blocks(symbols, chunk, group, scaled, blocks):  # type: ignore[no-untyped-def]
    """Number of each block of ``group`` symbols; ``scaled[k, s]`` is what symbol s adds as the k-th of its block.

    A chunk's last block is filled up with the symbol of rank 0, which adds nothing.
    """
    at = 0
    for begin in range(0, len(symbols), chunk):
        end = min(begin + chunk, len(symbols))
        whole = begin + (end - begin) // group * group
        for i in range(begin, whole, group):
            number = scaled[0, symbols[i]]
            for k in range(1, group):
                number += scaled[k, symbols[i + k]]
            blocks[at] = number
            at += 1
        if whole < end:
            number = scaled[0, symbols[whole]]
            for i in range(whole + 1, end):
                number += scaled[i - whole, symbols[i]]
            blocks[at] = number
            at += 1


@_compiled
def encode_chunks(blocks, chunk, entries, words, starts):  # type: ignore[no-untyped-def]
    """Write each chunk's code words from a word boundary on; entries are code · 32 + length, 24 bits long at most."""
    at = 0
    for c in range(len(starts)):
        starts[c] = at
        held = np.uint64(0)
        bits = np.uint64(0)
        for i in range(c * chunk, min((c + 1) * chunk, len(blocks))):
            entry = entries[blocks[i]]
            length = entry & np.uint64(31)
            held = (held << length) | (entry >> np.uint64(5))
            bits += length
            if bits >= np.uint64(32):
                bits -= np.uint64(32)
                words[at] = np.uint32(held >> bits)
                at += 1
        if bits > np.uint64(0):
            words[at] = np.uint32(held << (np.uint64(32) - bits))
            at += 1
    return at


@_compiled
def fill_lookup(lookup_bits, values, lengths, block_bytes):  # type: ignore[no-untyped-def]
    """What each pattern of ``lookup_bits`` bits decodes to: as many whole blocks as fit in it and in eight bytes.

    Two arrays: the bytes, the first lowest; and their number in bits 0-3 (0 if the pattern begins a longer code
    word), the bits used in 4-9, and those of the first block alone in 10-15.
    """
    size = 1 << lookup_bits
    value = np.zeros(size, np.uint64)
    bits = np.zeros(size, np.int64)
    at = 0
    for k in range(len(values)):
        if lengths[k] > lookup_bits:
            break
        for _ in range(1 << (lookup_bits - lengths[k])):
            value[at] = values[k]
            bits[at] = lengths[k]
            at += 1
    output = np.zeros(size, np.uint64)
    advance = np.zeros(size, np.uint32)
    for pattern in range(size):
        held, used, count = np.uint64(0), 0, 0
        while count + block_bytes <= 8:
            rest = (pattern << used) & (size - 1)
            if bits[rest] == 0 or used + bits[rest] > lookup_bits:
                break
            held |= value[rest] << np.uint64(8 * count)
            used += bits[rest]
            count += block_bytes
        output[pattern] = held
        advance[pattern] = count | used << 4 | bits[pattern] << 10
    return output, advance


@_compiled
def decode_chunks(words, starts, chunk, block_bytes, lookup, advance, shift, values, limit, base, out):  # type: ignore[no-untyped-def]
    """Decode the chunks that begin at ``starts[:-1]`` into the bytes ``out``; the first damaged one, or -1.

    ``chunk`` in bytes of output. ``words`` has one word more than ``starts[-1]``. ``shift`` is 64 less the bits
    of the lookup. A pattern without a whole block advances by nothing: such a word is left to the next window.
    """
    for c in range(len(starts) - 1):
        at = starts[c] * 32
        end = starts[c + 1] * 32
        o = c * chunk
        stop = min(o + chunk, len(out))
        while o < stop:
            if at >= end:
                return c
            i = at >> 5
            window = (np.uint64(words[i]) << np.uint64(32) | np.uint64(words[i + 1])) << np.uint64(at & 31)
            pattern = window >> np.uint64(shift)
            step = np.int64(advance[pattern])
            if step & 15 and o + 24 <= stop:
                u = np.uint64(o)  # unsigned: an index that cannot be negative needs no check
                for _ in range(3):  # three lookups take 33 bits at most, as many as the window has
                    value = lookup[pattern]
                    out[u] = np.uint8(value)
                    out[u + np.uint64(1)] = np.uint8(value >> np.uint64(8))
                    out[u + np.uint64(2)] = np.uint8(value >> np.uint64(16))
                    out[u + np.uint64(3)] = np.uint8(value >> np.uint64(24))
                    out[u + np.uint64(4)] = np.uint8(value >> np.uint64(32))
                    out[u + np.uint64(5)] = np.uint8(value >> np.uint64(40))
                    out[u + np.uint64(6)] = np.uint8(value >> np.uint64(48))
                    out[u + np.uint64(7)] = np.uint8(value >> np.uint64(56))
                    u += np.uint64(step & 15)
                    used = np.uint64(step >> 4 & 63)
                    at += np.int64(used)
                    window <<= used
                    pattern = window >> np.uint64(shift)
                    step = np.int64(advance[pattern])
                o = np.int64(u)
                continue
            value = lookup[pattern]
            length = step >> 10
            if length == 0:
                head = np.int64(window >> np.uint64(32))
                length = 65 - shift
                while head >= limit[length]:
                    length += 1
                value = values[base[length] + (head >> (32 - length))]
            for k in range(min(block_bytes, stop - o)):
                out[o + k] = np.uint8(value >> np.uint64(8 * k))
            o += block_bytes
            at += length
        if at > end or end - at > 31:
            return c
        if at < end and np.int64(words[(end >> 5) - 1]) & ((1 << (end - at)) - 1):
            return c
    return -1
