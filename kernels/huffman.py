r"""Decode Huffman streams side by side, and put bfloat16 weights together again, bit for bit.

A stream (`reference.coding.huffman_stream`) is cut into chunks of equally many symbols. Each starts at a word of its
own, so no chunk needs another one: a lane takes a chunk. It holds 64 bits of it at a time::

    words of a chunk      │ w0 │ w1 │ w2 │ w3 │ …      most significant bit first
                                      ▲ at: the word that is loaded ahead of its need
    window, 64 bits       ├──────── have ────────┤000
                          ├─ BITS ─┤
                              │ table[2^BITS]: symbol │ length << 8
                              ▼
    window <<= length     have -= length               one symbol; at have ≤ 32 the loaded word is appended

Sixteen symbols are joined in registers before anything is written: as bytes, or, with the raw byte of each weight
beside it, as bfloat16::

    coded (exponent)       eeeeeeee
    raw                  s          mmmmmmm
    bfloat16             s eeeeeeee mmmmmmm

What bounds it: a table of 2^BITS two-byte entries, read at 32 unrelated places by each warp, should lie in few lines of
the first-level cache (8 bits: four lines, 12 bits: 64); and there must be chunks enough to fill the GPU, because each
symbol waits for the one before it. Short chunks give more lanes and cost 48 bits each (the offset, and half a word
that is not filled). Both are the encoder's choice: `max_length` and `chunk` of `reference.coding.huffman.encode`.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._checks import check_rows, check_shape, check_size, check_start, check_tensors
from ._triton import jit, tl, triton

BLOCK = 16  # symbols that a lane decodes before it writes
LONGEST = 16  # bits of a code word: a larger table would leave the first-level cache


class Lanes(NamedTuple):
    """How chunks are spread: warps of 32 lanes in a program.

    Example:
        >>> 32 * LANES.warps, 32 * Lanes(warps=4).warps  # chunks that one program decodes side by side
        (32, 128)

    Chapter: advanced/kernels
    """

    warps: int


LANES = Lanes(warps=1)


@jit
def _symbol(head, table, BITS: tl.constexpr):
    """The symbol whose code word ``head`` begins with, ``head`` without it, and its length."""
    entry = tl.load(table + (head >> (32 - BITS)).to(tl.int32)).to(tl.uint32) & 0xFFFF
    length = entry >> 8
    return entry & 255, head << length, length


@jit
def _refill(window, have, at, ahead, words, end):
    """Append the word that was loaded ahead where 32 bits or fewer are left, and load the one after it."""
    low = have <= 32
    window |= tl.where(low, ahead.to(tl.uint64) << (32 - have).to(tl.uint64), 0)
    have += tl.where(low, 32, 0)
    at += low.to(tl.int32)
    # Lanes that keep their word do not load. Past the chunk's end there are zeros.
    word = tl.load(words + at, mask=low & (at < end), other=0).to(tl.uint32, bitcast=True)
    return window, have, at, tl.where(low, word, ahead)


@jit
def _pair(
    window, have, at, ahead, words, end, table, left, BITS: tl.constexpr, REFILL: tl.constexpr, ALL: tl.constexpr
):
    """Two symbols, as the halves of 32 bits. Not ALL: a lane decodes no more symbols than are ``left`` to it."""
    if REFILL:
        window, have, at, ahead = _refill(window, have, at, ahead, words, end)
    head = (window >> 32).to(tl.uint32)
    first, head, length = _symbol(head, table, BITS)
    used = length if ALL else tl.where(left > 0, length, 0)
    second, head, length = _symbol(head, table, BITS)
    used += length if ALL else tl.where(left > 1, length, 0)
    return first | (second << 16), window << used.to(tl.uint64), have - used.to(tl.int32), at, ahead


@jit
def _four(a, b, c, d):
    """Four values of a lane as the four columns of ``[lanes, 4]``."""
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (a.shape[0], 4))


@jit
def _four_bytes(low, high):
    """The symbols of two pairs as the bytes of 32 bits."""
    return ((low | (low >> 8)) & 0xFFFF) | ((high | (high >> 8)) << 16)


@jit
def _with_raw(pair, raw):
    """Two bfloat16 in 32 bits: exponents from ``pair``, sign and mantissa from the lower two bytes of ``raw``."""
    raw = (raw & 0xFF) | ((raw & 0xFF00) << 8)
    return ((raw & 0x00800080) << 8) | (pair << 7) | (raw & 0x007F007F)


@jit
def _block(
    window, have, at, ahead, words, end, table, raw, out, position, go, left, RAW: tl.constexpr,
    BITS: tl.constexpr, ALL: tl.constexpr,
):  # fmt: skip
    """Sixteen symbols of each lane, written where ``go``; the state after them."""
    REST: tl.constexpr = BITS > 8  # 32 bits hold two words of 16 bits or four of 8
    p0, window, have, at, ahead = _pair(window, have, at, ahead, words, end, table, left, BITS, True, ALL)
    p1, window, have, at, ahead = _pair(window, have, at, ahead, words, end, table, left - 2, BITS, REST, ALL)
    p2, window, have, at, ahead = _pair(window, have, at, ahead, words, end, table, left - 4, BITS, True, ALL)
    p3, window, have, at, ahead = _pair(window, have, at, ahead, words, end, table, left - 6, BITS, REST, ALL)
    p4, window, have, at, ahead = _pair(window, have, at, ahead, words, end, table, left - 8, BITS, True, ALL)
    p5, window, have, at, ahead = _pair(window, have, at, ahead, words, end, table, left - 10, BITS, REST, ALL)
    p6, window, have, at, ahead = _pair(window, have, at, ahead, words, end, table, left - 12, BITS, True, ALL)
    p7, window, have, at, ahead = _pair(window, have, at, ahead, words, end, table, left - 14, BITS, REST, ALL)
    four = tl.arange(0, 4)[None, :]
    if RAW:
        r = tl.load(raw + position[:, None] // 4 + four, mask=go[:, None], other=0).to(tl.uint32, bitcast=True)
        even, odd = tl.split(tl.reshape(r, (position.shape[0], 2, 2)))
        r0, r2 = tl.split(even)
        r1, r3 = tl.split(odd)
        to = out + position[:, None] // 2 + four
        first = _four(_with_raw(p0, r0), _with_raw(p1, r0 >> 16), _with_raw(p2, r1), _with_raw(p3, r1 >> 16))
        second = _four(_with_raw(p4, r2), _with_raw(p5, r2 >> 16), _with_raw(p6, r3), _with_raw(p7, r3 >> 16))
        tl.store(to, first.to(tl.int32, bitcast=True), mask=go[:, None])
        tl.store(to + 4, second.to(tl.int32, bitcast=True), mask=go[:, None])
    else:
        bytes16 = _four(_four_bytes(p0, p1), _four_bytes(p2, p3), _four_bytes(p4, p5), _four_bytes(p6, p7))
        tl.store(out + position[:, None] // 4 + four, bytes16.to(tl.int32, bitcast=True), mask=go[:, None])
    return window, have, at, ahead


@jit
def _decode(
    words, starts, table, raw, out, damaged, WORDS, CHUNKS, SYMBOLS,
    CHUNK: tl.constexpr, BITS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    RAW: tl.constexpr = raw is not None
    chunk = tl.program_id(0) * LANES + tl.arange(0, LANES)
    inside = chunk < CHUNKS
    begin = tl.load(starts + chunk, mask=inside, other=0)
    end = tl.load(starts + chunk + 1, mask=inside, other=0)
    lost = (begin < 0) | (end < begin) | (end > WORDS)  # never in a stream that `read` let pass
    end = tl.where(lost, begin, end)
    begin = tl.maximum(begin, 0)
    high = tl.load(words + begin, mask=begin < end, other=0).to(tl.uint32, bitcast=True)
    low = tl.load(words + begin + 1, mask=begin + 1 < end, other=0).to(tl.uint32, bitcast=True)
    window = (high.to(tl.uint64) << 32) | low.to(tl.uint64)
    have = tl.full((LANES,), 64, tl.int32)
    at = begin + 2  # the word loaded ahead
    ahead = tl.load(words + at, mask=at < end, other=0).to(tl.uint32, bitcast=True)
    n = tl.minimum(SYMBOLS - chunk * CHUNK, CHUNK)  # symbols of this lane; below 1 for lanes without a chunk
    last = tl.program_id(0) == tl.num_programs(0) - 1
    # All lanes have CHUNK symbols, except in the last program; a chunk ends with a block of 16, except the last one.
    first = chunk.to(tl.int64) * CHUNK
    for done in range(0, CHUNK, 16):
        if last:
            go = done < n
            window, have, at, ahead = _block(
                window, have, at, ahead, words, end, table, raw, out, first + done, go, n - done, RAW, BITS, False
            )
        else:
            window, have, at, ahead = _block(
                window, have, at, ahead, words, end, table, raw, out, first + done, inside, n, RAW, BITS, True
            )
    # The bits left over are fewer than a word, and zero; past the end zeros were read.
    rest = (end - at) * 32 + have
    lost |= (rest < 0) | (rest > 31) | ((window >> 32) != 0)
    tl.store(damaged + chunk, lost, mask=inside)


def huffman(
    words: Tensor,
    starts: Tensor,
    table: Tensor,
    raw: Tensor | None = None,
    *,
    symbols: int,
    chunk: int,
    plan: Lanes = LANES,
) -> tuple[Tensor, Tensor]:
    r"""The symbols of a Huffman stream, or the bfloat16 weights whose exponents they are.

    ============  ============================  ==========================================================
    argument      shape                         dtype and layout
    ============  ============================  ==========================================================
    ``words``     ``[W]``                       int32, contiguous; the payload, code words from bit 31 down
    ``starts``    ``[C + 1]``                   int32, contiguous; first word of each chunk, and the end
    ``table``     ``[2^L]``                     int16, contiguous; entry of the L bits that come next:
                                                symbol + 256 · length of its code word
    ``raw``       ``[16 · ceil(symbols/16)]``   uint8, contiguous; sign and mantissa of each weight; or None
    returns       ``[symbols]``                 uint8, or bfloat16 where ``raw`` is given
    and           ``[C]``                       bool: chunks whose bits do not end where the next begins
    ============  ============================  ==========================================================

    `reference.coding.resident` makes these tensors from the bytes of `reference.coding.lossless.encode`.

    Whatever the tensors hold, nothing outside them is read or written, and time is bounded by ``symbols``: a damaged
    chunk gives wrong symbols and is reported. To look at the report waits for the GPU.

    Roofline: ``4 W + 4 C + 2^(L + 1)`` bytes of stream and ``symbols`` of raw bytes read, ``2 · symbols`` written
    (without ``raw``: none read, ``symbols`` written). Of bfloat16 at 2.6 bits an exponent that is 3.33 bytes a weight.

    Args:
        words: the payload.
        starts: ascending, from 0 to W.
        table: for words of at most L bits, 1 to 16; 8 to 12 keep it in the first-level cache.
        raw: the bits of the weights that are not coded, filled up to a multiple of 16.
        symbols: number of symbols, n.
        chunk: symbols of each chunk but the last, a multiple of 16; C is n / chunk, rounded up.
        plan: warps of a program, to measure them.

    Raises:
        TypeError: a dtype is none of the above.
        ValueError: shapes, strides, devices, ``symbols`` or ``chunk`` do not fit.
        ImportError: Triton is not installed.

    Source: coded exponents beside raw signs and mantissas are Zhang et al. 2025 (DFloat11, arXiv 2504.11651).

    Example:
        >>> from reference.coding.resident import ResidentTensor
        >>> weights = torch.tensor([1.0, -2.0, 3.0, 0.125] * 16).bfloat16()
        >>> kept = ResidentTensor.from_tensor(weights, "cpu", chunk=16)
        >>> values, damaged = huffman(kept.words, kept.starts, kept.table, kept.raw, symbols=64, chunk=16)
        >>> torch.equal(values, weights), damaged.tolist()
        (True, [False, False, False, False])

    Chapter: advanced/kernels
    """
    _check(words, starts, table, raw, symbols, chunk)
    dtype = torch.uint8 if raw is None else torch.bfloat16
    out = torch.empty(triton.cdiv(symbols, BLOCK) * BLOCK, dtype=dtype, device=words.device)
    damaged = torch.empty(len(starts) - 1, dtype=torch.bool, device=words.device)
    if symbols:
        with torch.cuda.device_of(words):
            _launch(words, starts, table, raw, out, damaged, symbols, chunk, plan)
    return out[:symbols], damaged


def _launch(
    words: Tensor, starts: Tensor, table: Tensor, raw: Tensor | None, out: Tensor, damaged: Tensor,
    symbols: int, chunk: int, lanes: Lanes,
) -> None:  # fmt: skip
    _decode[(triton.cdiv(len(damaged), 32 * lanes.warps),)](
        words, starts, table, None if raw is None else raw.view(torch.int32), out.view(torch.int32), damaged,
        len(words), len(damaged), symbols,
        CHUNK=chunk, BITS=len(table).bit_length() - 1, LANES=32 * lanes.warps, num_warps=lanes.warps,
    )  # fmt: skip


def _check(words: Tensor, starts: Tensor, table: Tensor, raw: Tensor | None, symbols: int, chunk: int) -> None:
    """Refuse by name what the kernel would read wrongly."""
    check_tensors(
        {
            "words": (words, (torch.int32,), 1),
            "starts": (starts, (torch.int32,), 1),
            "table": (table, (torch.int16,), 1),
            "raw": (raw, (torch.uint8,), 1),
        },
        strided=(),
    )
    check_rows("words", words)
    check_size("words", words)
    for name, value in (("symbols", symbols), ("chunk", chunk)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} was {type(value).__name__}, may be an int")
    if not 0 <= symbols < 2**31:
        raise ValueError(f"symbols was {symbols}, may be 0 to 2**31 - 1 (positions are 32-bit)")
    if chunk < BLOCK or chunk % BLOCK or chunk >= 2**25:
        raise ValueError(f"chunk was {chunk}, may be a multiple of {BLOCK} below 2**25")
    if len(starts) != triton.cdiv(symbols, chunk) + 1:
        raise ValueError(
            f"starts had {len(starts)} entries, may have {triton.cdiv(symbols, chunk) + 1}: {symbols} symbols lie in "
            f"chunks of {chunk}, and the end counts"
        )
    if len(table) not in [2**bits for bits in range(1, LONGEST + 1)]:
        raise ValueError(f"table had {len(table)} entries, may have 2 to 2**{LONGEST}, a power of two")
    check_shape("raw", raw, [triton.cdiv(symbols, BLOCK) * BLOCK], "(a byte a symbol, filled up to 16)")
    check_start("raw", raw)
