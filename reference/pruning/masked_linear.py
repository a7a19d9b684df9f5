"""A linear layer under a mask, and the way back: plain layers with zeros, and which units nothing reads any more."""

import copy
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from reference.pruning.dependency import Group
from reference.pruning.score_masks import l0_mask, magnitude_mask, straight_through, threshold_mask, topk_mask

Method = Literal["movement", "soft", "l0", "magnitude", "random"]
Block = tuple[int | None, int | None]

#: Starting score of :math:`L_0`, whose gate is then at 0.9 before it is stretched.
L0_START = 2.197


class MaskedLinear(nn.Linear):
    """A linear layer that computes with ``weight · mask``, the mask made anew in every forward pass.

    Weight, bias and their names in a checkpoint are those of the layer it replaces; ``scores`` comes beside them.

    Args:
        layer: its weight and bias are taken over, not copied.
        method: see the table of :mod:`reference.pruning.movement`.
        block: rows and columns of the weight that share a score; None for all of them.
        seed: of random scores.

    Attributes:
        scores: ``[rows / block rows, columns / block columns]``: a parameter where the method learns them, a buffer
            for "random", absent for "magnitude".
        value: density, or threshold; set by :class:`reference.pruning.movement.Pruner`.

    Raises:
        ValueError: an unknown method, or a block that does not divide the weight.

    Source: Sanh et al. 2020, section 4; blocks as in Lagunas et al. 2021, section 3.

    Example:
        >>> layer = nn.Linear(4, 1, bias=False)
        >>> layer.weight.data = torch.tensor([[0.1, -3.0, 2.0, 0.2]])
        >>> masked = MaskedLinear(layer, "magnitude")
        >>> masked.value = 0.5  # density
        >>> masked.mask(), masked(torch.ones(1, 4)).item()
        (tensor([[0., 1., 1., 0.]]), -1.0)

    Chapter: pruning/movement
    """

    def __init__(self, layer: nn.Linear, method: Method, block: Block = (1, 1), seed: int = 0) -> None:
        nn.Module.__init__(self)
        if method not in get_args(Method):
            raise ValueError(f"method is {method!r}; it may be one of {', '.join(get_args(Method))}")
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias, self.method = layer.weight, layer.bias, method
        self.block = tuple(size or whole for size, whole in zip(block, layer.weight.shape, strict=True))
        rows, columns = self.block
        if rows < 1 or columns < 1 or self.out_features % rows or self.in_features % columns:
            raise ValueError(f"block is {block}; it must divide the weight's shape {tuple(layer.weight.shape)}")
        shape = (self.out_features // rows, self.in_features // columns)
        self.value = 0.0 if method == "soft" else 1.0
        self.shared: Tensor | None = None  # a mask that was chosen over several layers
        if method == "random":
            drawn = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
            self.register_buffer("scores", drawn.to(layer.weight))
        elif method != "magnitude":
            start = L0_START if method == "l0" else 0.0
            self.scores = nn.Parameter(layer.weight.new_full(shape, start))
        self.train(layer.training)

    def importance(self) -> Tensor:
        """What the mask is chosen by, one number a block: the scores, or the summed absolute values of the weights."""
        if self.method != "magnitude":
            return self.scores
        rows, columns = self.block
        size = self.weight.detach().abs()
        return size.view(self.out_features // rows, rows, -1, columns).sum((1, 3)) if rows * columns > 1 else size

    def block_mask(self) -> Tensor:
        """The mask of blocks, of the shape of the scores."""
        importance = self.importance()
        if self.method == "l0":
            return l0_mask(importance, torch.rand_like(importance) if self.training else None)
        if self.method == "soft":
            return threshold_mask(importance, self.value)
        if self.shared is not None:
            return straight_through(importance, self.shared)
        choose = magnitude_mask if self.method == "magnitude" else topk_mask
        return choose(importance, self.value)

    def mask(self) -> Tensor:
        """The mask of weights, ``[out_features, in_features]``."""
        blocks, (rows, columns) = self.block_mask(), self.block
        if rows * columns == 1:
            return blocks
        return blocks[:, None, :, None].expand(-1, rows, -1, columns).reshape(self.weight.shape)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight * self.mask(), self.bias)


@torch.no_grad()
def finalize(model: nn.Module) -> nn.Module:
    """A copy of the model with plain linear layers, zeros where the masks of evaluation have them.

    Args:
        model: with masked layers; it is left as it is.

    Returns:
        A model whose checkpoint loads wherever that of the model before :func:`attach` did. Zeros are positive.

    Raises:
        ValueError: a score, or a weight where weights are ranked, is NaN: nothing exceeds a NaN, so the mask would
            keep nothing, and the zeros would hide that the training diverged.

    Example:
        >>> layer = nn.Linear(4, 1, bias=False)
        >>> layer.weight.data = torch.tensor([[0.125, -3.0, 2.0, 0.25]])
        >>> model = nn.Sequential(MaskedLinear(layer, "magnitude"))
        >>> model[0].value = 0.5
        >>> plain = finalize(model)
        >>> type(plain[0]).__name__, plain[0].weight.tolist()
        ('Linear', [[0.0, -3.0, 2.0, 0.0]])

    Chapter: pruning/movement
    """
    model = copy.deepcopy(model)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, MaskedLinear):
            plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
            if layer.importance().isnan().any():
                raise ValueError(
                    f"layer {name!r} has NaN scores: its training diverged; take a smaller rate, or train in float32"
                )
            mask = layer.eval().mask()
            plain.weight = nn.Parameter((layer.weight * mask).masked_fill(mask == 0, 0))
            plain.bias = layer.bias
            model.set_submodule(name, plain.train(model.training))
    return model


def used_units(model: nn.Module, groups: Sequence[Group]) -> dict[str, Tensor]:
    """Which heads or neurons of a finalised model anything still reads.

    A unit whose every reading column is zero has no effect, whatever its own weights and bias are: cutting it out with
    :func:`reference.pruning.structured.shrink` leaves the function as it is.

    Args:
        model: as :func:`finalize` returns it, its masks attached with blocks of whole columns to layers that read.
        groups: of :mod:`reference.pruning.blocks` or :mod:`reference.pruning.dependency`.

    Returns:
        Group → bool ``[size]``, for groups that are not fixed and that a layer reads. Where no unit is read the first
        is kept, since a layer cannot be empty.

    Source: the gate of a head as in Michel et al. 2019, equation 2; that it can sit in the columns is our own remark.

    Example:
        >>> import numpy as np
        >>> from reference.pruning.dependency import Slice
        >>> model = nn.Sequential(nn.Linear(1, 3), nn.Linear(3, 2))
        >>> model[1].weight.data = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, -2.0]])  # nothing reads unit 0
        >>> used_units(model, [Group("0", 3, (Slice("0", "out", np.arange(3)), Slice("1", "in", np.arange(3))))])
        {'0': tensor([False,  True,  True])}

    Chapter: pruning/movement
    """
    found = {}
    for group in groups:
        readers = [part for part in group.slices if part.side == "in"]
        if group.fixed or not readers:
            continue
        used = torch.zeros(group.size, dtype=torch.bool)
        for part in readers:
            layer: Any = model.get_submodule(part.layer)
            weight = layer.weight.detach()
            columns = (weight != 0).reshape(len(weight), weight.shape[1], -1).any(2).any(0).cpu()
            unit = torch.from_numpy(part.unit)
            used[unit[columns & (unit >= 0)]] = True
        used[0] |= not used.any()
        found[group.name] = used
    return found
