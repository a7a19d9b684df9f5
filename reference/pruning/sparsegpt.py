r"""SparseGPT: remove weights column by column, and let later columns make up for it.

The column sweep of :mod:`reference.quantization.gptq`, with zero in place of the nearest code. With
:math:`H^{-1} = U^\top U`, removing :math:`w_j` when the columns before it are settled costs
:math:`w_j^2 / (2 U_{jj}^2)` after the best repair by the columns behind it: that is the score. One order of columns for
all rows means one factor for all rows, whatever each row keeps.

A mask cannot be chosen one weight at a time: whether a weight is among the smallest half depends on the others. It is
chosen for a block of columns at once, from weights that all earlier blocks have already moved; a pattern such as 2:4
for each m columns, from weights that all earlier columns have moved.

    ===== ============== ================================
    paper code           shape
    ===== ============== ================================
    W     W              [in, out], transposed: a column of the weight is contiguous memory
    H     hessian        [in, in]
    U     U              [in, in]
    M     mask           [out, in]
    B, Bs block_size     128
    λ     damping        fraction of the mean diagonal
    ===== ============== ================================
"""

from typing import NamedTuple

import torch
from torch import Tensor

from reference.pruning import magnitude
from reference.quantization import grid
from reference.quantization.grid import QuantizationSpec
from reference.quantization.hessian import check, factor_dtype, inverse_factor
from reference.tensors import QuantizedTensor

#: Columns updated one at a time before their joint effect goes to the rest of the block.
INNER_BLOCK = 16


class Pruned(NamedTuple):
    r"""What the solver found.

    ``weight`` float32 ``[out, in]`` is zero where ``mask`` (bool, True: kept) is False; elsewhere it has moved.
    ``quantized`` holds it as codes, if a grid was given; weights that the grid rounds to zero count as kept. ``loss`` is
    :math:`\frac12 \mathrm{tr}(E (H + \lambda I) E^\top)`, with :math:`E` the change of the weight. ``damping`` is
    the fraction that was used.

    Example:
        >>> found = prune_layer(torch.tensor([[3.0, 1.0]]), torch.eye(2), 0.5)
        >>> found.mask, found.weight
        (tensor([[ True, False]]), tensor([[3., 0.]]))
        >>> round(found.loss, 3), found.quantized  # half the square of what went, 1 % of damping counted
        (0.505, None)

    Chapter: pruning/one_shot
    """

    weight: Tensor
    mask: Tensor
    quantized: QuantizedTensor | None
    loss: float
    damping: float


@torch.no_grad()
def prune_layer(
    weight: Tensor,
    hessian: Tensor,
    sparsity: float | None = None,
    *,
    pattern: tuple[int, int] | None = None,
    mask: Tensor | None = None,
    damping: float = 0.01,
    block_size: int = 128,
    spec: QuantizationSpec | None = None,
    scale_dtype: torch.dtype = torch.float32,
    count_rule: str = "round",
    tie_rule: str = "first",
    name: str = "weight",
) -> Pruned:
    """Prune one layer with SparseGPT, and quantise it in the same pass if a grid is given.

    Args:
        weight: ``[out_features, in_features]``, floating point, finite.
        hessian: ``[in_features, in_features]`` of :class:`reference.quantization.hessian.HessianAccumulator`.
        sparsity: fraction removed of each block of columns, all rows together, ``0 <= sparsity < 1``; or
        pattern: ``(n, m)``: n of each m neighbours in a row stay. m divides ``in_features`` and ``block_size``; or
        mask: bool ``[out, in]``, True where a weight is kept, chosen by another method: the others are removed, and those
            that stay make up for them.
        damping: fraction of the mean diagonal added to it; raised step by step, with a warning, if the
            factorisation fails.
        block_size: columns whose mask is chosen at once, and between two updates of the rest.
        spec: the grid that the weights which stay are rounded to. Zero must be on it.
        scale_dtype: type of the stored scales.
        count_rule, tie_rule: see :func:`reference.pruning.magnitude.mask`; "floor_plus_one" and "all" are those of the
            authors' code.
        name: what to call the layer in warnings and errors.

    Returns:
        The layer as :class:`Pruned`; ``weight`` is not changed.

    Raises:
        TypeError, ValueError: weight, Hessian or an argument is not usable, by name; or not exactly one of
            ``sparsity``, ``pattern`` and ``mask`` is given.

    Source: Frantar and Alistarh 2023, algorithm 1, and the authors' ``fasterprune``.

    Example:
        >>> hessian = torch.tensor([[1.0, 0.9], [0.9, 1.0]])  # two inputs that are nearly the same
        >>> found = prune_layer(torch.tensor([[1.0, 1.0]]), hessian, 0.5)
        >>> [round(value, 1) for value in found.weight[0].tolist()]  # the second does the work of both
        [0.0, 1.9]

    Chapter: pruning/one_shot
    """
    _check(weight, sparsity, pattern, mask, block_size, spec, name)
    check(weight, hessian, damping, block_size, name)
    rows, columns = weight.shape
    diagonal = hessian.diagonal().to(factor_dtype(hessian), copy=True)
    dead = diagonal == 0
    diagonal[dead] = 1
    W = torch.empty(columns, rows, device=weight.device).copy_(weight.T)
    W[dead] = 0
    U, used = inverse_factor(hessian, None, diagonal, damping, name)
    levels = 0 if spec is None else spec.levels
    if spec is not None:
        scale, zero_point = grid.fit(weight, spec, scale_dtype=scale_dtype)
        size = columns if spec.per_tensor else columns // scale.shape[1]
        step, zero = scale.float().T, zero_point.float().T
        codes = torch.empty(columns, rows, dtype=torch.uint8, device=weight.device)

    kept = torch.ones(columns, rows, dtype=torch.bool, device=weight.device)
    if mask is not None:
        kept.copy_(mask.T)
    m = pattern[1] if pattern else 1
    inner_block = m * max(1, INNER_BLOCK // m)  # a pattern never waits for updates of its own columns
    pivots, squares, loss = U.diagonal().tolist(), U.diagonal().square(), 0.0
    for begin in range(0, columns, block_size):
        end = min(begin + block_size, columns)
        # Weights at first; a line becomes its error once it is settled.
        block = W[begin:end].clone()
        if sparsity is not None:
            saliency = (block.square() / squares[begin:end, None]).T
            kept[begin:end] = magnitude.mask(saliency, sparsity, count_rule=count_rule, tie_rule=tie_rule).T
        for inner in range(begin, end, inner_block):
            stop = min(inner + inner_block, end)
            for i in range(inner, stop):
                if pattern and i % m == 0:
                    group = block[i - begin : i + m - begin].square() / squares[i : i + m, None]
                    kept[i : i + m] = magnitude.n_of_m(group.T, *pattern).T
                w = block[i - begin]
                settled = w * kept[i]
                if spec is not None:
                    s, z = step[i // size], zero[i // size]
                    code = settled.div(s).round_().add_(z).clamp_(0, levels)
                    codes[i] = code
                    settled = code.sub_(z).mul_(s)
                W[i] = settled
                w.sub_(settled).div_(pivots[i])
                block[i + 1 - begin : stop - begin].addr_(U[i, i + 1 : stop], w, alpha=-1)
            done = block[inner - begin : stop - begin]
            loss += torch.linalg.vector_norm(done, dtype=torch.float64).item() ** 2 / 2
            block[stop - begin :].addmm_(U[inner:stop, stop:end].T, done, alpha=-1)
        W[end:].addmm_(U[begin:end, end:].T, block, alpha=-1)

    kept = kept.T.contiguous()
    quantized = None
    if spec is not None:
        quantized = QuantizedTensor.from_codes(codes.T.contiguous(), scale, zero_point, spec)
    return Pruned(W.T.masked_fill(~kept, 0), kept, quantized, loss, used)  # no negative zeros


def _check(
    weight: Tensor,
    sparsity: float | None,
    pattern: tuple[int, int] | None,
    mask: Tensor | None,
    block_size: int,
    spec: QuantizationSpec | None,
    name: str,
) -> None:
    given = [key for key, value in (("sparsity", sparsity), ("pattern", pattern), ("mask", mask)) if value is not None]
    if len(given) != 1:
        raise ValueError(f"exactly one of sparsity, pattern and mask may be given, not {' and '.join(given) or 'none'}")
    if spec is not None and not spec.zero_in_range:
        raise ValueError("spec has zero_in_range=False; a removed weight must have a code, so zero must be on the grid")
    grid.check_weight(weight, spec or QuantizationSpec(8), name)
    if sparsity is not None:
        magnitude.removed_count(sparsity, 1)  # its range
    if pattern is not None:
        n, m = pattern
        if not 1 <= n <= m:
            raise ValueError(f"pattern is {pattern}; it may be (n, m) with 1 <= n <= m")
        if weight.shape[1] % m or block_size % m:
            raise ValueError(
                f"pattern keeps {n} of {m}; {m} must divide the {weight.shape[1]} inputs of {name} and block_size "
                f"{block_size}"
            )
    if mask is not None and (mask.dtype != torch.bool or mask.shape != weight.shape):
        raise ValueError(f"mask is {mask.dtype} {tuple(mask.shape)}; it must be bool {tuple(weight.shape)}")
