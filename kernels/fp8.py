r"""Multiply e4m3 floats by e4m3 floats, and scale afterwards: :math:`Y = (X W^\top) s_x s_w + b`.

An e4m3 number is a byte: sign, four bits of exponent, three of mantissa; ±448 is the largest, 2⁻⁹ the smallest::

    bit   7   6 5 4 3   2 1 0
        ┌───┬─────────┬───────┐        value = (-1)^s · 2^(e-7) · (1 + f/8)   for e > 0
        │ s │    e    │   f   │              = (-1)^s · 2^-6 · f/8           for e = 0
        └───┴─────────┴───────┘        s.1111.111 is NaN; there is no infinity

The picture is w8a8's, and so are the kernels, with fp32 sums: one scale for a row of x (a token), one for a row of w (an
output channel). Compared with int8 the grid is uneven: relative steps of 1/8 to 1/16, where int8 has equal absolute
steps. Tensor cores take these operands from capability 8.9 on; below, this module refuses.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import torch
from torch import Tensor

from ._checks import FLOATS, check_capability, check_shape, check_tensors
from ._scaled import Slim, Square, scaled_product, supports_descriptors

LEAST_CAPABILITY = (8, 9)
E4M3 = (torch.float8_e4m3fn,)
FLOAT32 = (torch.float32,)
#: Settings by rows of x, up to the number given; replaced by what a card measures best.
PLANS: list[tuple[int, Slim | Square]] = [
    (16, Slim(rows=16, outputs=32, columns=256, blocks=4, warps=4, stages=3)),
    (64, Square(rows=64, outputs=64, columns=128, side=1, warps=4, stages=4)),
    (256, Square(rows=128, outputs=128, columns=128, side=8, warps=8, stages=4)),
    (2**31, Square(rows=128, outputs=128, columns=128, side=8, warps=8, stages=4, described=True)),
]


def fp8(
    x: Tensor,
    w: Tensor,
    x_scale: Tensor,
    w_scale: Tensor,
    bias: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.bfloat16,
    plan: Slim | Square | None = None,
) -> Tensor:
    r""":math:`Y_{mn} = s^x_m s^w_n \sum_k x_{mk} w_{nk} + b_n` of e4m3 matrices.

    ===========  ==========  ==========================================
    argument     shape       dtype and layout
    ===========  ==========  ==========================================
    ``x``        ``[M, K]``  float8_e4m3fn; stride 1 along K, any along M
    ``w``        ``[N, K]``  float8_e4m3fn, contiguous
    ``x_scale``  ``[M]``     float32
    ``w_scale``  ``[N]``     float32
    ``bias``     ``[N]``     float16, bfloat16 or float32, or None
    returns      ``[M, N]``  ``dtype``, contiguous
    ===========  ==========  ==========================================

    Sums are in fp32. On capability 9.0, whose tensor cores add e4m3 products with fewer bits, they add up 128 columns,
    and fp32 registers the rest.

    Roofline: as ``w8a8``: ``N K + M K`` bytes of numbers, ``4 (M + N)`` of scales, ``2 M N`` of a 16-bit result; ``2 M N K``
    flops, at twice the rate of bfloat16.

    Args:
        x, w: numbers; NaN makes its row or column NaN.
        x_scale: of each row of x (token).
        w_scale: of each output channel.
        bias: added in fp32, before rounding.
        dtype: of the result: float16, bfloat16 or float32.
        plan: the kernel and its settings, to measure one.

    Raises:
        TypeError: a dtype is none of the above.
        ValueError: shapes, strides or devices do not fit, or the GPU's capability is below 8.9.
        ImportError: Triton is not installed.

    No gradient flows through it. Source: the format is Micikevicius et al. 2022 (arXiv 2209.05433), section 3.

    Example:
        >>> x, w = torch.tensor([[1.0, 2.0, -4.0]]), torch.tensor([[8.0, 1.0, 0.5], [0.0, 1.0, 1.0]])
        >>> narrow = torch.float8_e4m3fn
        >>> y = fp8(x.to(narrow), w.to(narrow), torch.tensor([0.5]), torch.tensor([1.0, 10.0]))
        >>> y.tolist(), ((x * 0.5) @ (w * torch.tensor([[1.0], [10.0]])).T).tolist()
        ([[4.0, -10.0]], [[4.0, -10.0]])

    Chapter: advanced/kernels
    """
    check_tensors(
        {
            "x": (x, E4M3, 2),
            "w": (w, E4M3, 2),
            "x_scale": (x_scale, FLOAT32, 1),
            "w_scale": (w_scale, FLOAT32, 1),
            "bias": (bias, FLOATS, 1),
        }
    )
    check_capability(x.device, LEAST_CAPABILITY, "a product of e4m3 matrices")
    (rows, columns), outputs = x.shape, w.shape[0]
    if dtype not in FLOATS:
        raise TypeError(f"dtype was {dtype}, may be {' or '.join(map(str, FLOATS))}")
    check_shape("w", w, [outputs, columns], "for x's columns")
    check_shape("x_scale", x_scale, [rows], "for x's rows")
    for name, tensor in (("w_scale", w_scale), ("bias", bias)):
        check_shape(name, tensor, [outputs], "for w's rows")
    y = torch.empty((rows, outputs), dtype=dtype, device=x.device)
    if y.numel() == 0:
        return y
    if plan is None:
        plan = next(plan for most, plan in PLANS if rows <= most)
        if isinstance(plan, Square):
            plan = plan._replace(described=plan.described and supports_descriptors(x, w))
    with torch.cuda.device_of(x):
        scaled_product(x, w, (x_scale, w_scale, bias, None, None), y, plan)
    return y
