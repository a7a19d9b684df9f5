r"""Where the kept weights are: relative indices with fillers, a bitmap, or compressed rows.

A relative index of ``b`` bits stores the gap to the kept weight before it. The field is ``gap − 1``, so it
reaches :math:`2^b` positions ahead; a longer gap is bridged by *fillers*, entries with the largest field and
code 0, which decode to a zero. The first gap is counted from position −1, gaps run across the ends of rows,
and zeros after the last kept weight are not stored, so that the length has to be.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def relative(positions: Tensor, bits: int, total: int) -> tuple[Tensor, Tensor]:
    """Turn positions into the fields of a relative index.

    Args:
        positions: int64 ``[kept]``, strictly ascending, each from 0 to ``total − 1``.
        bits: width of a field, 1 to 16.
        total: number of positions, kept and dropped.

    Returns:
        Fields, int64 ``[entries]`` from 0 to ``2^bits − 1``, and bool ``[entries]``, True for fillers.

    Raises:
        ValueError: ``bits`` is out of range, or positions are not ascending or leave the range.

    Source: Han et al. 2016, section 2 and figure 2; the counting from −1 as in the authors' decoder.

    Example:
        >>> relative(torch.tensor([1, 7]), 2, 8)
        (tensor([1, 3, 1]), tensor([False,  True, False]))

    Chapter: pruning/deep_compression
    """
    _check_bits(bits)
    if positions.numel() and (int(positions.min()) < 0 or int(positions.max()) >= total):
        raise ValueError(f"positions run from {int(positions.min())} to {int(positions.max())}; total is {total}")
    gaps = torch.diff(positions, prepend=positions.new_tensor([-1]))
    if bool((gaps < 1).any()):
        raise ValueError("positions must be strictly ascending")
    reach = 2**bits
    fillers = (gaps - 1) // reach
    ends = torch.cumsum(fillers + 1, 0) - 1  # where the kept weights stand among the entries
    entries = int(ends[-1]) + 1 if len(ends) else 0
    fields = torch.full((entries,), reach - 1, dtype=torch.int64)
    fields[ends] = (gaps - 1) % reach
    is_filler = torch.ones(entries, dtype=torch.bool)
    is_filler[ends] = False
    return fields, is_filler


def absolute(fields: Tensor, total: int) -> Tensor:
    """Undo :func:`relative`: the position of each entry, fillers included.

    Args:
        fields: integers ``[entries]``, 0 or more.
        total: number of positions.

    Returns:
        int64 ``[entries]``, strictly ascending. Which entries are fillers, their codes say.

    Raises:
        ValueError: a field is negative, or the entries lead past ``total``.

    Source: as :func:`relative`.

    Example:
        >>> absolute(torch.tensor([1, 3, 1]), 8)  # the entry in the middle is a filler
        tensor([1, 5, 7])

    Chapter: pruning/deep_compression
    """
    if fields.numel() == 0:
        return torch.zeros(0, dtype=torch.int64)
    if int(fields.min()) < 0:
        raise ValueError(f"fields go down to {int(fields.min())}; a gap is at least one position, its field 0")
    if len(fields) > total or int(fields.max()) >= total:
        raise ValueError(f"fields lead past the last of {total} positions")
    positions = torch.cumsum(fields.to(torch.int64) + 1, 0) - 1
    if int(positions[-1]) >= total:
        raise ValueError(f"fields lead to position {int(positions[-1])}; there are {total}")
    return positions


def expected_fillers(density: float, bits: int) -> float:
    r"""Fillers per kept weight if each weight is kept independently: :math:`q^M / (1 - q^M)`.

    With :math:`q` the share of dropped weights and :math:`M = 2^b` the reach, a gap needs a further
    filler with probability :math:`q^M`, whatever it needed before: the number of fillers is geometric.

    Args:
        density: share of kept weights, ``0 < density <= 1``.
        bits: width of a field, 1 to 16.

    Raises:
        ValueError: an argument is out of range.

    Source: derived in the chapter.

    Example:
        >>> round(float(expected_fillers(0.5, 2)), 4)
        0.0667

    Chapter: pruning/deep_compression
    """
    _check_bits(bits)
    if not 0 < density <= 1:
        raise ValueError(f"density is {density}; it may be above 0 and at most 1")
    # log1p and expm1 keep the digits when the density is tiny.
    return -1 - 1 / np.expm1(2**bits * np.log1p(-density)) if density < 1 else 0.0


def bits_per_nonzero(density: float, value_bits: int, index_bits: int) -> float:
    """Bits for each kept weight, fillers counted, under independent dropping.

    Args:
        density: share of kept weights, ``0 < density <= 1``.
        value_bits: width of a code.
        index_bits: width of a field.

    Source: derived in the chapter.

    Example:
        >>> bits_per_nonzero(1.0, 5, 4)
        9.0

    Chapter: pruning/deep_compression
    """
    return (1 + expected_fillers(density, index_bits)) * (value_bits + index_bits)


def relative_bits(mask: Tensor, value_bits: int, index_bits: int) -> int:
    """Exact bits of the relative layout for one mask: entries times the widths of code and field.

    Args:
        mask: bool, any shape, True where a weight is kept.
        value_bits: width of a code.
        index_bits: width of a field, 1 to 16.

    Raises:
        ValueError: ``index_bits`` is out of range.

    Example:
        >>> mask = torch.zeros(8, dtype=torch.bool)
        >>> mask[[1, 7]] = True
        >>> relative_bits(mask, value_bits=5, index_bits=2)  # two weights and a filler, 7 bits each
        21

    Chapter: pruning/deep_compression
    """
    _check_bits(index_bits)
    gaps = torch.diff(mask.flatten().nonzero().squeeze(1), prepend=torch.tensor([-1], device=mask.device))
    entries = int(((gaps - 1) // 2**index_bits + 1).sum())
    return entries * (value_bits + index_bits)


def bitmap_bits(mask: Tensor, value_bits: int) -> int:
    """Exact bits of the bitmap layout: one for each position, and a code for each kept weight.

    Args:
        mask: bool, any shape, True where a weight is kept.
        value_bits: width of a code.

    Example:
        >>> bitmap_bits(torch.tensor([True, False, False, True]), value_bits=5)  # 4 + 2 · 5
        14

    Chapter: pruning/deep_compression
    """
    return mask.numel() + int(mask.sum()) * value_bits


def csr_bits(mask: Tensor, value_bits: int) -> int:
    """Exact bits of compressed sparse rows, with the narrowest columns and row pointers that suffice.

    Args:
        mask: bool, two or more dimensions; the first counts rows, the others together columns.
        value_bits: width of a code.

    Example:
        >>> csr_bits(torch.eye(4).bool(), value_bits=5)  # four times 5 + 2, and five row pointers of 3
        43

    Chapter: pruning/deep_compression
    """
    rows, kept = mask.shape[0], int(mask.sum())
    columns = mask.numel() // rows if rows else 0
    column_bits = max(1, (columns - 1).bit_length())
    return kept * (value_bits + column_bits) + (rows + 1) * max(1, kept.bit_length())


def best_index_bits(mask: Tensor, value_bits: int) -> int:
    """Width of the relative index, 1 to 16, that takes the fewest bits; of two equal ones the narrower.

    Args:
        mask: bool, any shape, True where a weight is kept.
        value_bits: width of a code.

    Example:
        >>> mask = torch.zeros(256, dtype=torch.bool)
        >>> mask[::16] = True
        >>> best_index_bits(mask, value_bits=5)  # gaps of 16: narrower fields need fillers
        4

    Chapter: pruning/deep_compression
    """
    return min(range(1, 17), key=lambda width: relative_bits(mask, value_bits, width))


def break_even(first: Callable[[float], float], second: Callable[[float], float]) -> float:
    """The density at which two layouts cost the same.

    Args:
        first, second: bits for each position as functions of the density, such as
            ``lambda d: d * bits_per_nonzero(d, 8, 4)`` and, for a bitmap, ``lambda d: 1 + 8 * d``.

    Returns:
        A density between 0 and 1.

    Raises:
        ValueError: one of the two is cheaper at 0.0001 and at 0.9999.

    Example:
        >>> density = break_even(lambda d: d * bits_per_nonzero(d, 8, 4), lambda d: 1 + 8 * d)
        >>> 0.2 < density < 0.3  # below it relative indices are shorter than a bitmap
        True

    Chapter: pruning/deep_compression
    """
    from scipy.optimize import brentq

    low, high = 1e-4, 1 - 1e-4
    if (first(low) - second(low)) * (first(high) - second(high)) > 0:
        raise ValueError("the same layout is cheaper at both ends, so there may be no density where they cost the same")
    return float(brentq(lambda density: first(density) - second(density), low, high, xtol=1e-12))


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 16:
        raise ValueError(f"bits is {bits}; it may be 1 to 16")
