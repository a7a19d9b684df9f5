r"""The table at the head of a Huffman stream: which symbols are used, and the length of each code word, in few bits.

A canonical code is known from its lengths alone. A code word stands for a block of g symbols: with m used symbols,
the block of those with ranks r_0, r_1, … (from 0, ascending) has the number r_0 + m·r_1 + m²·r_2 + … The bits, first
bit = most significant bit of the first byte; gamma(x) is Elias's code of x ≥ 1, as many zeros as x has bits after its
first, then x in binary::

    gamma(number of runs of used symbols)
    for each run:  gamma(unused symbols before it + 1)   gamma(used symbols in it)
    then for the blocks from number 0 to m^g - 1, one of
      0              the length of the block before that has a code word
      100            that length + 1
      101            that length - 1
      110 gamma(r)   r blocks without a code word
      111 lllll      the length lllll, 1 to 24 (always so for the first)
    zeros up to a whole byte

Lengths of neighbouring weights differ little, so this takes about two bits a symbol.
"""

import numpy as np

#: The longest code word that a table can describe, in bits, and the most blocks that a code may have.
LONGEST, MOST_BLOCKS = 24, 65_536


class CorruptStream(ValueError):
    """The bytes are not those of a stream: cut off, altered, or made up.

    Example:
        >>> unpack(b"", alphabet=256, group=1)
        Traceback (most recent call last):
            ...
        reference.coding.code_table.CorruptStream: the table names symbols outside the alphabet, or is cut off

    Chapter: none (an error)
    """


def pack(used: np.ndarray, lengths: np.ndarray) -> bytes:
    """The table as bytes.

    Args:
        used: int64 ``[m]``, the used symbols, ascending; at least one.
        lengths: uint8 ``[m ** g]``, of each block's code word, in bits; 0 for none.

    Returns:
        The bytes that `unpack` reads.

    Example:
        >>> table = pack(np.array([65, 66]), np.array([1, 1], np.uint8))  # the letters A and B, a bit each
        >>> len(table), f"{table[0]:08b}"  # one run, then the zeros of gamma(66)
        (4, '10000001')

    Chapter: none (plumbing: the table at the head of a stream)
    """
    breaks = np.flatnonzero(np.diff(used) > 1) + 1
    begins, ends = used[np.r_[0, breaks]], used[np.r_[breaks - 1, -1]] + 1
    tokens = [_gamma(len(begins))]
    at = 0
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        tokens += [_gamma(begin - at + 1), _gamma(end - begin)]
        at = end
    before, gap = -9, 0
    for length in lengths.tolist():
        if length == 0:
            gap += 1
            continue
        if gap:
            tokens.append("110" + _gamma(gap))
            gap = 0
        tokens.append({0: "0", 1: "100", -1: "101"}.get(length - before) or f"111{length:05b}")
        before = length
    if gap:
        tokens.append("110" + _gamma(gap))
    bits = "".join(tokens)
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def unpack(table: bytes, alphabet: int, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Read what `pack` wrote; time and memory are bounded by the size of ``table`` and 65,536 blocks.

    Args:
        table: the bytes, from a source that need not be trusted.
        alphabet: number of symbols, 256 or 65,536.
        group: symbols in a block.

    Returns:
        The used symbols, int64 ``[m]``, and the lengths, uint8 ``[m ** group]``, of a complete code (Kraft's
        sum is 1), or of one word of 1 bit.

    Raises:
        CorruptStream: the bits are not such a table.

    Example:
        >>> table = pack(np.array([65, 66, 90]), np.array([1, 2, 2], np.uint8))
        >>> used, lengths = unpack(table, alphabet=256, group=1)
        >>> used.tolist(), lengths.tolist()
        ([65, 66, 90], [1, 2, 2])

    Chapter: none (plumbing: the table at the head of a stream)
    """
    if len(table) > 3 * MOST_BLOCKS:
        raise CorruptStream(f"the table has {len(table)} bytes, more than any code needs")
    bits = f"{int.from_bytes(table, 'big'):0{8 * len(table)}b}" if table else ""
    used, at = _unpack_used(bits, alphabet)
    blocks = len(used) ** group
    if blocks > MOST_BLOCKS:
        raise CorruptStream(f"the table has {len(used)} symbols in blocks of {group}: too many code words")
    found: list[int] = []
    length = -9
    while len(found) < blocks:
        if bits.startswith("0", at):
            at += 1
        elif bits.startswith("110", at):
            gap, at = _read_gamma(bits, at + 3, blocks - len(found))
            found += [0] * gap
            continue
        elif bits.startswith("10", at):
            length += -1 if bits.startswith("1", at + 2) else 1
            at += 3
        else:
            length = int(bits[at + 3 : at + 8] or "0", 2)
            at += 8
        if at > len(bits) or not 1 <= length <= LONGEST:
            raise CorruptStream(f"the table is damaged at code word {len(found)}")
        found.append(length)
    if len(bits) - at >= 8 or "1" in bits[at:]:
        raise CorruptStream("the table does not end where it should")
    lengths = np.array(found, np.uint8)
    per_length = np.bincount(lengths, minlength=LONGEST + 1).tolist()
    kraft = sum(number << (LONGEST - length) for length, number in enumerate(per_length) if length)
    if kraft != 1 << LONGEST and not (per_length[1] == 1 and kraft == 1 << (LONGEST - 1) and blocks == 1):
        raise CorruptStream("the table's lengths are not those of a complete prefix code")
    return used, lengths


def _unpack_used(bits: str, alphabet: int) -> tuple[np.ndarray, int]:
    runs, at = _read_gamma(bits, 0, alphabet)
    used, symbol = [], 0
    for _ in range(runs):
        unused, at = _read_gamma(bits, at, alphabet - symbol)
        symbol += unused - 1
        number, at = _read_gamma(bits, at, alphabet - symbol)
        used.append(np.arange(symbol, symbol + number))
        symbol += number
    return np.concatenate(used), at


def _gamma(value: int) -> str:
    return "0" * (value.bit_length() - 1) + f"{value:b}"


def _read_gamma(bits: str, at: int, most: int) -> tuple[int, int]:
    """Elias's gamma code at bit ``at``: a value from 1 to ``most`` and the bit after it."""
    one = bits.find("1", at, at + 17)
    value = int(bits[one : 2 * one - at + 1], 2) if at <= one and 2 * one - at < len(bits) else 0
    if not 1 <= value <= most:
        raise CorruptStream("the table names symbols outside the alphabet, or is cut off")
    return value, 2 * one - at + 1
