"""Structured pruning: choose which coupled channels to keep, and cut the others out of every layer that holds them.

The result is a smaller dense model. :func:`masked` makes the same model with zeros in place of the cuts, the oracle that
:func:`shrink` is tested against.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from reference.evaluation import evaluating
from reference.pruning.blocks import TABLE, update_config
from reference.pruning.dependency import NORMS, Group

Keep = Mapping[str, Tensor]


def keep_best(scores: Mapping[str, Tensor], ratio: float, *, multiple: int = 1) -> dict[str, Tensor]:
    """The channels of largest score in each group, a number that hardware likes.

    Args:
        scores: group → ``[size]``.
        ratio: fraction of channels removed, ``0 <= ratio < 1``.
        multiple: the number kept is the multiple of this that is nearest to ``size · (1 − ratio)`` (halves up), at
            least one multiple, at most the size.

    Returns:
        Group → bool ``[size]``, True where kept; among equals those that come first.

    Raises:
        ValueError: an argument is out of range, or a score is not finite.

    Example:
        >>> keep_best({'heads': torch.tensor([0.1, 3.0, 2.0, 0.5])}, 0.5)
        {'heads': tensor([False,  True,  True, False])}

    Chapter: pruning/structured
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"ratio is {ratio}; it may be 0 or more and below 1")
    if multiple < 1:
        raise ValueError(f"multiple is {multiple}; it may be 1 or more, for example 8 or 64")
    keep = {}
    for name, score in scores.items():
        if not score.isfinite().all():
            raise ValueError(f"scores of {name!r} hold values that are not finite")
        wanted = max(1, int(len(score) * (1 - ratio) / multiple + 0.5 + 1e-9)) * multiple
        keep[name] = torch.zeros(len(score), dtype=torch.bool)
        keep[name][score.argsort(descending=True, stable=True)[: min(wanted, len(score))]] = True
    return keep


def masked(model: nn.Module, groups: Sequence[Group], keep: Keep) -> nn.Module:
    """A copy of ``model`` with zeros in every row, column, bias and norm entry that :func:`shrink` would cut.

    Args and raises: as :func:`shrink`.

    Example:
        >>> from reference.pruning.dependency import groups
        >>> model = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> keep = {"0": torch.tensor([True, False, True])}
        >>> zeros = masked(model, groups(model, torch.zeros(1, 1)), keep)
        >>> (zeros[0].bias != 0).tolist(), (zeros[2].weight != 0).tolist()
        ([True, False, True], [[True, False, True]])

    Chapter: pruning/structured
    """
    model = copy.deepcopy(model)
    with torch.no_grad():
        for layer, side, kept in _cuts(model, groups, keep):
            for tensor, axis in _tensors(layer, side):
                tensor.mul_(kept.view([-1 if a == axis else 1 for a in range(tensor.ndim)]))
    return model


def shrink(model: nn.Module, groups: Sequence[Group], keep: Keep) -> nn.Module:
    """A smaller dense copy of ``model``: the channels that are not kept are cut out of every layer that holds them.

    Args:
        model: left as it is.
        groups: all that ``keep`` names.
        keep: group → bool ``[size]``; groups that it does not name stay whole.

    Returns:
        A model of the same class whose layers, and configuration if it has one, have the new sizes.

    Raises:
        ValueError: ``keep`` names an unknown or a fixed group, has another size, or keeps nothing; or the blocks of a
            transformer would differ in size, which no configuration can say.

    Example:
        >>> from reference.pruning.dependency import groups
        >>> model = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> keep = {"0": torch.tensor([True, False, True])}
        >>> small = shrink(model, groups(model, torch.zeros(1, 1)), keep)
        >>> [tuple(parameter.shape) for parameter in small.parameters()]
        [(2, 1), (2,), (1, 2), (1,)]

    Chapter: pruning/structured
    """
    model = copy.deepcopy(model)
    for layer, side, kept in list(_cuts(model, groups, keep)):
        with torch.no_grad():
            for tensor, axis in _tensors(layer, side):
                index = kept.nonzero().flatten().to(tensor.device)
                tensor.data = tensor.data.index_select(axis, index).contiguous()
        count = int(kept.sum())
        if isinstance(layer, NORMS):
            layer.num_features = count
        elif isinstance(layer, nn.Linear):
            setattr(layer, f"{side}_features", count)
        elif isinstance(layer, nn.Conv2d):
            if layer.groups > 1:  # depthwise
                layer.groups = layer.in_channels = count * layer.in_channels // layer.out_channels
                layer.out_channels = count
            else:
                setattr(layer, f"{side}_channels", count)
    if getattr(getattr(model, "config", None), "model_type", None) in TABLE:
        update_config(model)
    return model


class Cost(NamedTuple):
    """``parameters`` of a model, and ``products``: multiplications of convolutions and linear layers in one call.

    Example:
        >>> dense, cut = Cost(10, 6), Cost(7, 4)
        >>> dense.parameters - cut.parameters  # a neuron between one input and one output: two weights and a bias
        3

    Chapter: pruning/structured
    """

    parameters: int
    products: int


@torch.no_grad()
def cost(model: nn.Module, *inputs: Any, **keywords: Any) -> Cost:
    """Count parameters, and products from the shapes that pass through the layers in one real call.

    Args:
        model: any module, called in evaluation mode; products inside attention or outside of layers do not count.
        inputs, keywords: what it is called with.

    Returns:
        Parameters, and multiplications of this one call.

    Example:
        >>> cost(nn.Conv2d(1, 2, 3), torch.zeros(1, 1, 5, 5))  # 9 weights and a bias a filter, 9 positions
        Cost(parameters=20, products=162)

    Chapter: pruning/structured
    """
    products = 0

    def hook(layer: Any, _: Any, output: Tensor) -> None:
        nonlocal products
        products += output.numel() * layer.weight[0].numel()

    hooks = [m.register_forward_hook(hook) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    try:
        with evaluating(model):
            model(*inputs, **keywords)
    finally:
        for handle in hooks:
            handle.remove()
    return Cost(sum(p.numel() for p in model.parameters()), products)


def _tensors(layer: Any, side: str) -> Iterator[tuple[Tensor, int]]:
    """The tensors of a layer that have an entry for each channel of ``side``, and on which axis."""
    if side == "in":
        yield layer.weight, 1
        return
    for name in ("weight", "bias", "running_mean", "running_var"):
        if isinstance(tensor := getattr(layer, name, None), Tensor):
            yield tensor, 0


def _cuts(model: nn.Module, groups: Sequence[Group], keep: Keep) -> Iterator[tuple[Any, str, Tensor]]:
    """Layer, side and bool of the positions that stay; what several groups say of one layer is joined."""
    by_name = {group.name: group for group in groups}
    cuts: dict[tuple[str, str], np.ndarray] = {}
    for name, kept in keep.items():
        if name not in by_name:
            raise ValueError(f"keep names {name!r}, which is no group; groups are {', '.join(by_name)}")
        group = by_name[name]
        if group.fixed:
            raise ValueError(f"group {name!r} cannot be pruned: {group.fixed}")
        if kept.shape != (group.size,) or kept.dtype != torch.bool:
            raise ValueError(
                f"keep[{name!r}] is {kept.dtype} of shape {tuple(kept.shape)}; it must be bool [{group.size}]"
            )
        if not kept.any():
            raise ValueError(f"keep[{name!r}] keeps nothing; one channel at least must stay")
        for part in group.slices:
            stays = np.where(part.unit < 0, True, kept.numpy()[part.unit])
            cuts[part.layer, part.side] = stays & cuts.get((part.layer, part.side), np.array(True))
    for (layer, side), stays in cuts.items():
        if not stays.any():
            raise ValueError(f"layer {layer!r} would keep none of its {side} channels; keep at least one there")
        yield model.get_submodule(layer), side, torch.from_numpy(stays)
