r"""Quantising activations: symmetric integer codes and the scale that belongs to them.

.. math:: q = \mathrm{clamp}(\mathrm{round}(x / s)), \qquad \hat x = s\,q

A weight is quantised once; activations are new with every input. So the question is when the
scale is known, and how many values share it:

    =============== ================ ============================ ==================
    granularity     scale known      values that share a scale    shape of the scale
    =============== ================ ============================ ==================
    ``per_token``   at run time      the channels of one token    ``[..., 1]``
    ``per_tensor``  at run time      everything in one call       ``[1]``
    ``static``      at calibration   everything, for ever         ``[1]``
    =============== ================ ============================ ==================

A scale for each *channel* is not among them: it stands inside the sum over channels, where an
integer matrix product cannot apply it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

GRANULARITIES = ("per_token", "per_tensor", "static")
#: Least absolute maximum that a scale is made of, so that zeros have one (the authors' constant).
SMALLEST_ABSMAX = 1e-5


@dataclass(frozen=True)
class ActivationSpec:
    """How activations become integers, always symmetric around zero.

    Args:
        granularity: ``"per_token"``, ``"per_tensor"`` (both dynamic) or ``"static"``.
        bits: 2 to 8.
        restricted: False is the rule of compressed-tensors: the step is ``absmax / 127.5`` at 8 bits
            and codes are clamped to −128…127, so +absmax loses half a step. True is the paper's:
            ``absmax / 127``, codes −127…127.

    Raises:
        ValueError: a field is outside what it may be.

    Example:
        >>> spec = ActivationSpec(bits=8)
        >>> spec.lowest, spec.highest, spec.steps
        (-128, 127, 127.5)
        >>> ActivationSpec(bits=4, restricted=True).lowest
        -7

    Chapter: quantization/smoothquant
    """

    granularity: str = "per_token"
    bits: int = 8
    restricted: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 2 <= self.bits <= 8:
            raise ValueError(f"bits is {self.bits!r}; it may be an integer from 2 to 8")
        if self.granularity not in GRANULARITIES:
            raise ValueError(f"granularity is {self.granularity!r}; it may be {', '.join(GRANULARITIES)}")

    @property
    def lowest(self) -> int:
        """Least code: −128 at 8 bits, −127 if restricted."""
        return -self.highest if self.restricted else -(2 ** (self.bits - 1))

    @property
    def highest(self) -> int:
        """Largest code, 127 at 8 bits."""
        return 2 ** (self.bits - 1) - 1

    @property
    def steps(self) -> float:
        """Steps from zero to the absolute maximum: 127.5 at 8 bits, 127 if restricted."""
        return (self.highest - self.lowest) / 2


def scale_of(absmax: Tensor, spec: ActivationSpec) -> Tensor:
    """The step for values up to ``absmax``, in float32; of zeros it is that of 1e-5.

    Args:
        absmax: any shape, 0 or more.
        spec: bits, and whether the codes are restricted.

    Example:
        >>> scale_of(torch.tensor([254.0]), ActivationSpec(restricted=True))
        tensor([2.])

    Chapter: quantization/smoothquant
    """
    absmax = absmax.float().clamp(min=SMALLEST_ABSMAX)
    # By a tensor: on CUDA, torch takes division by a number as a product with its reciprocal, an ulp off the CPU's.
    return absmax / torch.full_like(absmax, spec.steps)


def quantize_activations(x: Tensor, spec: ActivationSpec, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Codes of activations, and their scale.

    Args:
        x: ``[..., channels]``, of any floating-point type; computed in float32.
        spec: bits and granularity.
        scale: the calibrated step ``[1]`` of :meth:`AbsmaxAccumulator.static_scale`, for
            ``granularity="static"`` and only for it.

    Returns:
        ``(codes, scale)``: int8 of the shape of ``x``, and float32 ``[..., 1]`` per token, else ``[1]``.
        Where ``x`` holds NaN or infinity a dynamic scale is NaN or infinite, so that the product
        of codes and scale is not finite either: per token, only that of the token.

    Raises:
        ValueError: a static spec without a scale, a dynamic one with a scale, or NaN in ``x`` under
            a static scale, whose codes would hide it.

    Source: Xiao et al. 2023, section 2 (restricted); ``int-quantized`` of compressed-tensors.

    Example:
        >>> tokens = torch.tensor([[127.0, -64.0], [254.0, 2.0]])
        >>> quantize_activations(tokens, ActivationSpec(restricted=True))  # a step for each token
        (tensor([[127, -64],
                [127,   1]], dtype=torch.int8), tensor([[1.],
                [2.]]))

    Chapter: quantization/smoothquant
    """
    if (spec.granularity == "static") != (scale is not None):
        raise ValueError(
            f"scale is {'missing' if scale is None else 'given'}, but granularity is {spec.granularity!r}: "
            "static activations need one, calibrated; dynamic ones make their own"
        )
    x = x.float()
    if scale is not None:
        scale = scale.to(x.device, torch.float32)
    elif spec.granularity == "per_token":
        scale = scale_of(_absmax(x, -1), spec)
    else:
        scale = scale_of(_absmax(x.reshape(1, -1), -1)[0], spec)
    steps = torch.round(x / scale).clamp_(spec.lowest, spec.highest)
    if spec.granularity == "static" and steps.sum().isnan():  # a sum of finite numbers is none
        raise ValueError("x holds NaN activations; under a static scale they would become ordinary codes")
    return steps.to(torch.int8), scale


def dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    """The activations that codes stand for, ``scale · codes``, in the scale's type.

    Args:
        codes: int8 ``[..., channels]``.
        scale: ``[..., 1]`` or ``[1]``, as :func:`quantize_activations` gives them.

    Example:
        >>> dequantize(torch.tensor([[127, 1]], dtype=torch.int8), torch.tensor([[2.0]]))
        tensor([[254.,   2.]])

    Chapter: quantization/smoothquant
    """
    return codes.to(scale.dtype) * scale


def _absmax(x: Tensor, axis: int) -> Tensor:
    """Largest absolute value along ``axis``, kept; 0 where there is none."""
    if x.shape[axis] == 0:
        return x.new_zeros([1 if i == axis % x.ndim else n for i, n in enumerate(x.shape)])
    # Not x.abs().amax(): that writes a copy of x.
    return torch.maximum(x.amax(axis, keepdim=True), -x.amin(axis, keepdim=True))


class AbsmaxAccumulator:
    """Running maximum of ``|x|`` of each channel over calibration batches.

    Both statistics that W8A8 needs: the channels' maxima smooth, the largest of them is the static
    scale.

    Args:
        channels: size of the last axis of the activations.
        device: where the maxima are kept.

    Attributes:
        absmax: float32 ``[channels]``, zero before the first batch.

    Example:
        >>> seen = AbsmaxAccumulator(channels=2)
        >>> seen.add(torch.tensor([[1.0, -8.0], [-2.0, 4.0]]))
        >>> seen.add(torch.tensor([[3.0, 0.0]]))
        >>> seen.absmax
        tensor([3., 8.])
        >>> seen.static_scale(ActivationSpec("static", bits=4, restricted=True)) * 7
        tensor([8.])

    Chapter: quantization/smoothquant
    """

    def __init__(self, channels: int, device: torch.device | str | None = None) -> None:
        self.absmax = torch.zeros(channels, device=device)

    def add(self, inputs: Tensor, name: str = "inputs") -> None:
        """Take in ``[..., channels]``.

        Raises:
            ValueError: another width, or values that are not finite, by ``name``; nothing is added then.
        """
        if inputs.ndim < 1 or inputs.shape[-1] != len(self.absmax):
            raise ValueError(f"{name} has shape {tuple(inputs.shape)}; its last axis must be {len(self.absmax)}")
        found = _absmax(inputs.detach().reshape(-1, inputs.shape[-1]), 0)[0].to(self.absmax)
        if not torch.isfinite(found).all():
            raise ValueError(f"{name} holds NaN or infinite activations; the model overflows before this layer")
        self.absmax = torch.maximum(self.absmax, found)

    def merge(self, other: "AbsmaxAccumulator") -> None:
        """Take in what another accumulator, of another rank or shard, has seen.

        Raises:
            ValueError: it has another number of channels.
        """
        if len(other.absmax) != len(self.absmax):
            raise ValueError(f"other has {len(other.absmax)} channels, not {len(self.absmax)}")
        self.absmax = torch.maximum(self.absmax, other.absmax.to(self.absmax))

    def static_scale(self, spec: ActivationSpec) -> Tensor:
        """The step ``[1]`` for all channels together, for ``granularity="static"``."""
        return scale_of(self.absmax.amax().reshape(1), spec)
