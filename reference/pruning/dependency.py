"""Which channels of a convolutional network must be removed together, found by following them through the graph.

Each position of each tensor's channel axis carries a number. A layer that mixes channels gives its outputs new
numbers; an addition makes the numbers of its two operands one; a concatenation strings them together; flattening
repeats each. What carries one number at the end is one channel, and is kept or removed as a whole.
"""

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional

from reference.evaluation import evaluating


@dataclass(frozen=True)
class Slice:
    """Where the channels of a group lie in one layer.

    Attributes:
        layer: the module's name.
        side: ``"out"`` for rows of the weight, with bias and norm vectors; ``"in"`` for its columns.
        unit: int64 ``[positions]``, the group's channel at each position; −1 where another group's lies.

    Example:
        >>> part = Slice("fc2", "in", np.array([0, 0, 1, 1]))  # two channels, flattened with two positions each
        >>> (part.unit == 1).nonzero()[0].tolist()  # the columns of fc2 that channel 1 takes along
        [2, 3]

    Chapter: pruning/structured
    """

    layer: str
    side: str
    unit: np.ndarray


@dataclass(frozen=True)
class Group:
    """Layers that lose the same channels; each channel is kept or removed in all of them.

    Attributes:
        name: of the group, the first layer that makes its channels.
        size: number of channels (or heads, or neurons).
        slices: where they lie.
        fixed: why nothing may be removed; empty if it may.

    Example:
        >>> makes, reads = Slice("fc1", "out", np.arange(3)), Slice("fc2", "in", np.arange(3))
        >>> group = Group("fc1", 3, (makes, reads))
        >>> [f"{part.layer} {part.side}" for part in group.slices], group.fixed
        (['fc1 out', 'fc2 in'], '')

    Chapter: pruning/structured
    """

    name: str
    size: int
    slices: tuple[Slice, ...]
    fixed: str = ""


# Functions of one tensor that treat each channel by itself and leave the channel axis where it is.
POINTWISE: set[Any] = {
    torch.relu, functional.relu, functional.relu6, functional.gelu, functional.silu, functional.leaky_relu,
    functional.elu, functional.hardswish, functional.hardtanh, functional.dropout, functional.max_pool2d,
    functional.avg_pool2d, functional.adaptive_avg_pool2d, functional.adaptive_max_pool2d, torch.tanh, torch.sigmoid,
    functional.interpolate,
}  # fmt: skip
POINTWISE_METHODS = {"relu", "relu_", "tanh", "sigmoid", "contiguous", "clone", "detach", "float"}
POINTWISE_LAYERS = (
    nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.LeakyReLU, nn.ELU, nn.Hardswish, nn.Hardtanh, nn.Tanh, nn.Sigmoid,
    nn.Dropout, nn.Dropout2d, nn.Identity, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
    nn.Upsample,
)  # fmt: skip
SAME_CHANNELS = {
    operator.add, operator.iadd, operator.sub, operator.mul, operator.imul, torch.add, torch.sub, torch.mul,
    "add", "add_", "sub", "mul",
}  # fmt: skip
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
RESHAPES = {torch.flatten, torch.reshape, torch.squeeze, "flatten", "view", "reshape", "squeeze"}
WRITTEN_SHAPES = {torch.reshape, "view", "reshape"}
MEANS = {torch.mean, torch.sum, torch.amax, "mean", "sum", "amax"}
SHAPES = {getattr, operator.getitem, operator.mul, operator.floordiv, "size", "dim", "numel"}


def groups(model: nn.Module, example: Tensor) -> list[Group]:
    """Follow every channel of ``model`` and return the groups of layers that must change together.

    Known are convolutions (also depthwise), linear layers, batch norm, functions of single values, pooling, means over
    positions, additions, products, concatenations of channels, and flattening. Groups that hold the model's
    outputs, those added to its inputs, and those whose number stands in a ``view``, are ``fixed``.

    Args:
        model: a module that ``torch.fx`` can trace; it is run once, in evaluation mode.
        example: one batch of inputs, channels at axis 1.

    Returns:
        The groups, in the order of the forward pass.

    Raises:
        ValueError: the graph holds an operation that is not known, or two layers that share a weight; the message names
            it, and the layer.

    Source: the problem is stated in Fang et al. 2023, "DepGraph", section 3; this solution by union and
    find on channel numbers is our own.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 2))
        >>> for group in groups(model, torch.zeros(1, 1, 5, 5)):
        ...     places = [f"{part.layer} {part.side}" for part in group.slices]
        ...     print(group.name, group.size, places, group.fixed or "free")
        0 4 ['0 out', '3 in'] free
        3 2 ['3 out'] it makes the model's outputs

    Chapter: pruning/structured
    """
    try:
        with evaluating(model), torch.no_grad():
            graph = fx.symbolic_trace(model)
            ShapeProp(graph).propagate(example)
    except fx.proxy.TraceError as error:
        raise ValueError(f"{type(model).__name__} cannot be traced by torch.fx: {error}") from error
    walk = _Walk(graph)
    for node in graph.graph.nodes:
        walk.visit(node)
    return walk.groups()


class _Walk:
    """The numbers of each node's channels, the merges so far, and which layers saw which numbers."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self.layers = dict(graph.named_modules())
        self.weights: dict[int, str] = {}  # id of a weight → the layer that holds it
        self.parent: list[int] = []
        self.channels: dict[fx.Node, np.ndarray] = {}
        self.seen: dict[tuple[str, str], np.ndarray] = {}  # (layer, side) → numbers
        self.fixed: dict[int, str] = {}

    def fresh(self, count: int) -> np.ndarray:
        first = len(self.parent)
        self.parent.extend(range(first, first + count))
        return np.arange(first, first + count)

    def find(self, number: int) -> int:
        while self.parent[number] != number:
            self.parent[number] = self.parent[self.parent[number]]
            number = self.parent[number]
        return number

    def merge(self, one: Iterable[int], other: Iterable[int]) -> None:
        for a, b in zip(one, other, strict=True):
            low, high = sorted((self.find(int(a)), self.find(int(b))))
            self.parent[high] = low

    def record(self, layer: str, side: str, numbers: np.ndarray) -> np.ndarray:
        """Note the numbers at a layer; if it was called before, both calls share its weight, so they merge."""
        if (layer, side) in self.seen:
            self.merge(self.seen[layer, side], numbers)
        return self.seen.setdefault((layer, side), numbers)

    def visit(self, node: fx.Node) -> None:
        shape = _shape(node)
        if node.op == "placeholder" and shape is not None:
            self.channels[node] = self.fresh(shape[1])
            self.fix(self.channels[node], "it is added to the model's inputs")
        elif node.op == "output":
            for source in node.all_input_nodes:
                self.fix(self.channels[source], "it makes the model's outputs")
        elif node.op == "call_module":
            self.channels[node] = self.layer(node, str(node.target), self.channels[node.all_input_nodes[0]])
        elif node.op in ("call_function", "call_method"):
            if shape is not None:
                self.channels[node] = self.function(node, shape)
            elif node.target not in SHAPES:
                raise self.unknown(node, str(node.target))

    def fix(self, numbers: np.ndarray, reason: str) -> None:
        for number in numbers:
            self.fixed.setdefault(int(number), reason)

    def layer(self, node: fx.Node, name: str, source: np.ndarray) -> np.ndarray:
        layer = self.layers[name]
        if isinstance(layer, POINTWISE_LAYERS):
            return source
        weight = getattr(layer, "weight", None)  # None: a norm without a scale
        if (other := self.weights.setdefault(id(layer if weight is None else weight), name)) != name:
            raise self.unknown(node, f"a weight that is also that of layer {other!r}")
        if isinstance(layer, NORMS):
            return self.record(name, "out", source)
        if isinstance(layer, nn.Flatten) and layer.start_dim == 1:
            return self.reshaped(node, source)
        if isinstance(layer, nn.Linear) and len(_shape(node) or ()) == 2:
            self.record(name, "in", source)
            return self.record(name, "out", self.fresh(layer.out_features))
        if isinstance(layer, nn.Conv2d):
            if layer.groups == 1:
                self.record(name, "in", source)
                return self.record(name, "out", self.fresh(layer.out_channels))
            if layer.groups == layer.in_channels:  # depthwise: each output belongs to one input
                return self.record(name, "out", source.repeat(layer.out_channels // layer.in_channels))
        raise self.unknown(node, type(layer).__name__)

    def function(self, node: fx.Node, shape: tuple[int, ...]) -> np.ndarray:
        target: Any = node.target
        sources = [other for other in node.all_input_nodes if other in self.channels]
        constants = [n for n in node.all_input_nodes if n.op == "get_attr" and math.prod(_shape(n) or (2,)) != 1]
        if sources and not constants:
            first = self.channels[sources[0]]
            if target in POINTWISE or (node.op == "call_method" and target in POINTWISE_METHODS):
                return first
            if target in SAME_CHANNELS:
                for other in sources:
                    if len(self.channels[other]) != len(first) or len(_shape(other) or ()) != len(shape):
                        raise self.unknown(node, "an operation on tensors of unequal channels")
                    self.merge(first, self.channels[other])
                return first
            if target in (torch.cat, torch.concat) and _argument(node, 1, "dim", 0) in (1, 1 - len(shape)):
                joined: Any = node.args[0] if node.args else node.kwargs["tensors"]
                return np.concatenate([self.channels[other] for other in joined])
            if target in MEANS and 1 not in _axes(node, len(_shape(sources[0]) or ())):
                return first
            if target in RESHAPES:
                return self.reshaped(node, first)
        raise self.unknown(node, getattr(target, "__name__", str(target)))

    def reshaped(self, node: fx.Node, source: np.ndarray) -> np.ndarray:
        """``[n, C, …]`` → ``[n, C · positions]``, each channel repeated, or axes of one element dropped."""
        shape, before = _shape(node) or (), _shape(node.all_input_nodes[0]) or ()
        if node.target in WRITTEN_SHAPES:
            sizes: Any = node.args[1:] or tuple(node.kwargs.values())
            sizes = sizes[0] if sizes and isinstance(sizes[0], tuple | list) else sizes
            if len(sizes) > 1 and isinstance(sizes[1], int) and sizes[1] > 0:
                self.fix(source, f"its size is written as {sizes[1]} in {node.name!r}")
        if len(shape) >= 2 and shape[0] == before[0]:
            if len(shape) == 2 and shape[1] == math.prod(before[1:]):
                return source.repeat(math.prod(before[2:]))
            if shape[1] == before[1]:
                return source
        raise self.unknown(node, f"a change of shape from {tuple(before)} to {tuple(shape)}")

    def unknown(self, node: fx.Node, what: str) -> ValueError:
        where = f"layer {node.target!r}" if node.op == "call_module" else f"{node.name!r}"
        if node.op != "call_module":
            before = [str(n.target) for n in node.all_input_nodes if n.op == "call_module"]
            where += f" (after layer {', '.join(before)})" if before else ""
        return ValueError(
            f"{where}: the analysis does not know {what}, so it cannot tell which channels belong together; write the "
            "model with layers that it knows, or prune parts of it"
        )

    def groups(self) -> list[Group]:
        """One group for each set of layers whose outputs share numbers."""
        root = np.array([self.find(number) for number in range(len(self.parent))])
        fixed = {int(root[number]): reason for number, reason in self.fixed.items()}
        owner: dict[int, int] = {}  # number → group
        members: dict[int, list[int]] = {}
        order: dict[int, str] = {}
        for (layer, side), numbers in self.seen.items():
            if side == "out":
                own = list(dict.fromkeys(int(root[n]) for n in numbers))
                old = sorted({owner[n] for n in own if n in owner}, key=list(order).index)
                key = old[0] if old else len(order)
                order.setdefault(key, layer)
                joined = [n for o in old for n in members.pop(o)] if old else []
                for o in old[1:]:
                    del order[o]
                members[key] = list(dict.fromkeys(joined + own))
                owner.update(dict.fromkeys(members[key], key))
        found = []
        for key, layer in order.items():
            place = np.full(len(self.parent), -1)
            place[members[key]] = np.arange(len(members[key]))
            slices = tuple(
                Slice(name, side, place[root[numbers]])
                for (name, side), numbers in self.seen.items()
                if (place[root[numbers]] >= 0).any()
            )
            reasons = [fixed[n] for n in members[key] if n in fixed]
            found.append(Group(layer, len(members[key]), slices, reasons[0] if reasons else ""))
        return found


def _shape(node: fx.Node) -> tuple[int, ...] | None:
    meta = node.meta.get("tensor_meta")
    shape = getattr(meta, "shape", None)
    return None if shape is None else tuple(shape)


def _argument(node: fx.Node, place: int, name: str, default: Any) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _axes(node: fx.Node, rank: int) -> set[int]:
    axes = _argument(node, 1, "dim", None)
    if axes is None:
        return set(range(rank))
    return {axis % rank for axis in ((axes,) if isinstance(axes, int) else axes)}
