"""A counting model of a cache: how many lines a sequence of reads has to fetch.

Where a machine does not let us read its counters (virtual machines rarely do), the misses of an access pattern can be
counted: the order of the lines is known, and so is the rule by which a cache forgets.
"""

import numba
import numpy as np
from numpy.typing import NDArray

Lines = NDArray[np.int64]


def misses(lines: Lines, *, sets: int, ways: int) -> int:
    """Reads that a cache of ``sets × ways`` lines must fetch, each set forgetting the least recently used line.

    Args:
        lines: ``[reads]`` line numbers (address over line size), in the order of reading, 0 or more.
        sets: line ``n`` can only lie in set ``n % sets``; 1 is a fully associative cache.
        ways: lines in a set.

    Returns:
        A number from the count of different lines to that of reads.

    Raises:
        ValueError: ``sets`` or ``ways`` is below 1, or a line is negative.

    Example:
        >>> reads = np.array([0, 1, 2, 0, 1, 2])
        >>> [misses(reads, sets=1, ways=ways) for ways in (2, 3)]  # one line too few, and every read misses
        [6, 3]

    Chapter: advanced/hardware_aware
    """
    if sets < 1 or ways < 1:
        raise ValueError(f"sets is {sets} and ways {ways}; both may be 1 or more")
    lines = np.ascontiguousarray(lines, dtype=np.int64).ravel()
    if lines.size and lines.min() < 0:
        raise ValueError(f"lines has {lines.min()}; it may have 0 or more")
    return int(_misses(lines, sets, ways))


@numba.njit(cache=False)
def _misses(lines: Lines, sets: int, ways: int) -> int:
    held = np.full((sets, ways), -1, np.int64)  # most recently used first
    count = 0
    for line in lines:
        row = held[line % sets]
        place = 0
        while place < ways and row[place] != line:
            place += 1
        if place == ways:
            count += 1
            place = ways - 1
        for i in range(place, 0, -1):
            row[i] = row[i - 1]
        row[0] = line
    return count


def sparse_product_lines(
    pointers: NDArray[np.integer], columns: NDArray[np.integer], row_bytes: int, *, line_bytes: int = 64
) -> Lines:
    """Lines of the dense operand ``X [K, M]`` that ``W X`` reads, for a sparse ``W`` in compressed rows.

    Rows of ``W`` are taken in order, and each kept weight ``W[i, k]`` reads row ``k`` of ``X`` from its first byte to
    its last. The operand is taken to begin at a line.

    Args:
        pointers: ``[rows + 1]`` where each row of W begins in ``columns``.
        columns: ``[kept]`` column of each kept weight.
        row_bytes: bytes of a row of ``X``, a multiple of ``line_bytes`` or a divisor of it.
        line_bytes: bytes of a line of the cache.

    Returns:
        int64 ``[reads]``, line numbers in the order of reading.

    Raises:
        ValueError: rows of ``X`` and lines do not divide.

    Example:
        >>> sparse_product_lines(np.array([0, 2, 3]), np.array([0, 2, 1]), row_bytes=128)  # two lines a row of X
        array([0, 1, 4, 5, 2, 3])

    Chapter: advanced/hardware_aware
    """
    if row_bytes % line_bytes and line_bytes % row_bytes:
        raise ValueError(f"row_bytes is {row_bytes}; it may be a multiple of line_bytes ({line_bytes}) or divide it")
    if len(pointers) and pointers[-1] != len(columns):
        raise ValueError(f"pointers ends with {pointers[-1]}; it may end with the {len(columns)} columns")
    first = np.asarray(columns, np.int64) * row_bytes // line_bytes
    each = max(1, row_bytes // line_bytes)
    return (first[:, None] + np.arange(each)).ravel()
