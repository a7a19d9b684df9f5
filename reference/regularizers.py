r"""Penalties on weights, added to the loss while a model trains, that make it easier to compress afterwards.

A grid of :math:`2^b` equal steps wastes none of its codes on a flat distribution, and most of them on one with long tails:
its step follows the largest weight, its error the step. Pulling the kurtosis to that of the uniform distribution therefore
prepares rounding. Pruning wants the opposite, a few large weights and many that are nearly zero. Both penalties look at the shape of
the distribution alone: weights may grow or shrink as the loss likes, which a norm behind the layer would allow anyway.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

#: Kurtosis of the uniform distribution; a normal one has 3.
UNIFORM_KURTOSIS = 1.8


def kurtosis(weight: Tensor) -> Tensor:
    r"""Fourth moment in standard deviations, :math:`\langle ((w - \mu) / \sigma)^4 \rangle`, of all weights together.

    Args:
        weight: any shape, floating point.

    Returns:
        A scalar of the weight's type, 1 or more; 1.8 of a uniform distribution, 3 of a normal one.

    Raises:
        ValueError: all weights are equal, or there are fewer than two.

    Example:
        >>> kurtosis(torch.tensor([-1.0, 1.0, -1.0, 1.0])).item()  # all at one deviation
        1.0
        >>> round(kurtosis(torch.linspace(-1, 1, 1001)).item(), 2)  # uniform
        1.8

    Chapter: deployment/production
    """
    wide = _wide(weight)
    centred = wide - wide.mean() if weight.numel() else wide
    variance = centred.square().mean()
    if weight.numel() < 2 or not variance > 0:
        raise ValueError(f"weight has {weight.numel()} entries that are all equal; a kurtosis needs a spread")
    return (centred.pow(4).mean() / variance.square()).to(weight.dtype)


def kurtosis_penalty(weights: Iterable[Tensor], target: float = UNIFORM_KURTOSIS) -> Tensor:
    r"""Mean over tensors of :math:`(\mathrm{kurtosis} - target)^2`: flat distributions, which round well.

    Args:
        weights: of the layers that will be quantised, any shapes.
        target: kurtosis that costs nothing, 1 or more.

    Returns:
        A scalar, to be multiplied by a weight and added to the loss; it does not change with the scale of a tensor.

    Raises:
        ValueError: there is no tensor, ``target`` is below 1, or as :func:`kurtosis`.

    Source: Shkolnik et al. 2020 (KURE), section 4.

    Example:
        >>> two_values, uniform = torch.tensor([-1.0, 1.0]), torch.linspace(-1, 1, 1001)
        >>> round(kurtosis_penalty([two_values]).item(), 2)  # (1 - 1.8)²
        0.64
        >>> round(kurtosis_penalty([uniform, 5 * uniform]).item(), 2)
        0.0

    Chapter: deployment/production
    """
    if not target >= 1:
        raise ValueError(f"target is {target}; it may be 1 or more, as a kurtosis is")
    return _mean([(kurtosis(weight) - target).square() for weight in weights])


def hoyer_penalty(weights: Iterable[Tensor]) -> Tensor:
    r"""Mean over tensors of :math:`(\sum |w|)^2 / (n \sum w^2)`: few large weights, which prune well.

    The share of the weights that would have to be equal and the others zero to give the same ratio: 1 where all have one
    magnitude, :math:`2/\pi` for a normal distribution, :math:`1/n` where a single one is left.

    Args:
        weights: of the layers that will be pruned, any shapes.

    Returns:
        A scalar in (0, 1], to be multiplied by a weight and added to the loss; it does not change with the scale of a tensor.

    Raises:
        ValueError: there is no tensor, or one has only zeros.

    Source: Yang et al. 2020 (DeepHoyer), section 3, Hoyer-Square, here divided by the number of weights.

    Example:
        >>> hoyer_penalty([torch.ones(4)]).item(), hoyer_penalty([torch.tensor([0.0, 0.0, 7.0, 0.0])]).item()
        (1.0, 0.25)

    Chapter: deployment/production
    """
    found = []
    for weight in weights:
        wide = _wide(weight)
        energy = wide.square().sum()
        if not energy > 0:
            raise ValueError(
                f"weights holds a tensor of shape {tuple(weight.shape)} with only zeros, which has no ratio"
            )
        found.append((wide.abs().sum().square() / (weight.numel() * energy)).to(weight.dtype))
    return _mean(found)


def _wide(weight: Tensor) -> Tensor:
    """float32 at least: in float16 the fourth power of 0.01 is 0, and the sum of a matrix soon infinite."""
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def _mean(parts: list[Tensor]) -> Tensor:
    if not parts:
        raise ValueError("weights is empty; it may hold one tensor or more")
    return torch.stack(parts).mean()
