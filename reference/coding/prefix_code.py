"""Prefix codes: the best lengths under a limit, and the canonical code words that the lengths alone decide."""

import math

import numpy as np


def entropy(freq: np.ndarray) -> float:
    r"""Shannon's bound :math:`H = -\sum_i p_i \log_2 p_i` of independent symbols, in bits per symbol.

    Args:
        freq: ``[alphabet]``, integer, how often each symbol occurs.

    Returns:
        Bits per symbol; 0 where nothing occurs or only one symbol does.

    Raises:
        TypeError: ``freq`` is not of integers.
        ValueError: ``freq`` is not one-dimensional, or a count is negative.

    Source: Shannon 1948.

    Example:
        >>> entropy(np.array([2, 1, 1]))
        1.5

    Chapter: pruning/deep_compression
    """
    count = _counts(freq)
    p = count[count > 0] / max(int(count.sum()), 1)
    return float(-(p * np.log2(p)).sum()) + 0.0


def code_lengths(freq: np.ndarray, max_length: int | None = None) -> np.ndarray:
    r"""Lengths of an optimal prefix code, none above ``max_length``, by package-merge.

    Minimises :math:`\sum_i f_i l_i` under :math:`\sum_i 2^{-l_i} \le 1` and
    :math:`l_i \le` ``max_length``. Without a limit this is Huffman's optimum.

    Args:
        freq: ``[alphabet]``, integer, how often each symbol occurs.
        max_length: longest code word allowed, in bits; None for no limit.

    Returns:
        uint8 ``[alphabet]``, in bits; 0 for a symbol that does not occur. A symbol alone gets 1 bit.

    Raises:
        TypeError: ``freq`` is not of integers.
        ValueError: ``freq`` is not one-dimensional, a count is negative, the counts add up to more than
            2^54, or ``max_length`` bits cannot tell the symbols apart.

    Source: Larmore and Hirschberg 1990; Huffman 1952.

    Example:
        >>> code_lengths(np.array([5, 2, 1, 1]))
        array([1, 2, 3, 3], dtype=uint8)

    Chapter: pruning/deep_compression
    """
    count = _counts(freq)
    used = np.flatnonzero(count)
    total, n = sum(count[used].tolist()), len(used)
    if total > 2**54:
        raise ValueError(f"freq adds up to {total}; it may be 2^54 at most")
    if max_length is not None and not 1 <= max_length <= 64:
        raise ValueError(f"max_length is {max_length}; it may be 1 to 64")
    if max_length is not None and n > 2**max_length:
        raise ValueError(f"max_length is {max_length}; {n} symbols need at least {math.ceil(math.log2(n))}")
    lengths = np.zeros(len(count), np.uint8)
    if n < 2:
        lengths[used] = 1
        return lengths
    deepest = min(n - 1, _deepest(total))
    order = used[np.argsort(count[used], kind="stable")]
    lengths[order] = _package_merge(count[order], deepest if max_length is None else min(max_length, deepest))
    return lengths


def canonical_codes(lengths: np.ndarray) -> np.ndarray:
    """The canonical code words: shorter ones first, among equal lengths in the order of the symbols.

    Args:
        lengths: ``[alphabet]``, integer, in bits, 62 at most; 0 for a symbol without a code word.

    Returns:
        int64 ``[alphabet]``: the word of symbol i is the lowest ``lengths[i]`` bits, the first bit the
        most significant; 0 where there is none.

    Raises:
        TypeError: ``lengths`` is not of integers.
        ValueError: ``lengths`` is not one-dimensional, holds values out of range, or no prefix code has
            these lengths (Kraft's sum is above 1).

    Source: RFC 1951, section 3.2.2.

    Example:
        >>> canonical_codes(np.array([1, 2, 3, 3]))
        array([0, 2, 6, 7])

    Chapter: pruning/deep_compression
    """
    bits = _counts(lengths, "lengths")
    codes = np.zeros(len(bits), np.int64)
    used = np.flatnonzero(bits)
    order = used[np.argsort(bits[used], kind="stable")]
    if not len(order):
        return codes
    longest = int(bits[order[-1]])
    if longest > 62:
        raise ValueError(f"lengths hold {longest}; 62 bits is the most")
    per_length = np.bincount(bits[order], minlength=longest + 1).tolist()
    code, first = 0, 0
    for length in range(1, longest + 1):
        code <<= 1
        number = per_length[length]
        if code + number > 1 << length:
            raise ValueError(f"lengths are those of no prefix code: no words of {length} bits are left")
        codes[order[first : first + number]] = np.arange(code, code + number)
        code, first = code + number, first + number
    return codes


def _counts(values: np.ndarray, name: str = "freq") -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} is of {array.dtype}; it must be of integers")
    if array.ndim != 1:
        raise ValueError(f"{name} has {array.ndim} dimensions; it must have one")
    if array.size and array.min() < 0:
        raise ValueError(f"{name} holds {array.min()}; nothing below 0 may be in it")
    return array.astype(np.int64)


def _deepest(total: int) -> int:
    """No optimal code is deeper: a word of d bits needs counts that add up to the Fibonacci number d + 2."""
    depth, here, following = 1, 2, 3
    while following <= total:
        depth, here, following = depth + 1, following, here + following
    return depth


def _package_merge(weight: np.ndarray, levels: int) -> np.ndarray:
    """Lengths for two or more ascending weights.

    Each level's list holds the leaves and the packages (pairs of neighbours of the level before), in order. A
    leaf's length is the number of levels in which it is among the items taken: 2n - 2 of the last level, and
    below it the contents of the packages taken. As lists are in order, these are the first leaves of a level.
    """
    n = len(weight)
    items, is_leaf = weight, [np.ones(n, bool)]
    for _ in range(levels - 1):
        packages = items[: len(items) // 2 * 2].reshape(-1, 2).sum(1)
        both = np.concatenate([weight, packages])
        order = np.argsort(both, kind="stable")[: 2 * n - 2]
        items = both[order]
        is_leaf.append(order < n)
    lengths = np.zeros(n, np.uint8)
    taken = 2 * n - 2
    for leaf in reversed(is_leaf):
        leaves = int(leaf[:taken].sum())
        lengths[:leaves] += 1
        taken = 2 * (taken - leaves)
    return lengths
