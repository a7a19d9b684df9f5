"""Grids that are no ladder of equal steps: a table of levels, and one scale a block.

NF4 puts its 16 levels where a normal distribution has equal shares of its mass, scaled so that the
largest absolute value of a block is exactly −1 or 1, with an exact zero.
"""

import torch
from torch import Tensor

#: The levels of NF4, as the authors' library has them (float32).
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def nf4_codes(weight: Tensor, block: int = 64, *, scale_dtype: torch.dtype = torch.float16) -> tuple[Tensor, Tensor]:
    """Nearest NF4 level of each weight, and the absolute maximum of each block.

    Args:
        weight: ``[out, in]``, finite.
        block: weights along the input that share a maximum.
        scale_dtype: in which maxima are stored; codes are computed with them as stored.

    Returns:
        ``(codes, absmax)``: uint8 ``[out, in]`` and ``[out, in / block]``. A block of zeros has maximum 1.

    Raises:
        ValueError: ``block`` does not divide the inputs.

    Source: Dettmers et al. 2023, section 3 and appendix E.

    Chapter: quantization/quantization_aware
    """
    if block < 1 or weight.shape[1] % block:
        raise ValueError(f"block is {block}; it must divide the {weight.shape[1]} inputs")
    groups = weight.float().reshape(weight.shape[0], -1, block)
    absmax = groups.abs().amax(-1).to(scale_dtype)
    absmax = torch.where(absmax == 0, torch.ones_like(absmax), absmax)
    levels = torch.tensor(NF4, device=weight.device)
    codes = torch.bucketize(groups / absmax.float().unsqueeze(-1), (levels[1:] + levels[:-1]) / 2)
    return codes.to(torch.uint8).reshape(weight.shape), absmax


def nf4_values(codes: Tensor, absmax: Tensor) -> Tensor:
    """Weights that NF4 codes stand for, float32 ``[out, in]``.

    Args:
        codes: uint8 ``[out, in]``.
        absmax: ``[out, blocks]``.

    Chapter: quantization/quantization_aware
    """
    levels = torch.tensor(NF4, device=codes.device)[codes.long()]
    return (levels.reshape(*absmax.shape, -1) * absmax.float().unsqueeze(-1)).reshape(codes.shape)
