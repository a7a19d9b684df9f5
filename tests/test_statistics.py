"""Student's interval, against its printed table and against chance."""

import numpy as np
import pytest

from reference.statistics import interval


def test_five_values_by_the_printed_table() -> None:
    """t = 2.776 for four degrees of freedom; 1, 2, 3, 4, 5 have s² = 2.5."""
    mean, half = interval([1, 2, 3, 4, 5])
    assert mean == 3
    assert half == pytest.approx(2.776 * (2.5 / 5) ** 0.5, abs=1e-3)


def test_equal_values_have_no_spread() -> None:
    assert interval([0.25, 0.25, 0.25]) == (0.25, 0.0)


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_it_covers_the_truth_as_often_as_it_says(level: float) -> None:
    samples = np.random.default_rng(0).normal(7, 2, (4000, 4))
    found = [interval(list(sample), level=level) for sample in samples]
    covered = np.mean([abs(mean - 7) < half for mean, half in found])
    assert covered == pytest.approx(level, abs=4 * (level * (1 - level) / 4000) ** 0.5)


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="values has 1 entries"):
        interval([1.0])
    with pytest.raises(ValueError, match="level is 95"):
        interval([1.0, 2.0], level=95)
