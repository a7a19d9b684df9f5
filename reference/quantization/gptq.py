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

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from reference.quantization import grid
from reference.quantization.grid import QuantizationSpec
from reference.tensors import QuantizedTensor

#: Columns updated one at a time before their joint effect goes to the rest of the block.
INNER_BLOCK = 16
DAMPING_STEPS = 12


class HessianAccumulator:
    r"""Running mean of :math:`\frac{2}{n} \sum X^\top X` over ``n`` calibration sequences.

    Args:
        in_features: columns of the layer's input.
        dtype: float32, or float64 for a long or badly scaled calibration set.
        device: where the sum is kept.

    Attributes:
        hessian: ``[in_features, in_features]``.
        sequences: how many sequences went in.

    Chapter: none (the gptq chapter is to come)
    """

    def __init__(
        self, in_features: int, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
    ) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype is {dtype}; it may be float32 or float64")
        self.hessian = torch.zeros(in_features, in_features, dtype=dtype, device=device)
        self.sequences = 0

    def add(self, inputs: Tensor, name: str = "inputs") -> None:
        """Add the inputs of one batch.

        Args:
            inputs: ``[sequences, ..., in_features]``; a matrix ``[tokens, in_features]`` counts as one sequence.
            name: what to call the layer in an error.

        Raises:
            ValueError: another width, or values that are not finite; nothing is added then.
        """
        if inputs.ndim < 2 or inputs.shape[-1] != len(self.hessian):
            raise ValueError(f"{name} has shape {tuple(inputs.shape)}; its last axis must be {len(self.hessian)}")
        rows = inputs.reshape(-1, inputs.shape[-1]).to(self.hessian.dtype)
        if not torch.isfinite(rows).all():
            raise ValueError(f"{name} holds NaN or infinite activations; the model overflows before this layer")
        count = inputs.shape[0] if inputs.ndim > 2 else 1
        total = self.sequences + count
        self.hessian *= self.sequences / total
        rows = rows * (2 / total) ** 0.5
        self.hessian.addmm_(rows.T, rows)
        self.sequences = total

    def merge(self, other: "HessianAccumulator") -> None:
        """Take in what another accumulator, of another rank or shard, has seen."""
        total = self.sequences + other.sequences
        if total:
            self.hessian *= self.sequences / total
            self.hessian += other.hessian.to(self.hessian) * (other.sequences / total)
            self.sequences = total


class Solution(NamedTuple):
    r"""What the solver found.

    ``codes`` uint8 ``[out, in]`` and ``group_index`` int32 ``[in]`` (None if groups are consecutive) are in
    the original column order; ``scale`` and ``zero_point`` are ``[out, groups]``. ``loss`` is
    :math:`\frac12 \mathrm{tr}(E (H + \lambda I) E^\top)` with :math:`E = \hat W - W`, which the solver
    gets for free as half the sum of its squared :math:`e`. ``damping`` is the fraction that was used.

    Chapter: none (the gptq chapter is to come)
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
        static_groups: fix all group grids beforehand, on the original columns.
        scale_dtype: type of the stored scales.
        name: what to call the layer in warnings and errors.

    Raises:
        TypeError, ValueError: weight, Hessian or an argument is not usable, by name.

    Source: Frantar et al. 2023, algorithm 1, and the authors' ``fasterquant``.

    Chapter: none (the gptq chapter is to come)
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

    Chapter: none (the gptq chapter is to come)
    """
    grid.check_weight(weight, spec, name)
    _check(weight, hessian, damping, block_size, name)
    columns = weight.shape[1]
    group_size = spec.group_size or columns
    # The whole-row grid is that of the original weight: dead columns still count for it.
    scale, zero_point = grid.fit(weight, spec, scale_dtype=scale_dtype)
    W, H = weight.float().T.contiguous(), hessian.float().clone()
    dead = H.diagonal() == 0
    H.diagonal()[dead] = 1
    W[dead] = 0
    if spec.group_size is not None and static_groups:
        scale, zero_point = grid.fit(W.T, spec, scale_dtype=scale_dtype)
    order = H.diagonal().argsort(descending=True, stable=True) if act_order else torch.arange(columns, device=W.device)
    if act_order:
        W, H = W[order], H[order][:, order]
    U, used = _factor(H, damping, name)

    dynamic = spec.group_size is not None and not static_groups
    group_of = (torch.arange(columns) if dynamic else order.cpu()) // group_size
    if dynamic:
        scale, zero_point = torch.empty_like(scale), torch.empty_like(zero_point)
    codes, loss = torch.empty(W.shape, dtype=torch.uint8, device=W.device), 0.0
    for begin in range(0, columns, block_size):
        end = min(begin + block_size, columns)
        block, errors = W[begin:end].clone(), torch.empty_like(W[begin:end])
        for inner in range(begin, end, INNER_BLOCK):
            stop = min(inner + INNER_BLOCK, end)
            for i in range(inner, stop):
                group = int(group_of[i])
                if dynamic and i % group_size == 0:
                    # From W, which lacks the updates of this block, as in the authors' code.
                    part = W[i : i + group_size].T.contiguous()
                    scale[:, group], zero_point[:, group] = (t[:, 0] for t in _whole_row(part, spec, scale_dtype))
                step, zero = scale[:, group].float(), zero_point[:, group]
                w = block[i - begin]
                code = (torch.round(w / step) + zero).clamp_(0, spec.levels)
                codes[i] = code
                error = (w - step * (code - zero)) / U[i, i]
                errors[i - begin] = error
                block[i + 1 - begin : stop - begin].addr_(U[i, i + 1 : stop], error, alpha=-1)
            done = errors[inner - begin : stop - begin]
            block[stop - begin :].addmm_(U[inner:stop, stop:end].T, done, alpha=-1)
        loss += errors.double().square().sum().item() / 2
        W[end:].addmm_(U[begin:end, end:].T, errors, alpha=-1)

    original = torch.empty_like(codes)
    original[order] = codes
    group_index = None
    if dynamic and act_order:
        group_index = torch.empty(columns, dtype=torch.int32, device=W.device)
        group_index[order] = group_of.to(torch.int32).to(W.device)
    return Solution(original.T.contiguous(), scale, zero_point, group_index, loss, used)


def _whole_row(part: Tensor, spec: QuantizationSpec, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Grid of a slice of columns taken as one group."""
    low, high = (
        grid.search_range(part.unsqueeze(1), spec, scale_dtype=scale_dtype)
        if spec.clip_search
        else grid.min_max_range(part.unsqueeze(1), spec)
    )
    return grid.scale_and_zero_point(low, high, spec, scale_dtype=scale_dtype)


def _factor(H: Tensor, damping: float, name: str) -> tuple[Tensor, float]:
    """Upper triangular ``U`` with ``(H + λI)⁻¹ = Uᵀ U``, and the damping that it took."""
    mean = H.diagonal().mean()
    used = damping
    for _ in range(DAMPING_STEPS):
        damped = H.clone()
        damped.diagonal().add_(used * mean)
        L, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            U, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(L), upper=True)
            if not failed and torch.isfinite(U).all():
                if used != damping:
                    warnings.warn(
                        f"{name}: the Hessian could not be factorised with damping {damping:g}; {used:g} was used. "
                        "More, or more varied, calibration text is the cure",
                        stacklevel=4,
                    )
                return U, used
        used = max(used * 2, 1e-4)
    raise ValueError(f"hessian of {name} cannot be factorised even with damping {used / 2:g}; is it symmetric?")


def _check(weight: Tensor, hessian: Tensor, damping: float, block_size: int, name: str) -> None:
    size = weight.shape[1]
    if tuple(hessian.shape) != (size, size):
        raise ValueError(f"hessian of {name} has shape {tuple(hessian.shape)}; the weight needs {(size, size)}")
    if not torch.isfinite(hessian).all():
        raise ValueError(f"hessian of {name} holds NaN or infinite values; the activations overflowed")
    if (hessian.diagonal() < 0).any():
        raise ValueError(f"hessian of {name} has negative diagonal entries; it is a sum of squares")
    if not 0 <= damping < 1e3:
        raise ValueError(f"damping is {damping}; it may be 0 or more (0.01 is usual)")
    if block_size < 1:
        raise ValueError(f"block_size is {block_size}; it may be 1 or more")
