r"""AWQ: before rounding, scale up the columns that large activations meet, and clip the rest.

Rounding moves a weight by up to half a step of its group, whatever the activation that it multiplies. If the
column is multiplied by :math:`s_j` and the activation divided by it, the error of that column shrinks by
:math:`\frac{\Delta'}{\Delta}\frac{1}{s_j}`: the step :math:`\Delta'` of the group hardly moves while the column
does not hold the group's largest weights. Which columns gain is read off the mean activation size, how much is
one exponent, found on a grid:

.. math:: s = \overline{|x|}^{\,\alpha}, \qquad
          \alpha^* = \arg\min_\alpha \lVert f(Q(W \mathrm{diag}(s))\,\mathrm{diag}(s)^{-1}) - f(W) \rVert^2 .

:math:`\alpha = 0` is round to nearest. :mod:`reference.quantization.channel_scale` moves the scale into the
layer before; a clipping search per group follows.

    ============ ========== ==================== ===========================================
    paper        code       shape
    ============ ========== ==================== ===========================================
    :math:`s_X`  size       [in]                 mean absolute input of a channel
    :math:`α`    ratio      number
    :math:`s`    scale      [in]                 multiplied into columns, divided out of inputs
    ============ ========== ==================== ===========================================
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from reference.quantization.grid import (
    QuantizationSpec,
    check_weight,
    min_max_range,
    scale_and_zero_point,
    search_range,
    split_groups,
)  # fmt: skip

#: Weights handled at once, so that the temporaries of a large layer stay small (a few times 4 MiB).
CHUNK = 2**20


class AwqScale(NamedTuple):
    """What :func:`search_scale` found.

    ``scale`` float32 ``[in]``, ``ratio`` its exponent, ``losses`` one mean squared error per ratio tried; the
    first of them is round to nearest.

    Example:
        >>> weight, inputs = torch.tensor([[0.1, 1.0, -0.7, 0.4]]), torch.tensor([[100.0, 1.0, 1.0, 1.0]])
        >>> found = search_scale(weight, inputs, QuantizationSpec(3), grid=10)
        >>> found.losses.index(min(found.losses)) == found.ratio * 10
        True
        >>> bool(found.scale.argmax() == 0)  # the busy channel is protected
        True

    Chapter: quantization/awq
    """

    scale: Tensor
    ratio: float
    losses: tuple[float, ...]


def channel_scale(size: Tensor, ratio: float) -> Tensor:
    r"""Scale of each channel, :math:`s = size^{ratio}`, centred: largest times smallest is 1.

    Args:
        size: ``[in]``, mean absolute activation of each channel.
        ratio: 0 leaves everything as it is.

    Returns:
        float32 ``[in]``. Powers below 1e-4 are raised to it before the centring, so a dead channel has a scale.

    Source: Lin et al. 2024, eq. 5; clamp and centring are the authors' code.

    Example:
        >>> channel_scale(torch.tensor([4.0, 1.0, 0.25]), 0.5)
        tensor([2.0000, 1.0000, 0.5000])

    Chapter: quantization/awq
    """
    scale = size.float().pow(ratio).clamp(min=1e-4)
    return scale / (scale.max() * scale.min()).sqrt()


@torch.no_grad()
def search_scale(
    weights: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    spec: QuantizationSpec | Sequence[QuantizationSpec],
    *,
    grid: int = 20,
    output: Callable[[list[Tensor]], Tensor | Iterable[Tensor]] | None = None,
    name: str = "weights",
    total: Callable[[Tensor], Tensor] = lambda part: part,
) -> AwqScale:
    """The channel scale with the least error of what layers with a common input compute.

    Args:
        weights: ``[out, in]`` each, of the layers that share ``inputs``; or one tensor.
        inputs: ``[..., in]``, the activations of the float model; or a list of such batches.
        spec: the grid of all weights, or one each. The authors' grid has ``zero_in_range=False``.
        grid: ratios tried: ``i / grid`` for i = 0 to grid − 1.
        output: what the module that is looked at computes with these weights, as a tensor or batch by batch;
            by default the outputs of the layers themselves.
        name: what to call the layers in an error.
        total: sum over ranks; each holds other inputs.

    Returns:
        The first ratio of least loss, so round to nearest where nothing helps.

    Raises:
        TypeError, ValueError: a weight has no grid, shapes do not match, or no loss is finite.

    Source: Lin et al. 2024, section 3.2, and the authors' ``auto_scale_block``.

    Example:
        >>> weight, inputs = torch.tensor([[0.1, 1.0, -0.7, 0.4]]), torch.tensor([[100.0, 1.0, 1.0, 1.0]])
        >>> scale, ratio, losses = search_scale(weight, inputs, QuantizationSpec(3))
        >>> ratio > 0, min(losses) < losses[0] / 10  # the first loss is that of no scale
        (True, True)

    Chapter: quantization/awq
    """
    weights = [weights] if isinstance(weights, Tensor) else list(weights)
    specs = [spec] * len(weights) if isinstance(spec, QuantizationSpec) else list(spec)
    batches = _batches(inputs, weights, name)
    if grid < 1 or len(specs) != len(weights):
        raise ValueError(f"{name}: {len(weights)} weights, {len(specs)} specs and a grid of {grid} ratios do not fit")
    for weight, each in zip(weights, specs, strict=True):
        check_weight(weight, each, name)
    size = torch.stack([batch.abs().sum(0) for batch in batches]).sum(0, dtype=torch.float64)
    size = (total(size) / _count(batches, total)).float()
    loss = _linear_loss(weights, specs, batches, total) if output is None else _loss(weights, specs, output, total)
    scales = [channel_scale(size, i / grid) for i in range(grid)]
    losses = [loss(scale) if torch.isfinite(scale).all() else float("nan") for scale in scales]
    finite = [value if value < float("inf") else float("inf") for value in losses]  # a NaN is never the least
    best = finite.index(min(finite))
    if finite[best] == float("inf"):
        bad = sum(int((~torch.isfinite(batch)).sum()) for batch in batches)
        raise ValueError(
            f"{name}: the error is not finite at any of {grid} ratios; the inputs hold {bad} NaN or infinite values. "
            "If the model overflows in float16, calibrate it in bfloat16 or float32"
        )
    return AwqScale(scales[best], best / grid, tuple(losses))


@torch.no_grad()
def search_clip(
    weight: Tensor,
    inputs: Tensor | Sequence[Tensor],
    spec: QuantizationSpec,
    *,
    grid: int = 20,
    max_shrink: float = 0.5,
    samples: int | None = 512,
    name: str = "weight",
    total: Callable[[Tensor], Tensor] = lambda part: part,
) -> Tensor:
    """How far to clip each group of weights before its grid is fitted.

    Tries, per group, ±absmax · (1 − i / grid) for i = 0 to max_shrink · grid − 1, and keeps the widest of least
    mean squared change of the group's share of the output.

    Args:
        weight: ``[out, in]``.
        inputs: ``[..., in]``, or a list of such batches.
        spec: the grid; its ``clip_search``, if set, comes on top.
        samples: every n-th token is looked at, n = tokens // samples; all tokens if None.
        name: what to call the layer in an error.
        total: sum over ranks; each holds other inputs.
        grid, max_shrink: steps of the full range, and how far it shrinks at most, 0 to below 1.

    Returns:
        float32 ``[out, groups, 1]``, the largest magnitude to keep, for :func:`clip`.

    Raises:
        TypeError, ValueError: the weight has no grid or no groups, shapes do not match, or inputs are not finite.

    Source: the authors' ``auto_clip_layer``; named, not described, in Lin et al. 2024, section 3.2.

    Example:
        >>> weight = torch.tensor([[1.0, -1.0, 1.0, -8.0]])  # the large one reads a channel that is never active
        >>> limit = search_clip(weight, torch.tensor([[1.0, 1.0, 1.0, 0.0]]), QuantizationSpec(2))
        >>> limit.shape, bool(limit < 8)
        (torch.Size([1, 1, 1]), True)

    Chapter: quantization/awq
    """
    check_weight(weight, spec, name)
    if spec.per_tensor:
        raise ValueError(f"{name}: the clipping search works on groups or rows; per_tensor has neither")
    if grid < 1 or not 0 <= max_shrink < 1 or (samples is not None and samples < 1):
        raise ValueError(
            f"{name}: grid {grid} may be 1 or more, max_shrink {max_shrink} from 0 to below 1, samples {samples} "
            "1 or more"
        )
    batches = _batches(inputs, [weight], name)
    if samples is not None:
        stride = max(1, int(_count(batches, total)) // samples)
        batches = [batch[::stride] for batch in _joined(batches)]
    if not all(torch.isfinite(batch).all() for batch in batches):
        raise ValueError(f"{name}: inputs hold NaN or infinite values; the model overflows before this layer")
    groups = split_groups(weight, spec)
    best = groups.abs().amax(-1, keepdim=True).float()
    error_of = _mean_square(batches, groups.shape[-1], total)
    steps = max(1, int(max_shrink * grid))
    for rows in _rows(weight, spec):
        original = groups[rows].float()
        full, least = best[rows].clone(), torch.full_like(best[rows], torch.inf)
        for i in range(steps):
            limit = full * (1 - i / grid)
            error = _rounded(torch.minimum(torch.maximum(original, -limit), limit), spec).sub_(original)
            loss = error_of(error).unsqueeze(-1)
            best[rows] = torch.where(loss < least, limit, best[rows])
            least = torch.minimum(loss, least)
    return best


def clip(weight: Tensor, limit: Tensor) -> Tensor:
    """``weight`` with the magnitudes of each group limited.

    Args:
        weight: ``[out, in]``.
        limit: ``[out, groups, 1]`` of :func:`search_clip`.

    Returns:
        A new tensor like ``weight``.

    Example:
        >>> clip(torch.tensor([[1.0, -8.0, 2.0, 0.5]]), torch.tensor([[[4.0], [1.0]]]))  # two groups of two
        tensor([[ 1.0000, -4.0000,  1.0000,  0.5000]])

    Chapter: quantization/awq
    """
    limit = limit.to(weight.dtype)
    groups = weight.reshape(*limit.shape[:2], -1)
    return torch.minimum(torch.maximum(groups, -limit), limit).reshape(weight.shape)


def _rounded(groups: Tensor, spec: QuantizationSpec) -> Tensor:
    """``[..., size]`` float32 to the grid and back, in place."""
    low, high = search_range(groups, spec) if spec.clip_search else min_max_range(groups, spec)
    step, zero_point = (t.unsqueeze(-1) for t in scale_and_zero_point(low, high, spec))
    zero = zero_point.float()
    return groups.div_(step).round_().add_(zero).clamp_(0, spec.levels).sub_(zero).mul_(step)


def _scaled(weight: Tensor, spec: QuantizationSpec, scale: Tensor) -> Tensor:
    """What ``weight`` becomes if its columns are scaled, rounded, and scaled back; float32 of the same shape."""
    groups = split_groups(weight.float() * scale, spec)
    return _rounded(groups, spec).reshape(weight.shape).div_(scale)


Loss = Callable[[Tensor], float]


def _loss(
    weights: list[Tensor],
    specs: list[QuantizationSpec],
    output: Callable[[list[Tensor]], Tensor | Iterable[Tensor]],
    total: Callable[[Tensor], Tensor],
) -> Loss:
    """Mean squared change of what ``output`` computes."""

    def run(candidates: list[Tensor]) -> Iterable[Tensor]:
        found = output(candidates)
        return (found,) if isinstance(found, Tensor) else found

    expected = list(run(weights))
    count = total(torch.tensor(float(sum(y.numel() for y in expected)), dtype=torch.float64))

    def loss(scale: Tensor) -> float:
        candidates = [_scaled(weight, spec, scale) for weight, spec in zip(weights, specs, strict=True)]
        parts = [
            (found.float() - y.float()).square().sum(dtype=torch.float64)
            for found, y in zip(run(candidates), expected, strict=True)
        ]
        return float(total(torch.stack(parts).sum()) / count)

    return loss


def _linear_loss(
    weights: list[Tensor], specs: list[QuantizationSpec], batches: list[Tensor], total: Callable[[Tensor], Tensor]
) -> Loss:
    """Mean squared change of ``inputs @ weight.T``, over all rows of all weights."""
    error_of = _mean_square(batches, weights[0].shape[1], total)
    outputs = sum(len(weight) for weight in weights)

    def loss(scale: Tensor) -> float:
        value = 0.0
        for weight, spec in zip(weights, specs, strict=True):
            for rows in _rows(weight, spec):
                error = _scaled(weight[rows], spec, scale).sub_(weight[rows])
                value += float(error_of(error.unsqueeze(1)).sum(dtype=torch.float64))
        return value / outputs

    return loss


def _mean_square(batches: list[Tensor], size: int, total: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    r"""The function :math:`e \mapsto \overline{(x \cdot e)^2}` of errors ``[rows, groups, size]``, per row and group.

    With more tokens than columns it is :math:`e G e^\top` with the Gram matrix of the inputs, which is summed once;
    with fewer, the inputs themselves are the smaller matrix.
    """
    count = float(_count(batches, total))
    parts = [batch.view(len(batch), -1, size).transpose(0, 1) for batch in batches]  # [groups, tokens, size]
    if count > size:
        gram = torch.stack([part.transpose(1, 2) @ part for part in parts]).sum(0, dtype=torch.float64)
        gram = (total(gram) / count).float()
        return lambda error: ((error.transpose(0, 1) @ gram).transpose(0, 1) * error).sum(-1)
    inputs = torch.cat(parts, dim=1).transpose(1, 2)
    return lambda error: total((error.transpose(0, 1) @ inputs).square().sum(-1)).T / count


def _rows(weight: Tensor, spec: QuantizationSpec) -> list[slice]:
    """The rows in portions of about ``CHUNK`` weights; all at once where they share a grid."""
    size = len(weight) if spec.per_tensor else max(1, CHUNK // weight.shape[1])
    return [slice(begin, begin + size) for begin in range(0, len(weight), size)]


def _batches(inputs: Tensor | Sequence[Tensor], weights: list[Tensor], name: str) -> list[Tensor]:
    """float32 ``[tokens, in]`` each."""
    batches = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    widths = {weight.shape[-1] for weight in weights} | {batch.shape[-1] for batch in batches}
    if not weights or not batches or len(widths) != 1 or not sum(batch.numel() for batch in batches):
        raise ValueError(
            f"{name}: weights {[tuple(weight.shape) for weight in weights]} and inputs "
            f"{[tuple(batch.shape) for batch in batches][:4]} do not share their last axis, or there are none"
        )
    return [batch.reshape(-1, batch.shape[-1]).float() for batch in batches]


def _joined(batches: list[Tensor]) -> list[Tensor]:
    return batches if len(batches) == 1 else [torch.cat(batches)]


def _count(batches: list[Tensor], total: Callable[[Tensor], Tensor]) -> Tensor:
    """Tokens, on all ranks together."""
    return total(torch.tensor(float(sum(len(batch) for batch in batches)), dtype=torch.float64))
