"""Cubic schedules: exact ends, monotone, equal to the formula written out."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference.pruning import schedules

FRACTIONS = st.floats(0, 1)


@given(FRACTIONS, FRACTIONS, st.integers(0, 50), st.integers(1, 30), st.integers(1, 20))
def test_gradual_is_monotone_between_exact_ends(s_i: float, s_f: float, t0: int, n: int, every: int) -> None:
    values = [
        schedules.gradual(t, initial=s_i, final=s_f, begin_step=t0, n_updates=n, every=every)
        for t in range(t0 + n * every + 5)
    ]
    assert values[: t0 + 1] == [s_i] * (t0 + 1)
    assert values[-5:] == [s_f] * 5
    sign = 1 if s_f >= s_i else -1
    assert all(sign * (b - a) >= -1e-15 for a, b in itertools.pairwise(values))
    changes = {t for t in range(1, len(values)) if values[t] != values[t - 1]}
    assert all((t - t0) % every == 0 for t in changes)


def test_gradual_is_the_formula_at_every_update() -> None:
    for j in range(11):
        found = schedules.gradual(100 + 7 * j, initial=0.1, final=0.9, begin_step=100, n_updates=10, every=7)
        assert found == pytest.approx(0.9 + (0.1 - 0.9) * (1 - (7 * j) / (10 * 7)) ** 3, rel=1e-14)


def test_the_start_is_exact_where_a_sum_of_floats_is_not() -> None:
    assert 0.7 + (0.1 - 0.7) != 0.1
    assert schedules.gradual(5, initial=0.1, final=0.7, begin_step=5, n_updates=3) == 0.1
    assert schedules.cubic(5, 20, 0.1, 0.7, warmup=5, cooldown=0) == 0.1


def test_gradual_prunes_most_at_first() -> None:
    values = [schedules.gradual(t, initial=0, final=0.9, begin_step=0, n_updates=10) for t in range(11)]
    steps = [b - a for a, b in itertools.pairwise(values)]
    assert all(later < earlier for earlier, later in itertools.pairwise(steps))
    assert values[5] == pytest.approx(0.9 * 7 / 8)


def test_both_forms_agree() -> None:
    for step in range(60):
        one = schedules.gradual(step, initial=0.0, final=0.8, begin_step=10, n_updates=30)
        assert schedules.cubic(step, 60, 0.0, 0.8, warmup=10, cooldown=20) == pytest.approx(one, abs=1e-15)


@pytest.mark.parametrize("change", [{"warmup": 15, "cooldown": 5}, {"warmup": -1}, {"cooldown": -1}, {"initial": 1.2}])
def test_cubic_refuses_what_would_jump(change: dict) -> None:
    name = next(iter(change))
    with pytest.raises(ValueError, match=name):
        schedules.cubic(3, **({"total": 20, "initial": 1.0, "final": 0.1, "warmup": 3, "cooldown": 6} | change))


@pytest.mark.parametrize(
    "change", [{"n_updates": 0}, {"every": 0}, {"begin_step": -1}, {"final": -0.1}, {"initial": 2}]
)
def test_gradual_names_what_is_wrong(change: dict) -> None:
    right = {"initial": 0.0, "final": 0.9, "begin_step": 0, "n_updates": 5, "every": 2}
    with pytest.raises(ValueError, match=next(iter(change))):
        schedules.gradual(3, **(right | change))
