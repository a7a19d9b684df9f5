"""How sure a mean over seeds is."""

from collections.abc import Sequence

import numpy as np


def interval(values: Sequence[float], *, level: float = 0.95) -> tuple[float, float]:
    r"""Mean of a sample, and half of the width of Student's confidence interval about it.

    .. math:: \bar x \pm t_{n-1}\, \frac{s}{\sqrt n}

    The values must be independent of each other: one a seed, or one difference a seed. Two arms trained from the same
    seeds are compared by their differences, since what the seed does to both cancels.

    Args:
        values: two or more numbers.
        level: probability, above 0 and below 1.

    Returns:
        Mean and half width, in the unit of ``values``.

    Raises:
        ValueError: there are fewer than two values, or ``level`` is out of range.

    Source: Student 1908, "The probable error of a mean".

    Example:
        >>> middle, half = interval([1.0, 2.0, 3.0])
        >>> f'{middle:.1f} ± {half:.2f}'
        '2.0 ± 2.48'

    Chapter: pruning/lottery_ticket
    """
    from scipy.stats import t

    if len(values) < 2:
        raise ValueError(f"values has {len(values)} entries; a spread needs two or more")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it may be above 0 and below 1")
    sample = np.asarray(values, np.float64)
    half = t.ppf((1 + level) / 2, len(sample) - 1) * sample.std(ddof=1) / np.sqrt(len(sample))
    return float(sample.mean()), float(half)
