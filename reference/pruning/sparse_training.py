r"""Sparse training from scratch: choose the mask before training (SNIP), or move it while training (SET, RigL).

All functions take tensors and give masks; a training loop applies them with :class:`reference.pruning.masks.Masks`,
which also clears the momentum of what was dropped.

    ============ ================================ ============================ =======================
    method       mask at the start                removed at an update         grown at an update
    ============ ================================ ============================ =======================
    static       random                           nothing                      nothing
    SNIP         largest abs(gradient · weight)   nothing                      nothing
    SET          random                           smallest weights             at random
    RigL         random                           smallest weights             largest dense gradients
    ============ ================================ ============================ =======================

    ==================== ====================================
    paper                code
    ==================== ====================================
    :math:`\alpha`       fraction (of the update at step 0)
    :math:`\Delta T`     every
    :math:`T_{end}`      end_step
    :math:`\epsilon`     one number for all layers, solved for
    ==================== ====================================
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from reference.pruning import magnitude
from reference.pruning.densities import check_density


def connection_sensitivity(
    weights: Mapping[str, Tensor], gradients: Sequence[Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    r"""How much the loss changes when a connection is weakened, as a share of all connections (SNIP).

    Multiply weight :math:`j` by a gate :math:`c_j`. At :math:`c = 1` the derivative of the loss to the gate is
    :math:`g_j \theta_j`, gradient times weight. The score is its absolute value over the sum of all.

    Args:
        weights: name → tensor at initialisation, floating point.
        gradients: one mapping a batch, same names and shapes. Several are averaged *before* the absolute value is
            taken, as if they were one batch.

    Returns:
        name → float64 of the shape of the weight; all together sum to 1.

    Raises:
        ValueError: there are no gradients, a name or shape differs, or all scores are zero or not finite.

    Source: Lee et al. 2019, eq. 5 and 6.

    Example:
        >>> connection_sensitivity({"w": torch.tensor([1.0, -2.0])}, [{"w": torch.tensor([3.0, 1.0])}])  # 3 and 2, of 5
        {'w': tensor([0.6000, 0.4000], dtype=torch.float64)}

    Chapter: pruning/lottery_ticket
    """
    if not gradients:
        raise ValueError("gradients is empty; it must hold one mapping for each batch, at least one")
    scores = {}
    for name, weight in weights.items():
        for gradient in gradients:
            if name not in gradient or gradient[name].shape != weight.shape:
                found = tuple(gradient[name].shape) if name in gradient else "missing"
                raise ValueError(f"gradient of {name!r} is {found}; it must have shape {tuple(weight.shape)}")
        mean = torch.stack([gradient[name].detach().double() for gradient in gradients]).mean(0)
        scores[name] = (mean * weight.detach().double()).abs()
    total = math.fsum(float(score.sum()) for score in scores.values())
    if not 0 < total < math.inf:
        raise ValueError(f"the scores sum to {total}; they must be finite, and not all zero")
    return {name: score / total for name, score in scores.items()}


def snip_masks(
    weights: Mapping[str, Tensor], gradients: Sequence[Mapping[str, Tensor]], density: float, *, min_keep: int = 0
) -> dict[str, Tensor]:
    """Keep the connections of largest sensitivity, ranked over all layers, before any training (SNIP).

    Args:
        weights, gradients: see :func:`connection_sensitivity`.
        density: fraction kept of all weights, ``0 < density <= 1``.
        min_keep: the number that each tensor keeps in any case. The method has no such guard: 0.

    Returns:
        name → bool mask, True where kept; ``n - round((1 - density) · n)`` of ``n`` weights, exactly.

    Raises:
        ValueError: ``density`` is out of range, or as for :func:`connection_sensitivity`.

    Source: Lee et al. 2019, algorithm 1.

    Example:
        >>> weights = {"a": torch.tensor([1.0, 1.0]), "b": torch.tensor([1.0, 1.0])}
        >>> gradients = [{"a": torch.tensor([9.0, -8.0]), "b": torch.tensor([0.1, 0.2])}]
        >>> snip_masks(weights, gradients, 0.5)  # nothing guards a layer against being emptied
        {'a': tensor([True, True]), 'b': tensor([False, False])}

    Chapter: pruning/lottery_ticket
    """
    check_density(density)
    scores = connection_sensitivity(weights, gradients)
    # 1 - 1e-20 is 1, which no mask may remove.
    return magnitude.global_masks(scores, min(1 - density, 1 - 2**-53), min_keep=min_keep)


def update_fraction(step: int, *, end_step: int, fraction: float = 0.3) -> float:
    r"""Share of a layer's connections that moves at an update: :math:`\frac\alpha2 (1 + \cos(\pi t / T_{end}))`.

    Args:
        step: steps taken so far, from 0.
        end_step: from here on the mask stays, 1 or more; three quarters of the training in the paper.
        fraction: at step 0, 0 to 1.

    Returns:
        From ``fraction`` at 0, falling, to 0 at ``end_step`` and after.

    Raises:
        ValueError: an argument is out of range.

    Source: Evci et al. 2020, section 3, "update schedule".

    Example:
        >>> [update_fraction(step, end_step=100) for step in (0, 100)]
        [0.3, 0.0]

    Chapter: pruning/lottery_ticket
    """
    if step < 0 or end_step < 1:
        raise ValueError(f"step is {step} and end_step is {end_step}; they may be 0 or more, and 1 or more")
    _check_fraction(fraction)
    return fraction / 2 * (1 + math.cos(math.pi * step / end_step)) if step < end_step else 0.0


def update_steps(*, every: int, end_step: int) -> list[int]:
    """The steps after which the mask is updated: multiples of ``every``, from ``every`` to before ``end_step``.

    Args:
        every: steps between two updates, 1 or more.
        end_step: first step without an update.

    Raises:
        ValueError: ``every`` is below 1.

    Source: Evci et al. 2020, algorithm 1.

    Example:
        >>> update_steps(every=10, end_step=40)
        [10, 20, 30]

    Chapter: pruning/lottery_ticket
    """
    if every < 1:
        raise ValueError(f"every is {every}; it may be 1 or more")
    return list(range(every, end_step, every))


def set_update(weight: Tensor, mask: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    """Drop the smallest weights of a layer, and grow as many connections at random (SET).

    Args:
        weight: any shape, floating point.
        mask: bool of its shape, True where a connection is.
        fraction: of the connections that are dropped, 0 to 1; rounded down to a whole number.
        generator: of the CPU.

    Returns:
        The new bool mask, with as many connections. What was dropped may be drawn again at once, and then keeps its
        weight. Set the weights of other new connections to zero, as :class:`reference.pruning.masks.Masks` does.

    Raises:
        ValueError: shape or type of ``mask`` differs, ``fraction`` is out of range, or a weight is NaN.

    Source: Mocanu et al. 2018, algorithm 1, who drop the smallest positive and the largest negative weights; by
    magnitude, as here, in Evci et al. 2020, section 4.

    Example:
        >>> weight, mask = torch.tensor([5.0, 1.0, 0.0, 0.0]), torch.tensor([True, True, False, False])
        >>> found = set_update(weight, mask, 0.5, torch.Generator().manual_seed(0))
        >>> bool(found[0]), int(found.sum())  # the large weight stays; there are two again
        (True, 2)

    Chapter: pruning/lottery_ticket
    """
    score = torch.rand(weight.shape, generator=generator, dtype=torch.float64).to(weight.device)
    return _drop_and_grow(weight, mask, score, fraction)


def rigl_update(weight: Tensor, mask: Tensor, gradient: Tensor, fraction: float) -> Tensor:
    """Drop the smallest weights of a layer, and grow as many connections where the dense gradient is largest (RigL).

    Args:
        weight, mask, fraction: see :func:`set_update`.
        gradient: of the loss to *all* weights, those without a connection included; shape of ``weight``.

    Returns:
        As :func:`set_update`. Among equal gradients the first grow.

    Raises:
        ValueError: as :func:`set_update`, or ``gradient`` has another shape or holds NaN.

    Source: Evci et al. 2020, algorithm 1.

    Example:
        >>> weight, mask = torch.tensor([5.0, 1.0, 0.0, 0.0]), torch.tensor([True, True, False, False])
        >>> rigl_update(weight, mask, gradient=torch.tensor([0.0, 0.0, 2.0, -9.0]), fraction=0.5)
        tensor([ True, False, False,  True])

    Chapter: pruning/lottery_ticket
    """
    if gradient.shape != weight.shape or gradient.isnan().any():
        raise ValueError(f"gradient is {tuple(gradient.shape)}; it must be {tuple(weight.shape)} and not hold NaN")
    return _drop_and_grow(weight, mask, gradient.detach().abs(), fraction)


def mover(
    masks: Mapping[str, Tensor],
    *,
    every: int,
    end_step: int,
    fraction: float = 0.3,
    generators: Sequence[torch.Generator] | None = None,
) -> Callable[[int, Mapping[str, Tensor], Mapping[str, Tensor]], dict[str, Tensor] | None]:
    """Updates of many networks at once, as ``remask`` of :func:`reference.pruning.parallel_training.train`.

    Args:
        masks: name → bool ``[models, …]`` at the start.
        every, end_step: see :func:`update_steps`.
        fraction: see :func:`update_fraction`.
        generators: one a network for SET; None for RigL.

    Returns:
        A function of the step, the state and the gradient of all weights that gives new masks at the steps of an update,
        otherwise None. It remembers the masks, so it serves one training.

    Raises:
        ValueError: an argument is out of range, or there are not as many generators as networks.

    Example:
        >>> update = mover({"w": torch.tensor([[True, True, False]])}, every=2, end_step=5, fraction=1.0)
        >>> state, slopes = {"w": torch.tensor([[5.0, 1.0, 0.0]])}, {"w": torch.tensor([[0.0, 0.0, -9.0]])}
        >>> update(1, state, slopes) is None, update(2, state, slopes)
        (True, {'w': tensor([[ True, False,  True]])})

    Chapter: pruning/lottery_ticket
    """
    steps = set(update_steps(every=every, end_step=end_step))
    models = len(next(iter(masks.values())))
    if generators is not None and len(generators) != models:
        raise ValueError(f"generators has {len(generators)}; it must have {models}, one a network, or be None")
    current = dict(masks)

    def update(step: int, state: Mapping[str, Tensor], slopes: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        if step not in steps:
            return None
        moved = update_fraction(step, end_step=end_step, fraction=fraction)
        for name, mask in current.items():
            rows = [
                rigl_update(state[name][index], mask[index], slopes[name][index], moved)
                if generators is None
                else set_update(state[name][index], mask[index], moved, generators[index])
                for index in range(models)
            ]
            current[name] = torch.stack(rows)
        return dict(current)

    _check_fraction(fraction)
    return update


def _drop_and_grow(weight: Tensor, mask: Tensor, grow_score: Tensor, fraction: float) -> Tensor:
    _check_fraction(fraction)
    if mask.dtype != torch.bool or mask.shape != weight.shape:
        raise ValueError(f"mask is {mask.dtype} {tuple(mask.shape)}; it must be bool {tuple(weight.shape)}")
    moved = int(fraction * int(mask.sum()))
    dead = int((~mask).sum())
    # What has no connection scores below every magnitude, so it is "dropped" first, and again.
    size = weight.detach().abs().masked_fill(~mask, -1).flatten()
    if size.isnan().any():
        raise ValueError("weight holds NaN values, which have no magnitude")
    stays = torch.ones_like(size, dtype=torch.bool)
    stays[size.argsort(stable=True)[: dead + moved]] = False
    candidates = grow_score.flatten().double().masked_fill(stays, -1)
    stays[candidates.argsort(descending=True, stable=True)[:moved]] = True
    return stays.view(weight.shape)


def _check_fraction(fraction: float) -> None:
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction is {fraction}; it may be 0 to 1")
