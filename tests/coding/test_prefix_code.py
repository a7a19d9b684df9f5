"""Code lengths against all codes there are and a second construction; canonical words; the packed table."""

import heapq
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference.coding.prefix_code import canonical_codes, code_lengths, entropy

FREQUENCIES = st.lists(st.one_of(st.integers(0, 5), st.integers(0, 10**6)), min_size=1, max_size=40)


def heap_total(freq: list[int]) -> int:
    """Bits of Huffman's code: the sum of all merged weights."""
    heap = [f for f in freq if f]
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        total += merged
        heapq.heappush(heap, merged)
    return total


def best_total(freq: list[int], limit: int) -> int:
    """The least over every assignment of lengths that satisfies Kraft's inequality."""
    possible = itertools.product(range(1, limit + 1), repeat=len(freq))
    kraft = (lengths for lengths in possible if sum(Fraction(1, 2**length) for length in lengths) <= 1)
    return min(sum(f * length for f, length in zip(freq, lengths, strict=True)) for lengths in kraft)


@pytest.mark.parametrize("freq", [[1, 1], [1, 2, 4], [1, 1, 2, 3], [5, 5, 5, 5], [1, 1, 2, 3, 5], [9, 1, 1, 1, 9]])
@pytest.mark.parametrize("limit", [2, 3, 4])
def test_no_other_code_is_shorter(freq: list[int], limit: int) -> None:
    if len(freq) > 2**limit:
        with pytest.raises(ValueError, match="need at least 3"):
            code_lengths(np.array(freq), limit)
    else:
        assert int(code_lengths(np.array(freq), limit) @ np.array(freq)) == best_total(freq, limit)


@given(FREQUENCIES)
def test_without_a_limit_the_total_is_the_heaps(freq: list[int]) -> None:
    lengths = code_lengths(np.array(freq)).astype(int)
    assert ((lengths > 0) == (np.array(freq) > 0)).all()
    if sum(f > 0 for f in freq) > 1:
        assert int(lengths @ np.array(freq)) == heap_total(freq)
        assert sum(Fraction(1, 2**length) for length in lengths.tolist() if length) == 1


@given(FREQUENCIES, st.integers(6, 24))
def test_a_limit_is_kept_and_costs_no_less(freq: list[int], limit: int) -> None:
    counts = np.array(freq)
    lengths, free = code_lengths(counts, limit).astype(int), code_lengths(counts).astype(int)
    assert lengths.max() <= limit
    assert lengths @ counts >= free @ counts
    if free.max() <= limit:
        assert lengths @ counts == free @ counts


@given(FREQUENCIES.filter(lambda freq: sum(f > 0 for f in freq) > 1))
def test_the_mean_is_at_least_the_entropy_and_less_than_a_bit_above(freq: list[int]) -> None:
    counts = np.array(freq)
    mean = float(code_lengths(counts) @ counts) / counts.sum()
    assert entropy(counts) - 1e-9 <= mean < entropy(counts) + 1


def test_entropy_in_closed_form() -> None:
    assert entropy(np.array([1, 1, 2])) == pytest.approx(1.5)
    assert entropy(np.array([9, 1])) == pytest.approx(-0.9 * math.log2(0.9) - 0.1 * math.log2(0.1))
    for nothing in ([], [0], [7], [0, 7, 0]):
        assert entropy(np.array(nothing, dtype=int)) == 0.0


def test_fibonacci_counts_make_the_deepest_code() -> None:
    freq = [1, 1]
    while len(freq) < 50:
        freq.append(freq[-1] + freq[-2])
    assert code_lengths(np.array(freq)).tolist() == [49, *range(49, 0, -1)]


def test_65536_symbols() -> None:
    freq = np.random.default_rng(0).zipf(1.3, 65_536).clip(1, 10**6)
    assert int(code_lengths(freq).astype(int) @ freq) == heap_total(freq.tolist())
    assert code_lengths(freq, 18).max() == 18
    assert (code_lengths(np.ones(65_536, int), 16) == 16).all()


def test_example_of_rfc_1951() -> None:
    """Section 3.2.2: lengths of A to H, and their words."""
    codes = canonical_codes(np.array([3, 3, 3, 3, 3, 2, 4, 4]))
    words = [f"{code:0{length}b}" for code, length in zip(codes, [3, 3, 3, 3, 3, 2, 4, 4], strict=True)]
    assert words == ["010", "011", "100", "101", "110", "00", "1110", "1111"]


@given(FREQUENCIES)
def test_no_word_begins_another(freq: list[int]) -> None:
    lengths = code_lengths(np.array(freq)).tolist()
    words = [f"{c:0{n}b}" for c, n in zip(canonical_codes(np.array(lengths)).tolist(), lengths, strict=True) if n]
    assert [(a, b) for a, b in itertools.permutations(words, 2) if b.startswith(a)] == []


@pytest.mark.parametrize("lengths", [[1, 1, 1], [1, 2, 2, 2], [2, 2, 2, 2, 5], [63], [-1, 1]])
def test_lengths_of_no_code_are_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="lengths"):
        canonical_codes(np.array(lengths))


def test_bad_arguments_are_named() -> None:
    with pytest.raises(TypeError, match="freq is of float64"):
        code_lengths(np.ones(3))
    with pytest.raises(ValueError, match="freq has 2 dimensions"):
        entropy(np.ones((3, 3), int))
    with pytest.raises(ValueError, match="freq holds -1"):
        code_lengths(np.array([3, -1]))
    with pytest.raises(ValueError, match="2\\^54"):
        code_lengths(np.array([2**54, 1]))
    for limit in (0, -1, 65):
        for freq in ([3, 1], [3]):
            with pytest.raises(ValueError, match=f"max_length is {limit}; it may be 1 to 64"):
                code_lengths(np.array(freq), limit)
