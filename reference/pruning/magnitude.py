r"""Magnitude pruning: remove the smallest weights.

One rule, and four ways to say among which weights the smallest are looked for:

    ==================== =================================== ==========================================
    function             compared with each other            removed
    ==================== =================================== ==========================================
    mask                 all weights of one tensor           a fraction, exactly
    global_masks         all weights of all tensors          a fraction of their sum, exactly
    row_mask             the weights of one row (one filter) the same number in each row
    n_of_m               m neighbours in a row               m - n of each m
    threshold_mask       each weight with a threshold        what falls below quality times the std
    ==================== =================================== ==========================================

Published codes remove the same fraction and differ by one weight, and in what they do with equal weights. Two
arguments reproduce them (s = ``sparsity``, n = number of weights that may go):

    ================================== ====================== ==================
    code                               ``count_rule``         ``tie_rule``
    ================================== ====================== ==================
    ours                               round(s n)             "first"
    Google's lottery ticket            "round_plus_one"       "all"
    open_lth (global)                  "ceil_plus_one"        "all"
    Wanda, layerwise magnitude         "floor_plus_one"       "all"
    SparseGPT, per block of columns    "floor_plus_one"       "all"
    Wanda, per row                     "floor"                "first"
    movement pruning, top-k            "floor_kept"           any (not stable)
    ================================== ====================== ==================
"""

import math
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from reference.pruning.selection import kth_smallest

#: From sparsity and the number of weights to the number removed.
COUNT_RULES: dict[str, Callable[[float, int], int]] = {
    "round": lambda sparsity, total: round(sparsity * total),
    "floor": lambda sparsity, total: int(sparsity * total),
    "ceil": lambda sparsity, total: math.ceil(sparsity * total),
    "round_plus_one": lambda sparsity, total: round(sparsity * total) + 1,
    "floor_plus_one": lambda sparsity, total: int(sparsity * total) + 1,
    "ceil_plus_one": lambda sparsity, total: math.ceil(sparsity * total) + 1,
    # 1 - 0.9 is 0.09999999999999998, of which ten weights would keep none; the code that this follows is given 0.1.
    "floor_kept": lambda sparsity, total: total - int(round(1 - sparsity, 12) * total),
}
TIE_RULES = ("first", "last", "all")


def removed_count(sparsity: float, total: int, count_rule: str = "round") -> int:
    """Number of weights to remove, by one of the published rules.

    Args:
        sparsity: fraction removed, ``0 <= sparsity < 1``.
        total: number of weights, 0 or more.
        count_rule: a key of :data:`COUNT_RULES`; "round" rounds halves to even, as Python does. The rules named
            ``…_plus_one`` come from codes that look up ``sorted[k]`` and remove what is not above it.

    Returns:
        0 to ``total``.

    Raises:
        ValueError: ``sparsity`` is out of range, or the rule is unknown.

    Example:
        >>> removed_count(0.5, 5)
        2

    Chapter: pruning/magnitude
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity is {sparsity}; it may be 0 or more and below 1")
    if count_rule not in COUNT_RULES:
        raise ValueError(f"count_rule is {count_rule!r}; it may be one of {', '.join(COUNT_RULES)}")
    return min(COUNT_RULES[count_rule](sparsity, total), total)


def mask(
    weight: Tensor,
    sparsity: float,
    *,
    count_rule: str = "round",
    tie_rule: str = "first",
    alive: Tensor | None = None,
    min_keep: int = 0,
) -> Tensor:
    """Keep the weights of largest absolute value in one tensor.

    Args:
        weight: any shape, floating point.
        sparsity: fraction removed, ``0 <= sparsity < 1``, of the weights that are alive;
            ``round(sparsity · count)`` weights go.
        count_rule: see :func:`removed_count`.
        tie_rule: which of equal weights go where not all of them do: "first" or "last" in row-major order, and the
            count is exact; or "all" that equal the last one removed, and more may go.
        alive: bool of the shape of ``weight``, the mask so far: False stays False and is not counted. None: all.
        min_keep: number of the largest weights that stay whatever ``sparsity`` says.

    Returns:
        Bool of the shape of ``weight``, True where a weight is kept. With the defaults the count is exact; among
        equal weights those that come first are removed.

    Raises:
        ValueError: ``sparsity`` is out of range, a rule is unknown, a weight is NaN, or the shape of ``alive`` differs.

    Source: Han et al. 2015, "Learning both weights and connections", section 3.

    Example:
        >>> mask(torch.tensor([[0.1, -3.0], [2.0, 0.2]]), 0.5)
        tensor([[False,  True],
                [ True, False]])

    Chapter: overview, pruning/magnitude
    """
    masks = None if alive is None else {"weight": alive}
    weights = {"weight": weight}
    return global_masks(weights, sparsity, count_rule=count_rule, tie_rule=tie_rule, alive=masks, min_keep=min_keep)[
        "weight"
    ]


def global_masks(
    weights: Mapping[str, Tensor],
    sparsity: float,
    *,
    count_rule: str = "round",
    tie_rule: str = "first",
    alive: Mapping[str, Tensor] | None = None,
    dense: Collection[str] = (),
    min_keep: int = 1,
) -> dict[str, Tensor]:
    """Keep the weights of largest absolute value among those of several tensors together.

    The layers get densities of their own. One whose weights are small by scale, not by importance, would be emptied
    and the network cut in two: ``min_keep`` prevents that.

    Args:
        weights: name → tensor, any shapes, floating point, on one device.
        sparsity: fraction removed, ``0 <= sparsity < 1``, of all weights that are alive.
        count_rule: see :func:`removed_count`.
        tie_rule: see :func:`mask`; the order is that of ``weights``, then row-major.
        alive: name → bool mask so far, of the same shapes; what is False stays False and is not counted.
        dense: names whose weights are counted but not removed, so that the others are pruned harder.
        min_keep: the number of alive weights, the largest, that each tensor keeps in any case.

    Returns:
        name → bool mask, True where a weight is kept. The count over all is exact unless ``dense`` and ``min_keep``
        leave too few to remove.

    Raises:
        ValueError: ``sparsity`` is out of range, a rule is unknown, a weight is NaN, ``min_keep`` is negative, a
            shape in ``alive`` differs, or ``dense`` names a tensor that is not there.

    Source: Frankle and Carbin 2019, section 3, for ranking over all layers; ``dense`` as in open_lth.

    Example:
        >>> global_masks({'a': torch.tensor([5.0, 4.0]), 'b': torch.tensor([0.1, 3.0])}, 0.5)
        {'a': tensor([ True, False]), 'b': tensor([False,  True])}

    Chapter: pruning/magnitude
    """
    if min_keep < 0:
        raise ValueError(f"min_keep is {min_keep}; it may be 0 or more")
    if unknown := set(dense) - set(weights):
        raise ValueError(f"dense names {sorted(unknown)}; there are {list(weights)}")
    masks, scores = {}, {}
    counted = 0
    for name, weight in weights.items():
        living = _alive(name, weight, alive)
        score = _score(name, weight).flatten()
        # Below every magnitude: what is dead is removed before all others, and again.
        scores[name] = score.masked_fill(~living.flatten(), -1)
        masks[name] = living.clone()
        counted += int(living.sum())
    removed = removed_count(sparsity, counted, count_rule)
    open_names = [name for name in weights if name not in dense]
    if not removed or not open_names:
        return masks
    protected = torch.cat([_largest(scores[name], min_keep, tie_rule) for name in open_names])
    ranked = torch.cat([scores[name] for name in open_names]).masked_fill(protected, torch.inf)
    dead = int((ranked < 0).sum())
    count = min(dead + removed, len(ranked) - int(protected.sum()))
    keep = ~_smallest(ranked[None], count, tie_rule)[0] | protected
    for name, part in zip(open_names, keep.split([weights[name].numel() for name in open_names]), strict=True):
        masks[name] = part.view(weights[name].shape).clone()
    return masks


def row_mask(
    weight: Tensor, sparsity: float, *, count_rule: str = "round", tie_rule: str = "first", min_keep: int = 0
) -> Tensor:
    """Keep the same number of weights in each row: those of largest absolute value.

    Args:
        weight: ``[out, …]``, floating point; a row is all that leads to one output, of a convolution one filter.
        sparsity: fraction removed of each row, ``0 <= sparsity < 1``.
        count_rule: see :func:`removed_count`, for the length of a row.
        tie_rule: see :func:`mask`, within a row.
        min_keep: the number that stays in each row in any case.

    Returns:
        Bool of the shape of ``weight``, True where a weight is kept.

    Raises:
        ValueError: ``sparsity`` is out of range, a rule is unknown, a weight is NaN, or ``weight`` has fewer than two
            dimensions.

    Source: Sun et al. 2024, "A simple and effective pruning approach for large language models", section 3, who
    compare within rows.

    Example:
        >>> row_mask(torch.tensor([[0.1, -3.0], [2.0, 0.2]]), 0.5)
        tensor([[False,  True],
                [ True, False]])

    Chapter: pruning/magnitude
    """
    if weight.ndim < 2:
        raise ValueError(f"weight has {weight.ndim} dimensions; rows need at least 2")
    score = _score("weight", weight).flatten(1)
    protected = _largest(score, min_keep, tie_rule)
    count = min(removed_count(sparsity, score.shape[1], count_rule), max(score.shape[1] - min_keep, 0))
    return (~_smallest(score, count, tie_rule) | protected).view(weight.shape)


def n_of_m(weight: Tensor, n: int, m: int) -> Tensor:
    """Keep the n largest of each m neighbours along the inputs: the pattern that sparse tensor cores need (2 of 4).

    Args:
        weight: ``[out, in, …]``, floating point; neighbours lie along the second dimension, of a convolution the
            input channels.
        n: kept in each group, ``1 <= n <= m``.
        m: weights a group; divides ``in``.

    Returns:
        Bool of the shape of ``weight``, True where a weight is kept; among equal weights the first are removed.

    Raises:
        ValueError: ``n`` or ``m`` is out of range, ``m`` does not divide ``in``, a weight is NaN, or ``weight`` has
            fewer than two dimensions.

    Source: Mishra et al. 2021, "Accelerating sparse deep neural networks", section 3.

    Example:
        >>> n_of_m(torch.tensor([[0.1, -3.0, 2.0, 0.2]]), 2, 4)
        tensor([[False,  True,  True, False]])

    Chapter: pruning/magnitude
    """
    if not 1 <= n <= m:
        raise ValueError(f"n is {n} and m is {m}; they may be 1 <= n <= m")
    if weight.ndim < 2:
        raise ValueError(f"weight has {weight.ndim} dimensions; [out, in, …] is needed")
    if weight.shape[1] % m:
        raise ValueError(f"m is {m}; it must divide the {weight.shape[1]} inputs of weight")
    score = _score("weight", weight).movedim(1, -1)
    keep = ~_smallest(score.reshape(-1, m), m - n, "first")
    return keep.view(score.shape).movedim(-1, 1).contiguous()


def threshold_mask(weight: Tensor, quality: float, *, min_keep: int = 1) -> Tensor:
    """Keep the weights at or above ``quality`` standard deviations of their tensor.

    Args:
        weight: any shape, floating point.
        quality: the layer's threshold in standard deviations (of the population, about the mean), 0 or more.
        min_keep: number of the largest weights that stay in any case.

    Returns:
        Bool of the shape of ``weight``, True where a weight is kept. The count is what the threshold gives; of a
        normal distribution about zero the fraction ``erfc(quality / √2)`` stays.

    Raises:
        ValueError: ``quality`` is negative or not finite, or a weight is NaN.

    Source: Han et al. 2015, section 3.

    Example:
        >>> threshold_mask(torch.tensor([3.0, -1.0, 1.0, -3.0]), 1.0)  # the standard deviation is √5
        tensor([ True, False, False,  True])

    Chapter: pruning/magnitude
    """
    if not 0 <= quality < math.inf:
        raise ValueError(f"quality is {quality}; it may be 0 or more, and finite")
    score = _score("weight", weight)
    std = _std(weight)
    keep = score.to(std.dtype) >= quality * std  # else a number is rounded to the type of a bfloat16 tensor beside it
    return keep | _largest(score.flatten(), min_keep, "first").view(weight.shape)


def quality_of(weight: Tensor, sparsity: float) -> float:
    """The ``quality`` at which :func:`threshold_mask` keeps what :func:`mask` keeps.

    Args:
        weight: any shape, floating point, not all equal.
        sparsity: fraction removed, ``0 <= sparsity < 1``.

    Returns:
        A number of standard deviations, half-way between the largest weight removed and the smallest kept. Where
        these two are equal no threshold can divide them, and all that are equal stay.

    Raises:
        ValueError: ``sparsity`` is out of range or leaves no weight, a weight is NaN, or all weights are equal.

    Example:
        >>> round(quality_of(torch.tensor([4.0, -2.0, 2.0, -4.0, 0.0]), 0.6), 3)  # half-way from 2 to 4, over √8
        1.061

    Chapter: pruning/magnitude
    """
    values = _score("weight", weight).flatten().double().sort().values
    removed, std = removed_count(sparsity, len(values)), float(_std(weight))
    if removed == len(values):
        raise ValueError(f"sparsity is {sparsity}, which leaves none of {len(values)} weights")
    if std == 0:
        raise ValueError("weight holds equal values only; their standard deviation is 0")
    if removed == 0:
        return 0.0
    if values[removed - 1] == values[removed]:
        return float(values[removed]) / std * (1 - 1e-6)
    return float(values[removed - 1] + values[removed]) / 2 / std


def _std(weight: Tensor) -> Tensor:
    return weight.detach().to(torch.promote_types(weight.dtype, torch.float32)).std(correction=0)


def _score(name: str, weight: Tensor) -> Tensor:
    if not weight.is_floating_point():
        raise TypeError(f"{name} is {weight.dtype}; it must be floating point")
    if weight.isnan().any():
        raise ValueError(f"{name} holds {int(weight.isnan().sum())} NaN values, which have no magnitude")
    return weight.detach().abs()


def _alive(name: str, weight: Tensor, alive: Mapping[str, Tensor] | None) -> Tensor:
    if alive is None:
        return torch.ones(weight.shape, dtype=torch.bool, device=weight.device)
    if name not in alive or alive[name].shape != weight.shape or alive[name].dtype != torch.bool:
        found = f"{alive[name].dtype} {tuple(alive[name].shape)}" if name in alive else "missing"
        raise ValueError(f"alive[{name!r}] is {found}; it must be bool {tuple(weight.shape)}")
    return alive[name]


def _smallest(score: Tensor, count: int, tie_rule: str) -> Tensor:
    """True for the ``count`` smallest of each row of ``score``, ``[rows, n]``."""
    if tie_rule not in TIE_RULES:
        raise ValueError(f"tie_rule is {tie_rule!r}; it may be one of {', '.join(TIE_RULES)}")
    if count == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    if tie_rule == "last":
        return _smallest(score.flip(1), count, "first").flip(1)
    last = kth_smallest(score, count)  # the largest that goes
    gone = score <= last
    if tie_rule == "all" or bool((gone.sum(1) == count).all()):
        return gone
    below, equal = score < last, score == last
    left = count - below.sum(1, keepdim=True)
    return below | (equal & (equal.cumsum(1) <= left))


def _largest(score: Tensor, count: int, tie_rule: str) -> Tensor:
    """True for the ``count`` weights, of the last dimension, that would be removed last; never for dead ones (-1)."""
    rows = score.view(-1, score.shape[-1])
    order = "last" if tie_rule == "last" else "first"
    chosen = ~_smallest(rows, max(rows.shape[1] - count, 0), order) if count else torch.zeros_like(rows).bool()
    return chosen.view(score.shape) & (score >= 0)
