r"""The lottery ticket: train, prune the smallest weights, put the rest back to where it started, and repeat.

Everything here works on many networks at once: a tensor of a state or of a mask has the network as first dimension
(:mod:`reference.pruning.parallel_training`).

    ======================= ============================= ==================================================
    symbol                  code                          meaning
    ======================= ============================= ==================================================
    :math:`\theta_0`        ``start``                     weights before training
    :math:`\theta_k`        ``start``, with a trainer     weights after k steps
                            that begins at step k
    :math:`m`               ``masks``                     1 where a weight is kept
    :math:`p`               ``fractions``                 fraction of the survivors removed in a round
    ======================= ============================= ==================================================

The two public codes round p differently; ``rules`` are those of :mod:`reference.pruning.magnitude`, with which whole
rounds agree with them bit by bit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from reference.pruning import magnitude
from reference.pruning.parallel_training import States

#: From a state, its pruned weights zero, and its masks to the trained state, whose pruned weights are zero.
Trainer = Callable[[States, States], States]


@dataclass(frozen=True, eq=False)
class Round:
    """One training of iterative pruning.

    Attributes:
        number: 0 for the dense training.
        masks: name → bool ``[models, …]`` of the weights that took part.
        start: the state in which it began.
        trained: the state in which it ended.

    Example:
        >>> kept, start = torch.tensor([[True, False]]), torch.tensor([[0.5, 0.0]])
        >>> second = Round(1, {"w": kept}, {"w": start}, {"w": torch.tensor([[2.0, 0.0]])})
        >>> (second.trained["w"] - second.start["w"]).tolist()  # what is pruned does not move
        [[1.5, 0.0]]

    Chapter: pruning/lottery_ticket
    """

    number: int
    masks: States
    start: States
    trained: States


def iterative(
    start: Mapping[str, Tensor],
    train: Trainer,
    *,
    fractions: float | Mapping[str, float],
    rounds: int,
    restart: Literal["rewind", "continue"] = "rewind",
    **rules: Any,
) -> Iterator[Round]:
    """Iterative magnitude pruning: the dense training, and ``rounds`` more with fewer weights each.

    With θ_0 as ``start`` it is the method of 2019. With θ_k and a trainer that begins at step k it rewinds to k.
    ``restart="continue"`` with a trainer that replays the schedule of the rates is learning-rate rewinding, with one
    that trains at the last rate it is fine-tuning.

    Args:
        start: name → ``[models, …]``.
        train: see :data:`Trainer`.
        fractions, rules: see :func:`prune`.
        rounds: 0 or more, after the dense training.
        restart: from where the survivors begin in the next round: from ``start``, or from their trained values.

    Yields:
        The rounds, from number 0.

    Raises:
        ValueError: ``rounds`` is negative, ``restart`` is another word, or as :func:`prune`.

    Source: Frankle and Carbin 2019, section 2, strategy 1 of the appendix; Frankle et al. 2020, algorithm 2;
    Renda et al. 2020, section 2.

    Example:
        >>> start = {"w": torch.tensor([[[4.0, 3.0, 2.0, 1.0]]])}
        >>> train = lambda state, masks: {"w": (state["w"] + 1) * masks["w"]}  # a stand-in for training
        >>> for found in iterative(start, train, fractions=0.5, rounds=1):  # the second starts where the first did
        ...     print(found.number, found.start["w"].flatten().tolist(), found.trained["w"].flatten().tolist())
        0 [4.0, 3.0, 2.0, 1.0] [5.0, 4.0, 3.0, 2.0]
        1 [4.0, 3.0, 0.0, 0.0] [5.0, 4.0, 0.0, 0.0]

    Chapter: pruning/lottery_ticket
    """
    if rounds < 0:
        raise ValueError(f"rounds is {rounds}; it may be 0 or more")
    if restart not in ("rewind", "continue"):
        raise ValueError(f"restart is {restart!r}; it may be 'rewind' or 'continue'")
    masks = {name: torch.ones_like(start[name], dtype=torch.bool) for name in _names(start, fractions)}
    state = dict(start)
    for number in range(rounds + 1):
        trained = train(state, masks)
        yield Round(number, masks, state, trained)
        if number < rounds:
            masks = prune(trained, fractions, alive=masks, **rules)
            state = masked(start if restart == "rewind" else trained, masks)


def prune(
    states: Mapping[str, Tensor],
    fractions: float | Mapping[str, float],
    *,
    alive: Mapping[str, Tensor] | None = None,
    count_rule: str = "round",
    tie_rule: str = "first",
    dense: Sequence[str] = (),
    min_keep: int = 1,
) -> States:
    """Remove the smallest of the weights that are alive, in each network by itself.

    ============================== ============================================================= ================
    as in                          rules                                                         ``fractions``
    ============================== ============================================================= ================
    ours                           the defaults                                                  either
    Google's lottery ticket        ``"round_plus_one"``, ``"all"``, ``min_keep=0``               by layer
    open_lth                       ``"ceil_plus_one"``, ``"all"``, ``min_keep=0``, ``dense``     one
    ============================== ============================================================= ================

    Args:
        states: name → ``[models, …]``.
        fractions: name → fraction removed of that layer; or one fraction of all matrices together, ``[models, a, b]``
            and more dimensions, so that the layers compete.
        alive: name → bool ``[models, …]``, the masks so far; None: all.
        count_rule, tie_rule: see :func:`reference.pruning.magnitude.mask`.
        dense: names that are counted, but not pruned; with one fraction only.
        min_keep: the number of largest weights that each layer keeps in any case.

    Returns:
        name → bool ``[models, …]``, True where kept, for the names pruned and those in ``dense``.

    Raises:
        ValueError: a name is unknown, ``dense`` comes with fractions by layer, or as in
            :mod:`reference.pruning.magnitude`.

    Example:
        >>> states = {"w": torch.tensor([[[0.1, -3.0, 2.0, 0.2]]])}  # one network
        >>> masks = prune(states, 0.25)
        >>> masks["w"].tolist()
        [[[False, True, True, True]]]
        >>> prune(states, {"w": 0.5}, alive=masks)["w"].tolist()  # half of three survivors, rounded to the even 2
        [[[False, True, False, False]]]

    Chapter: pruning/lottery_ticket
    """
    names = _names(states, fractions)
    common: dict[str, Any] = {"count_rule": count_rule, "tie_rule": tie_rule, "min_keep": min_keep}
    if isinstance(fractions, Mapping) and dense:
        raise ValueError(f"dense is {list(dense)}; with fractions by layer, leave a layer out or give it 0")
    by_network = []
    for index in range(len(states[names[0]])):
        weights = {name: states[name][index] for name in names}
        living = None if alive is None else {name: alive[name][index] for name in names}
        if isinstance(fractions, Mapping):
            found = {
                name: magnitude.mask(weights[name], fractions[name], alive=living[name] if living else None, **common)
                for name in names
            }
        else:
            found = magnitude.global_masks(weights, fractions, alive=living, dense=dense, **common)
        by_network.append(found)
    return {name: torch.stack([found[name] for found in by_network]) for name in names}


def masked(states: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> States:
    """The state with zeros where a mask is False.

    Args:
        states: name → ``[models, …]``.
        masks: name → bool of the same shape, for some of the names.

    Returns:
        name → ``[models, …]``; what has no mask is the same tensor.

    Example:
        >>> states = {"w": torch.tensor([[1.0, -2.0]]), "b": torch.tensor([[5.0]])}
        >>> masked(states, {"w": torch.tensor([[True, False]])})
        {'w': tensor([[1., 0.]]), 'b': tensor([[5.]])}

    Chapter: pruning/lottery_ticket
    """
    return {name: value.masked_fill(~masks[name], 0) if name in masks else value for name, value in states.items()}


def density(masks: Mapping[str, Tensor]) -> Tensor:
    """Fraction kept of all weights that have a mask.

    Args:
        masks: name → bool ``[models, …]``.

    Returns:
        float64 ``[models]``.

    Example:
        >>> first, second = torch.tensor([[True, False], [True, True]]), torch.tensor([[False, False], [True, True]])
        >>> density({"a": first, "b": second})  # two networks: one of four weights, and all
        tensor([0.2500, 1.0000], dtype=torch.float64)

    Chapter: pruning/lottery_ticket
    """
    kept = torch.stack([mask.flatten(1).sum(1) for mask in masks.values()]).sum(0)
    return kept.double() / sum(mask[0].numel() for mask in masks.values())


def largest(states: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> States:
    """Masks of the weights of largest magnitude, as many in each layer and network as ``like`` has.

    Of a dense, trained state this is one-shot pruning to the densities of a ticket.

    Args:
        states: name → ``[models, …]``.
        like: name → bool ``[models, …]``.

    Returns:
        name → bool ``[models, …]``; among equals those that come first.

    Example:
        >>> like = {"w": torch.tensor([[True, True, False]])}  # two of three
        >>> largest({"w": torch.tensor([[0.1, -3.0, 2.0]])}, like)
        {'w': tensor([[False,  True,  True]])}

    Chapter: pruning/lottery_ticket
    """
    found = {}
    for name, mask in like.items():
        rows = []
        for weight, kept in zip(states[name], mask, strict=True):
            order = weight.abs().flatten().argsort(descending=True, stable=True)
            row = torch.zeros(kept.numel(), dtype=torch.bool, device=mask.device)
            row[order[: int(kept.sum())]] = True
            rows.append(row.view(kept.shape))
        found[name] = torch.stack(rows)
    return found


def random_masks(like: Mapping[str, Tensor], seeds: Sequence[int]) -> States:
    """Masks drawn at random, as many weights in each layer and network as ``like`` has.

    Args:
        like: name → bool ``[models, …]``.
        seeds: one a network.

    Returns:
        name → bool ``[models, …]``.

    Example:
        >>> like = {"w": torch.tensor([[True, False, False, False], [True, True, True, False]])}
        >>> random_masks(like, seeds=[0, 1])["w"].sum(1).tolist()  # as many as in each network
        [1, 3]

    Chapter: pruning/lottery_ticket
    """
    generators = _generators(seeds)
    scores = {
        name: torch.stack([torch.rand(mask.shape[1:], generator=generator) for generator in generators])
        for name, mask in like.items()
    }
    return largest(scores, like)


def shuffled_masks(like: Mapping[str, Tensor], seeds: Sequence[int]) -> States:
    """The rows and the columns of each mask in another order.

    The pattern within a layer stays: as many units with as many weights. What goes is which units they are, so that
    the layers no longer fit each other, nor the first one the images.

    Args:
        like: name → bool ``[models, out, in]``.
        seeds: one a network.

    Returns:
        name → bool ``[models, out, in]``.

    Example:
        >>> like = {"w": torch.tensor([[[True, True, False], [False, False, False]]])}
        >>> mask = shuffled_masks(like, seeds=[0])["w"][0]
        >>> sorted(mask.sum(1).tolist()), sorted(mask.sum(0).tolist())  # one row has both weights still
        ([0, 2], [0, 1, 1])

    Chapter: pruning/lottery_ticket
    """
    generators = _generators(seeds)
    found = {}
    for name, mask in like.items():
        rows = []
        for kept, generator in zip(mask, generators, strict=True):
            order = [torch.randperm(size, generator=generator).to(mask.device) for size in kept.shape[:2]]
            rows.append(kept[order[0]][:, order[1]])
        found[name] = torch.stack(rows)
    return found


def signs_only(states: Mapping[str, Tensor], names: Sequence[str]) -> States:
    """The state with each weight replaced by its sign times the standard deviation of its layer.

    Args:
        states: name → ``[models, …]``, not yet masked.
        names: of the weights replaced; the others stay.

    Returns:
        name → ``[models, …]``; a weight of zero stays zero.

    Source: Zhou et al. 2019, "Deconstructing lottery tickets", the experiments on kept weights ("mask-1 actions").

    Example:
        >>> signs_only({"w": torch.tensor([[1.0, -3.0, 3.0, -1.0]])}, ["w"])["w"].square()  # the variance, (1 + 9) / 2
        tensor([[5., 5., 5., 5.]])

    Chapter: pruning/lottery_ticket
    """
    replaced = {}
    for name in names:
        value = states[name]
        spread = value.flatten(1).std(1, correction=0).view(-1, *[1] * (value.ndim - 1))
        replaced[name] = value.sign() * spread
    return {**states, **replaced}


def _generators(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _names(states: Mapping[str, Tensor], fractions: float | Mapping[str, float]) -> list[str]:
    if not isinstance(fractions, Mapping):
        return [name for name, value in states.items() if value.ndim > 2]
    if unknown := [name for name in fractions if name not in states]:
        raise ValueError(f"fractions names {unknown}; there are {list(states)}")
    return list(fractions)
