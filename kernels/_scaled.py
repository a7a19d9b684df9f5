"""Products of 8-bit matrices whose scales come after the sum: the kernels of `w8a8` and `fp8`."""

# mypy: allow-untyped-defs
from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._triton import INTERPRETED, jit, round_to, tl, triton


class Slim(NamedTuple):
    """For few rows: rows and outputs of a program, columns of a block, blocks a turn, warps, stages.

    Chapter: advanced/kernels
    """

    rows: int
    outputs: int
    columns: int
    blocks: int
    warps: int
    stages: int


class Square(NamedTuple):
    """For many rows: rows, outputs and columns of a tile, row tiles that run side by side, warps, stages.

    ``described``: tiles are fetched by the copy engine, through tensor descriptors (capability 9.0).

    Chapter: advanced/kernels
    """

    rows: int
    outputs: int
    columns: int
    side: int
    warps: int
    stages: int
    described: bool = False


@jit
def _finish(total, x_scale, w_scale, bias, x_zero, w_sum, m, n, m_inside, n_inside):
    """``(total - z_x Σ w) s_x s_w + bias`` in fp32, ``m`` and ``n`` shaped to broadcast."""
    if x_zero is not None:
        zero = tl.load(x_zero + m, mask=m_inside, other=0)
        total -= zero * tl.load(w_sum + n, mask=n_inside, other=0)
    y = total.to(tl.float32)
    y *= tl.load(w_scale + n, mask=n_inside, other=0.0)
    y *= tl.load(x_scale + m, mask=m_inside, other=0.0)
    if bias is not None:
        y += tl.load(bias + n, mask=n_inside, other=0.0).to(tl.float32)
    return y


@jit
def _slim(
    x, w, x_scale, w_scale, bias, x_zero, w_sum, y, M, N, K, STRIDE,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr, BLOCKS: tl.constexpr, STAGES: tl.constexpr,
    SUM: tl.constexpr,
):  # fmt: skip
    """The weight is the left operand, so that few rows of x pad the short side of the tensor cores' products."""
    m = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    column = tl.arange(0, COLUMNS)
    total = tl.zeros((BLOCKS, OUTPUTS, ROWS), SUM)
    for first in tl.range(0, tl.cdiv(K, COLUMNS), BLOCKS, num_stages=STAGES):
        k = (first + tl.arange(0, BLOCKS))[:, None, None] * COLUMNS + column[None, None, :]
        ws = tl.load(w + n.to(tl.int64)[None, :, None] * K + k, mask=(n < N)[None, :, None] & (k < K), other=0.0)
        xs = tl.load(x + m[None, :, None] * STRIDE + k, mask=(m < M)[None, :, None] & (k < K), other=0.0)
        total = tl.dot(ws, tl.permute(xs, (0, 2, 1)), total, out_dtype=SUM)
    n, m = n[:, None], m[None, :]
    out = _finish(tl.sum(total, axis=0), x_scale, w_scale, bias, x_zero, w_sum, m, n, m < M, n < N)
    tl.store(y + m * N + n, round_to(out, y.dtype.element_ty), mask=(m < M) & (n < N))


@jit
def _square(
    x, w, x_scale, w_scale, bias, x_zero, w_sum, y, M, N, K, STRIDE,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr, SIDE: tl.constexpr, SUM: tl.constexpr,
    DESCRIBED: tl.constexpr,
):  # fmt: skip
    # Programs that run at the same time share tiles in the L2 cache: SIDE tiles of rows for each tile of outputs.
    row_tiles, output_tiles = tl.cdiv(M, ROWS), tl.cdiv(N, OUTPUTS)
    band = tl.program_id(0) // (SIDE * output_tiles)
    height = min(row_tiles - band * SIDE, SIDE)
    within = tl.program_id(0) % (SIDE * output_tiles)
    first_row = (band * SIDE + within % height) * ROWS
    first_output = (within // height) * OUTPUTS
    m = first_row + tl.arange(0, ROWS)
    n = first_output + tl.arange(0, OUTPUTS)
    total = tl.zeros((ROWS, OUTPUTS), SUM)
    # On capability 9.0 tensor cores add e4m3 products with few bits: after a block the sum moves on to fp32 registers.
    MOST: tl.constexpr = COLUMNS if tl.float32 == SUM else None
    if DESCRIBED:  # the copy engine fills what lies outside with zeros
        for k in range(0, K, COLUMNS):
            xs = x.load([first_row, k])
            ws = w.load([first_output, k])
            total = tl.dot(xs, ws.T, total, out_dtype=SUM, max_num_imprecise_acc=MOST)
    else:
        # Rows beyond the end wrap around, which needs no mask in the loop; their results are not stored.
        column = tl.arange(0, COLUMNS)
        x_pointers = x + (m % M).to(tl.int64)[:, None] * STRIDE + column[None, :]
        w_pointers = w + (n % N).to(tl.int64)[None, :] * K + column[:, None]
        for k in range(0, K, COLUMNS):
            xs = tl.load(x_pointers, mask=(column < K - k)[None, :], other=0.0)
            ws = tl.load(w_pointers, mask=(column < K - k)[:, None], other=0.0)
            total = tl.dot(xs, ws, total, out_dtype=SUM, max_num_imprecise_acc=MOST)
            x_pointers += COLUMNS
            w_pointers += COLUMNS
    m, n = m[:, None], n[None, :]
    out = _finish(total, x_scale, w_scale, bias, x_zero, w_sum, m, n, m < M, n < N)
    tl.store(y + m.to(tl.int64) * N + n, round_to(out, y.dtype.element_ty), mask=(m < M) & (n < N))


def scaled_product(x: Tensor, w: Tensor, scales: tuple[Tensor | None, ...], y: Tensor, plan: Slim | Square) -> None:
    """Fill ``y``; ``scales`` are those of x and w, the bias, x's zero points and the sums of w's rows."""
    (rows, columns), outputs = x.shape, w.shape[0]
    total = tl.int32 if x.dtype == torch.int8 else tl.float32
    stride = x.stride(0)
    if isinstance(plan, Slim):
        grid: tuple[int, ...] = (triton.cdiv(outputs, plan.outputs), triton.cdiv(rows, plan.rows))
        _slim[grid](
            x, w, *scales, y, rows, outputs, columns, stride,
            ROWS=plan.rows, OUTPUTS=plan.outputs, COLUMNS=plan.columns, BLOCKS=plan.blocks, STAGES=plan.stages,
            SUM=total, num_warps=plan.warps,
        )  # fmt: skip
        return
    grid = (triton.cdiv(rows, plan.rows) * triton.cdiv(outputs, plan.outputs),)
    operands: tuple = (x, w)
    if plan.described:
        from triton.tools.tensor_descriptor import TensorDescriptor

        operands = (
            TensorDescriptor(x, [rows, columns], [stride, 1], [plan.rows, plan.columns]),
            TensorDescriptor(w, [outputs, columns], [columns, 1], [plan.outputs, plan.columns]),
        )
    _square[grid](
        *operands, *scales, y, rows, outputs, columns, stride,
        ROWS=plan.rows, OUTPUTS=plan.outputs, COLUMNS=plan.columns, SIDE=plan.side, SUM=total,
        DESCRIBED=plan.described, num_warps=plan.warps, num_stages=plan.stages,
    )  # fmt: skip


def supports_descriptors(x: Tensor, w: Tensor) -> bool:
    """Whether rows of x and w start on multiples of 16 bytes, and the device has a copy engine."""
    starts = (x.data_ptr(), x.stride(0), w.data_ptr(), w.shape[1])  # a number is a byte
    aligned = all(start % 16 == 0 for start in starts)
    return aligned and (INTERPRETED.value or torch.cuda.get_device_capability(x.device) >= (9, 0))
