"""Read an architecture off a ticket: which units still connect inputs with outputs, and how wide a dense net is alike.

For networks that are a chain of linear layers, such as LeNet-300-100. A mask is ``[out, in]``.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor


def live_units(masks: Sequence[Tensor]) -> list[Tensor]:
    """Units through which a path of connections leads from an input to an output.

    A unit without an input is a constant (its bias), one without an output is not read. Removing it may leave a
    neighbour without input or output, so the search goes once forward and once backward through all layers.

    Args:
        masks: bool ``[out, in]`` of each layer, from first to last; the inputs of one are the outputs of the one
            before.

    Returns:
        Bool vectors, one more than layers, of the inputs, hidden layers and outputs. True where a unit lies on a path.

    Raises:
        ValueError: there are no masks, one is not bool with two dimensions, or neighbours do not fit.

    Example:
        >>> first = torch.tensor([[True, True], [True, False]])  # hidden unit 1 reads input 0
        >>> last = torch.tensor([[True, False]])  # but the output does not read hidden unit 1
        >>> [units.tolist() for units in live_units([first, last])]
        [[True, True], [True, False], [True]]

    Chapter: pruning/lottery_ticket
    """
    _check(masks)
    reached = [torch.ones(masks[0].shape[1], dtype=torch.bool, device=masks[0].device)]
    for mask in masks:
        reached.append((mask & reached[-1]).any(1))
    read = [torch.ones(masks[-1].shape[0], dtype=torch.bool, device=masks[-1].device)]
    for mask in reversed(masks):
        read.append((mask & read[-1][:, None]).any(0))
    return [a & b for a, b in zip(reached, reversed(read), strict=True)]


def live_connections(masks: Sequence[Tensor]) -> list[Tensor]:
    """The connections that lie on a path from an input to an output; the others can go without any change but a bias.

    Args and raises: as :func:`live_units`.

    Returns:
        Bool masks of the same shapes.

    Example:
        >>> first = torch.tensor([[True, True], [True, False]])
        >>> last = torch.tensor([[True, False]])  # the output does not read hidden unit 1
        >>> live_connections([first, last])[0]
        tensor([[ True,  True],
                [False, False]])

    Chapter: pruning/lottery_ticket
    """
    units = live_units(masks)
    return [mask & units[i + 1][:, None] & units[i] for i, mask in enumerate(masks)]


def widths(masks: Sequence[Tensor]) -> list[int]:
    """Number of live units of each level: inputs, hidden layers, outputs.

    Args and raises: as :func:`live_units`.

    Example:
        >>> first, last = torch.tensor([[True, True], [True, False]]), torch.tensor([[True, False]])
        >>> widths([first, last])  # one of two hidden units is read
        [2, 1, 1]

    Chapter: pruning/lottery_ticket
    """
    return [int(units.sum()) for units in live_units(masks)]


def parameters(sizes: Sequence[int]) -> int:
    """Weights and biases of a dense chain of linear layers.

    Args:
        sizes: units of each level, inputs first, two levels or more, each 1 or more.

    Raises:
        ValueError: there are fewer levels, or one is below 1.

    Example:
        >>> parameters([784, 300, 100, 10])
        266610

    Chapter: pruning/lottery_ticket
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"sizes is {list(sizes)}; it must hold two levels or more, each 1 or more")
    return sum((a + 1) * b for a, b in itertools.pairwise(sizes))


def dense_widths(budget: int, proportions: Sequence[float], inputs: int, outputs: int) -> list[int]:
    """The widest dense network of given proportions with at most a number of parameters.

    Args:
        budget: largest number of weights and biases.
        proportions: of the hidden layers, positive, for example ``(300, 100)`` or what :func:`widths` read off.
        inputs, outputs: units of the first and the last level; they stay.

    Returns:
        Units of each level. Hidden layers are proportions times one factor, rounded to the nearest, at least 1; then,
        from the first to the last, each is widened by single units as far as the budget goes.

    Raises:
        ValueError: a proportion is not positive, or even one unit a layer exceeds the budget.

    Example:
        >>> sizes = dense_widths(20_000, (300, 100), inputs=784, outputs=10)
        >>> sizes, parameters(sizes)
        ([784, 25, 10, 10], 19995)

    Chapter: pruning/lottery_ticket
    """
    if not proportions or min(proportions) <= 0:
        raise ValueError(f"proportions is {list(proportions)}; it must hold positive numbers")

    def scaled(factor: float) -> list[int]:
        return [inputs, *(max(1, math.floor(factor * share + 0.5)) for share in proportions), outputs]

    if parameters(scaled(0)) > budget:
        raise ValueError(f"budget is {budget}; one unit in each hidden layer already takes {parameters(scaled(0))}")
    low, high = 0.0, budget / min(proportions)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if parameters(scaled(middle)) <= budget else (low, middle)
    sizes = scaled(low)
    for level in range(1, len(sizes) - 1):
        while parameters([*sizes[:level], sizes[level] + 1, *sizes[level + 1 :]]) <= budget:
            sizes[level] += 1
    return sizes


def _check(masks: Sequence[Tensor]) -> None:
    if not masks:
        raise ValueError("masks is empty; it must hold one mask a layer")
    for mask in masks:
        if mask.ndim != 2 or mask.dtype != torch.bool:
            raise ValueError(f"a mask is {mask.dtype} {tuple(mask.shape)}; it must be bool [out, in]")
    for before, after in itertools.pairwise(masks):
        if after.shape[1] != before.shape[0]:
            raise ValueError(f"a layer with {before.shape[0]} outputs is followed by one with {after.shape[1]} inputs")
