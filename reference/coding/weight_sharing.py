"""Weight sharing: the weights of a layer take a few values, found by k-means on a line.

On a line, clusters are intervals, so one sort is enough: an assignment is a set of cuts in the sorted
values, and sums over a cluster are differences of prefix sums. An iteration of Lloyd's algorithm costs
``k`` binary searches instead of ``n·k`` distances, and the best clustering of all can be found exactly.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Init = Literal["linear", "density", "random"]


def initial_centroids(values: Tensor, k: int, init: Init = "linear", *, seed: int = 0) -> Tensor:
    """Where Lloyd's algorithm starts.

    ``linear``: equal steps from the smallest to the largest value. ``density``: equal steps of the
    cumulative distribution, its quantiles (i + ½)/k. ``random``: k of the values, drawn without
    replacement (Forgy).

    Args:
        values: any shape, floating point, at least one.
        k: number of centroids, 1 or more; ``random`` needs at least as many values.
        init: one of the three names.
        seed: of the draw of ``random``.

    Returns:
        float64 ``[k]``, ascending.

    Raises:
        ValueError: ``init`` is another word, ``k`` is out of range, or a value is missing or not finite.

    Source: Han et al. 2016, section 3.2.

    Example:
        >>> values = torch.tensor([0.0, 0.0, 0.0, 0.0, 8.0])
        >>> [initial_centroids(values, 2, init).tolist() for init in ("linear", "density")]
        [[0.0, 8.0], [0.0, 0.0]]

    Chapter: pruning/deep_compression
    """
    x = _checked(values, k)
    if init == "linear":
        start = np.linspace(x[0], x[-1], k) if k > 1 else x.mean(keepdims=True)
    elif init == "density":
        start = np.quantile(x, (np.arange(k) + 0.5) / k)
    elif init == "random":
        if k > len(x):
            raise ValueError(f"k is {k}, but there are only {len(x)} values to draw from")
        start = np.sort(np.random.default_rng(seed).choice(x, k, replace=False))
    else:
        raise ValueError(f"init is {init!r}; it may be 'linear', 'density' or 'random'")
    return torch.from_numpy(start)


def kmeans(
    values: Tensor,
    k: int,
    init: Init | Tensor = "linear",
    *,
    iterations: int = 100,
    seed: int = 0,
    empty: Literal["keep", "relocate"] = "keep",
) -> tuple[Tensor, Tensor]:
    r"""Lloyd's algorithm on a line: lower :math:`\sum_i \sum_{w \in C_i} (w - c_i)^2` step by step.

    Args:
        values: any shape, floating point, at least one.
        k: number of clusters, 1 or more; it may exceed the number of distinct values.
        init: a start of :func:`initial_centroids`, or the starting centroids ``[k]`` themselves.
        iterations: largest number of updates; it stops earlier once no cluster changes.
        seed: of a random start.
        empty: what becomes of a centroid that no value is nearest to. ``keep`` leaves it where it
            is, ``relocate`` moves it to the value that is farthest from its own centroid.

    Returns:
        Centroids, float64 ``[k]`` ascending, and the index of each value's nearest one, int64 of
        the shape of ``values``; of two equally near the lower.

    Raises:
        ValueError: as :func:`initial_centroids`; or starting centroids of another length than
            ``k``; or ``iterations`` is negative; or ``empty`` is another word.

    Source: Han et al. 2016, section 3.1, eq. 2; Lloyd 1982.

    Example:
        >>> kmeans(torch.tensor([0.0, 1.0, 10.0, 11.0]), 2)
        (tensor([ 0.5000, 10.5000], dtype=torch.float64), tensor([0, 0, 1, 1]))

    Chapter: pruning/deep_compression
    """
    x = _checked(values, k)
    if iterations < 0:
        raise ValueError(f"iterations is {iterations}; it may be 0 or more")
    if empty not in ("keep", "relocate"):
        raise ValueError(f"empty is {empty!r}; it may be 'keep' or 'relocate'")
    if isinstance(init, Tensor):
        if tuple(init.shape) != (k,) or not bool(init.isfinite().all()):
            raise ValueError(f"init has shape {tuple(init.shape)}; starting centroids are {k} finite numbers")
        centroids = init.detach().cpu().double().sort().values.numpy().copy()
    else:
        centroids = initial_centroids(values, k, init, seed=seed).numpy().copy()
    sums = np.concatenate([[0.0], np.cumsum(x)])
    before = None
    for _ in range(iterations):
        edges = _edges(x, centroids)
        if before is not None and np.array_equal(edges, before):
            break
        before = edges
        counts = np.diff(edges)
        filled = counts > 0
        distance = np.abs(x - np.repeat(centroids, counts)) if empty == "relocate" and not filled.all() else None
        centroids[filled] = np.diff(sums[edges])[filled] / counts[filled]
        if distance is not None:
            farthest = np.argsort(-distance, kind="stable")[: int((~filled).sum())]
            centroids[np.flatnonzero(~filled)[: len(farthest)]] = x[farthest]
            centroids.sort()
    return torch.from_numpy(centroids), assign(values, torch.from_numpy(centroids))


def assign(values: Tensor, centroids: Tensor) -> Tensor:
    """The nearest centroid of each value.

    Args:
        values: any shape, floating point.
        centroids: ``[k]``, ascending.

    Returns:
        int64 of the shape of ``values``; of two equally near centroids the lower index.

    Example:
        >>> assign(torch.tensor([0.1, 0.9, 2.2]), torch.tensor([0.0, 1.0, 2.0]))
        tensor([0, 1, 2])

    Chapter: pruning/deep_compression
    """
    distinct, first = np.unique(centroids.detach().cpu().double().numpy(), return_index=True)
    middles = (distinct[1:] + distinct[:-1]) / 2
    # side "left": a value on the border belongs below.
    found = np.searchsorted(middles, values.detach().cpu().double().numpy().ravel(), side="left")
    return torch.from_numpy(first[found]).view(values.shape)


def squared_error(values: Tensor, centroids: Tensor) -> float:
    """Sum of the squared distances of ``values`` to their nearest centroids, in float64.

    Args:
        values: any shape, floating point.
        centroids: ``[k]``, ascending.

    Source: Han et al. 2016, eq. 2.

    Example:
        >>> squared_error(torch.tensor([0.0, 3.0]), torch.tensor([1.0]))
        5.0

    Chapter: pruning/deep_compression
    """
    nearest = centroids.detach().cpu().double()[assign(values, centroids)]
    return float((values.detach().cpu().double() - nearest).square().sum())


def optimal_kmeans(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    r"""The clustering of least squared error, exactly: the bound that Lloyd's algorithm is measured against.

    Clusters on a line are intervals of the sorted values. With :math:`D_j(m)` the least error of the
    first :math:`m` values in :math:`j` clusters,
    :math:`D_j(m) = \min_i D_{j-1}(i) + \mathrm{cost}(i, m)`, and the best :math:`i` never falls as
    :math:`m` grows, so that each row is solved by divide and conquer: :math:`O(k\,n \log n)` time
    and :math:`4\,k\,n` bytes for :math:`n` distinct values (half a second for 30,000 values and 255 clusters).

    Args:
        values: any shape, floating point, at least one.
        k: number of clusters, 1 or more.

    Returns:
        Centroids, float64 ``[k]`` ascending (the largest repeats if there are fewer distinct values
        than ``k``), and int64 of the shape of ``values``.

    Raises:
        ValueError: ``k`` is out of range, or a value is missing or not finite.

    Source: Wang and Song 2011, "Ckmeans.1d.dp"; the divide and conquer is Grønlund et al. 2017.

    Example:
        >>> optimal_kmeans(torch.tensor([0.0, 1.0, 10.0, 11.0]), 2)
        (tensor([ 0.5000, 10.5000], dtype=torch.float64), tensor([0, 0, 1, 1]))

    Chapter: pruning/deep_compression
    """
    from reference.coding.interval_program import best_cuts

    distinct, counts = np.unique(_checked(values, k), return_counts=True)
    clusters = min(k, len(distinct))
    cuts = best_cuts(distinct - distinct.mean(), counts.astype(np.float64), clusters)
    centroids = np.add.reduceat(distinct * counts, cuts) / np.add.reduceat(counts, cuts)
    found = torch.from_numpy(np.concatenate([centroids, np.full(k - clusters, centroids[-1])]))
    return found, assign(values, found)


@dataclass(frozen=True, eq=False)  # comparing tensors field by field has no truth value
class CodebookTensor:
    """A weight whose entries are indices into a short table of values.

    Entry 0 of the table is always 0.0: it is the value of pruned weights, and the value that the
    filler entries of :mod:`reference.coding.sparse_index` decode to.

    Attributes:
        codebook: float32 ``[2^bits]``, ``codebook[0] == 0``.
        codes: uint8, the shape of the weight.
        bits: 1 to 8.

    Raises:
        ValueError: a part does not fit, by name.

    Source: Han et al. 2016, section 3; entry 0 as in the authors' released AlexNet.

    Example:
        >>> codes = torch.tensor([0, 3, 1], dtype=torch.uint8)
        >>> shared = CodebookTensor(torch.tensor([0.0, 0.5, 1.0, -1.0]), codes, bits=2)
        >>> shared.to_dense(), shared.mask
        (tensor([ 0.0000, -1.0000,  0.5000]), tensor([False,  True,  True]))

    Chapter: pruning/deep_compression
    """

    codebook: Tensor
    codes: Tensor
    bits: int

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise ValueError(f"bits is {self.bits}; it may be 1 to 8")
        if tuple(self.codebook.shape) != (2**self.bits,) or self.codebook.dtype != torch.float32:
            shape, kind = tuple(self.codebook.shape), self.codebook.dtype
            raise ValueError(f"codebook is {kind} of shape {shape}; {self.bits} bits need float32 of ({2**self.bits},)")
        if self.codebook[0] != 0:
            raise ValueError(f"codebook[0] is {float(self.codebook[0])}; entry 0 stands for pruned weights and is 0")
        if self.codes.dtype != torch.uint8 or (self.codes.numel() and int(self.codes.max()) >= 2**self.bits):
            raise ValueError(f"codes must be uint8 below {2**self.bits}")

    def to_dense(self) -> Tensor:
        """float32, the shape of the weight."""
        return self.codebook[self.codes.long()]

    @property
    def mask(self) -> Tensor:
        """Bool, the shape of the weight: True where the weight is kept."""
        return self.codes != 0


def share(
    weight: Tensor, mask: Tensor, bits: int, *, init: Init | Literal["optimal"] = "linear", seed: int = 0
) -> CodebookTensor:
    """Share the kept weights of one layer: cluster them, and store an index each.

    Args:
        weight: any shape, floating point.
        mask: bool of the same shape, True where a weight is kept.
        bits: width of an index, 2 to 8. One entry is spent on zero, so ``2^bits − 1`` values remain.
        init: a start of :func:`kmeans`, or ``optimal`` for :func:`optimal_kmeans`.
        seed: of a random start.

    Returns:
        The shared weight; entries that ``mask`` drops have code 0. A layer with nothing kept has
        only zeros in its table.

    Raises:
        ValueError: shapes differ, ``bits`` is out of range, ``init`` is unknown, or a kept weight
            is not finite.

    Source: Han et al. 2016, section 3.1.

    Example:
        >>> weight = torch.tensor([0.1, -3.0, 2.0, 2.5, 5.0])
        >>> shared = share(weight, weight.abs() > 1, bits=2, init="optimal")
        >>> shared.codes, shared.codebook
        (tensor([0, 1, 2, 2, 3], dtype=torch.uint8), tensor([ 0.0000, -3.0000,  2.2500,  5.0000]))

    Chapter: pruning/deep_compression
    """
    if weight.shape != mask.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"mask is {mask.dtype} of shape {tuple(mask.shape)}; weight needs bool of {tuple(weight.shape)}"
        )
    if not 2 <= bits <= 8:
        raise ValueError(f"bits is {bits}; it may be 2 to 8")
    codebook = torch.zeros(2**bits)
    codes = torch.zeros(weight.shape, dtype=torch.uint8)
    kept = weight.detach().cpu()[mask.cpu()]
    if len(kept):
        k = 2**bits - 1
        if init == "optimal":
            centroids, index = optimal_kmeans(kept, k)
        else:
            centroids, index = kmeans(kept, k, init, seed=seed)
        codebook[1:] = centroids.float()
        codes[mask.cpu()] = (index + 1).to(torch.uint8)
    return CodebookTensor(codebook, codes, bits)


def compression_rate(connections: int, bits: int, centroids: int) -> float:
    r"""How much smaller a dense layer gets by sharing alone: :math:`r = nb / (n \log_2 k + kb)`.

    Args:
        connections: weights of the layer, n.
        bits: width of an unshared weight, b.
        centroids: shared values, k, at least 2.

    Raises:
        ValueError: an argument is out of range.

    Source: Han et al. 2016, eq. 1.

    Example:
        >>> round(float(compression_rate(16, 2, 4)), 3)
        0.8

    Chapter: pruning/deep_compression
    """
    if connections < 1 or bits < 1 or centroids < 2:
        raise ValueError(f"connections, bits and centroids are {connections}, {bits}, {centroids}; needed are 1, 1, 2")
    return connections * bits / (connections * np.log2(centroids) + centroids * bits)


def _checked(values: Tensor, k: int) -> np.ndarray:
    """The values as sorted float64."""
    if k < 1:
        raise ValueError(f"k is {k}; it may be 1 or more")
    x = np.sort(values.detach().cpu().double().numpy().ravel())
    if not len(x):
        raise ValueError("values is empty; there is nothing to cluster")
    if not np.isfinite(x).all():
        raise ValueError(f"values holds {int((~np.isfinite(x)).sum())} entries that are not finite")
    return x


def _edges(x: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Cluster ``j`` owns ``x[edges[j]:edges[j + 1]]``; of equal centroids the first owns everything."""
    distinct, first = np.unique(centroids, return_index=True)
    cuts = np.searchsorted(x, (distinct[1:] + distinct[:-1]) / 2, side="right")
    edges = np.empty(len(centroids) + 1, np.int64)
    edges[0] = 0
    ends = np.append(cuts, len(x))
    edges[1:] = ends[np.searchsorted(first, np.arange(len(centroids)), side="right") - 1]
    return edges
