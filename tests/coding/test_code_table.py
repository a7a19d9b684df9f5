"""The packed table comes back, agrees with one written by hand, and refuses every damaged one."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference.coding.code_table import CorruptStream, pack, unpack
from reference.coding.prefix_code import code_lengths


@st.composite
def tables(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int, int]:
    alphabet = draw(st.sampled_from([256, 65_536]))
    group = draw(st.integers(1, 3))
    used = sorted(draw(st.sets(st.integers(0, alphabet - 1), min_size=2, max_size=8)))
    blocks = len(used) ** group
    freq = draw(
        st.lists(st.integers(0, 100), min_size=blocks, max_size=blocks).filter(lambda f: np.count_nonzero(f) > 1)
    )
    return np.array(used), code_lengths(np.array(freq), 24), alphabet, group


@given(tables())
def test_a_table_comes_back_and_no_part_of_it_is_one(case: tuple) -> None:
    used, lengths, alphabet, group = case
    table = pack(used, lengths)
    back = unpack(table, alphabet, group)
    np.testing.assert_array_equal(back[0], used)
    np.testing.assert_array_equal(back[1], lengths)
    for cut in range(len(table)):
        with pytest.raises(CorruptStream):
            unpack(table[:cut], alphabet, group)


def test_a_table_by_hand() -> None:
    """Symbols 2, 4, 5: two runs, 2 unused and 1, 1 unused and 2; lengths 1, 2, 2: 010 011 1, 010 010, 111 00001, 100, 0."""
    bits = "0100111010010111000011000"
    bits += "0" * (-len(bits) % 8)
    table = int(bits, 2).to_bytes(len(bits) // 8, "big")
    assert pack(np.array([2, 4, 5]), np.array([1, 2, 2], np.uint8)) == table
    assert [part.tolist() for part in unpack(table, 256, 1)] == [[2, 4, 5], [1, 2, 2]]


ONE, TWO = "111", "11010"  # one run from symbol 0 of one symbol, of two


def test_a_table_cut_off_within_its_last_word_is_refused() -> None:
    """Symbols 3 to 6 of 3, 1, 2, 3 bits: what is left of the last word, 100, is 10, and no padding follows."""
    table = pack(np.array([3, 4, 5, 6]), np.array([3, 1, 2, 3], np.uint8))
    assert len(table) == 5
    assert table[4] == 0
    with pytest.raises(CorruptStream, match="damaged at code word 3"):
        unpack(table[:4], 256, 1)


@pytest.mark.parametrize(
    ("bits", "group", "words"),
    [
        (ONE + "11100010", 1, "complete"),  # one symbol of two bits
        (TWO + "11100010" "0", 1, "complete"),  # two of two bits
        (TWO + "11100001" "1101", 1, "complete"),  # one of one bit and one unused
        (TWO + "11100001" "101", 1, "damaged"),  # length 0
        (TWO + "11111001" "0", 1, "damaged"),  # length 25
        (TWO + "0" "0", 1, "damaged"),  # same as before, and nothing before
        (TWO + "11100001" "110011", 1, "outside"),  # three unused of one left
        ("1" "00000000100000001" "1", 1, "outside"),  # 256 unused and one used
        ("1" "1" "00000000100000001", 1, "outside"),  # a run of 257
        ("00000000100000001", 1, "outside"),  # 257 runs
        ("010" "1" "000000001" "00000000" "1" "1", 1, "outside"),  # a second run after symbol 255
        ("000000000000000000", 1, "outside"),  # a gamma code without a one
        ("1" "1" "000010000", 5, "too many"),  # 16 symbols in blocks of 5
        (TWO + "11100001" "0" "1", 1, "end"),  # a one in the padding
        (TWO + "11100001" "0" "0000000000000", 1, "end"),  # a byte too many
    ],
)  # fmt: skip
def test_damaged_tables_are_refused(bits: str, group: int, words: str) -> None:
    bits += "0" * (-len(bits) % 8)
    with pytest.raises(CorruptStream, match=words):
        unpack(int(bits, 2).to_bytes(len(bits) // 8, "big"), 256, group)


def test_a_table_longer_than_any_is_refused_unread() -> None:
    table = b"\xff" * 10_000_000
    tracemalloc.start()
    try:
        with pytest.raises(CorruptStream, match="more than any code needs"):
            unpack(table, 65_536, 1)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
