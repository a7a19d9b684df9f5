r"""GPTQ: quantise a layer column by column, and let later columns make up for earlier ones.

Minimises :math:`\lVert (W - \hat W) X^\top \rVert^2`, whose Hessian :math:`H = X^\top X` is the same for
every row. With :math:`H^{-1} = U^\top U`, :math:`U` upper triangular, rounding column :math:`i` with error
:math:`e = (w_i - \hat w_i) / U_{ii}` is made up for best by :math:`w_j \mathrel{-}= e\,U_{ij}` for
:math:`j > i`. Columns are taken in blocks: inside a block the updates are done at once, those to all
later columns as one matrix product (the "lazy batch").

    ===== ============== ================================
    paper code           shape
    ===== ============== ================================
    W     W              [in, out], transposed: a column of the weight is contiguous memory
    H     H              [in, in]
    U     U              [in, in]
    B     block_size     128
    λ     damping        fraction of the mean diagonal
    ===== ============== ================================
"""

from typing import NamedTuple

import torch
from torch import Tensor

from reference.quantization import grid
from reference.quantization.grid import QuantizationSpec
from reference.quantization.hessian import HessianAccumulator, check, factor_dtype, inverse_factor
from reference.tensors import QuantizedTensor

__all__ = ["HessianAccumulator", "Solution", "quantize_layer", "solve"]

#: Columns updated one at a time before their joint effect goes to the rest of the block.
INNER_BLOCK = 16


class Solution(NamedTuple):
    r"""What the solver found.

    ``codes`` uint8 ``[out, in]`` and ``group_index`` int32 ``[in]`` (None if groups are consecutive) are in
    the original column order; ``scale`` and ``zero_point`` are ``[out, groups]``. ``loss`` is
    :math:`\frac12 \mathrm{tr}(E (H + \lambda I) E^\top)` with :math:`E = \hat W - W`, which the solver
    gets for free as half the sum of its squared :math:`e`. ``damping`` is the fraction that was used.

    Example:
        >>> solution = solve(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), torch.eye(4), QuantizationSpec(2))
        >>> solution.codes, solution.loss, solution.damping  # weights that lie on the grid cost nothing
        (tensor([[0, 1, 2, 3]], dtype=torch.uint8), 0.0, 0.01)

    Chapter: quantization/gptq
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    group_index: Tensor | None
    loss: float
    damping: float


def quantize_layer(
    weight: Tensor,
    hessian: Tensor,
    spec: QuantizationSpec,
    *,
    damping: float = 0.01,
    block_size: int = 128,
    act_order: bool = False,
    static_groups: bool = False,
    scale_dtype: torch.dtype = torch.float32,
    name: str = "weight",
) -> QuantizedTensor:
    """Quantise one layer with GPTQ.

    Args:
        weight: ``[out_features, in_features]``.
        hessian: ``[in_features, in_features]`` of :class:`HessianAccumulator`.
        spec: the grid.
        damping: fraction of the mean diagonal added to it; raised step by step, with a warning,
            if the factorisation fails.
        block_size: columns between two updates of the rest.
        act_order: take columns by falling diagonal of the Hessian. With groups the result has a
            group index, unless ``static_groups``.
        static_groups: fix all group grids beforehand, on the original columns; without groups it means nothing.
        scale_dtype: type of the stored scales.
        name: what to call the layer in warnings and errors.

    Raises:
        TypeError, ValueError: weight, Hessian or an argument is not usable, by name.

    Source: Frantar et al. 2023, algorithm 1, and the authors' ``fasterquant``.

    Example:
        >>> weight, hessian = torch.tensor([[0.3, 0.4]]), torch.tensor([[2.0, 1.9], [1.9, 2.0]])
        >>> spec = QuantizationSpec(2, symmetric=True)
        >>> packed = quantize_layer(weight, hessian, spec)
        >>> [packed.codes.shape, packed.scale.shape]
        [torch.Size([1, 2]), torch.Size([1, 1])]

    Chapter: quantization/gptq
    """
    found = solve(
        weight, hessian, spec, damping=damping, block_size=block_size, act_order=act_order,
        static_groups=static_groups, scale_dtype=scale_dtype, name=name,
    )  # fmt: skip
    return QuantizedTensor.from_codes(found.codes, found.scale, found.zero_point, spec, found.group_index)


@torch.no_grad()
def solve(
    weight: Tensor,
    hessian: Tensor,
    spec: QuantizationSpec,
    *,
    damping: float = 0.01,
    block_size: int = 128,
    act_order: bool = False,
    static_groups: bool = False,
    scale_dtype: torch.dtype = torch.float32,
    name: str = "weight",
) -> Solution:
    """Codes, grids and loss of GPTQ; see :func:`quantize_layer` for the arguments.

    Raises:
        TypeError, ValueError: as :func:`quantize_layer`.

    Example:
        >>> weight = torch.tensor([[0.0, 0.4, 0.4, 3.0]])  # on a grid of step 1 both 0.4 are nearest to 0
        >>> inputs = torch.tensor([[1.0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]])  # two channels are always equal
        >>> solve(weight, 2 * inputs.T @ inputs, QuantizationSpec(2)).codes  # the second makes up for the first
        tensor([[0, 0, 1, 3]], dtype=torch.uint8)

    Chapter: quantization/gptq
    """
    grid.check_weight(weight, spec, name)
    check(weight, hessian, damping, block_size, name)
    rows, columns = weight.shape
    group_size = spec.group_size or columns
    dynamic = spec.group_size is not None and not static_groups
    diagonal = hessian.diagonal().to(factor_dtype(hessian), copy=True)
    dead = diagonal == 0
    diagonal[dead] = 1
    order = diagonal.argsort(descending=True, stable=True) if act_order else torch.arange(columns, device=weight.device)
    W = torch.empty(columns, rows, device=weight.device).copy_(weight.T)
    W[dead] = 0
    # One line a group. Static groups see dead columns as zeros; a grid for the whole row still counts them.
    shape = (columns // group_size, 1 if spec.per_tensor else rows)
    step, zero = torch.empty(shape, device=weight.device), torch.empty(shape, device=weight.device)
    if not dynamic:
        static = static_groups and spec.group_size is not None
        seen = weight.masked_fill(dead, 0) if static and dead.any() else weight
        for line, found in zip((step, zero), grid.fit(seen, spec, scale_dtype=scale_dtype), strict=True):
            line.copy_(found.T)
    if act_order:
        W = W[order]
    U, used = inverse_factor(hessian, order if act_order else None, diagonal[order], damping, name)

    pivots = U.diagonal().tolist()
    group_of = ((torch.arange(columns) if dynamic else order.cpu()) // group_size).tolist()
    codes, loss = torch.empty(rows, columns, dtype=torch.uint8, device=weight.device), 0.0
    code = torch.empty(rows, device=weight.device)
    buffer = torch.empty(min(block_size, columns), rows, device=weight.device)
    uint8_buffer = torch.empty(buffer.shape, dtype=torch.uint8, device=weight.device)
    for begin in range(0, columns, block_size):
        end = min(begin + block_size, columns)
        # Weights at first; a line becomes its error once it is rounded.
        block, rounded = buffer[: end - begin].copy_(W[begin:end]), uint8_buffer[: end - begin]
        for inner in range(begin, end, INNER_BLOCK):
            stop = min(inner + INNER_BLOCK, end)
            for i in range(inner, stop):
                group = group_of[i]
                if dynamic and i % group_size == 0:
                    # From W, which lacks the updates of this block, as in the authors' code.
                    part = W[i : i + group_size].T.contiguous()
                    step[group], zero[group] = (t[:, 0] for t in _whole_row(part, spec, scale_dtype))
                w, s, z = block[i - begin], step[group], zero[group]
                torch.div(w, s, out=code).round_().add_(z).clamp_(0, spec.levels)
                rounded[i - begin] = code
                w.sub_(code.sub_(z).mul_(s)).div_(pivots[i])
                block[i + 1 - begin : stop - begin].addr_(U[i, i + 1 : stop], w, alpha=-1)
            done = block[inner - begin : stop - begin]
            loss += torch.linalg.vector_norm(done, dtype=torch.float64).item() ** 2 / 2
            block[stop - begin :].addmm_(U[inner:stop, stop:end].T, done, alpha=-1)
        codes[:, order[begin:end]] = rounded.T
        W[end:].addmm_(U[begin:end, end:].T, block, alpha=-1)

    group_index = None
    if dynamic and act_order:
        group_index = torch.empty(columns, dtype=torch.int32, device=weight.device)
        group_index[order] = torch.tensor(group_of, dtype=torch.int32, device=weight.device)
    scale, zero_point = step.T.to(scale_dtype), zero.T.to(torch.int32)
    return Solution(codes, scale.contiguous(), zero_point.contiguous(), group_index, loss, used)


def _whole_row(part: Tensor, spec: QuantizationSpec, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Grid of a slice of columns taken as one group."""
    low, high = (
        grid.search_range(part.unsqueeze(1), spec, scale_dtype=scale_dtype)
        if spec.clip_search
        else grid.min_max_range(part.unsqueeze(1), spec)
    )
    return grid.scale_and_zero_point(low, high, spec, scale_dtype=scale_dtype)
