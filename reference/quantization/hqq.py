r"""Half-quadratic quantization (HQQ): move the zero point of each group so that most weights fit, and a few may not.

Rounding to nearest on the grid of a group's range leaves an error :math:`E = W - s\,(Q - z)`. With the step :math:`s`
kept, the zero point :math:`z` may be any real number. HQQ looks for the one with a small
:math:`\sum |E|^p,\ p < 1`, which forgives single large errors, unlike squares. That sum has no derivative at zero and is not
convex, so a second variable :math:`R` stands in for the error and is tied to it by a square:

.. math:: \min_{z, R}\ \sum |R|^p + \tfrac{\beta p}{2} \sum (R - E)^2 .

Each half is easy. For a fixed :math:`z` a step towards the minimum shrinks each error,
:math:`R = \mathrm{sign}(E)\,\max(0,\ |E| - |E|^{p-1}/\beta)`: small errors are taken for nothing, large ones are believed. For a
fixed :math:`R` (and codes) the best zero point is a mean, :math:`z = \mathrm{mean}(Q - (W - R)/s)`. No text is read.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from reference.quantization import grid
from reference.quantization.grid import QuantizationSpec

FLAT = 1e-4  # a group with a smaller range keeps a step of 1
LARGEST = 2e4  # of 1/step


class HalfQuadratic(NamedTuple):
    """A layer on grids with real zero points.

    Args:
        codes: ``[out, in]``, uint8.
        scale: ``[out, groups]``, float32.
        zero_point: ``[out, groups]``, float32, any real number: kernels for integer zero points cannot hold it.

    Example:
        >>> codes = torch.tensor([[0, 1, 2, 3]], dtype=torch.uint8)
        >>> HalfQuadratic(codes, torch.tensor([[2.0]]), torch.tensor([[0.5]])).dequantize()
        tensor([[-1.,  1.,  3.,  5.]])

    Chapter: quantization/post_training
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor

    def dequantize(self) -> Tensor:
        """The dense weight, ``[out, in]``, float32: ``scale · (codes − zero_point)``."""
        groups = self.codes.reshape(*self.scale.shape, -1).float()
        return ((groups - self.zero_point[..., None]) * self.scale[..., None]).reshape(self.codes.shape)


def shrink(error: Tensor, penalty: float, exponent: float) -> Tensor:
    r"""Pull each error towards zero, small ones all the way: ``sign(e) · max(0, |e| − |e|^(p−1) / β)``.

    Args:
        error: any shape, floating point.
        penalty: β > 0; the larger, the less is pulled.
        exponent: p, above 0 and at most 1; 1 is soft thresholding.

    Returns:
        Of the shape of ``error``.

    Raises:
        ValueError: ``penalty`` or ``exponent`` out of range.

    Example:
        >>> shrink(torch.tensor([-2.0, 0.05, 1.0]), penalty=10.0, exponent=1.0)
        tensor([-1.9000,  0.0000,  0.9000])

    Chapter: quantization/post_training
    """
    if not penalty > 0:
        raise ValueError(f"penalty is {penalty!r}; it may be a positive number")
    if not 0 < exponent <= 1:
        raise ValueError(f"exponent is {exponent!r}; it may be above 0 and at most 1")
    size = error.abs()
    return error.sign() * (size - size.pow(exponent - 1) / penalty).clamp(min=0)


@torch.no_grad()
def quantize_layer(
    weight: Tensor,
    spec: QuantizationSpec,
    *,
    exponent: float = 0.7,
    penalty: float = 10.0,
    growth: float = 1.0,
    iterations: int = 20,
    until_worse: bool = True,
    name: str = "weight",
) -> HalfQuadratic:
    """Quantise one layer with the zero points of half-quadratic splitting.

    Args:
        weight: ``[out_features, in_features]``, floating point, finite; computed in float32.
        spec: bits and group size of an affine grid per group; the range need not contain zero.
        exponent: p of the error's measure.
        penalty: β.
        growth: factor of β after each iteration.
        iterations: at most so many.
        until_worse: stop once the mean absolute error of the whole layer no longer falls. The zero point of the last
            iteration is kept, as in the authors' code, even where that of the one before was better.
        name: what to call the layer in an error.

    Returns:
        Codes, steps and zero points.

    Raises:
        TypeError, ValueError: as :func:`reference.quantization.grid.check_weight`; a symmetric, clipped or per-tensor ``spec``;
            as :func:`shrink`.

    Source: Badri and Shaji 2023 (the authors' note and code); parity with recorded vectors of that code.

    Example:
        >>> quantize_layer(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), QuantizationSpec(2)).codes
        tensor([[0, 1, 2, 3]], dtype=torch.uint8)

    Chapter: quantization/post_training
    """
    grid.check_weight(weight, spec, name)
    if spec.symmetric or spec.per_tensor or spec.clip_search:
        raise ValueError(
            f"spec is {spec}; HQQ moves the zero points of an affine grid per row or group, without clipping search"
        )
    groups = grid.split_groups(weight.float(), spec)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    width = high - low
    inverse = torch.where(width <= FLAT, 1.0, spec.levels / width).clamp(max=LARGEST)
    zero = -low * inverse

    def codes_for(zero: Tensor) -> Tensor:
        return (groups * inverse + zero).round().clamp(0, spec.levels)

    best = float("inf")
    for _ in range(iterations):
        codes = codes_for(zero)
        back = (codes - zero) / inverse
        believed = shrink(groups - back, penalty, exponent)
        zero = (codes - (groups - believed) * inverse).mean(-1, keepdim=True)
        penalty *= growth
        error = float((groups - back).abs().mean())
        if until_worse and error >= best:
            break
        best = min(best, error)
    codes = codes_for(zero).to(torch.uint8).reshape(weight.shape)
    return HalfQuadratic(codes, (1 / inverse).squeeze(-1), zero.squeeze(-1))
