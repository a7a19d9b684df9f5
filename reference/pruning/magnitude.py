"""Magnitude pruning: remove the smallest weights."""

import torch
from torch import Tensor


def mask(weight: Tensor, sparsity: float) -> Tensor:
    """Keep the weights of largest absolute value in one matrix.

    Args:
        weight: any shape, floating point.
        sparsity: fraction removed, ``0 <= sparsity < 1``; ``round(sparsity · count)`` weights go.

    Returns:
        Bool of the shape of ``weight``, True where a weight is kept. The count is exact; among
        equal weights those that come first are removed.

    Raises:
        ValueError: ``sparsity`` is out of range, or a weight is NaN.

    Source: Han et al. 2015, "Learning both weights and connections", section 3.

    Chapter: overview
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity is {sparsity}; it may be 0 or more and below 1")
    if weight.isnan().any():
        raise ValueError(f"weight holds {int(weight.isnan().sum())} NaN values, which have no magnitude")
    removed = round(sparsity * weight.numel())
    order = weight.detach().abs().flatten().argsort(stable=True)
    keep = torch.ones(weight.numel(), dtype=torch.bool, device=weight.device)
    keep[order[:removed]] = False
    return keep.view(weight.shape)
