"""The loops of the Huffman codec, compiled by numba: imported only when a stream is coded or decoded."""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

#: Bits looked up at once, at most: 4,096 entries of 8 bytes stay in the first-level cache.
LOOKUP_BITS = 12


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
def encode_chunks(symbols, chunk, entries, words, starts):  # type: ignore[no-untyped-def]
    """Write each chunk's code words from a word boundary on; entries are code · 32 + length, 24 bits long at most."""
    at = 0
    for c in range(len(starts)):
        starts[c] = at
        held = np.uint64(0)
        bits = np.uint64(0)
        for i in range(c * chunk, min((c + 1) * chunk, len(symbols))):
            entry = entries[symbols[i]]
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
def fill_lookup(lookup_bits, order, length_of, width):  # type: ignore[no-untyped-def]
    """What each pattern of ``lookup_bits`` bits decodes to: as many whole symbols as fit, up to four bytes.

    Bits 0-31 of an entry: the bytes, first symbol lowest. 32-35: their number, 0 if the pattern begins a longer
    code word. 36-41: bits used. 42-47: bits of the first symbol.
    """
    size = 1 << lookup_bits
    symbol = np.zeros(size, np.int64)
    bits = np.zeros(size, np.int64)
    at = 0
    for k in range(len(order)):
        length = length_of[k]
        if length > lookup_bits:
            break
        for _ in range(1 << (lookup_bits - length)):
            symbol[at] = order[k]
            bits[at] = length
            at += 1
    lookup = np.zeros(size, np.uint64)
    for pattern in range(size):
        entry, used, count = 0, 0, 0
        while count < 4:
            rest = (pattern << used) & (size - 1)
            if bits[rest] == 0 or used + bits[rest] > lookup_bits:
                break
            entry |= symbol[rest] << (8 * count)
            used += bits[rest]
            count += width
        lookup[pattern] = np.uint64(entry | count << 32 | used << 36 | bits[pattern] << 42)
    return lookup


@_compiled
def decode_chunks(words, starts, chunk, width, lookup, shift, order, limit, base, out):  # type: ignore[no-untyped-def]
    """Decode the chunks that begin at ``starts[:-1]`` into the bytes ``out``; the first damaged one, or -1.

    ``chunk`` in bytes of output. ``words`` has one word more than ``starts[-1]``. ``shift`` is 64 less the bits
    of the lookup.
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
            entry = lookup[window >> np.uint64(shift)]
            if entry & np.uint64(0xF00000000) and o + 4 <= stop:
                out[o] = np.uint8(entry)
                out[o + 1] = np.uint8(entry >> np.uint64(8))
                out[o + 2] = np.uint8(entry >> np.uint64(16))
                out[o + 3] = np.uint8(entry >> np.uint64(24))
                o += np.int64(entry >> np.uint64(32)) & 15
                at += np.int64(entry >> np.uint64(36)) & 63
                continue
            length = np.int64(entry >> np.uint64(42)) & 63
            symbol = np.int64(entry & np.uint64(0xFFFF))
            if length == 0:
                head = np.int64(window >> np.uint64(32))
                length = 65 - shift
                while head >= limit[length]:
                    length += 1
                symbol = order[base[length] + (head >> (32 - length))]
            out[o] = np.uint8(symbol & 255)
            if width == 2:
                out[o + 1] = np.uint8(symbol >> 8)
            o += width
            at += length
        if at > end or end - at > 31:
            return c
        if at < end and np.int64(words[(end >> 5) - 1]) & ((1 << (end - at)) - 1):
            return c
    return -1
