r"""Canary gate: how many requests are enough to let a candidate in, or to stop it, with a stated rate of errors.

Somebody looks at a canary after every request. An interval made for one look is then wrong far more often than it says;
these intervals hold at all looks together.
"""

import math
from typing import NamedTuple

import torch
from scipy.special import lambertw
from torch import Tensor

#: Requests before the first decision. The variance is estimated from them, and the normal limit must be near, since with
#: strongly skewed numbers, 20 gave 10 % of wrong verdicts where 5 % were asked for, 50 gave 5 %.
FIRST = 50


def confidence_sequence(
    differences: Tensor, error_rate: float = 0.05, *, tuned_for: int = 200
) -> tuple[Tensor, Tensor]:
    r"""Intervals for the mean of a stream that hold after every one of its numbers, all together.

    .. math:: \bar x_n \pm \hat\sigma_n \sqrt{\frac{2 (n \rho^2 + 1)}{n^2 \rho^2}
              \ln \frac{\sqrt{n \rho^2 + 1}}{\alpha}}

    With probability at least :math:`1 - \alpha` no interval of the sequence misses the mean: exact for normal numbers of
    known variance, asymptotic otherwise, as for Student's interval with large ``n``.

    Args:
        differences: one number a request, ``[n]``, in the order of arrival.
        error_rate: :math:`\alpha`, between 0 and 1.
        tuned_for: number of requests at which the interval is as narrow as it can be; it sets :math:`\rho`.

    Returns:
        Lower and upper ends, float64 ``[n]``; infinite at the first number, which has no variance.

    Raises:
        ValueError: an argument is out of range.

    Source: Robbins 1970 (normal mixture); with an estimated variance, Waudby-Smith et al. 2024.

    Example:
        >>> low, high = confidence_sequence(torch.tensor([0.0, 1.0] * 500))
        >>> bool((low < 0.5).all() and (high > 0.5).all())  # it holds at every look
        True
        >>> bool(high[9] - low[9] > high[99] - low[99] > high[999] - low[999])
        True

    Chapter: deployment/production
    """
    if differences.ndim != 1 or not len(differences):
        raise ValueError(f"differences has shape {tuple(differences.shape)}; it may be [n] with n of 1 or more")
    if not 0 < error_rate < 1 or tuned_for < 1:
        raise ValueError(f"error_rate is {error_rate}, tuned_for {tuned_for}; they may be in (0, 1), and 1 or more")
    x = differences.double()
    n = torch.arange(1, len(x) + 1, dtype=torch.float64)
    mean = x.cumsum(0) / n
    # Shifted by the first number, so that a large common offset does not cancel away.
    shifted = x - x[0]
    variance = (shifted.square().cumsum(0) / n - (shifted.cumsum(0) / n).square()).clamp(min=0)
    # The width is least at n where n ρ² = −W₋₁(−α²/e) − 1.
    rho2 = (-lambertw(-(error_rate**2) / math.e, -1).real - 1) / tuned_for
    spread = n * rho2 + 1
    half = (variance * n / (n - 1).clamp(min=1)).sqrt() * (
        2 * spread / (n.square() * rho2) * (spread.sqrt() / error_rate).log()
    ).sqrt()
    half[0] = math.inf
    return mean - half, mean + half


class Decision(NamedTuple):
    """``verdict`` is ``"promote"``, ``"stop"`` or ``"undecided"``; ``requests`` were looked at; the interval then.

    Example:
        >>> decision = Decision("stop", requests=80, mean=0.3, low=0.1, high=0.5)
        >>> decision.low > 0  # the whole interval lies above a limit of 0
        True

    Chapter: deployment/production
    """

    verdict: str
    requests: int
    mean: float
    low: float
    high: float


def gate(
    differences: Tensor, limit: float, *, error_rate: float = 0.05, first: int = FIRST, tuned_for: int = 200
) -> Decision:
    """Decide as soon as the interval lies on one side of the limit.

    A candidate whose mean is above the limit is promoted, and one whose mean is below it stopped, with probability at
    most ``error_rate``, however often one looks. Who runs out of requests has no verdict, and does not promote.

    The variance must show in the first requests. It does not where nearly all differences are alike and a few are large, such
    as failures counted as 1: of candidates that fail at 2 % of the requests where 0.5 % are allowed, a third is promoted
    after fifty requests without a failure. Rates of rare events need many more requests before ``first``.

    Args:
        differences: what the candidate costs more at each request, ``[n]``, in the order of arrival.
        limit: the mean that is still acceptable.
        error_rate, tuned_for: as :func:`confidence_sequence`.
        first: requests before the first decision, at least 2.

    Returns:
        The verdict, and the interval at which it fell.

    Raises:
        ValueError: as :func:`confidence_sequence`, or ``first`` is below 2.

    Example:
        >>> equal, worse = torch.tensor([0.1, -0.1] * 500), torch.tensor([0.4, 0.2] * 500)
        >>> [gate(differences, limit=0.1).verdict for differences in (equal, worse)]
        ['promote', 'stop']
        >>> gate(equal[:20], limit=0.1).verdict  # too few requests
        'undecided'

    Chapter: deployment/production
    """
    if first < 2:
        raise ValueError(f"first is {first}; a variance needs 2 or more")
    low, high = confidence_sequence(differences, error_rate, tuned_for=tuned_for)
    decided = ((high < limit) | (low > limit)).nonzero().flatten()
    decided = decided[decided >= first - 1]
    at = int(decided[0]) if len(decided) else len(differences) - 1
    verdict = "undecided"
    if len(decided):
        verdict = "promote" if high[at] < limit else "stop"
    mean = differences[: at + 1].double().mean()
    return Decision(verdict, at + 1, float(mean), float(low[at]), float(high[at]))
