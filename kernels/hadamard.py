r"""Rotate rows by Hadamard's matrix, :math:`Y = X H_n / \sqrt n`, without the n² of a matrix product.

H has entries ±1: entry (i, j) is negative where the binary numbers i and j have an odd number of ones in common. It is
a Kronecker product of smaller ones, :math:`H_{AB} = H_A \otimes H_B`. So with a row of n = A B numbers as a matrix, row
by row, the rotation is two small products::

            B                                 H_B
        ┌───────┐                         ┌───────┐
      A │ x row │   →   H_A  ·  x  ·      │       │ B       2 n (A + B) flops instead of 2 n²
        └───────┘                         └───────┘

At n = 4096 = 64 · 64 that is 512 flops for the 4 bytes that a bfloat16 number takes in and out: tensor cores do it in
less time than the memory takes (the butterflies of a fast transform would be log₂ n = 12 additions a number, but each
stage would send the row through shared memory). The matrices of signs are made in registers, never loaded.

Tensor cores multiply 16-bit numbers. Signs are exact in 16 bits, activations too; what comes out of the first product
is not, so it is fed to the second as a sum of bfloat16 pieces of 8 bits each: two of them, or three for float32.

Where n has another factor m than powers of two, or is too large for one program's registers, `_across` takes that
factor first, in a pass of its own: m numbers a stride of n / m apart, times an m × m matrix.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ._checks import check_rows, check_size, check_tensors
from ._triton import INTERPRETED, jit, require_triton, round_to, tl, triton

SIDE = 128  # up to this, one product does it
LARGEST = {torch.float16: 4096, torch.bfloat16: 8192, torch.float32: 4096}  # up to this, two: more spills registers
MOST_ROWS = 256  # of a factor


class Plan(NamedTuple):
    """How rows of ``left · right`` numbers are rotated: two products of these sizes, or one (``left`` 1).

    ``rows`` are those of a tile where one product does it; ``warps`` are of a program, ``programs`` for each multiprocessor.

    Example:
        >>> plan = plan_for(4096, torch.bfloat16)
        >>> plan.left, plan.right
        (64, 64)

    Chapter: advanced/kernels
    """

    left: int
    right: int
    rows: int
    warps: int
    programs: int


@jit
def _signs(SIZE: tl.constexpr, PERIOD: tl.constexpr):
    """bf16 ``[SIZE, SIZE]``: H of size PERIOD, again and again down the diagonal."""
    i, j = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    common = i & j & (PERIOD - 1)
    common ^= common >> 4
    common ^= common >> 2
    common ^= common >> 1
    bits = tl.where(i // PERIOD == j // PERIOD, 0x3F80 | ((common & 1) << 15), 0)
    return bits.to(tl.int16).to(tl.bfloat16, bitcast=True)


@jit
def _product(left, right, total):
    if INTERPRETED:  # which multiplies bf16 as raw bits; fp32 holds the same values
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, total)


@jit
def _times_signs(values, signs, PIECES: tl.constexpr, LEFT: tl.constexpr):
    """fp32 ``values`` times ``signs`` (LEFT: ``signs`` times ``values``), by bf16 pieces from the largest down."""
    total = tl.zeros(values.shape, tl.float32)
    for _ in tl.static_range(PIECES):
        piece = round_to(values, tl.bfloat16)
        values -= piece.to(tl.float32)
        total = _product(signs, piece, total) if LEFT else _product(piece, signs, total)
    return total


@jit
def _one_product(
    x, y, SIZE_ALL, SCALE,
    PERIOD: tl.constexpr, SIDE: tl.constexpr, ROWS: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """Rows of SIDE numbers: SIDE / PERIOD rows of x in each."""
    signs = _signs(SIDE, PERIOD)
    i = tl.arange(0, ROWS)[:, None] * SIDE + tl.arange(0, SIDE)[None, :]
    for tile in range(tl.program_id(0), tl.cdiv(SIZE_ALL, ROWS * SIDE), tl.num_programs(0)):
        inside = i < SIZE_ALL - tile * (ROWS * SIDE)
        values = tl.load(x + tile * (ROWS * SIDE) + i, mask=inside, other=0.0).to(tl.float32)
        out = _times_signs(values, signs, PIECES, False) * SCALE
        tl.store(y + tile * (ROWS * SIDE) + i, round_to(out, y.dtype.element_ty), mask=inside)


@jit
def _two_products(
    x, y, M, SCALE, A: tl.constexpr, B: tl.constexpr, PIECES: tl.constexpr, AGAIN: tl.constexpr
):  # fmt: skip
    left, right = _signs(A, A), _signs(B, B)
    i = tl.arange(0, A)[:, None] * B + tl.arange(0, B)[None, :]
    for row in range(tl.program_id(0), M, tl.num_programs(0)):
        values = tl.load(x + row * (A * B) + i).to(tl.float32)
        values = _times_signs(values, right, PIECES, False) * SCALE
        out = _times_signs(values, left, AGAIN, True)
        tl.store(y + row * (A * B) + i, round_to(out, y.dtype.element_ty))


@jit
def _across(x, factor, y, STRIDE, MADE: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr):
    """fp32 y[r, i, :] = Σ_j factor[i, j] x[r, j, :], for MADE values of i and j."""
    i = tl.arange(0, PADDED)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    base = tl.program_id(0).to(tl.int64) * MADE * STRIDE
    total = tl.zeros((PADDED, BLOCK), tl.float32)
    for j in range(MADE):
        values = tl.load(x + base + j * STRIDE + at, mask=at < STRIDE, other=0.0).to(tl.float32)
        total += tl.load(factor + i * MADE + j, mask=i < MADE, other=0.0)[:, None] * values[None, :]
    inside = (i < MADE)[:, None] & (at < STRIDE)[None, :]
    tl.store(y + base + i[:, None] * STRIDE + at[None, :], total, mask=inside)


def plan_for(n: int, dtype: torch.dtype) -> Plan:
    """The plan for rows of ``n`` numbers, a power of two of at most ``LARGEST[dtype]``.

    Args:
        n: numbers in a row.
        dtype: of x: float16, bfloat16 or float32.

    Example:
        >>> [(plan.left, plan.right) for plan in (plan_for(n, torch.bfloat16) for n in (128, 512, 8192))]
        [(1, 128), (32, 16), (128, 64)]

    Chapter: advanced/kernels
    """
    exact = dtype != torch.float32
    if n <= SIDE:
        return Plan(1, max(n, 16), 64 if exact or n < SIDE else 16, 4, 4)
    left = 1 << (n.bit_length() // 2)
    warps = {256: 1, 512: 1, 1024: 1, 2048: 4, 4096: 4, 8192: 8}[n]
    return Plan(left, n // left, 1, warps, 16 if warps == 1 else 4)


def hadamard(x: Tensor, factor: Tensor | None = None, *, plan: Plan | None = None) -> Tensor:
    r"""Rows of x rotated: :math:`Y = X\,(F^\top \otimes H) / \sqrt n` along the last axis of n numbers.

    ============  ==============  ================================================================
    argument      shape           dtype and layout
    ============  ==============  ================================================================
    ``x``         ``[…, n]``      float16, bfloat16 or float32; not contiguous: copied first
    ``factor``    ``[m, m]``      float32, contiguous, ±1, orthogonal rows, m 2 to 256; None: m = 1
    returns       ``[…, n]``      as ``x``, contiguous
    ============  ==============  ================================================================

    H is Sylvester's matrix, `scipy.linalg.hadamard`, of size n / m, a power of two from 1 to 2^17. It is symmetric and
    its own inverse, so ``hadamard(hadamard(x))`` is x again, rounded. With a factor, give its transpose to go back.

    The relative error (norms) is that of rounding the result once; of float32, below 2e-6. A row with an Inf or a
    NaN becomes NaN.

    Roofline: ``2 · itemsize`` bytes a number, and ``8 + 2 · itemsize`` more where there is a factor or n / m is above 8192
    (4096 but in bfloat16): the factor's own pass. ``2 (A + 2 B)`` flops a number for n = A B (A + B products, one of them
    in two pieces); three pieces each in float32.

    Args:
        x: activations, or weights.
        factor: for n that is no power of two: 12, 20 or 28 rows of a Hadamard matrix, for example.
        plan: sizes and spread, to measure them; None: what ``plan_for`` chooses.

    Raises:
        TypeError: a dtype is none of the above.
        ValueError: n / m is no power of two, or shapes, strides or devices do not fit.
        ImportError: Triton is not installed.

    No gradient flows through it.

    Example:
        >>> x = torch.tensor([[8.0, 0.0, 0.0, 0.0]])
        >>> hadamard(x).tolist()  # an outlier is spread over all
        [[4.0, 4.0, 4.0, 4.0]]
        >>> hadamard(hadamard(x)).tolist()
        [[8.0, 0.0, 0.0, 0.0]]

    Chapter: advanced/kernels
    """
    require_triton()
    _check(x, factor)
    n = x.shape[-1]
    rows = x.reshape(-1, n).contiguous()
    y = torch.empty_like(rows)
    made = 1 if factor is None else len(factor)
    power = min(n // made, LARGEST[x.dtype])
    scale = 1 / math.sqrt(n)
    if y.numel() == 0:
        return y.view(x.shape)
    with torch.cuda.device_of(x):
        if factor is not None:
            rows = _launch_across(rows.view(-1, made, n // made), factor)
        if n // made > power:
            rows = _launch_across(rows.view(-1, n // made // power, power), _sylvester(n // made // power, x.device))
        _launch(rows.view(-1, power), y.view(-1, power), scale, plan or plan_for(power, x.dtype))
    return y.view(x.shape)


def _launch_across(x: Tensor, factor: Tensor) -> Tensor:
    rows, made, stride = x.shape
    y = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    padded = triton.next_power_of_2(made)
    block = min(4096 // padded, triton.next_power_of_2(stride))
    _across[(rows, triton.cdiv(stride, block))](
        x, factor, y, stride, MADE=made, PADDED=padded, BLOCK=block, num_warps=4
    )
    return y


def _launch(x: Tensor, y: Tensor, scale: float, plan: Plan) -> None:
    pieces = 3 if y.dtype == torch.float32 else 1 if x.dtype == torch.bfloat16 else 2
    most = plan.programs * _multiprocessors(x.device)
    rows, n = x.shape
    if plan.left == 1:
        grid = (min(most, triton.cdiv(x.numel(), plan.rows * plan.right)),)
        _one_product[grid](
            x, y, x.numel(), scale, PERIOD=n, SIDE=plan.right, ROWS=plan.rows, PIECES=pieces, num_warps=plan.warps
        )
    else:
        _two_products[(min(most, rows),)](
            x, y, rows, scale, A=plan.left, B=plan.right, PIECES=pieces, AGAIN=max(2, pieces), num_warps=plan.warps
        )


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _sylvester(n: int, device: torch.device) -> Tensor:
    signs = torch.ones(1, 1, device=device)
    while len(signs) < n:
        signs = torch.cat([torch.cat([signs, signs], 1), torch.cat([signs, -signs], 1)])
    return signs


def _check(x: Tensor, factor: Tensor | None) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x was {type(x).__name__}, may be a torch.Tensor")
    if x.dtype not in LARGEST:
        raise TypeError(f"x was {x.dtype}, may be {' or '.join(map(str, LARGEST))}")
    if x.dim() == 0:
        raise ValueError("x had no axis, may have one or more")
    check_rows("x", x.new_empty(0))  # only its device: x may have any strides, and is copied if it must be
    check_size("x", x)
    made = 1
    if factor is not None:
        check_tensors({"factor": (factor, (torch.float32,), 2)}, strided=())
        made = len(factor)
        if factor.shape[1] != made or not 2 <= made <= MOST_ROWS:
            raise ValueError(f"factor had shape {list(factor.shape)}, may be square, of 2 to {MOST_ROWS} rows")
        if factor.device != x.device:
            raise ValueError(f"factor was on {factor.device}, may be on x's device, {x.device}")
    power, rest = divmod(x.shape[-1], made)
    if rest or not 1 <= power <= 2**17 or power & (power - 1):
        what = "a power of two" if factor is None else f"{made} times a power of two"
        raise ValueError(f"x had a last axis of {x.shape[-1]}, may have {what}, up to {made * 2**17}")
