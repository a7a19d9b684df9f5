r"""Multiply 16-bit activations by 4-bit weights that stay packed: :math:`Y = X W^\top`.

The weight is read once, as packed; up to 128 rows of X it is never written in floating point to memory.

Layout (compressed-tensors' ``pack-quantized``, ``reference``'s own): row ``n`` is a little-endian stream of
4-bit codes, so nibble ``t`` of 32-bit word ``j`` is the code of column ``k = 8j + t``::

    word        0                           1                           …   K/8 - 1
    bit   31 28 ·····  7 4 3 0        31 28 ·····  7 4 3 0
          ┌─────┬─────┬───┬───┐       ┌─────┬─────┬───┬────┐
    row n │ u7  │ ··· │u1 │u0 │       │ u15 │ ··· │u9 │ u8 │
          └─────┴─────┴───┴───┘       └─────┴─────┴───┴────┘
          └────────── G columns share scale[n, g] and zero_point[n, g], g = k // G ──────────┘

    W[n, k] = scale[n, g] · (u[n, k] - zero_point[n, g])

Four kernels, because the bound moves. With few rows, an H100 that reads 3 TB/s has time for fewer than six
instructions per weight, so the instructions that unpack decide. `few_rows` takes two and a half to three: it unpacks
two codes at a time in the registers from which the tensor cores take them. `one_row` needs no tensor cores and no
assembly: one mask, one conversion, one fused multiply-add; it serves groups below 128 columns and float32. With more
rows the arithmetic decides, and `many_rows` unpacks a block once for all of its rows; where the blocks are fewer than
the processors it splits K over programs, whose partial sums are added in a fixed order: the result is the same in
every run. Beyond 128 rows each tile of rows would unpack the weight again, beside products that a dense matrix
multiplication does faster: `dense` unpacks it once, into memory, for `torch.mm`, and what it wrote is given back after
the product. So does vLLM's AWQ, from 256 rows on.

A fifth, `direct_rows`, is no table's choice yet: `few_rows` without shared memory, compiled and correct, not measured.

2-bit codes lie likewise, sixteen a word (``bits=2``). 3-bit codes do not fit: eight of them fill three bytes, so no
load of a thread's share is aligned.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._checks import FLOATS, check_shape, check_tensors
from ._dense import dense
from ._direct_rows import direct_rows
from ._few_rows import few_rows
from ._many_rows import many_rows
from ._one_row import one_row
from ._splits import splits_for, with_splits
from ._triton import INTERPRETED, triton

NIBBLES = 8  # codes in a word
QUAD = 32  # codes in 16 bytes, the most that one thread loads at once; a group holds whole quads
RUN = 1024  # columns whose codes a warp of `one_row` loads at a time, 16 bytes a thread
EIGHT = 8  # rows of `direct_rows`, the least of the tensor cores
BLOCK = 128  # columns that `few_rows` multiplies at a time: eight products of 16, the least K of the tensor cores


class Tile(NamedTuple):
    """Block sizes of `many_rows`: rows of x, rows of W, columns; and how the compiler spreads them.

    ``splits`` of the sum over K: 0 leaves them to ``splits_for``.

    Example:
        >>> plan_for(rows=128, outputs=4096, columns=4096, group_size=128, dtype=torch.bfloat16)
        Tile(rows=128, outputs=128, columns=64, warps=8, stages=3, splits=0)

    Chapter: advanced/kernels
    """

    rows: int
    outputs: int
    columns: int
    warps: int
    stages: int
    splits: int = 0


class Few(NamedTuple):
    """How `few_rows` works: rows and outputs of a program, blocks of 128 columns a turn, warps, stages.

    ``early``: launched while the previous kernel still ends (programmatic dependent launch, capability 9.0), it
    fetches the first 2 KB of each row of the weight into the L2 cache meanwhile.

    Example:
        >>> plan_for(8, 4096, 4096, 128, torch.bfloat16).blocks * BLOCK  # columns of a turn, where x has 8 rows
        512

    Chapter: advanced/kernels
    """

    rows: int
    outputs: int
    blocks: int
    warps: int
    stages: int
    early: bool = False


class Direct(NamedTuple):
    """How `direct_rows` works: outputs of a program, blocks of 128 columns a turn (a warp each), turns asked for ahead.

    No table names it yet: it has not been measured.

    Example:
        >>> plan = Direct(outputs=16, blocks=4, ahead=2)
        >>> plan.outputs * plan.blocks * BLOCK // 2 * plan.ahead  # bytes of weight that a program has on their way
        8192

    Chapter: advanced/kernels
    """

    outputs: int
    blocks: int
    ahead: int


class OneRow(NamedTuple):
    """How `one_row` works: outputs of a program, runs of 1024 columns a turn, warps, stages.

    Example:
        >>> plan_for(1, 4096, 4096, 128, torch.bfloat16).runs * RUN  # columns of a turn, where x has one row
        1024

    Chapter: advanced/kernels
    """

    outputs: int
    runs: int
    warps: int
    stages: int


class Dense(NamedTuple):
    """How `dense` works: outputs and columns of the block that a program unpacks, warps.

    Example:
        >>> plan_for(rows=1000, outputs=4096, columns=4096, group_size=32, dtype=torch.bfloat16)
        Dense(outputs=32, columns=32, warps=4)

    Chapter: advanced/kernels
    """

    outputs: int
    columns: int
    warps: int


Plan = Few | Direct | OneRow | Tile | Dense

#: The kernels' settings by rows of x and outputs, each up to the number given; the fastest on an H200, with 4 bits in
#: groups of 128 (`benchmarks/tune_kernels.py`).
FEW_ROWS: list[tuple[int, int, Plan]] = [
    (1, 6144, OneRow(outputs=8, runs=1, warps=2, stages=3)),
    (1, 2**31, Few(rows=8, outputs=32, blocks=4, warps=4, stages=3)),
    (4, 6144, Few(rows=8, outputs=32, blocks=8, warps=8, stages=3, early=True)),
    (4, 8192, Few(rows=8, outputs=64, blocks=4, warps=4, stages=3)),
    (8, 6144, Few(rows=8, outputs=16, blocks=4, warps=4, stages=3)),
    (8, 2**31, Few(rows=8, outputs=32, blocks=4, warps=4, stages=3)),
    (16, 6144, Few(rows=16, outputs=16, blocks=4, warps=4, stages=3)),
    (16, 2**31, Few(rows=16, outputs=32, blocks=4, warps=4, stages=3)),
    (32, 6144, Few(rows=16, outputs=32, blocks=4, warps=4, stages=3)),
    (32, 8192, Few(rows=32, outputs=32, blocks=4, warps=4, stages=2, early=True)),
    (32, 2**31, Tile(rows=32, outputs=64, columns=128, warps=4, stages=4, splits=4)),
    (64, 8192, Tile(rows=64, outputs=64, columns=64, warps=4, stages=4, splits=4)),
    (64, 2**31, Tile(rows=64, outputs=64, columns=128, warps=4, stages=3, splits=2)),
]
PADDED = Tile(rows=16, outputs=128, columns=128, warps=4, stages=4)
SOME = Tile(rows=64, outputs=128, columns=64, warps=4, stages=3)
MANY = Tile(rows=128, outputs=128, columns=64, warps=8, stages=3)
FLOAT32 = Tile(rows=16, outputs=128, columns=64, warps=4, stages=3)  # supported, not tuned: larger tiles spill
ONE_ROW = OneRow(outputs=16, runs=1, warps=4, stages=3)
DENSE = Dense(outputs=32, columns=128, warps=4)  # not tuned
DENSE_FROM = 129  # rows of x; by times added up, not measured: the chapter shows the sum


def plan_for(rows: int, outputs: int, columns: int, group_size: int, dtype: torch.dtype, bits: int = 4) -> Plan:
    """How to multiply ``rows`` rows of x by ``outputs`` rows of W: the kernel and its settings. ``columns`` is K, the
    other arguments are those of :func:`w4a16`.

    Example:
        >>> shape = {"outputs": 4096, "columns": 4096, "group_size": 128, "dtype": torch.bfloat16}
        >>> [type(plan_for(rows, **shape)).__name__ for rows in (1, 8, 128, 129)]
        ['OneRow', 'Few', 'Tile', 'Dense']

    Chapter: advanced/kernels
    """
    fits = dtype != torch.float32 and columns >= BLOCK and (group_size % BLOCK == 0 or group_size == columns)
    if fits and torch.version.hip is None:  # the assembly is NVIDIA's
        for most_rows, most_outputs, few in FEW_ROWS:
            if rows <= most_rows and outputs <= most_outputs and not (bits == 2 and isinstance(few, OneRow)):
                return few
    if rows == 1 and bits == 4:
        return ONE_ROW
    plan: Tile | Dense = PADDED if rows <= PADDED.rows else SOME if rows <= SOME.rows else MANY
    if rows >= DENSE_FROM:
        plan = DENSE
    elif dtype == torch.float32:
        plan = FLOAT32
    if group_size == columns:
        return plan
    return plan._replace(columns=min(plan.columns, group_size & -group_size))  # a block lies within a group


def w4a16(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    group_size: int,
    bits: int = 4,
    plan: Plan | None = None,
) -> Tensor:
    r""":math:`Y = X W^\top` with ``W[n, k] = scale[n, k // G] * (u[n, k] - zero_point[n, k // G])``, ``u`` packed.

    ================  ====================  ==============================================================
    argument          shape                 dtype and layout
    ================  ====================  ==============================================================
    ``x``             ``[M, K]``            float16, bfloat16 or float32; stride 1 along K, any along M
    ``packed``        ``[N, K bits / 32]``  int32, contiguous; ``32 / bits`` codes a word, first in the lowest
    ``scale``         ``[N, K / G]``        float16, bfloat16 or float32, contiguous
    ``zero_point``    ``[N, K / G]``        uint8 codes, contiguous; None: ``2^(bits-1)`` everywhere (symmetric)
    returns           ``[M, N]``            as ``x``, contiguous
    ================  ====================  ==============================================================

    Sums are in fp32 and the same in every run. Up to 128 rows weights enter them as whole numbers ``u - z``, exact in
    every dtype, and float32 ``x``, supported and not tuned, takes three TF32 products in tiles of 16 rows. From 129 rows
    on weights are rounded to ``x``'s dtype first, and the product is torch's: float32 keeps to
    ``torch.backends.cuda.matmul``'s precision, and ``2 N K`` bytes (4 in float32) are needed meanwhile.

    Roofline: ``N K bits / 8 + 3 N K / G`` bytes of weight, scale and zero point (``2 N K / G`` of scale without),
    ``2 (M K + M N)`` of activations; ``2 M N K`` flops; from 129 rows on ``4 N K`` bytes more. At M = 1, G = 128 and 4
    bits that is 3.8 times fewer bytes than bfloat16, the ceiling of its speed-up. Weights arrive 16 bytes a load where
    K is a multiple of 128, otherwise in smaller pieces.

    Args:
        x: activations. Values below 2^-98 in magnitude may count as zero; Inf or NaN make their row non-finite.
        packed: the codes.
        scale: one scale per group.
        zero_point: one code per group, or None.
        group_size: G, columns that share a scale: a multiple of 32 that divides K, or K itself.
        bits: 4 or 2.
        plan: the kernel and its settings, to measure one; None: what ``plan_for`` chooses.

    Raises:
        TypeError: a dtype is none of the above.
        ValueError: shapes, strides, devices, ``group_size`` or ``bits`` do not fit.
        ImportError: Triton is not installed.

    No gradient flows through it. Source: the layout is compressed-tensors' ``pack-quantized``; codes OR-ed into a
    mantissa are FasterTransformer's (in PyTorch: ``cutlass_extensions/interleaved_numeric_conversion.h``); sums split
    over K for few rows are from Hoque et al. 2024 (arXiv 2402.00025).

    Example:
        >>> from reference.tensors import pack
        >>> codes = torch.arange(64).view(2, 32) % 16
        >>> x, scale = torch.arange(32.0)[None].half(), torch.tensor([[0.5], [1.0]]).half()
        >>> y = w4a16(x, pack(codes, 4), scale, group_size=32)
        >>> y.tolist(), (x @ (scale * (codes - 8)).T).tolist()
        ([[216.0, 432.0]], [[216.0, 432.0]])

    Chapter: advanced/kernels
    """
    _check(x, packed, scale, zero_point, group_size, bits)
    (rows, columns), outputs = x.shape, packed.shape[0]
    y = torch.empty((rows, outputs), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    weight = (packed, scale, zero_point)
    plan = plan or plan_for(rows, outputs, columns, group_size, x.dtype, bits)
    with torch.cuda.device_of(x):
        if isinstance(plan, OneRow):
            _launch_one_row(x, weight, y, group_size, plan)
            return y
        if isinstance(plan, Few):
            _launch_few(x, weight, y, group_size, bits, plan)
            return y
        if isinstance(plan, Direct):
            _launch_direct(x, weight, y, group_size, bits, plan)
            return y
        if isinstance(plan, Dense):
            return torch.mm(x.detach(), _unpacked(weight, columns, group_size, bits, plan, x.dtype).T, out=y)
        splits = plan.splits or splits_for(rows, outputs, columns, plan[:3])
        with_splits(lambda out: _launch_tile(x, weight, out, group_size, bits, plan, splits), y, splits)
    return y


Weight = tuple[Tensor, Tensor, "Tensor | None"]  # packed, scale, zero_point


def _launch_few(x: Tensor, weight: Weight, y: Tensor, group_size: int, bits: int, plan: Few) -> None:
    (rows, columns), outputs = x.shape, y.shape[1]
    packed, scale, zero_point = weight
    units = packed if bits == 4 else packed.view(torch.int16)
    grid = (triton.cdiv(outputs, plan.outputs), triton.cdiv(rows, plan.rows))
    even = outputs % plan.outputs == 0 and columns % (BLOCK * plan.blocks) == 0
    early = plan.early and (INTERPRETED.value or torch.cuda.get_device_capability(x.device) >= (9, 0))
    few_rows[grid](
        x, units, scale, zero_point, y, rows, outputs, columns, columns // 8, scale.shape[1], x.stride(0),
        BITS=bits, G=group_size, ROWS=plan.rows, OUTPUTS=plan.outputs, COLUMNS=BLOCK, BLOCKS=plan.blocks,
        STAGES=plan.stages, ONE=rows == 1, EVEN=even, EARLY=early, num_warps=plan.warps,
        **({"launch_pdl": True} if early else {}),
    )  # fmt: skip


def _launch_direct(x: Tensor, weight: Weight, y: Tensor, group_size: int, bits: int, plan: Direct) -> None:
    (rows, columns), outputs = x.shape, y.shape[1]
    packed, scale, zero_point = weight
    units = packed if bits == 4 else packed.view(torch.int16)
    direct_rows[(triton.cdiv(outputs, plan.outputs), triton.cdiv(rows, EIGHT))](
        x, units, scale, zero_point, y, rows, outputs, columns, columns // 8, scale.shape[1], x.stride(0),
        BITS=bits, G=group_size, ROWS=EIGHT, OUTPUTS=plan.outputs, BLOCKS=plan.blocks, AHEAD=plan.ahead,
        EVEN=outputs % plan.outputs == 0, num_warps=plan.blocks,
    )  # fmt: skip


def _launch_one_row(x: Tensor, weight: Weight, y: Tensor, group_size: int, plan: OneRow) -> None:
    columns, outputs, groups = x.shape[1], y.shape[1], weight[1].shape[1]
    even = outputs % plan.outputs == 0 and columns % (RUN * plan.runs) == 0
    one_row[(triton.cdiv(outputs, plan.outputs),)](
        x, *weight, y, outputs, columns, columns // NIBBLES, groups,
        G=group_size, OUTPUTS=plan.outputs, RUNS=plan.runs, STAGES=plan.stages, EVEN=even, num_warps=plan.warps,
    )  # fmt: skip


def _launch_tile(
    x: Tensor, weight: Weight, y: Tensor, group_size: int, bits: int, plan: Tile, splits: int
) -> None:  # fmt: skip
    (rows, columns), outputs, groups = x.shape, y.shape[-1], weight[1].shape[1]
    blocks = triton.cdiv(triton.cdiv(columns, plan.columns), splits)
    grid = (triton.cdiv(outputs, plan.outputs), triton.cdiv(rows, plan.rows), splits)
    many_rows[grid](
        x, *weight, y, rows, outputs, columns, columns * bits // 32, groups, x.stride(0), blocks,
        BITS=bits, G=group_size, ROWS=plan.rows, OUTPUTS=plan.outputs, COLUMNS=plan.columns,
        num_warps=plan.warps, num_stages=plan.stages,
    )  # fmt: skip


def _unpacked(weight: Weight, columns: int, group_size: int, bits: int, plan: Dense, dtype: torch.dtype) -> Tensor:
    packed, scale, zero_point = weight
    w = torch.empty((len(packed), columns), dtype=dtype, device=packed.device)
    grid = (triton.cdiv(columns, plan.columns), triton.cdiv(len(w), plan.outputs))
    dense[grid](
        packed, scale, zero_point, w, *w.shape, packed.shape[1], scale.shape[1],
        BITS=bits, G=group_size, OUTPUTS=plan.outputs, COLUMNS=plan.columns, num_warps=plan.warps,
    )  # fmt: skip
    return w


def _check(x: Tensor, packed: Tensor, scale: Tensor, zero_point: Tensor | None, group_size: int, bits: int) -> None:
    """Refuse by name what the kernels would read wrongly."""
    if bits not in (2, 4):
        raise ValueError(f"bits was {bits!r}, may be 2 or 4 (codes of 3 bits straddle words)")
    check_tensors(
        {
            "x": (x, FLOATS, 2),
            "packed": (packed, (torch.int32,), 2),
            "scale": (scale, FLOATS, 2),
            "zero_point": (zero_point, (torch.uint8,), 2),
        }
    )
    columns, outputs = x.shape[1], packed.shape[0]
    codes = 32 // bits
    if columns == 0 or columns % codes:
        raise ValueError(f"x had {columns} columns, may have a positive multiple of {codes} (the codes of a word)")
    if packed.shape[1] != columns // codes:
        raise ValueError(
            f"packed had shape {list(packed.shape)}, may have {columns // codes} words a row: x has {columns} columns"
        )
    if packed.numel() * codes // 8 >= 2**31:
        raise ValueError(f"packed had {packed.numel()} words, may have fewer than 2**{29 + bits // 2} (32-bit offsets)")
    if isinstance(group_size, bool) or not isinstance(group_size, int):
        raise TypeError(f"group_size was {type(group_size).__name__}, may be an int")
    if group_size != columns and (group_size < QUAD or group_size % QUAD or columns % group_size):
        raise ValueError(
            f"group_size was {group_size}, may be {columns} (the whole row) or a multiple of {QUAD} that divides it"
        )
    for name, tensor in (("scale", scale), ("zero_point", zero_point)):
        check_shape(name, tensor, [outputs, columns // group_size], f"for group_size {group_size}")
