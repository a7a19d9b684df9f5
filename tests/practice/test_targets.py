"""Limits: what meets them, and what is best where nothing does."""

import math
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference.practice.targets import Target, best, byte_count, fraction, make_target


class One(NamedTuple):
    rise: float
    bytes: int


def test_both_limits_count_and_equality_meets_them() -> None:
    target = Target(0.02, 100)
    assert target.met(One(0.02, 100))
    assert not target.met(One(0.0201, 100))
    assert not target.met(One(0.0, 101))
    assert not target.met(One(math.nan, 50))
    assert Target(0.02).met(One(0.0, 10**15))


def test_the_smallest_of_several_sizes_counts() -> None:
    assert make_target(0.1, 1000, max_bytes=400, min_ratio=2).max_bytes == 400
    assert make_target(0.1, 1000, max_bytes=600, min_ratio=2).max_bytes == 500
    assert make_target(0.1, 1000).max_bytes == math.inf


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"max_loss": -0.1}, "max_loss is -0.1"),
        ({"max_loss": math.nan}, "max_loss is nan"),
        ({"max_loss": 0.1, "max_bytes": 0}, "max_bytes is 0"),
        ({"max_loss": 0.1, "min_ratio": 1.0}, "min_ratio is 1.0"),
    ],
)
def test_a_wrong_limit_is_named(arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_target(arguments.pop("max_loss"), 1000, **arguments)


models = st.lists(st.builds(One, st.floats(0, 3), st.integers(1, 200)), min_size=1, max_size=8)


@given(models, st.floats(0, 1), st.integers(1, 200))
def test_best_is_as_small_as_asked_for_if_anything_is_and_then_nothing_loses_less(
    found: list[One], limit: float, size: int
) -> None:
    target = Target(limit, size)
    chosen = best(found, target)
    if any(one.bytes <= size for one in found):
        assert chosen.bytes <= size
        assert all(one.rise >= chosen.rise for one in found if one.bytes <= size)
    else:
        assert chosen.bytes == min(one.bytes for one in found)
    if any(target.met(one) for one in found):
        assert target.met(chosen)


def test_best_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="found is empty"):
        best([], Target(0.1))


@pytest.mark.parametrize(
    ("written", "meant"), [("2%", 0.02), ("2 %", 0.02), ("0.02", 0.02), (".5%", 0.005), ("150%", 1.5), ("0", 0.0)]
)
def test_shares_as_people_write_them(written: str, meant: float) -> None:
    assert fraction(written, "--max-loss") == pytest.approx(meant)


@pytest.mark.parametrize("written", ["2", "two", "-1%", "", "2%%", "nan", "1e-2"])
def test_what_could_mean_two_things_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match="--max-loss is"):
        fraction(written, "--max-loss")


@pytest.mark.parametrize(
    ("written", "meant"),
    [("4500000", 4_500_000), ("4.5MB", 4_500_000), ("4.5 M", 4_500_000), ("2kB", 2000), ("1GB", 10**9)],
)
def test_sizes_as_people_write_them(written: str, meant: int) -> None:
    assert byte_count(written, "--max-bytes") == meant


@pytest.mark.parametrize("written", ["0", "4.5TB", "MB", "-3", "4,5MB"])
def test_a_size_that_is_none_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match="--max-bytes is"):
        byte_count(written, "--max-bytes")
