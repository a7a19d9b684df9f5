"""Does zeros in a weight make its product faster on this machine? Formats against the dense product, in turns."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reference.hardware.latency import compare
from reference.pruning import magnitude
from reference.sparse_layers import SparseLinear

#: Sides of the blocks of block-CSR.
BLOCK = 16
SPARSITIES = (0.5, 0.75, 0.9, 0.95)
Row = dict[str, Any]


def zeros(weight: Tensor, format: str, sparsity: float) -> Tensor:
    """The mask of a format: True where a weight stays.

    Args:
        weight: ``[out, in]``.
        format: ``"CSR"`` for single weights, ``"2:4"``, or ``"blocks"`` of :data:`BLOCK` by :data:`BLOCK`, whose summed
            absolute values are compared.
        sparsity: fraction removed; 0.5 for 2:4.

    Returns:
        Bool ``[out, in]``.

    Raises:
        ValueError: no such format, or one that does not fit the weight.

    Example:
        >>> weight = torch.tensor([[9.0, 8.0, 7.0, 1.0, 0.1, 0.2, 0.3, 0.4]])
        >>> zeros(weight, "CSR", 0.5).int().tolist()
        [[1, 1, 1, 1, 0, 0, 0, 0]]
        >>> zeros(weight, "2:4", 0.5).int().tolist()  # two of each four, whatever they are
        [[1, 1, 0, 0, 0, 0, 1, 1]]

    Chapter: practice/pruning_pipeline
    """
    if format == "CSR":
        return magnitude.mask(weight, sparsity)
    if format == "2:4":
        return magnitude.n_of_m(weight, 2, 4)
    if format != "blocks":
        raise ValueError(f"format is {format!r}; it may be CSR, 2:4 or blocks")
    rows, columns = weight.shape
    if rows % BLOCK or columns % BLOCK:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; blocks need multiples of {BLOCK}")
    size = weight.abs().view(rows // BLOCK, BLOCK, -1, BLOCK).sum((1, 3))
    kept = magnitude.mask(size, sparsity)
    return kept[:, None, :, None].expand(-1, BLOCK, -1, BLOCK).reshape(weight.shape)


@torch.no_grad()
def times_as_fast(
    weight: Tensor, tokens: int, sparsities: Sequence[float] = SPARSITIES, *, repeats: int = 15
) -> list[Row]:
    """Speed of sparse products over the dense one, for a weight of this shape.

    Args:
        weight: ``[out, in]``; float32 is computed with.
        tokens: columns of the input.
        sparsities: fractions removed.
        repeats: rounds in which all take turns.

    Returns:
        Rows with ``format``, ``tokens``, ``sparsity`` and ``times as fast``, a ratio of medians. Formats that the shape does
        not fit are left out.

    Example:
        >>> rows = times_as_fast(torch.eye(32), tokens=2, sparsities=(0.5,), repeats=4)
        >>> [row["format"] for row in rows], all(row["times as fast"] > 0 for row in rows)
        (['2:4', 'CSR', 'blocks'], True)

    Chapter: practice/pruning_pipeline
    """
    weight = weight.float()
    x = torch.randn(weight.shape[1], tokens, generator=torch.Generator().manual_seed(0))
    calls: dict[tuple[str, float], Callable[[], object]] = {("dense", 0.0): lambda: weight @ x}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls these layouts a beta
        for sparsity in sparsities:
            sparse = (weight * zeros(weight, "CSR", sparsity)).to_sparse_csr()
            calls["CSR", sparsity] = lambda sparse=sparse: sparse @ x  # type: ignore[misc]
            if not (weight.shape[0] % BLOCK or weight.shape[1] % BLOCK):
                blocked = (weight * zeros(weight, "blocks", sparsity)).to_sparse_bsr((BLOCK, BLOCK))
                calls["blocks", sparsity] = lambda blocked=blocked: blocked @ x  # type: ignore[misc]
        if weight.shape[1] % 16 == 0 and 0.5 in sparsities:
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            linear.weight = nn.Parameter(weight * zeros(weight, "2:4", 0.5))
            layer = SparseLinear.from_linear(linear)
            calls["2:4", 0.5] = lambda: layer(x.T)
        named = {f"{format} {sparsity}": call for (format, sparsity), call in calls.items()}
        times = compare(named, repeats=repeats)
    dense = times["dense 0.0"].median
    return [
        {
            "format": format,
            "tokens": tokens,
            "sparsity": sparsity,
            "times as fast": dense / times[f"{format} {sparsity}"].median,
        }
        for format, sparsity in sorted(calls)
        if format != "dense"
    ]
