r"""Groups of values that share a scale and a low end, as a key-value cache stores them.

.. math:: \hat x = \text{low} + s\,q, \qquad s = (\text{high} - \text{low}) / (2^b - 1)

Source: Liu et al. 2024, KIVI, section 3.1. :mod:`reference.quantization.kv_cache` says which values form a group.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from reference.tensors import pack, unpack


class Groups(NamedTuple):
    """Packed codes with scale and low end of each group along the last axis.

    Example:
        >>> groups = quantize_groups(torch.arange(32.0)[None], bits=2, group_size=32)
        >>> groups.codes.nbytes, groups.scale.nbytes, groups.low.nbytes, groups.nbytes
        (8, 2, 2, 12)

    Chapter: quantization/activations
    """

    codes: Tensor
    scale: Tensor
    low: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes as stored."""
        return self.codes.nbytes + self.scale.nbytes + self.low.nbytes


def quantize_groups(x: Tensor, bits: int, group_size: int) -> Groups:
    """Round each run of ``group_size`` values along the last axis to the grid between its least and largest.

    Args:
        x: ``[..., n]``, floating point; ``group_size`` divides ``n``.
        bits: 1 to 8.
        group_size: values that share ``scale`` and ``low``.

    Returns:
        int32 ``[..., n / group_size, words]``, and two of ``[..., n / group_size]``, in the type of ``x`` if
        it has 16 bits, else bfloat16.

    Raises:
        ValueError: ``group_size`` does not divide ``n``.

    Source: Liu et al. 2024, KIVI, section 3.1.

    Example:
        >>> groups = quantize_groups(torch.tensor([[5.0, 6.0, 7.0, 8.0]]), bits=2, group_size=4)
        >>> groups.low.item(), groups.scale.item(), f"{groups.codes.item():08b}"  # 3, 2, 1, 0
        (5.0, 1.0, '11100100')

    Chapter: quantization/activations
    """
    if x.shape[-1] % group_size:
        raise ValueError(f"group_size {group_size} does not divide the {x.shape[-1]} values of x's last axis")
    dtype = x.dtype if x.dtype in (torch.float16, torch.bfloat16) else torch.bfloat16
    groups = x.float().unflatten(-1, (-1, group_size))
    low, high = groups.amin(-1).to(dtype), groups.amax(-1).to(dtype)
    scale = ((high.float() - low.float()) / (2**bits - 1)).to(dtype)
    step = torch.where(scale > 0, scale.float(), 1.0)  # a group of equal values: codes 0
    codes = ((groups - low.float()[..., None]) / step[..., None]).round().clamp(0, 2**bits - 1)
    packed = pack(codes.to(torch.uint8).reshape(-1, group_size), bits)
    return Groups(packed.reshape(*low.shape, -1), scale, low)


def dequantize_groups(groups: Groups, bits: int, group_size: int, dtype: torch.dtype) -> Tensor:
    """``low + scale · code``, ``[..., n]`` in ``dtype``; computed in float32.

    Args:
        groups: of :func:`quantize_groups`.
        bits, group_size: as they were given to it.
        dtype: of the result.

    Example:
        >>> groups = quantize_groups(torch.tensor([[0.0, 1.2, 1.9, 3.0]]), bits=2, group_size=4)
        >>> dequantize_groups(groups, 2, 4, torch.float32)
        tensor([[0., 1., 2., 3.]])

    Chapter: quantization/activations
    """
    codes = unpack(groups.codes.reshape(-1, groups.codes.shape[-1]), bits, group_size)
    codes = codes.reshape(*groups.low.shape, group_size).float()
    return (groups.low.float()[..., None] + groups.scale.float()[..., None] * codes).flatten(-2).to(dtype)
