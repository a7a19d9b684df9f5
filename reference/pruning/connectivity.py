r"""Are two trained networks in one valley? Walk on the straight line between them, and count errors.

.. math:: \theta(\alpha) = (1 - \alpha)\,\theta_a + \alpha\,\theta_b, \qquad
   \text{barrier} = \max_\alpha \mathrm{err}(\theta(\alpha)) - \tfrac12\big(\mathrm{err}(\theta_a) +
   \mathrm{err}(\theta_b)\big)

Two networks that started from the same weights, and saw the same images in another order, are *stable to SGD noise*
if the barrier is below two points.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from reference.pruning.parallel_training import States, evaluate


def between(first: Mapping[str, Tensor], second: Mapping[str, Tensor], alpha: float) -> States:
    """A point on the line: ``first`` at 0, ``second`` at 1.

    Args:
        first, second: name → ``[models, …]``, same names and shapes.
        alpha: any number.

    Returns:
        name → ``[models, …]``; both ends are exact.

    Raises:
        KeyError: ``second`` lacks a name.

    Example:
        >>> a, b = {"w": torch.tensor([[0.0, 4.0]])}, {"w": torch.tensor([[2.0, 0.0]])}
        >>> [between(a, b, alpha)["w"].tolist() for alpha in (0, 0.5, 1)]
        [[[0.0, 4.0]], [[1.0, 2.0]], [[2.0, 0.0]]]

    Chapter: pruning/lottery_ticket
    """
    return {name: torch.lerp(value, second[name], alpha) for name, value in first.items()}


def errors_between(
    model: nn.Module,
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    points: int = 11,
) -> Tensor:
    """Fraction of images that are classified wrongly, at equal steps of the line, for each pair of networks.

    Args:
        model: of the architecture, without batch norm: averaged running statistics are not those of the average.
        first, second: name → ``[models, …]``; network i is paired with network i.
        images: ``[n, …]``.
        labels: int64 ``[n]``.
        points: both ends included, 3 or more.

    Returns:
        float64 ``[points, models]``.

    Raises:
        ValueError: ``points`` is below 3.

    Source: Frankle et al. 2020, section 2.

    Example:
        >>> model = nn.Linear(1, 2, bias=False)
        >>> first = {"weight": torch.tensor([[[1.0], [0.0]]])}  # class 0 where the input is positive
        >>> second = {"weight": torch.tensor([[[-3.0], [0.0]]])}  # class 1 there
        >>> images, labels = torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 1])
        >>> errors_between(model, first, second, images, labels, points=3).flatten().tolist()
        [0.0, 1.0, 1.0]

    Chapter: pruning/lottery_ticket
    """
    if points < 3:
        raise ValueError(f"points is {points}; it may be 3 or more, both ends included")
    steps = [number / (points - 1) for number in range(points)]
    return torch.stack([1 - evaluate(model, between(first, second, a), images, labels)[1] for a in steps])


def barrier(errors: Tensor) -> Tensor:
    """The highest error on the way, above the mean of its ends.

    Args:
        errors: ``[points, models]``, of :func:`errors_between`.

    Returns:
        ``[models]``; never below 0 by more than half of the difference of the ends.

    Source: Frankle et al. 2020, section 2.

    Example:
        >>> errors = torch.tensor([[0.25, 0.25], [0.75, 0.25], [0.25, 0.25]])  # three points, two pairs
        >>> barrier(errors)  # only the first pair crosses a ridge
        tensor([0.5000, 0.0000])

    Chapter: pruning/lottery_ticket
    """
    return errors.amax(0) - (errors[0] + errors[-1]) / 2
