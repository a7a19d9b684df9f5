r"""Multiply 8-bit integers by 8-bit integers, and scale afterwards: :math:`Y = (X W^\top) s_x s_w + b`.

The sum is over integers and exact; scales and bias follow once per output, in the registers that hold the sum::

        x int8 [M, K]                  w int8 [N, K]
    row m ┌───────────────┐       row n ┌───────────────┐
          │ K codes       │  s_x[m]     │ K codes       │  s_w[n]   (one scale a row: a token, an output channel)
          └───────────────┘             └───────────────┘
                     └──── Σ_k x[m,k] w[n,k] in int32 ────┘
    y[m, n] = s_x[m] · s_w[n] · (Σ_k x w  -  z_x[m] · Σ_k w[n,k])  +  b[n]
                                └── only for asymmetric x; Σ w is computed once, when the weight is made ──┘

Scales must not vary along K: then they come out of the sum. Both matrices lie row by row along K, as the tensor
cores of every capability take 8-bit operands. Few rows are bound by the weight's bytes, one byte a weight: `_slim` in
`_scaled` reads it once, in pieces of several blocks of columns side by side. Many rows are bound by the tensor cores,
which multiply int8 twice as fast as bf16: `_square` works in large tiles.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import torch
from torch import Tensor

from ._checks import FLOATS, check_shape, check_tensors
from ._scaled import Slim, Square, scaled_product, supports_descriptors

FLOAT32 = (torch.float32,)
#: Settings by rows of x and outputs, each up to the number given; the fastest on an H200 (`benchmarks/tune_kernels.py`).
PLANS: list[tuple[int, int, Slim | Square]] = [
    (8, 2**31, Slim(rows=8, outputs=32, columns=128, blocks=4, warps=4, stages=4)),
    (16, 2**31, Slim(rows=16, outputs=32, columns=256, blocks=4, warps=4, stages=3)),
    (64, 2**31, Square(rows=64, outputs=32, columns=256, side=1, warps=4, stages=4)),
    (256, 2**31, Square(rows=128, outputs=128, columns=128, side=8, warps=8, stages=4, described=True)),
    (2**31, 2**31, Square(rows=128, outputs=256, columns=128, side=8, warps=8, stages=4, described=True)),
]


def plan_for(rows: int, outputs: int, described: bool) -> Slim | Square:
    """The kernel and its settings for ``rows`` rows of x; ``described``: tensor descriptors may be used.

    Args:
        rows: of x, 1 or more.
        outputs: rows of w.
        described: whether x and w can be read by tensor descriptors.

    Example:
        >>> [type(plan_for(rows, 4096, described=False)).__name__ for rows in (1, 64, 1024)]
        ['Slim', 'Square', 'Square']

    Chapter: advanced/kernels
    """
    plan = next(plan for most_rows, most_outputs, plan in PLANS if rows <= most_rows and outputs <= most_outputs)
    return plan._replace(described=plan.described and described) if isinstance(plan, Square) else plan


def w8a8(
    x: Tensor,
    w: Tensor,
    x_scale: Tensor,
    w_scale: Tensor,
    bias: Tensor | None = None,
    *,
    x_zero_point: Tensor | None = None,
    w_sum: Tensor | None = None,
    dtype: torch.dtype = torch.bfloat16,
    plan: Slim | Square | None = None,
) -> Tensor:
    r""":math:`Y_{mn} = s^x_m s^w_n \left(\sum_k x_{mk} w_{nk} - z_m \sum_k w_{nk}\right) + b_n`, the sums exact in int32.

    ================  ==========  ===============================================================
    argument          shape       dtype and layout
    ================  ==========  ===============================================================
    ``x``             ``[M, K]``  int8; stride 1 along K, any along M
    ``w``             ``[N, K]``  int8, contiguous
    ``x_scale``       ``[M]``     float32
    ``w_scale``       ``[N]``     float32
    ``bias``          ``[N]``     float16, bfloat16 or float32, or None
    ``x_zero_point``  ``[M]``     int32, or None: symmetric activations
    ``w_sum``         ``[N]``     int32, sums of the weight's rows; with ``x_zero_point`` only
    returns           ``[M, N]``  ``dtype``, contiguous
    ================  ==========  ===============================================================

    Roofline: ``N K + M K`` bytes of codes, ``4 (M + N)`` of scales, ``2 M N`` of a 16-bit result; ``2 M N K`` operations.
    One row needs half the bytes of bfloat16. An H100 (3.35 TB/s, 1979 TOPS) is bound by memory up to about 300 rows.

    Args:
        x, w: codes; any values, −128 too.
        x_scale: step of each row of x (token).
        w_scale: step of each output channel.
        bias: added in fp32, before rounding.
        x_zero_point: the code of zero of each token.
        w_sum: ``w.sum(1, dtype=torch.int32)``.
        dtype: of the result: float16, bfloat16 or float32.
        plan: the kernel and its settings, to measure one; None: what ``plan_for`` chooses.

    Raises:
        TypeError: a dtype is none of the above.
        ValueError: shapes, strides or devices do not fit; K above 131,071, whose sum could leave int32; a zero point
            without sums or sums without.
        ImportError: Triton is not installed.

    No gradient flows through it. Source: scales outside the sum are Xiao et al. 2023 (SmoothQuant), equation 3.

    Example:
        >>> x = torch.tensor([[1, 2, -128]], dtype=torch.int8)
        >>> w = torch.tensor([[127, 1, 1], [0, 1, 0]], dtype=torch.int8)
        >>> w8a8(x, w, torch.tensor([0.5]), torch.tensor([2.0, 10.0])).tolist()  # 127 + 2 - 128 and 2, then the scales
        [[1.0, 10.0]]

    Chapter: advanced/kernels
    """
    integers, sums = (torch.int8,), (torch.int32,)
    check_tensors(
        {
            "x": (x, integers, 2),
            "w": (w, integers, 2),
            "x_scale": (x_scale, FLOAT32, 1),
            "w_scale": (w_scale, FLOAT32, 1),
            "bias": (bias, FLOATS, 1),
            "x_zero_point": (x_zero_point, sums, 1),
            "w_sum": (w_sum, sums, 1),
        }
    )
    (rows, columns), outputs = x.shape, w.shape[0]
    if dtype not in FLOATS:
        raise TypeError(f"dtype was {dtype}, may be {' or '.join(map(str, FLOATS))}")
    check_shape("w", w, [outputs, columns], "for x's columns")
    if columns > 131_071:
        raise ValueError(f"x had {columns} columns, may have up to 131071: the sum could leave int32")
    if (x_zero_point is None) != (w_sum is None):
        raise ValueError("x_zero_point and w_sum were not given together, may be both or neither")
    for name, tensor, size in (("x_scale", x_scale, rows), ("x_zero_point", x_zero_point, rows)):
        check_shape(name, tensor, [size], "for x's rows")
    for name, tensor in (("w_scale", w_scale), ("bias", bias), ("w_sum", w_sum)):
        check_shape(name, tensor, [outputs], "for w's rows")
    y = torch.empty((rows, outputs), dtype=dtype, device=x.device)
    if y.numel() == 0:
        return y
    plan = plan or plan_for(rows, outputs, supports_descriptors(x, w))
    with torch.cuda.device_of(x):
        scaled_product(x, w, (x_scale, w_scale, bias, x_zero_point, w_sum), y, plan)
    return y
