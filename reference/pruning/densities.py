"""How a sparse network's connections are shared out among its layers, and random masks with exactly that many."""

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

Shapes = Mapping[str, Sequence[int]]


def uniform_densities(shapes: Shapes, density: float, *, dense: Collection[str] = ()) -> dict[str, float]:
    """The same density for every layer, but for those that stay dense.

    Args:
        shapes: name → shape of the weight.
        density: fraction kept of each layer that is not in ``dense``, ``0 < density <= 1``.
        dense: names of layers that keep all, and are not counted against the others.

    Returns:
        name → density.

    Raises:
        ValueError: ``density`` is out of range, or ``dense`` names a layer that is not there.

    Source: Evci et al. 2020, section 3, who keep the first layer dense.

    Example:
        >>> uniform_densities({'a': (10, 20), 'b': (5, 10)}, 0.2)
        {'a': 0.2, 'b': 0.2}

    Chapter: pruning/lottery_ticket
    """
    check_density(density)
    _check_names(shapes, dense)
    return {name: 1.0 if name in dense else density for name in shapes}


def erdos_renyi_densities(shapes: Shapes, density: float, *, kernel: bool = True) -> dict[str, float]:
    r"""Densities that fall with the size of a layer: small layers keep more (Erdős–Rényi, and its kernel variant).

    A layer's density is :math:`\epsilon\,(n_{in} + n_{out}) / (n_{in} n_{out})`, so that its connections grow with
    the number of its units, not with their product. With ``kernel`` the sides of a filter count as well,
    :math:`\epsilon \sum \text{shape} / \prod \text{shape}`. :math:`\epsilon` is solved for; a layer whose density
    would exceed 1 is dense, and the others share what it could not take.

    Args:
        shapes: name → shape of the weight, ``[out, in, …]``.
        density: fraction kept of all weights together, ``0 < density <= 1``.
        kernel: count the sides of convolution filters. For linear layers it makes no difference.

    Returns:
        name → density in (0, 1]; weighted by the layers' sizes they give ``density``.

    Raises:
        ValueError: ``density`` is out of range, or a shape has fewer than two sides or an empty one.

    Source: Mocanu et al. 2018, eq. 1 (for :math:`\epsilon` given); Evci et al. 2020, section 3, for the kernel.

    Example:
        >>> found = erdos_renyi_densities({"wide": (100, 100), "narrow": (10, 100)}, 0.1)
        >>> {name: round(value, 3) for name, value in found.items()}
        {'wide': 0.071, 'narrow': 0.39}
        >>> round(found["wide"] * 10_000 + found["narrow"] * 1_000)  # a tenth of 11,000
        1100

    Chapter: pruning/lottery_ticket
    """
    check_density(density)
    sizes, raw = {}, {}
    for name, shape in shapes.items():
        if len(shape) < 2 or min(shape) < 1:
            raise ValueError(f"shape of {name!r} is {tuple(shape)}; it must be [out, in, …] without empty sides")
        sizes[name] = math.prod(shape)
        sides = shape if kernel else shape[:2]
        raw[name] = sum(sides) / math.prod(sides)
    full: set[str] = set()
    while True:
        budget = density * sum(sizes.values()) - sum(sizes[name] for name in full)
        free = [name for name in shapes if name not in full]
        epsilon = budget / sum(raw[name] * sizes[name] for name in free) if free else 0.0
        above = {name for name in free if epsilon * raw[name] > 1}
        if not above:
            return {name: 1.0 if name in full else epsilon * raw[name] for name in shapes}
        full |= above


def kept_counts(shapes: Shapes, densities: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers of weights for fractional densities; their sum is the rounded sum.

    Each layer gets the floor, and those with the largest remainders one more, so that networks of equal density have
    equally many weights.

    Args:
        shapes: name → shape.
        densities: name → fraction kept, 0 to 1, same names.

    Returns:
        name → number kept.

    Raises:
        ValueError: names differ, or a density is out of range.

    Example:
        >>> kept_counts({'a': (10, 20)}, {'a': 0.25})
        {'a': 50}

    Chapter: pruning/lottery_ticket
    """
    if set(shapes) != set(densities):
        raise ValueError(f"densities names {sorted(densities)}; shapes names {sorted(shapes)}")
    if wrong := {name: value for name, value in densities.items() if not 0 <= value <= 1}:
        raise ValueError(f"densities holds {wrong}; they may be 0 to 1")
    exact = {name: densities[name] * math.prod(shape) for name, shape in shapes.items()}
    # 1e-9: 0.1 · 30 is 3.0000000000000004, and 0.29 · 100 is 28.999999999999996.
    counts = {name: math.floor(value + 1e-9) for name, value in exact.items()}
    missing = round(math.fsum(exact.values())) - sum(counts.values())
    order = sorted(shapes, key=lambda name: counts[name] - exact[name])  # stable: the first of equals
    for name in order[: max(missing, 0)]:
        counts[name] += 1
    return counts


def random_masks(shapes: Shapes, counts: Mapping[str, int], generator: torch.Generator) -> dict[str, Tensor]:
    """Random masks with an exact number kept in each layer.

    Args:
        shapes: name → shape.
        counts: name → number kept, 0 to the layer's size; see :func:`kept_counts`.
        generator: of the CPU; draws the layers in the order of ``shapes``.

    Returns:
        name → bool mask, True where kept.

    Raises:
        ValueError: a count is missing or out of range.

    Example:
        >>> masks = random_masks({"a": (2, 4), "b": (3,)}, {"a": 5, "b": 1}, torch.Generator().manual_seed(0))
        >>> {name: int(mask.sum()) for name, mask in masks.items()}
        {'a': 5, 'b': 1}

    Chapter: pruning/lottery_ticket
    """
    masks = {}
    for name, shape in shapes.items():
        size = math.prod(shape)
        if name not in counts or not 0 <= counts[name] <= size:
            raise ValueError(f"counts of {name!r} is {counts.get(name)}; it may be 0 to {size}")
        mask = torch.zeros(size, dtype=torch.bool)
        mask[torch.randperm(size, generator=generator)[: counts[name]]] = True
        masks[name] = mask.view(tuple(shape))
    return masks


def check_density(density: float) -> None:
    """Raise unless ``density`` is a fraction that keeps something.

    Args:
        density: fraction kept.

    Raises:
        ValueError: it is not above 0 and up to 1.

    Example:
        >>> check_density(1.0)
        >>> check_density(0)
        Traceback (most recent call last):
            ...
        ValueError: density is 0; it may be above 0 and up to 1

    Chapter: none (plumbing: checks an argument)
    """
    if not 0 < density <= 1:
        raise ValueError(f"density is {density}; it may be above 0 and up to 1")


def _check_names(shapes: Shapes, names: Collection[str]) -> None:
    if unknown := set(names) - set(shapes):
        raise ValueError(f"dense names {sorted(unknown)}; there are {list(shapes)}")
