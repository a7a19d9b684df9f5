r"""Multiply bfloat16 activations by MXFP4 weights that stay packed: :math:`Y = X W^\top`.

MXFP4 (Open Compute Project, microscaling) is a 4-bit float, E2M1, with a power of two for each 32 of them, E8M0::

    code   bit 3   2 1   0                               scale  8 bits e: 2^(e - 127), 255 is NaN
         ┌──────┬─────┬─────┐
         │ sign │  e  │  f  │    magnitudes, codes 0…7:  0  0.5  1  1.5  2  3  4  6
         └──────┴─────┴─────┘
    row n of packed, uint8 [N, K/2]       ┌────┬────┬────┬── … ──┬──────┐   low nibble: the even column
                                          │1  0│3  2│5  4│       │31 30 │
                                          └────┴────┴────┴── … ──┴──────┘
    scale, uint8 [N, K/32]                └──── one scale: 32 columns ──┘

Moved to the bits 15 and 8…6 of a bfloat16, a code is the same number times 2^-126, the subnormal 0.5 included; two
multiplications by powers of two, both exact, make it the weight. So nothing is rounded before the products, and each
scale can be applied where its weights are, however short the groups.

Tensor cores that take MXFP4 themselves (capability 10.0) need activations of eight bits or fewer; here x has sixteen,
which works from capability 8.0 on.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import torch
from torch import Tensor

from ._checks import check_capability, check_shape, check_start, check_tensors
from ._splits import splits_for, with_splits
from ._tile import Tile
from ._triton import INTERPRETED, jit, round_to, tl, triton

LEAST_CAPABILITY = (8, 0)
BLOCK = 32  # weights that share a scale

FEW = Tile(rows=16, outputs=128, columns=128, warps=4, stages=4)
SOME = Tile(rows=64, outputs=128, columns=64, warps=4, stages=3)
MANY = Tile(rows=128, outputs=128, columns=64, warps=8, stages=3)


@jit
def _weights(codes, exponents, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr):
    """bf16 ``[OUTPUTS, COLUMNS]`` of codes ``[OUTPUTS, COLUMNS]`` and scales ``[OUTPUTS, COLUMNS / 32]``."""
    bits = ((codes & 8) << 12) | ((codes & 7) << 6)
    scale = tl.where(exponents == 0, 0x40, tl.where(exponents == 255, 0x7FC0, exponents << 7))  # 2^-127 is subnormal
    if INTERPRETED:  # it multiplies bf16 as raw bits; fp32 holds the same values
        small = (bits << 16).to(tl.float32, bitcast=True)
        scale = (scale << 16).to(tl.float32, bitcast=True)
        factor = 8.507059173023462e37
    else:
        small = bits.to(tl.int16).to(tl.bfloat16, bitcast=True)
        scale = scale.to(tl.int16).to(tl.bfloat16, bitcast=True)
        factor = tl.full((1, 1), 8.507059173023462e37, tl.bfloat16)  # 2^126
    values = tl.reshape(small * factor, (OUTPUTS, COLUMNS // 32, 32))
    return tl.reshape(values * scale[:, :, None], (OUTPUTS, COLUMNS))


@jit
def _mxfp4(
    x, words, scale, y, M, N, K, WORDS, GROUPS, STRIDE, BLOCKS,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    first_row = tl.program_id(1) * ROWS
    x += first_row.to(tl.int64) * STRIDE
    y += (tl.program_id(2) * M + first_row).to(tl.int64) * N
    m = tl.arange(0, ROWS)
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    m_inside, n_inside = m < M - first_row, n < N
    total = tl.zeros((OUTPUTS, ROWS), tl.float32)
    first = tl.program_id(2) * BLOCKS
    for block in range(first, min(first + BLOCKS, tl.cdiv(K, COLUMNS))):
        k = block * COLUMNS + tl.arange(0, COLUMNS)
        w = block * (COLUMNS // 8) + tl.arange(0, COLUMNS // 8)
        group = block * (COLUMNS // 32) + tl.arange(0, COLUMNS // 32)
        inside = n_inside[:, None] & (w < WORDS)[None, :]
        packed = tl.load(words + n[:, None] * WORDS + w[None, :], mask=inside, other=0)
        inside = n_inside[:, None] & (group < GROUPS)[None, :]
        exponents = tl.load(scale + n[:, None] * GROUPS + group[None, :], mask=inside, other=0).to(tl.int32)
        xs = tl.load(x + m[None, :] * STRIDE + k[:, None], mask=m_inside[None, :] & (k < K)[:, None], other=0.0)
        # join keeps a word's codes in the thread that loaded it: no way through shared memory before unpacking.
        packed = tl.join(packed, packed >> 16)
        packed = tl.join(packed, packed >> 8)
        packed = tl.join(packed, packed >> 4)
        weights = _weights(tl.reshape(packed, (OUTPUTS, COLUMNS)), exponents, OUTPUTS, COLUMNS)
        total = tl.dot(weights, xs.to(tl.float32) if INTERPRETED else xs, total)
    out = round_to(total, y.dtype.element_ty)
    tl.store(y + m[None, :] * N + n[:, None], out, mask=m_inside[None, :] & n_inside[:, None])


def mxfp4(x: Tensor, packed: Tensor, scale: Tensor, *, plan: Tile | None = None) -> Tensor:
    r""":math:`Y = X W^\top` with ``W[n, k] = 2^(scale[n, k // 32] - 127) * E2M1(code[n, k])``.

    ==========  ===============  ======================================================
    argument    shape            dtype and layout
    ==========  ===============  ======================================================
    ``x``       ``[M, K]``       bfloat16; stride 1 along K, any along M
    ``packed``  ``[N, K / 2]``   uint8, contiguous; two codes a byte, even column below
    ``scale``   ``[N, K / 32]``  uint8 exponents, contiguous
    returns     ``[M, N]``       bfloat16, contiguous
    ==========  ===============  ======================================================

    Sums are in fp32 and the same in every run; weights enter them exactly. A weight beyond bfloat16's largest number
    (an exponent above 252) becomes infinite.

    Roofline: ``N K (1/2 + 1/32)`` bytes of codes and scales, ``2 (M K + M N)`` of activations; ``2 M N K`` flops.

    Args:
        x: activations.
        packed: the codes.
        scale: one exponent for each 32 columns; 255 makes them NaN.
        plan: the kernel's settings, to measure one.

    Raises:
        TypeError: a dtype is none of the above.
        ValueError: shapes, strides or devices do not fit, or the GPU's capability is below 8.0.
        ImportError: Triton is not installed.

    No gradient flows through it. Source: OCP Microscaling Formats (MX) Specification 1.0, sections 5.1 to 5.3.

    Example:
        >>> x = torch.ones(1, 32).bfloat16()
        >>> packed = torch.full((1, 16), 0x2A, dtype=torch.uint8)  # codes 10 and 2: -1 and 1, in turns
        >>> packed[0, 0] = 0x72  # 1, then 6
        >>> mxfp4(x, packed, torch.tensor([[128]], dtype=torch.uint8)).tolist()  # (1 + 6) · 2¹
        [[14.0]]

    Chapter: advanced/kernels
    """
    check_tensors(
        {"x": (x, (torch.bfloat16,), 2), "packed": (packed, (torch.uint8,), 2), "scale": (scale, (torch.uint8,), 2)}
    )
    check_capability(x.device, LEAST_CAPABILITY, "a product of bfloat16 matrices on tensor cores")
    (rows, columns), outputs = x.shape, packed.shape[0]
    if columns == 0 or columns % BLOCK:
        raise ValueError(f"x had {columns} columns, may have a positive multiple of {BLOCK}, the block of a scale")
    check_shape("packed", packed, [outputs, columns // 2], "for x's columns")
    check_shape("scale", scale, [outputs, columns // BLOCK], "for x's columns")
    if packed.numel() >= 2**33:
        raise ValueError(f"packed had {packed.numel()} bytes, may have fewer than 2**33 (offsets are 32-bit)")
    check_start("packed", packed)
    y = torch.empty((rows, outputs), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    plan = plan or (FEW if rows <= FEW.rows else SOME if rows <= SOME.rows else MANY)
    splits = splits_for(rows, outputs, columns, plan[:3])
    with torch.cuda.device_of(x):
        with_splits(lambda out: _launch(x, packed, scale, out, plan, splits), y, splits)
    return y


def _launch(x: Tensor, packed: Tensor, scale: Tensor, y: Tensor, plan: Tile, splits: int) -> None:
    (rows, columns), outputs = x.shape, y.shape[-1]
    blocks = triton.cdiv(triton.cdiv(columns, plan.columns), splits)
    _mxfp4[(triton.cdiv(outputs, plan.outputs), triton.cdiv(rows, plan.rows), splits)](
        x, packed.view(torch.int32), scale, y, rows, outputs, columns, columns // 8, columns // BLOCK, x.stride(0),
        blocks, ROWS=plan.rows, OUTPUTS=plan.outputs, COLUMNS=plan.columns, num_warps=plan.warps,
        num_stages=plan.stages,
    )  # fmt: skip
