"""How much a coupled channel matters: size of its weights, size of what it carries, slope of the loss."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reference.evaluation import evaluating
from reference.pruning.dependency import NORMS, Group, Slice

Scores = dict[str, Tensor]


def norm_scores(model: nn.Module, groups: Sequence[Group], p: int = 1) -> Scores:
    """Size of the weights that make each channel, summed over the layers that are coupled.

    Args:
        model: holds the layers.
        groups: of :func:`reference.pruning.dependency.groups`, or of :mod:`reference.pruning.blocks`.
        p: 1 for the sum of absolute values, 2 for the root of the sum of squares.

    Returns:
        Group → float64 ``[size]``; fixed groups are left out. Norms' vectors and biases do not count.

    Raises:
        ValueError: ``p`` is neither 1 nor 2.

    Source: Li et al. 2017, "Pruning filters for efficient ConvNets", section 3.1 (for one layer).

    Example:
        >>> from reference.pruning.dependency import groups
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> model[0].weight.data = torch.tensor([[3.0, -4.0], [1.0, 0.0]])
        >>> free = groups(model, torch.zeros(1, 2))
        >>> norm_scores(model, free)["0"].tolist(), norm_scores(model, free, p=2)["0"].tolist()
        ([7.0, 1.0], [5.0, 1.0])

    Chapter: pruning/structured
    """
    if p not in (1, 2):
        raise ValueError(f"p is {p}; it may be 1 or 2")
    scores = {}
    for group in _free(groups):
        total = torch.zeros(group.size, dtype=torch.float64)
        for part in group.slices:
            layer: Any = model.get_submodule(part.layer)
            if part.side == "out" and not isinstance(layer, NORMS):
                _add(total, part, layer.weight.detach().double().abs().pow(p).flatten(1).sum(1))
        scores[group.name] = total.sqrt() if p == 2 else total
    return scores


def taylor_scores(
    model: nn.Module, groups: Sequence[Group], loss: Callable[[nn.Module, Any], Tensor], batches: Iterable[Any]
) -> Scores:
    r"""First-order estimate of what removing a channel does to the loss.

    Multiply a channel by a gate :math:`\xi` wherever it is read. At :math:`\xi = 1` the derivative of the loss is
    :math:`\sum w\,\partial L / \partial w` over the columns that read the channel, and closing the gate changes the
    loss by about minus that. The score is its square, averaged over batches.

    Args:
        model: is run in evaluation mode.
        groups: as in :func:`norm_scores`.
        loss: maps the model and a batch to a scalar.
        batches: what ``loss`` is called with.

    Returns:
        Group → float64 ``[size]``.

    Raises:
        ValueError: there are no batches.

    Source: Molchanov et al. 2019, "Importance estimation for neural network pruning", equations 6 to 8; for heads
    Michel et al. 2019, "Are sixteen heads really better than one?", equation 2, which averages the absolute value.

    Example:
        >>> from reference.pruning.dependency import groups
        >>> model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False))
        >>> model[0].weight.data, model[1].weight.data = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0, 0.5]])
        >>> free, loss = groups(model, torch.zeros(1, 1)), lambda model, x: model(x).sum()
        >>> taylor_scores(model, free, loss, [torch.ones(1, 1)])["0"].tolist()  # (1 · 3)² and (2 · 0.5)²
        [9.0, 1.0]

    Chapter: pruning/structured
    """
    free = _free(groups)
    scores = {group.name: torch.zeros(group.size, dtype=torch.float64) for group in free}
    readers: dict[str, Any] = {
        part.layer: model.get_submodule(part.layer).weight for group in free for part in _readers(group)
    }
    count = 0
    for batch in batches:
        count += 1
        with evaluating(model), torch.enable_grad():
            gradients = torch.autograd.grad(loss(model, batch), list(readers.values()))
        product = {
            name: (weight.detach().double() * gradient.double()).transpose(0, 1).flatten(1).sum(1)
            for (name, weight), gradient in zip(readers.items(), gradients, strict=True)
        }
        for group in free:
            gate = torch.zeros(group.size, dtype=torch.float64)
            for part in _readers(group):
                _add(gate, part, product[part.layer])
            scores[group.name] += gate.square()
    if not count:
        raise ValueError("batches is empty; the gradient needs at least one")
    return {name: total / count for name, total in scores.items()}


@torch.no_grad()
def activation_scores(
    model: nn.Module, groups: Sequence[Group], run: Callable[[nn.Module, Any], object], batches: Iterable[Any]
) -> Scores:
    """Root mean square of each channel where it is read, over all positions and batches.

    Args:
        model: is run in evaluation mode.
        groups: as in :func:`norm_scores`.
        run: maps the model and a batch to anything; called for the forward pass.
        batches: what ``run`` is called with.

    Returns:
        Group → float64 ``[size]``; where several layers read a channel their mean squares add.

    Raises:
        ValueError: there are no batches.

    Example:
        >>> from reference.pruning.dependency import groups
        >>> model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False))
        >>> model[0].weight.data = torch.tensor([[1.0], [2.0]])
        >>> free = groups(model, torch.zeros(1, 1))
        >>> activation_scores(model, free, lambda model, x: model(x), [torch.tensor([[3.0], [-3.0]])])["0"].tolist()
        [3.0, 6.0]

    Chapter: pruning/structured
    """
    free = _free(groups)
    names = {part.layer for group in free for part in _readers(group)}
    total: dict[str, Any] = dict.fromkeys(names, 0.0)
    rows = dict.fromkeys(names, 0)

    def watch(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].double().movedim(1 if isinstance(layer, nn.Conv2d) else -1, 0).flatten(1)
            total[name] = total[name] + x.square().sum(1)
            rows[name] += x.shape[1]

        return hook

    hooks = [model.get_submodule(name).register_forward_pre_hook(watch(name)) for name in sorted(names)]
    try:
        with evaluating(model):
            for batch in batches:
                run(model, batch)
    finally:
        for handle in hooks:
            handle.remove()
    if not all(rows.values()):
        raise ValueError("batches is empty, or a layer was not run; the mean needs at least one batch")
    scores = {group.name: torch.zeros(group.size, dtype=torch.float64) for group in free}
    for group in free:
        for part in _readers(group):
            _add(scores[group.name], part, torch.as_tensor(total[part.layer]) / rows[part.layer])
    return {name: value.sqrt() for name, value in scores.items()}


def _free(groups: Sequence[Group]) -> list[Group]:
    return [group for group in groups if not group.fixed]


def _readers(group: Group) -> list[Slice]:
    return [part for part in group.slices if part.side == "in"]


def _add(total: Tensor, part: Slice, values: Tensor) -> None:
    """Sum ``values`` of positions into their units."""
    own = part.unit >= 0
    total.index_add_(0, torch.from_numpy(part.unit[own]), values[torch.from_numpy(own)].to(total))
