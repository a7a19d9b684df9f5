r"""Multiply 16-bit activations by 4-bit weights that stay packed: :math:`Y = X W^\top`.

The weight is read once, as packed, and never written in floating point to memory.

Layout (compressed-tensors' ``pack-quantized``, ``reference``'s own): row ``n`` is a little-endian stream of
4-bit codes, so nibble ``t`` of 32-bit word ``j`` is the code of column ``k = 8j + t``::

    word        0                           1                           …   K/8 - 1
    bit   31 28 ·····  7 4 3 0        31 28 ·····  7 4 3 0
          ┌─────┬─────┬───┬───┐       ┌─────┬─────┬───┬────┐
    row n │ u7  │ ··· │u1 │u0 │       │ u15 │ ··· │u9 │ u8 │
          └─────┴─────┴───┴───┘       └─────┴─────┴───┴────┘
          └────────── G columns share scale[n, g] and zero_point[n, g], g = k // G ──────────┘

    W[n, k] = scale[n, g] · (u[n, k] - zero_point[n, g])

Two kernels, because the bound moves. One row of activations does two flops per weight, so the weight's bytes and
the instructions that unpack them decide: `_one_row` spends one mask, one conversion and one fused multiply-add
per weight, without tensor cores. From two rows on, `_tile` feeds tensor cores; where rows are few it splits K over
programs, whose partial sums are added in a fixed order: the result is the same in every run.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._triton import INTERPRETED, jit, require_triton, round_to, tl, triton

NIBBLES = 8  # codes in a word
QUAD = 32  # codes in 16 bytes, the most that one thread loads at once; a group holds whole quads
FEW_ROWS = 16
FLOATS = (torch.float16, torch.bfloat16, torch.float32)


class Tile(NamedTuple):
    """Block sizes of `_tile`: rows of x, rows of W, columns; and how the compiler spreads them.

    Chapter: none (the kernels chapter is to come)
    """

    rows: int
    outputs: int
    columns: int
    warps: int
    stages: int


FEW = Tile(rows=16, outputs=128, columns=128, warps=4, stages=4)
SOME = Tile(rows=64, outputs=128, columns=64, warps=4, stages=3)
MANY = Tile(rows=128, outputs=128, columns=64, warps=8, stages=3)
FLOAT32 = Tile(rows=16, outputs=128, columns=64, warps=4, stages=3)  # supported, not tuned: larger tiles spill
ONE_ROW_OUTPUTS, ONE_ROW_QUADS, ONE_ROW_WARPS, ONE_ROW_STAGES = 16, 64, 4, 3


@jit
def _nibble(words, t: tl.constexpr):
    """Code ``t`` of each word times 16^t, in fp32: masked where it lies, so that no shift is needed."""
    return (words & (15 << (4 * t))).to(tl.float32)


@jit
def _one_row(
    x, packed, scale, zero_point, y, N, K, WORDS, GROUPS,
    G: tl.constexpr, OUTPUTS: tl.constexpr, QUADS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    quad = tl.arange(0, QUADS)
    word = tl.arange(0, QUADS * 4)
    column = tl.arange(0, QUADS * 32)
    undo = ((127 - 4 * (column % 8)) << 23).to(tl.float32, bitcast=True)  # 16^-t: bits of a power of two
    total = tl.zeros((OUTPUTS, QUADS), tl.float32)
    # num_stages on the loop itself: without a dot inside, the compiler prefetches only where it is told to.
    for w0 in tl.range(0, WORDS, QUADS * 4, num_stages=STAGES):
        inside = (n < N)[:, None] & (w0 + word < WORDS)[None, :]
        words = tl.load(packed + n[:, None] * WORDS + (w0 + word)[None, :], mask=inside, other=0)
        words = words.to(tl.uint32, bitcast=True)
        xs = tl.load(x + w0 * 8 + column, mask=w0 * 8 + column < K, other=0.0).to(tl.float32)
        # join adds a last axis of two: the bits of t from low to high become k's from last axis to first.
        even = tl.join(tl.join(_nibble(words, 0), _nibble(words, 4)), tl.join(_nibble(words, 2), _nibble(words, 6)))
        odd = tl.join(tl.join(_nibble(words, 1), _nibble(words, 5)), tl.join(_nibble(words, 3), _nibble(words, 7)))
        codes = tl.reshape(tl.join(even, odd), (OUTPUTS, QUADS * 32))
        products = tl.sum(tl.reshape(codes * (xs * undo)[None, :], (OUTPUTS, QUADS, 32)), axis=2)
        sums = tl.sum(tl.reshape(xs, (QUADS, 32)), axis=1)
        # Σ (u - z) x = Σ u x - z Σ x: the zero point costs one multiplication a quad, and Σ x serves all outputs.
        q = w0 // 4 + quad
        group = n[:, None] * GROUPS + (q * 32 // G)[None, :]
        inside = (n < N)[:, None] & (q * 32 < K)[None, :]
        s = tl.load(scale + group, mask=inside, other=0.0).to(tl.float32)
        z = 8.0 if zero_point is None else tl.load(zero_point + group, mask=inside, other=0).to(tl.float32)
        total += s * (products - z * sums[None, :])
    tl.store(y + n, round_to(tl.sum(total, axis=1), y.dtype.element_ty), mask=n < N)


@jit
def _exact(codes, dtype: tl.constexpr):
    """Codes 0…15 as ``dtype``, all raised by the same power of two, whose last mantissa bit is worth one.

    OR-ing the code into that mantissa replaces an integer conversion, which runs at a quarter of the rate or less;
    the raise cancels in ``u - z``.
    """
    if dtype == tl.bfloat16:
        raised = (codes | 0x4300).to(tl.int16).to(tl.bfloat16, bitcast=True)  # 2^7
    elif dtype == tl.float16:
        raised = (codes | 0x6400).to(tl.int16).to(tl.float16, bitcast=True)  # 2^10
    else:
        raised = (codes | 0x4B000000).to(tl.float32, bitcast=True)  # 2^23
    # The interpreter multiplies bf16 as raw bits; fp32 holds the same values.
    return raised.to(tl.float32) if INTERPRETED else raised


@jit
def _tile(
    x, packed, scale, zero_point, y, M, N, K, WORDS, GROUPS, STRIDE, BLOCKS,
    G: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    first_row = tl.program_id(1) * ROWS
    x += first_row.to(tl.int64) * STRIDE
    y += (tl.program_id(2) * M + first_row).to(tl.int64) * N
    m = tl.arange(0, ROWS)
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    column = tl.arange(0, COLUMNS)
    word = tl.arange(0, COLUMNS // 8)
    m_inside = m < M - first_row
    n_inside = n < N
    total = tl.zeros((OUTPUTS, ROWS), tl.float32)
    first = tl.program_id(2) * BLOCKS
    for block in range(first, min(first + BLOCKS, tl.cdiv(K, COLUMNS))):
        k = block * COLUMNS + column
        w = block * (COLUMNS // 8) + word
        inside = n_inside[:, None] & (w < WORDS)[None, :]
        words = tl.load(packed + n[:, None] * WORDS + w[None, :], mask=inside, other=0)
        xs = tl.load(x + m[None, :] * STRIDE + k[:, None], mask=m_inside[None, :] & (k < K)[:, None], other=0.0)
        # join keeps a word's eight codes in the thread that loaded it: no way through shared memory before unpacking.
        words = tl.join(words, words >> 16)
        words = tl.join(words, words >> 8)
        words = tl.join(words, words >> 4)
        codes = tl.reshape(words, (OUTPUTS, COLUMNS)) & 15
        group = n * GROUPS + (block * COLUMNS) // G
        if zero_point is None:
            zero = tl.full((1, 1), 8, tl.int32)
        else:
            zero = tl.load(zero_point + group, mask=n_inside, other=0).to(tl.int32)[:, None]
        weights = _exact(codes, xs.dtype) - _exact(zero, xs.dtype)
        if INTERPRETED:
            xs = xs.to(tl.float32)
        # A block lies in one group: the scale multiplies the block's sum in fp32, and the weights stay whole numbers.
        s = tl.load(scale + group, mask=n_inside, other=0.0).to(tl.float32)
        total += s[:, None] * tl.dot(weights, xs, input_precision="tf32x3")
    out = round_to(total, y.dtype.element_ty)
    tl.store(y + m[None, :] * N + n[:, None], out, mask=m_inside[None, :] & n_inside[:, None])


@jit
def _add_splits(partial, y, SPLITS, SIZE, BLOCK: tl.constexpr):
    """y = Σ over the first axis of ``partial [SPLITS, SIZE]``, always in the same order."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for split in range(SPLITS):
        total += tl.load(partial + split * SIZE + i, mask=i < SIZE, other=0.0)
    tl.store(y + i, round_to(total, y.dtype.element_ty), mask=i < SIZE)


def tile_for(rows: int, columns: int, group_size: int, dtype: torch.dtype) -> Tile:
    """The tile for ``rows`` rows of x, narrowed until a block of columns lies within one group.

    Chapter: none (the kernels chapter is to come)
    """
    tile = FEW if rows <= FEW_ROWS else SOME if rows <= SOME.rows else MANY
    if dtype == torch.float32:
        tile = FLOAT32
    if group_size == columns:
        return tile
    return tile._replace(columns=min(tile.columns, group_size & -group_size))


def splits_for(rows: int, outputs: int, columns: int, tile: Tile) -> int:
    """Into how many programs each tile's sum over K is split.

    As many as give 256 programs (about two for each multiprocessor of an H100), as long as the fp32 partial sums
    (8 bytes written and read, per row, output and split) stay below a quarter of the weight's bytes.

    Chapter: none (the kernels chapter is to come)
    """
    programs = triton.cdiv(outputs, tile.outputs) * triton.cdiv(rows, tile.rows)
    return max(1, min(triton.cdiv(256, programs), columns // (64 * rows), triton.cdiv(columns, tile.columns)))


def w4a16(x: Tensor, packed: Tensor, scale: Tensor, zero_point: Tensor | None = None, *, group_size: int) -> Tensor:
    r""":math:`Y = X W^\top` with ``W[n, k] = scale[n, k // G] * (u[n, k] - zero_point[n, k // G])``, ``u`` packed.

    ================  ====================  =============================================================
    argument          shape                 dtype and layout
    ================  ====================  =============================================================
    ``x``             ``[M, K]``            float16, bfloat16 or float32; stride 1 along K, any along M
    ``packed``        ``[N, K / 8]``        int32, contiguous; eight codes a word, first in the lowest bits
    ``scale``         ``[N, K / G]``        float16, bfloat16 or float32, contiguous
    ``zero_point``    ``[N, K / G]``        uint8 codes 0…15, contiguous; None: 8 everywhere (symmetric)
    returns           ``[M, N]``            as ``x``, contiguous
    ================  ====================  =============================================================

    Sums are in fp32 and the same in every run. Weights enter them as whole numbers ``u - z``, exact in every dtype;
    float32 ``x`` is supported, not tuned: it takes three TF32 products, in tiles of 16 rows.

    Roofline: ``N K / 2 + 3 N K / G`` bytes of weight, scale and zero point (``2 N K / G`` without), ``2 (M K + M N)``
    of activations; ``2 M N K`` flops. At M = 1 and G = 128 that is 3.8 times fewer bytes than bfloat16, the ceiling
    of its speed-up. Weights arrive 16 bytes a load where K is a multiple of 128, otherwise in smaller pieces.

    Args:
        x: activations. Values below 2^-98 in magnitude may count as zero; Inf or NaN make their row non-finite.
        packed: the codes.
        scale: one scale per group.
        zero_point: one code per group, or None.
        group_size: G, columns that share a scale: a multiple of 32 that divides K, or K itself.

    Raises:
        TypeError: a dtype is none of the above.
        ValueError: shapes, strides, devices or ``group_size`` do not fit.
        ImportError: Triton is not installed.

    No gradient flows through it. Source: the layout is compressed-tensors' ``pack-quantized``; codes OR-ed into a
    mantissa are FasterTransformer's (in PyTorch: ``cutlass_extensions/interleaved_numeric_conversion.h``); sums split
    over K for few rows are from Hoque et al. 2024 (arXiv 2402.00025).

    Chapter: none (the kernels chapter is to come)
    """
    require_triton()
    _check(x, packed, scale, zero_point, group_size)
    (rows, columns), outputs = x.shape, packed.shape[0]
    y = torch.empty((rows, outputs), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    weight = (packed, scale, zero_point)
    with torch.cuda.device_of(x):
        if rows == 1:
            _launch_one_row(x, weight, y, group_size)
            return y
        tile = tile_for(rows, columns, group_size, x.dtype)
        splits = splits_for(rows, outputs, columns, tile)
        if splits == 1:
            _launch_tile(x, weight, y, group_size, tile, splits)
            return y
        partial = torch.empty((splits, rows, outputs), dtype=torch.float32, device=x.device)
        _launch_tile(x, weight, partial, group_size, tile, splits)
        _add_splits[(triton.cdiv(y.numel(), 1024),)](partial, y, splits, y.numel(), BLOCK=1024)
    return y


Weight = tuple[Tensor, Tensor, "Tensor | None"]  # packed, scale, zero_point


def quads_for(columns: int) -> int:
    """Quads of columns in one pass of `_one_row`: all of a short row, so that few lanes are idle.

    Chapter: none (the kernels chapter is to come)
    """
    return min(ONE_ROW_QUADS, max(8, triton.next_power_of_2(triton.cdiv(columns, QUAD))))


def _launch_one_row(x: Tensor, weight: Weight, y: Tensor, group_size: int) -> None:
    columns, outputs, groups = x.shape[1], y.shape[1], weight[1].shape[1]
    _one_row[(triton.cdiv(outputs, ONE_ROW_OUTPUTS),)](
        x, *weight, y, outputs, columns, columns // NIBBLES, groups,
        G=group_size, OUTPUTS=ONE_ROW_OUTPUTS, QUADS=quads_for(columns), STAGES=ONE_ROW_STAGES,
        num_warps=ONE_ROW_WARPS,
    )  # fmt: skip


def _launch_tile(x: Tensor, weight: Weight, y: Tensor, group_size: int, tile: Tile, splits: int) -> None:
    (rows, columns), outputs, groups = x.shape, y.shape[-1], weight[1].shape[1]
    blocks = triton.cdiv(triton.cdiv(columns, tile.columns), splits)
    grid = (triton.cdiv(outputs, tile.outputs), triton.cdiv(rows, tile.rows), splits)
    _tile[grid](
        x, *weight, y, rows, outputs, columns, columns // NIBBLES, groups, x.stride(0), blocks,
        G=group_size, ROWS=tile.rows, OUTPUTS=tile.outputs, COLUMNS=tile.columns,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def _check(x: Tensor, packed: Tensor, scale: Tensor, zero_point: Tensor | None, group_size: int) -> None:
    """Refuse by name what the kernels would read wrongly."""
    tensors = {"x": x, "packed": packed, "scale": scale} | ({} if zero_point is None else {"zero_point": zero_point})
    allowed = {"x": FLOATS, "packed": (torch.int32,), "scale": FLOATS, "zero_point": (torch.uint8,)}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} was {type(tensor).__name__}, may be a torch.Tensor")
        if tensor.dtype not in allowed[name]:
            raise TypeError(f"{name} was {tensor.dtype}, may be {' or '.join(map(str, allowed[name]))}")
        if tensor.dim() != 2:
            raise ValueError(f"{name} had shape {list(tensor.shape)}, may have two axes")
        if tensor.device != x.device:
            raise ValueError(f"{name} was on {tensor.device}, may be on x's device, {x.device}")
        if name != "x" and not tensor.is_contiguous():
            raise ValueError(f"{name} had strides {tensor.stride()}, may be contiguous: call .contiguous()")
    if x.device.type != "cuda" and not (INTERPRETED.value and x.device.type == "cpu"):
        raise ValueError(
            f"x was on {x.device}, may be on a CUDA device (on the CPU only in a process started with "
            "TRITON_INTERPRET=1, for tests)"
        )
    columns, outputs = x.shape[1], packed.shape[0]
    if columns > 1 and x.stride(1) != 1:
        raise ValueError(f"x had strides {x.stride()}, may have stride 1 along its last axis: call .contiguous()")
    if x.shape[0] > 1 and x.stride(0) >= 2**24:
        raise ValueError(f"x had row stride {x.stride(0)}, may have one below 2**24 (offsets in a tile are 32-bit)")
    if columns == 0 or columns % NIBBLES:
        raise ValueError(f"x had {columns} columns, may have a positive multiple of {NIBBLES} (the codes of a word)")
    if packed.shape[1] != columns // NIBBLES:
        raise ValueError(
            f"packed had shape {list(packed.shape)}, may have {columns // NIBBLES} words a row: x has {columns} columns"
        )
    if packed.numel() >= 2**31:
        raise ValueError(f"packed had {packed.numel()} words, may have fewer than 2**31 (offsets are 32-bit)")
    if isinstance(group_size, bool) or not isinstance(group_size, int):
        raise TypeError(f"group_size was {type(group_size).__name__}, may be an int")
    if group_size != columns and (group_size < QUAD or group_size % QUAD or columns % group_size):
        raise ValueError(
            f"group_size was {group_size}, may be {columns} (the whole row) or a multiple of {QUAD} that divides it"
        )
    for name in ("scale", "zero_point"):
        if name in tensors and tensors[name].shape != (outputs, columns // group_size):
            raise ValueError(
                f"{name} had shape {list(tensors[name].shape)}, may have {[outputs, columns // group_size]} "
                f"for group_size {group_size}"
            )
