"""Bits for each layer under a budget of bytes: a knapsack with one choice a layer, solved exactly, and greedily."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from reference.quantization.grid import QuantizationSpec


def stored_bytes(shape: tuple[int, int], spec: QuantizationSpec) -> int:
    """Bytes of a quantised weight as stored: packed codes, 16-bit scales, packed zero points.

    Args:
        shape: ``(out_features, in_features)``.
        spec: its grid; groups are consecutive.

    Returns:
        What :attr:`reference.tensors.QuantizedTensor.nbytes` would be.

    Raises:
        ValueError: the group size does not divide ``in_features``.

    Example:
        >>> stored_bytes((1, 128), QuantizationSpec(4, symmetric=True, group_size=64))  # 64 bytes of codes, two scales
        68
        >>> stored_bytes((1, 128), QuantizationSpec(4, group_size=64))  # and two words of zero points
        76

    Chapter: advanced/dynamic
    """
    rows, columns = shape
    groups, rest = (1, 0) if spec.per_tensor else divmod(columns, spec.group_size or columns)
    if rest:
        raise ValueError(f"group_size {spec.group_size} does not divide the {columns} columns of shape {shape}")
    scaled = 1 if spec.per_tensor else rows
    zero_points = 0 if spec.symmetric else 4 * -(-scaled * spec.bits // 32) * groups
    return 4 * rows * -(-columns * spec.bits // 32) + 2 * scaled * groups + zero_points


class Point(NamedTuple):
    """``size`` in bytes and ``cost`` of the choice ``choices``: an index of an option for each layer.

    Example:
        >>> small, large = Point(100, 0.9, (0, 0)), Point(150, 0.2, (1, 0))
        >>> min(small, large, key=lambda point: point.cost).choices  # layer 0 gets its second option
        (1, 0)

    Chapter: advanced/dynamic
    """

    size: int
    cost: float
    choices: tuple[int, ...]


def frontier(costs: Sequence[Sequence[float]], sizes: Sequence[Sequence[int]]) -> list[Point]:
    r"""All choices that nothing beats, for every budget at once.

    Dynamic programming over the layers. After :math:`k` layers a partial choice of size :math:`S` and cost :math:`C` is
    kept if none of the others has at most the size and at most the cost. Whatever the layers to come add, it adds to both
    alike, so what is thrown away cannot be part of a best choice. The number of kept choices is at most the number of
    different sizes, which are few, because sizes of layers have large common divisors.

    Args:
        costs: of each layer's options, which may differ in number; they need not fall with size.
        sizes: of the same options, integers.

    Returns:
        Points of rising size and strictly falling cost. The last whose size fits into a budget is an optimum for it.

    Raises:
        ValueError: no layers, a layer without options, or ``costs`` and ``sizes`` of different shape; a cost that is
            not finite, or a negative size.

    Source: Nemhauser and Ullmann 1969, "Discrete dynamic programming and capital allocation".

    Example:
        >>> costs, sizes = [[5.0, 1.0], [2.0, 1.5]], [[10, 20], [10, 20]]
        >>> for point in frontier(costs, sizes):  # (0, 1) takes as much as (1, 0), and is worse
        ...     print(point.size, point.cost, point.choices)
        20 7.0 (0, 0)
        30 3.0 (1, 0)
        40 2.5 (1, 1)

    Chapter: advanced/dynamic
    """
    _check(costs, sizes)
    size, cost = np.zeros(1, np.int64), np.zeros(1)
    steps: list[tuple[np.ndarray, np.ndarray]] = []  # for each layer: the point before, and the option
    for layer_costs, layer_sizes in zip(costs, sizes, strict=True):
        options = len(layer_costs)
        all_sizes = np.add.outer(size, np.asarray(layer_sizes, np.int64)).ravel()
        all_costs = np.add.outer(cost, np.asarray(layer_costs, float)).ravel()
        order = np.lexsort((all_costs, all_sizes))
        ordered = all_costs[order]
        best_before = np.concatenate([[np.inf], np.minimum.accumulate(ordered)[:-1]])
        kept = order[ordered < best_before]
        steps.append((kept // options, kept % options))
        size, cost = all_sizes[kept], all_costs[kept]
    points = []
    for last in range(len(size)):
        place, chosen = last, []
        for before, option in reversed(steps):
            chosen.append(int(option[place]))
            place = int(before[place])
        points.append(Point(int(size[last]), float(cost[last]), tuple(reversed(chosen))))
    return points


def within(points: Sequence[Point], budget: float) -> Point:
    """The cheapest point of a frontier that fits into ``budget`` bytes.

    Args:
        points: of :func:`frontier`, of rising size.
        budget: bytes.

    Raises:
        ValueError: not even the smallest fits; the message has its size.

    Example:
        >>> points = frontier([[5.0, 1.0], [2.0, 1.5]], [[10, 20], [10, 20]])
        >>> within(points, 35).choices
        (1, 0)
        >>> within(points, 15)
        Traceback (most recent call last):
            ...
        ValueError: budget is 15 bytes; the smallest choice takes 20

    Chapter: advanced/dynamic
    """
    fitting = [point for point in points if point.size <= budget]
    if not fitting:
        raise ValueError(f"budget is {budget:,.0f} bytes; the smallest choice takes {points[0].size:,}")
    return fitting[-1]


def greedy(costs: Sequence[Sequence[float]], sizes: Sequence[Sequence[int]], budget: float) -> Point:
    """Start from the smallest options; again and again take the step that lowers the cost most per byte and still fits.

    Optimal where the budget is the size of a corner of the frontier's convex hull, and near it elsewhere: with bytes left
    over, fewer of one layer and more of another may be better.

    Args:
        costs, sizes: as :func:`frontier`.
        budget: bytes.

    Returns:
        The choice where no step fits any more.

    Raises:
        ValueError: as :func:`frontier`, or the smallest options do not fit.

    Example:
        >>> greedy([[5.0, 1.0], [2.0, 1.5]], [[10, 20], [10, 20]], budget=30)
        Point(size=30, cost=3.0, choices=(1, 0))

    Chapter: advanced/dynamic
    """
    _check(costs, sizes)
    chosen = [min(range(len(row)), key=lambda option, row=row: (row[option], option)) for row in sizes]  # type: ignore[misc]
    size = sum(row[option] for row, option in zip(sizes, chosen, strict=True))
    if size > budget:
        raise ValueError(f"budget is {budget:,.0f} bytes; the smallest choice takes {size:,}")
    while True:
        steps = [
            (
                (costs[layer][now] - costs[layer][option]) / max(sizes[layer][option] - sizes[layer][now], 1e-9),
                layer,
                option,
            )
            for layer, now in enumerate(chosen)
            for option in range(len(costs[layer]))
            if costs[layer][option] < costs[layer][now] and size + sizes[layer][option] - sizes[layer][now] <= budget
        ]
        if not steps:
            total = sum(row[option] for row, option in zip(costs, chosen, strict=True))
            return Point(size, float(total), tuple(chosen))
        _, layer, option = max(steps)
        size += sizes[layer][option] - sizes[layer][chosen[layer]]
        chosen[layer] = option


def bits_within(
    sensitivity: Mapping[str, Mapping[int, float]],
    shapes: Mapping[str, tuple[int, int]],
    spec: QuantizationSpec,
    budget: float,
    *,
    together: Sequence[Sequence[str]] = (),
) -> dict[str, int]:
    """Bits of each layer, of least summed sensitivity, so that all stored weights fit into ``budget`` bytes.

    Args:
        sensitivity: layer → bits → cost, as :mod:`reference.dynamic.sensitivity` measures it.
        shapes: layer → ``(out_features, in_features)``.
        spec: grid of every layer but for its bits.
        budget: bytes of codes, scales and zero points of these layers together.
        together: groups of layers that get the same bits, as :func:`reference.models.families.input_groups`; names that
            ``shapes`` lacks take no part, and a layer in no group is one of its own.

    Returns:
        Layer → bits.

    Raises:
        ValueError: the names differ, the budget is too small, or layers of a group have no number of bits in common.

    Example:
        >>> sensitivity = {"first": {2: 5.0, 4: 1.0}, "last": {2: 2.0, 4: 1.5}}
        >>> shapes, spec = {"first": (8, 64), "last": (8, 64)}, QuantizationSpec(4, symmetric=True)
        >>> bits_within(sensitivity, shapes, spec, budget=8 * 64 * 2 * 3 / 8 + 32)  # 3 bits a weight, 16 scales
        {'first': 4, 'last': 2}
        >>> bits_within(sensitivity, shapes, spec, budget=2 * 8 * (16 + 2), together=[("first", "last")])
        {'first': 2, 'last': 2}

    Chapter: advanced/dynamic
    """
    if set(sensitivity) != set(shapes):
        raise ValueError(f"shapes names {sorted(shapes)}; sensitivity is of {sorted(sensitivity)}")
    group_of = {name: tuple(group) for group in together for name in group}
    groups = list(dict.fromkeys(group_of.get(name, (name,)) for name in sensitivity))
    groups = [tuple(name for name in group if name in sensitivity) for group in groups]
    options = [sorted(set.intersection(*(set(sensitivity[name]) for name in group))) for group in groups]
    for group, row in zip(groups, options, strict=True):
        if not row:
            raise ValueError(f"together names {list(group)}, whose sensitivities have no number of bits in common")
    costs = [
        [sum(sensitivity[name][bits] for name in group) for bits in row]
        for group, row in zip(groups, options, strict=True)
    ]
    sizes = [
        [sum(stored_bytes(shapes[name], replace(spec, bits=bits)) for name in group) for bits in row]
        for group, row in zip(groups, options, strict=True)
    ]
    best = within(frontier(costs, sizes), budget)
    chosen = {
        name: row[choice] for group, row, choice in zip(groups, options, best.choices, strict=True) for name in group
    }
    return {name: chosen[name] for name in sensitivity}


def stored_total(
    bits: Mapping[str, int], shapes: Mapping[str, tuple[int, int]], grid: Callable[[int], QuantizationSpec]
) -> int:
    """Bytes of all layers at their bits; ``grid`` gives the grid of a number of bits.

    Args:
        bits: layer → bits.
        shapes: layer → ``(out_features, in_features)``.
        grid: from bits to a grid.

    Example:
        >>> grid = lambda bits: QuantizationSpec(bits, symmetric=True)
        >>> stored_total({"first": 4, "last": 2}, {"first": (1, 64), "last": (1, 64)}, grid)  # 32 + 2 + 16 + 2
        52

    Chapter: advanced/dynamic
    """
    return sum(stored_bytes(shapes[name], grid(value)) for name, value in bits.items())


def _check(costs: Sequence[Sequence[float]], sizes: Sequence[Sequence[int]]) -> None:
    if not costs or len(costs) != len(sizes):
        raise ValueError(f"costs has {len(costs)} layers, sizes {len(sizes)}; equally many, one or more")
    for number, (layer_costs, layer_sizes) in enumerate(zip(costs, sizes, strict=True)):
        if not layer_costs or len(layer_costs) != len(layer_sizes):
            raise ValueError(f"layer {number} has {len(layer_costs)} costs and {len(layer_sizes)} sizes")
        if not np.isfinite(np.asarray(layer_costs, float)).all() or min(layer_sizes) < 0:
            raise ValueError(
                f"layer {number} has costs {list(layer_costs)} and sizes {list(layer_sizes)}: finite, and 0 or more"
            )
