r"""Wanda: score each weight by its size times the size of what it reads, and keep the best of each row.

A weight :math:`W_{ij}` adds :math:`W_{ij} X_j` to the output. Without it the output changes by a vector of norm

.. math:: S_{ij} = |W_{ij}|\,\lVert X_j \rVert_2,

and that is the score: the square root of what Optimal Brain Surgeon's saliency becomes when the Hessian is taken for
its diagonal. Within a row only the order of the scores counts, so a common factor of the norms does not.

    ================ =================================== =============================
    function         compared with each other            removed
    ================ =================================== =============================
    mask             the weights of one row              the same number in each row
    mask, pattern    m neighbours in a row               m - n of each m
    mass_mask        the weights of one row              scores that add up to the same
                                                         part of each row's sum
    ================ =================================== =============================
"""

import torch
from torch import Tensor

from reference.pruning import magnitude
from reference.quantization.hessian import all_finite


class InputNorms:
    r"""L2 norm of each input of a layer over the calibration tokens, whatever the order they come in.

    Args:
        in_features: columns of the layer's input.
        device: where the sum is kept.

    Attributes:
        sum: float64 ``[in_features]``, the sum of :math:`x_j^2`.
        sequences: how many sequences went in.

    Example:
        >>> norms = InputNorms(2)
        >>> norms.add(torch.tensor([[3.0, 0.0], [4.0, 1.0]]))  # two tokens
        >>> norms.norms
        tensor([5., 1.])

    Chapter: pruning/one_shot
    """

    def __init__(self, in_features: int, device: torch.device | str | None = None) -> None:
        self.sum = torch.zeros(in_features, dtype=torch.float64, device=device)
        self.sequences = 0

    @property
    def norms(self) -> Tensor:
        """float32 ``[in_features]``, root of the mean over sequences: a common factor from the norm over all tokens."""
        return (self.sum / max(self.sequences, 1)).sqrt().float()

    def add(self, inputs: Tensor, name: str = "inputs") -> None:
        """Add the inputs of one batch.

        Args:
            inputs: ``[sequences, ..., in_features]``; a matrix ``[tokens, in_features]`` counts as one sequence.
            name: what to call the layer in an error.

        Raises:
            ValueError: another width, or values that are not finite; nothing is added then.
        """
        if inputs.ndim < 2 or inputs.shape[-1] != len(self.sum):
            raise ValueError(f"{name} has shape {tuple(inputs.shape)}; its last axis must be {len(self.sum)}")
        if not inputs.numel():
            return
        if not all_finite(inputs):
            raise ValueError(f"{name} holds NaN or infinite activations; the model overflows before this layer")
        rows = inputs.detach().reshape(-1, inputs.shape[-1]).to(self.sum.device)
        self.sum += torch.linalg.vector_norm(rows, dim=0, dtype=torch.float64).square()
        self.sequences += inputs.shape[0] if inputs.ndim > 2 else 1


def scores(weight: Tensor, input_norm: Tensor) -> Tensor:
    r"""Norm of the change of the layer's output when a weight alone is removed, :math:`|W_{ij}|\,\lVert X_j\rVert_2`.

    Args:
        weight: ``[out_features, in_features]``, floating point.
        input_norm: ``[in_features]``, of :class:`InputNorms`; 0 or more.

    Returns:
        float32 of the shape of ``weight``.

    Raises:
        ValueError: shapes do not match, or a norm is negative or not finite.

    Source: Sun et al. 2024, section 3, equation 1.

    Example:
        >>> scores(torch.tensor([[1.0, -2.0]]), torch.tensor([5.0, 1.0]))  # the smaller weight reads the larger input
        tensor([[5., 2.]])

    Chapter: pruning/one_shot
    """
    if weight.ndim != 2 or tuple(input_norm.shape) != (weight.shape[1],):
        raise ValueError(
            f"weight has shape {tuple(weight.shape)} and input_norm {tuple(input_norm.shape)}; they may be [out, in] "
            "and [in]"
        )
    if not input_norm.isfinite().all() or (input_norm < 0).any():
        raise ValueError("input_norm holds negative, infinite or NaN values; norms are finite and 0 or more")
    return weight.detach().float().abs() * input_norm.float()


def mask(
    weight: Tensor,
    input_norm: Tensor,
    sparsity: float | None = None,
    *,
    pattern: tuple[int, int] | None = None,
    count_rule: str = "round",
) -> Tensor:
    r"""Keep the weights that matter to the layer's output, row by row.

    No gradient, no update of the weights that stay.

    Args:
        weight: ``[out_features, in_features]``, floating point.
        input_norm: ``[in_features]``, norm of each input over the calibration tokens; a common factor does not matter.
        sparsity: fraction removed of each row, ``0 <= sparsity < 1``; or
        pattern: ``(n, m)``: n of each m neighbours stay, such as (2, 4). m divides ``in_features``.
        count_rule: see :func:`reference.pruning.magnitude.removed_count`; "floor" is that of the authors' code.

    Returns:
        Bool ``[out_features, in_features]``, True where a weight is kept. Every row keeps the same number; of equal
        scores the lower column goes.

    Raises:
        ValueError: shapes do not match, ``sparsity`` or ``pattern`` is out of range, or not exactly one of them is given.

    Source: Sun et al. 2024, section 3.

    Example:
        >>> weight, input_norm = torch.tensor([[1.0, -2.0], [0.1, 9.0]]), torch.tensor([5.0, 1.0])
        >>> mask(weight, input_norm, 0.5)  # each row has its own ranking
        tensor([[ True, False],
                [False,  True]])

    Chapter: pruning/one_shot
    """
    if (sparsity is None) == (pattern is None):
        raise ValueError(f"sparsity is {sparsity} and pattern is {pattern}; exactly one of them may be given")
    score = scores(weight, input_norm)
    if pattern is not None:
        return magnitude.n_of_m(score, *pattern)
    assert sparsity is not None
    return magnitude.row_mask(score, sparsity, count_rule=count_rule)


def mass_mask(weight: Tensor, input_norm: Tensor, sparsity: float, *, tolerance: float = 1e-3) -> Tensor:
    r"""Remove from each row its smallest scores, up to the same part of the row's sum of scores.

    Rows whose scores are unequal lose more weights than rows whose scores are alike. The part is found by bisection, so
    that ``sparsity`` of all weights go. It is the variant of the authors' code, and no better than :func:`mask`. As there
    the part is at most 0.8, and found to within ``tolerance``: of normally distributed scores no fewer than some 2 % and
    no more than some 93 % go, whatever ``sparsity`` says.

    Args:
        weight: ``[out_features, in_features]``, floating point.
        input_norm: ``[in_features]``.
        sparsity: fraction removed of all weights, ``0 <= sparsity < 1``.
        tolerance: of the fraction, and of the part, at which the search stops, above 0.

    Returns:
        Bool ``[out_features, in_features]``, True where a weight is kept.

    Raises:
        ValueError: shapes do not match, or ``sparsity`` or ``tolerance`` is out of range.

    Source: the authors' code, ``--use_variant``; not in the paper.

    Example:
        >>> weight = torch.tensor([[8.0, 1.0, 1.0, 1.0], [3.0, 3.0, 3.0, 3.0]])
        >>> mass_mask(weight, torch.ones(4), 0.5)  # the uneven row loses more
        tensor([[ True, False, False, False],
                [False,  True,  True,  True]])

    Chapter: pruning/one_shot
    """
    magnitude.removed_count(sparsity, 1)  # its range
    if not tolerance > 0:  # the search for a fraction that no part gives would never end
        raise ValueError(f"tolerance is {tolerance}; it may be any number above 0")
    score = scores(weight, input_norm)
    values, order = score.sort(dim=1, stable=True)
    running, total = values.cumsum(1), score.sum(1, keepdim=True)
    low, part, high = 0.0, 0.4, 0.8
    while True:
        removed = running <= part * total
        fraction = float(removed.double().mean())
        if abs(fraction - sparsity) <= tolerance or high - low < tolerance:
            return torch.ones_like(removed).scatter_(1, order, ~removed)
        if fraction > sparsity:
            high = part
        else:
            low = part
        part = (low + high) / 2
