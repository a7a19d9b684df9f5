r"""The uniform grid: from a range of weights to a scale, a zero point and integer codes.

A weight :math:`w` becomes a code :math:`q = \mathrm{clamp}(\mathrm{round}(w / s) + z,\ 0,\ 2^b - 1)`
and comes back as :math:`\hat w = s\,(q - z)`. Codes are unsigned, rounding is half to even,
and weights are divided by the scale (a multiplication by :math:`1/s` decides some ties
differently). Shapes throughout:

    ========== ===================== ============================================
    weight     [out, in]             one row an output channel
    groups     [out, groups, size]   the same numbers, split where the scale changes
    scale      [out, groups]         per tensor [1, 1], per output channel [out, 1]
    zero_point [out, groups]         integer codes; the constant 2^(b-1) if symmetric
    ========== ===================== ============================================
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class QuantizationSpec:
    """What grid to use: bits, symmetry, and how many weights share a scale.

    Args:
        bits: 2 to 8.
        symmetric: zero point fixed at the middle code. The step is ``2·absmax / (2^bits − 1)``,
            so the levels run from −2^(bits−1) to 2^(bits−1) − 1 steps and a weight of +absmax
            is clipped by half a step (the convention of GPTQ and of compressed-tensors).
        group_size: weights along the input that share a scale; None for the whole row.
        per_tensor: one scale for everything; excludes ``group_size``.
        clip_search: shrink each range to the one with the least error (:func:`search_range`).
        zero_in_range: widen the range to contain zero, so that zero is exact. False exists for
            parity with AWQ's grid, where a group far from zero collapses to one value.

    Raises:
        ValueError: a field is outside what it may be.

    Example:
        >>> QuantizationSpec(4, group_size=128).bits_per_weight(4096)  # 4 + (16 + 4) / 128
        4.15625
        >>> QuantizationSpec(4, symmetric=True).middle
        8

    Chapter: quantization/post_training
    """

    bits: int
    symmetric: bool = False
    group_size: int | None = None
    per_tensor: bool = False
    clip_search: bool = False
    zero_in_range: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 2 <= self.bits <= 8:
            raise ValueError(f"bits is {self.bits!r}; it may be an integer from 2 to 8")
        size = self.group_size
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise ValueError(f"group_size is {size!r}; it may be a positive integer, or None for one scale a row")
        if self.per_tensor and size is not None:
            raise ValueError("per_tensor and group_size exclude each other; give one of them")
        if self.symmetric and not self.zero_in_range:
            raise ValueError("zero_in_range=False has no meaning for a symmetric grid, which is centred on zero")

    @property
    def levels(self) -> int:
        """Largest code, ``2^bits − 1``."""
        return 2**self.bits - 1

    @property
    def middle(self) -> int:
        """Zero point of a symmetric grid, ``2^(bits − 1)``."""
        return 2 ** (self.bits - 1)

    def bits_per_weight(self, in_features: int) -> float:
        """Bits stored per weight of a row of ``in_features``, 16-bit scale and zero point included.

        A scale for the whole tensor is counted as nothing.
        """
        if self.per_tensor:
            return float(self.bits)
        overhead = 16 + (0 if self.symmetric else self.bits)
        return self.bits + overhead / (self.group_size or in_features)


def check_weight(weight: Tensor, spec: QuantizationSpec, name: str = "weight") -> None:
    """Refuse what no grid can represent.

    A weight on the meta device has only a shape to check.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: not a matrix, empty, NaN or infinite, or its input size is not a multiple of
            the group size. A short last group is refused because the loaders refuse it (vLLM)
            or disagree on its scale.

    Example:
        >>> check_weight(torch.ones(2, 6), QuantizationSpec(4, group_size=4), 'head')
        Traceback (most recent call last):
            ...
        ValueError: group_size 4 does not divide the 6 inputs of head; no usual group size divides it, and None (one scale per output channel) always fits

    Chapter: quantization/post_training
    """
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {getattr(weight, 'dtype', type(weight))}")
    if weight.ndim != 2 or weight.numel() == 0:
        raise ValueError(f"{name} must be a non-empty matrix [out, in], got shape {tuple(weight.shape)}")
    # A sum shows every NaN and infinity, ten times as fast as asking each number; one that overflows asks them all.
    if not weight.is_meta and not weight.sum().isfinite() and not torch.isfinite(weight).all():
        nans, infinities = int(weight.isnan().sum()), int(weight.isinf().sum())
        raise ValueError(f"{name} holds {nans} NaN and {infinities} infinite values; only finite weights have a grid")
    size = spec.group_size
    if size is not None and weight.shape[1] % size:
        fitting = [g for g in (32, 64, 128, 256) if weight.shape[1] % g == 0]
        advice = f"{', '.join(map(str, fitting))} would divide it" if fitting else "no usual group size divides it"
        raise ValueError(
            f"group_size {size} does not divide the {weight.shape[1]} inputs of {name}; {advice}, "
            "and None (one scale per output channel) always fits"
        )


def split_groups(weight: Tensor, spec: QuantizationSpec) -> Tensor:
    """View ``[out, in]`` as ``[out, groups, size]``, or ``[1, 1, out·in]`` per tensor.

    Example:
        >>> split_groups(torch.zeros(2, 8), QuantizationSpec(4, group_size=4)).shape
        torch.Size([2, 2, 4])

    Chapter: quantization/post_training
    """
    if spec.per_tensor:
        return weight.reshape(1, 1, -1)
    return weight.reshape(weight.shape[0], -1, spec.group_size or weight.shape[1])


def min_max_range(groups: Tensor, spec: QuantizationSpec) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each group, widened to contain zero.

    Args:
        groups: ``[..., size]``.

    Returns:
        ``(low, high)``, each ``[...]``. An all-zero group gets (−1, 1), so that no scale is zero.

    Source: Frantar et al. 2023, the authors' ``Quantizer``.

    Example:
        >>> min_max_range(torch.tensor([[0.5, 2.0], [0.0, 0.0]]), QuantizationSpec(4))
        (tensor([ 0., -1.]), tensor([2., 1.]))

    Chapter: quantization/post_training
    """
    low, high = groups.amin(-1), groups.amax(-1)
    if spec.zero_in_range:
        low, high = low.clamp(max=0), high.clamp(min=0)
    empty = (low == 0) & (high == 0)
    return torch.where(empty, -1.0, low), torch.where(empty, 1.0, high)


def percentile_range(groups: Tensor, spec: QuantizationSpec, percentile: float) -> tuple[Tensor, Tensor]:
    """The range that holds the central ``percentile`` per cent of each group, zero included.

    Args:
        groups: ``[..., size]``.
        percentile: 50 < percentile <= 100; 100 is :func:`min_max_range`.

    Returns:
        ``(low, high)``, each ``[...]``: the ``100 − percentile`` and ``percentile`` quantiles.

    Raises:
        ValueError: ``percentile`` out of range.

    Example:
        >>> percentile_range(torch.arange(-4.0, 5.0)[None], QuantizationSpec(4), 75)
        (tensor([-2.]), tensor([2.]))

    Chapter: quantization/post_training
    """
    if not 50 < percentile <= 100:
        raise ValueError(f"percentile is {percentile}; it may be above 50 and at most 100")
    ordered = groups.sort(dim=-1).values
    last = ordered.shape[-1] - 1
    position = last * percentile / 100
    below = int(position)
    above, part = min(below + 1, last), position - below

    def at(first: int, second: int) -> Tensor:
        return ordered[..., first] * (1 - part) + ordered[..., second] * part

    ends = torch.stack((at(last - below, last - above), at(below, above)), dim=-1)
    return min_max_range(ends, spec)


def scale_and_zero_point(
    low: Tensor, high: Tensor, spec: QuantizationSpec, *, scale_dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    r"""Step and zero point of the grid that spans ``[low, high]``.

    Affine: :math:`s = (high - low)/(2^b - 1)`, :math:`z = \mathrm{round}(-low/s)`.
    Symmetric: :math:`s = 2\max(|low|, |high|)/(2^b - 1)`, :math:`z = 2^{b-1}`. (In the code of
    GPTQ's authors a range without negative numbers gets half of this step, with the same zero point, so that
    its largest value comes back as 7/15 of itself at 4 bits.)

    Args:
        low, high: of any equal shape.
        scale_dtype: the scale is rounded *up* to this type, so that a coarser type never clips
            the range, and kept above zero.

    Returns:
        ``(scale, zero_point)`` of the shape of ``low``: ``scale_dtype`` and int32.

    Raises:
        ValueError: the step, or an end of the grid, does not fit into ``scale_dtype``.

    Example:
        >>> scale_and_zero_point(torch.tensor(-1.0), torch.tensor(2.0), QuantizationSpec(2))
        (tensor(1.), tensor(1, dtype=torch.int32))

    Chapter: quantization/post_training
    """
    low, high = low.float(), high.float()
    if spec.symmetric:
        high = torch.maximum(low.abs(), high.abs())
        low = -high
    # This order of operations, in float32, is what decides ties as the authors' codes do.
    exact = (high - low) / spec.levels
    limits = torch.finfo(scale_dtype)
    # float16 ends at 6e-5, which ordinary 8-bit steps reach: there subnormal numbers are used too.
    smallest = 2.0**-24 if scale_dtype == torch.float16 else limits.tiny
    scale = round_up(exact, scale_dtype).clamp(min=smallest)
    if spec.symmetric:
        zero_point = torch.full_like(low, spec.middle)
    else:
        zero_point = torch.round(-low / scale.float()).clamp(0, spec.levels)
    # The end of the grid lies up to half a step beyond the range, so it may overflow by itself.
    ends = scale.double() * torch.maximum(zero_point, spec.levels - zero_point)
    if not (ends <= limits.max).all():
        raise ValueError(
            f"a grid with a step of {exact.max():.3g} does not fit into {scale_dtype}; use bfloat16 or float32 scales"
        )
    return scale, zero_point.to(torch.int32)


def round_up(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest numbers of ``dtype`` that are not below the positive ``values``.

    Example:
        >>> float(round_up(torch.tensor(0.1), torch.bfloat16)) >= 0.1
        True

    Chapter: none (storage detail of :func:`scale_and_zero_point`)
    """
    if dtype == torch.float32:
        return values.float()
    rounded = values.to(dtype)
    # The bit pattern of a positive float, read as an integer, counts the numbers below it.
    next_up = (rounded.view(torch.int16) + 1).view(dtype)
    return torch.where(rounded.float() < values, next_up, rounded)


def quantize(weight: Tensor, scale: Tensor, zero_point: Tensor, spec: QuantizationSpec) -> Tensor:
    """Codes of ``weight`` on a given grid.

    Args:
        weight: ``[out, in]``.
        scale, zero_point: ``[out, groups]``, ``[out, 1]`` or ``[1, 1]``.

    Returns:
        uint8 ``[out, in]``, each in ``[0, 2^bits − 1]``; values beyond the grid take its ends.

    Example:
        >>> spec = QuantizationSpec(2)
        >>> scale, zero = torch.tensor([[1.0]]), torch.tensor([[1]], dtype=torch.int32)
        >>> quantize(torch.tensor([[-1.0, 0.2, 1.6, 9.0]]), scale, zero, spec)
        tensor([[0, 1, 3, 3]], dtype=torch.uint8)

    Chapter: quantization/post_training
    """
    groups = split_groups(weight, spec).float()
    codes = torch.round(groups / scale.float().unsqueeze(-1)) + zero_point.unsqueeze(-1)
    return codes.clamp_(0, spec.levels).to(torch.uint8).reshape(weight.shape)


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor, spec: QuantizationSpec) -> Tensor:
    """Weights that ``codes`` stand for, ``scale · (code − zero_point)``, in the scale's type.

    Args:
        codes: uint8 ``[out, in]``.
        scale, zero_point: ``[out, groups]``, ``[out, 1]`` or ``[1, 1]``.

    Returns:
        ``[out, in]`` in ``scale.dtype``: give the scale in a wider type for a wider result.

    Example:
        >>> spec = QuantizationSpec(2)
        >>> scale, zero = torch.tensor([[0.5]]), torch.tensor([[1]], dtype=torch.int32)
        >>> dequantize(torch.tensor([[0, 1, 2, 3]], dtype=torch.uint8), scale, zero, spec)
        tensor([[-0.5000,  0.0000,  0.5000,  1.0000]])

    Chapter: quantization/post_training
    """
    steps = split_groups(codes, spec).to(torch.int16) - zero_point.unsqueeze(-1).to(torch.int16)
    return (steps.to(scale.dtype) * scale.unsqueeze(-1)).reshape(codes.shape)


def search_range(
    groups: Tensor,
    spec: QuantizationSpec,
    *,
    exponent: float = 2.4,
    steps: int = 80,
    scale_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    r"""Shrink each range to the one whose grid has the least error.

    Tries :math:`p\,[low, high]` for :math:`p = 1 - i/100`, :math:`i = 0 \ldots steps - 1`, and keeps,
    per group, the widest among those of least :math:`\sum |w - \hat w|^{exponent}`.

    Args:
        groups: ``[..., size]``.
        exponent: 2 for the mean squared error; 2.4, which minds large errors a little more, is
            the constant of the authors of GPTQ.
        steps: candidates tried, at most 100.

    Returns:
        ``(low, high)``, each ``[...]``.

    Source: Frantar et al. 2023, the authors' ``Quantizer`` with ``mse=True``.

    Example:
        >>> groups = torch.cat([torch.linspace(-1, 1, 63), torch.tensor([8.0])])[None]
        >>> low, high = search_range(groups, QuantizationSpec(2))
        >>> bool(high < 8)
        True

    Chapter: quantization/post_training
    """
    groups = groups.float()
    full_low, full_high = min_max_range(groups, spec)
    best_error = torch.full_like(full_low, torch.inf)
    low, high = full_low, full_high
    for step in range(steps):
        shrink = 1 - step / 100
        scale, zero_point = scale_and_zero_point(full_low * shrink, full_high * shrink, spec, scale_dtype=scale_dtype)
        scale, zero_point = scale.float().unsqueeze(-1), zero_point.float().unsqueeze(-1)
        codes = torch.div(groups, scale).round_().add_(zero_point).clamp_(0, spec.levels)  # in one memory throughout
        error = codes.sub_(zero_point).mul_(scale).sub_(groups).abs_().pow_(exponent).sum(-1)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        low = torch.where(better, full_low * shrink, low)
        high = torch.where(better, full_high * shrink, high)
    return low, high


def fit(weight: Tensor, spec: QuantizationSpec, *, scale_dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Scale and zero point of every group of ``weight``, by min-max or by search, as ``spec`` says.

    Args:
        weight: ``[out, in]``, finite; see :func:`check_weight`.
        scale_dtype: type in which scales will be stored.

    Returns:
        ``(scale, zero_point)``, each ``[out, groups]``, ``[out, 1]`` or ``[1, 1]``.

    Raises:
        TypeError, ValueError: as :func:`check_weight` and :func:`scale_and_zero_point`.

    Example:
        >>> fit(torch.tensor([[-1.0, 0.0, 2.0, 0.5]]), QuantizationSpec(2))
        (tensor([[1.]]), tensor([[1]], dtype=torch.int32))

    Chapter: quantization/post_training
    """
    check_weight(weight, spec)
    groups = split_groups(weight, spec).float()
    low, high = search_range(groups, spec, scale_dtype=scale_dtype) if spec.clip_search else min_max_range(groups, spec)
    return scale_and_zero_point(low, high, spec, scale_dtype=scale_dtype)
