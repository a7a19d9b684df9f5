"""The cache model on cases worked by hand, and against a second way to say least recently used."""

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference.hardware.cache import misses, sparse_product_lines


@pytest.mark.parametrize(
    ("lines", "ways", "expected"),
    [
        ([], 2, 0),
        ([0, 0, 0], 1, 1),
        ([0, 1, 0, 1], 2, 2),
        ([0, 1, 2, 0, 1, 2], 2, 6),  # a loop one line too long misses every time
        ([0, 1, 2, 0, 1, 2], 3, 3),
        ([0, 1, 0, 2, 0, 1], 2, 4),  # 0 stays because it was used; 1 goes for 2
    ],
)
def test_by_hand(lines, ways, expected) -> None:
    assert misses(np.array(lines, np.int64), sets=1, ways=ways) == expected


def test_lines_of_one_set_push_each_other_out() -> None:
    lines = np.array([0, 4, 8, 0, 4, 8, 1, 1])
    assert misses(lines, sets=4, ways=2) == 6 + 1
    assert misses(lines, sets=1, ways=8) == 4


def slow_misses(lines, sets: int, ways: int) -> int:
    held = [OrderedDict() for _ in range(sets)]
    count = 0
    for line in lines:
        one = held[line % sets]
        if line in one:
            one.move_to_end(line)
        else:
            count += 1
            one[line] = True
            if len(one) > ways:
                one.popitem(last=False)
    return count


@given(
    lines=st.lists(st.integers(0, 40), max_size=300),
    sets=st.sampled_from([1, 2, 3, 4, 8]),
    ways=st.integers(1, 9),
)
def test_equals_an_ordered_dictionary(lines, sets, ways) -> None:
    assert misses(np.array(lines, np.int64), sets=sets, ways=ways) == slow_misses(lines, sets, ways)


@given(lines=st.lists(st.integers(0, 40), max_size=200), ways=st.integers(1, 20))
def test_a_larger_fully_associative_cache_never_misses_more(lines, ways) -> None:
    lines = np.array(lines, np.int64)
    assert misses(lines, sets=1, ways=ways + 1) <= misses(lines, sets=1, ways=ways)
    assert misses(lines, sets=1, ways=41) == len(set(lines.tolist()))


def test_reads_of_a_sparse_product_by_hand() -> None:
    """Rows [.x.x], [....], [x...] of W; a row of X is two lines, then half of one."""
    pointers, columns = np.array([0, 2, 2, 3]), np.array([1, 3, 0])
    assert sparse_product_lines(pointers, columns, 128).tolist() == [2, 3, 6, 7, 0, 1]
    assert sparse_product_lines(pointers, columns, 32).tolist() == [0, 1, 0]


def test_refusals() -> None:
    with pytest.raises(ValueError, match="sets is 0"):
        misses(np.array([0]), sets=0, ways=1)
    with pytest.raises(ValueError, match="lines has -1"):
        misses(np.array([-1]), sets=1, ways=1)
    with pytest.raises(ValueError, match="row_bytes is 96"):
        sparse_product_lines(np.array([0, 1]), np.array([0]), 96)
    with pytest.raises(ValueError, match="pointers ends with 2"):
        sparse_product_lines(np.array([0, 2]), np.array([0]), 64)
