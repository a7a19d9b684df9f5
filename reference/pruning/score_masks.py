r"""Masks from scores: which weights stay, and what gradient goes back to the score that decided it.

A mask is a step function of the scores, so its derivative is zero wherever it exists. The straight-through estimator
replaces it by one: forward the step, backward the identity.

    ================== ============================================= ==================
    function           kept                                          gradient to scores
    ================== ============================================= ==================
    topk_mask          a fraction of one tensor, exactly             straight through
    global_topk_masks  a fraction of several tensors together        straight through
    threshold_mask     scores above a threshold, a floor in any case straight through
    magnitude_mask     a fraction of one tensor, by absolute value   none
    l0_mask            a soft gate, exactly 0 and 1 at its ends      true derivative
    ================== ============================================= ==================

Nothing here waits for the device: counts that depend on data stay tensors.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from reference.pruning.selection import kth_smallest

#: Stretch and temperature of the hard concrete distribution, and the bounds of its noise.
L0_LOW, L0_HIGH, L0_BETA = -0.1, 1.1, 2 / 3
L0_NOISE = (1e-4, 1 - 1e-4)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, keep: Tensor) -> Tensor:
        return keep.to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def straight_through(scores: Tensor, keep: Tensor) -> Tensor:
    """``keep`` as numbers, whose gradient goes to ``scores`` unchanged.

    Args:
        scores: any shape, floating point.
        keep: bool of the same shape.

    Returns:
        0 and 1, shape and dtype of ``scores``.

    Raises:
        ValueError: shapes differ.

    Source: Bengio et al. 2013, "Estimating or propagating gradients through stochastic neurons", section 4.

    Example:
        >>> scores = torch.tensor([0.3, -1.0], requires_grad=True)
        >>> mask = straight_through(scores, torch.tensor([True, False]))
        >>> (mask * torch.tensor([5.0, 7.0])).sum().backward()
        >>> mask.tolist(), scores.grad.tolist()  # the score of what is pruned has a gradient too
        ([1.0, 0.0], [5.0, 7.0])

    Chapter: pruning/movement
    """
    if scores.shape != keep.shape:
        raise ValueError(f"keep has shape {tuple(keep.shape)}, scores {tuple(scores.shape)}; they must be the same")
    return _StraightThrough.apply(scores, keep)


def topk_mask(scores: Tensor, keep: float) -> Tensor:
    """Keep the largest scores of one tensor, an exact number, straight through.

    Args:
        scores: any shape and any strides, floating point.
        keep: fraction kept, 0 to 1; ``int(keep · n)`` of n scores stay.

    Returns:
        0 and 1, shape and dtype of ``scores``; among equal scores those that come first in row-major order stay.

    Raises:
        ValueError: ``keep`` is out of range.

    Source: Sanh et al. 2020, "Movement pruning", section 4 (Top\\ :sub:`v`); the count as in the authors' code.

    Example:
        >>> topk_mask(torch.tensor([0.3, -1.0, 2.0, 0.1]), 0.5)
        tensor([1., 0., 1., 0.])

    Chapter: pruning/movement
    """
    return straight_through(scores, _largest(scores.detach(), _count(keep, scores.numel())))


def global_topk_masks(scores: Sequence[Tensor], keep: float, *, min_keep: int = 1) -> list[Tensor]:
    """Keep the largest scores among those of several tensors together, straight through.

    Args:
        scores: tensors of any shapes, one dtype, on one device.
        keep: fraction kept, 0 to 1; ``int(keep · n)`` of all n scores stay.
        min_keep: number of scores, the largest, that each tensor keeps in any case, so that none goes empty.

    Returns:
        A mask for each tensor. The total is exact unless ``min_keep`` asks for more; ties as in :func:`topk_mask`,
        the order is that of ``scores``.

    Raises:
        ValueError: ``keep`` is out of range, ``min_keep`` is negative, or there is no tensor.

    Source: Sanh et al. 2020, section 7 ("local and global selection").

    Example:
        >>> scores = [torch.tensor([5.0, 4.0, 3.0]), torch.tensor([1.0])]
        >>> global_topk_masks(scores, 0.5)  # the second tensor keeps its best
        [tensor([1., 0., 0.]), tensor([1.])]
        >>> global_topk_masks(scores, 0.5, min_keep=0)[1]
        tensor([0.])

    Chapter: pruning/movement
    """
    if not scores:
        raise ValueError("scores is empty; it must hold one tensor or more")
    if min_keep < 0:
        raise ValueError(f"min_keep is {min_keep}; it may be 0 or more")
    protected = [_largest(s.detach(), min(min_keep, s.numel())).flatten() for s in scores]
    ranked = torch.cat([s.detach().flatten() for s in scores]).masked_fill(torch.cat(protected), torch.inf)
    kept = _largest(ranked, _count(keep, len(ranked))) | torch.cat(protected)
    parts = kept.split([s.numel() for s in scores])
    return [straight_through(s, part.view(s.shape)) for s, part in zip(scores, parts, strict=True)]


def threshold_mask(scores: Tensor, threshold: float, sigmoid: bool = True, *, floor: float = 0.005) -> Tensor:
    r"""Keep the scores above a threshold, and the largest few in any case, straight through.

    Args:
        scores: any shape, floating point.
        threshold: :math:`\tau`; a score stays if it is larger.
        sigmoid: compare :math:`\sigma(S)`, which lies between 0 and 1, and not the score itself.
        floor: the ``int(floor · n) + 1`` largest scores stay whatever the threshold; 0 is no floor.

    Returns:
        0 and 1, shape and dtype of ``scores``. The gradient passes as if there were no sigmoid.

    Raises:
        ValueError: ``floor`` is out of range.

    Source: Sanh et al. 2020, section 4 (soft movement). In the authors' code a tensor whose scores are all equal,
    and one of a single weight, can lose everything in spite of the floor; here the first ones stay.

    Example:
        >>> scores = torch.tensor([2.0, 0.5, -0.5, -2.0])  # a sigmoid above a half is a score above 0
        >>> threshold_mask(scores, 0.5)
        tensor([1., 1., 0., 0.])
        >>> threshold_mask(scores, 1.0)  # the floor holds one
        tensor([1., 0., 0., 0.])

    Chapter: pruning/movement
    """
    values = scores.detach()
    kept = (values.sigmoid() if sigmoid else values) > threshold
    if floor:
        # If the threshold keeps more than the floor, it keeps the floor's scores among them: a union is enough.
        kept = kept | _largest(values, min(_count(floor, scores.numel(), "floor") + 1, scores.numel()))
    return straight_through(scores, kept)


def magnitude_mask(weight: Tensor, keep: float) -> Tensor:
    """Keep the weights of largest absolute value; no gradient passes through the mask.

    Args:
        weight: any shape, floating point.
        keep: fraction kept, 0 to 1; ``int(keep · n)`` of n weights stay.

    Returns:
        0 and 1, shape and dtype of ``weight``; among equals those that come first stay.

    Raises:
        ValueError: ``keep`` is out of range.

    Source: as run beside movement pruning by Sanh et al. 2020, section 5.

    Example:
        >>> magnitude_mask(torch.tensor([0.3, -1.0, 2.0, 0.1]), 0.5)
        tensor([0., 1., 1., 0.])

    Chapter: pruning/movement
    """
    magnitude = weight.detach().abs()
    return _largest(magnitude, _count(keep, weight.numel())).to(weight.dtype)


def l0_mask(scores: Tensor, noise: Tensor | None = None) -> Tensor:
    r"""A random gate from 0 to 1 that is often exactly at an end, and differentiable between (hard concrete).

    :math:`\min(1, \max(0, s\,(r - l) + l))` with :math:`s = \sigma((\ln u - \ln(1-u) + S)/\beta)`,
    :math:`l = -0.1`, :math:`r = 1.1`, :math:`\beta = 2/3`.

    Args:
        scores: :math:`\log\alpha`, any shape, floating point.
        noise: :math:`u`, uniform on 0 to 1, of the same shape. None is evaluation: :math:`s = \sigma(S)`.

    Returns:
        Values from 0 to 1, of the shape of ``scores``.

    Source: Louizos et al. 2018, "Learning sparse neural networks through L0 regularization", equations 10 to 13.

    Example:
        >>> l0_mask(torch.tensor([-10.0, 0.0, 10.0]))
        tensor([0.0000, 0.5000, 1.0000])
        >>> l0_mask(torch.tensor([0.0, 0.0]), noise=torch.tensor([0.01, 0.99]))  # drawn: closed, then open
        tensor([0., 1.])

    Chapter: pruning/movement
    """
    sharpened = scores if noise is None else (noise.clamp(*L0_NOISE).logit() + scores) / L0_BETA
    gate = sharpened.sigmoid()
    return (gate * (L0_HIGH - L0_LOW) + L0_LOW).clamp(0, 1)


def l1_penalty(scores: Sequence[Tensor]) -> Tensor:
    r"""Mean of :math:`\sigma(S)` over a tensor, then over tensors: what pushes scores under the threshold.

    Args:
        scores: one tensor or more, any shapes, floating point.

    Returns:
        A scalar from 0 to 1, with a gradient.

    Source: Sanh et al. 2020, section 4; the means as in the authors' code.

    Example:
        >>> l1_penalty([torch.zeros(100), torch.tensor([-50.0])])  # a half, and nothing: each tensor counts alike
        tensor(0.2500)

    Chapter: pruning/movement
    """
    return torch.stack([s.sigmoid().mean() for s in scores]).mean()


def l0_penalty(scores: Sequence[Tensor]) -> Tensor:
    r"""Probability that a gate is not zero, :math:`\sigma(S - \beta\ln(-l/r))`; means as in :func:`l1_penalty`.

    Args:
        scores: one tensor or more, any shapes, floating point.

    Returns:
        A scalar from 0 to 1, with a gradient.

    Source: Louizos et al. 2018, equation 12; the means as in the movement-pruning authors' code.

    Example:
        >>> scores = torch.zeros(4)  # gates that stand half open in evaluation
        >>> round(float(l0_penalty([scores])), 2)  # are rarely exactly zero in training
        0.83

    Chapter: pruning/movement
    """
    shift = L0_BETA * math.log(-L0_LOW / L0_HIGH)
    return torch.stack([(s - shift).sigmoid().mean() for s in scores]).mean()


def _count(keep: float, total: int, name: str = "keep") -> int:
    if not 0 <= keep <= 1:
        raise ValueError(f"{name} is {keep}; it may be 0 to 1")
    return int(keep * total)


def _largest(scores: Tensor, count: int) -> Tensor:
    """Bool of the shape of ``scores``, True at the ``count`` largest; among equals at those that come first."""
    flat = scores.reshape(-1)
    if count == 0 or count == len(flat):
        return torch.full(scores.shape, count > 0, dtype=torch.bool, device=scores.device)
    cut = kth_smallest(flat[None], len(flat) - count + 1)[0]
    above, equal = flat > cut, flat == cut
    kept = above | (equal & (equal.cumsum(0, dtype=torch.int32) <= count - above.sum()))
    return kept.view(scores.shape)
