r"""Four kernels on the way to `w4a16`, for one row of activations: the same product, each time with less to do.

The chapter on kernels reads them one after another; `w4a16` itself is the fifth step. All compute

.. math:: y_n = \sum_k s_{n,g(k)}\,(u_{nk} - z_{n,g(k)})\,x_k

from the layout of `w4a16`, sum in fp32, and take whole blocks only::

    step   what a lane holds                           what changes
    1      one code, its word, its scale and zero      the formula, written down
    2      eight codes of a word that it loaded once   bytes arrive 16 at a load and are not loaded again
    3      codes                                       scale and zero point leave the inner loop
    4      codes where they lie in their word          no shift: 16^t is divided out of x instead

"""

# mypy: allow-untyped-defs
from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._triton import jit, require_triton, round_to, tl
from .w4a16 import w4a16


@jit
def _step_1(
    x, packed, scale, zero_point, y, K, WORDS, GROUPS,
    G: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)[:, None]
    total = tl.zeros((OUTPUTS, COLUMNS), tl.float32)
    for k0 in range(0, K, COLUMNS):
        k = k0 + tl.arange(0, COLUMNS)[None, :]
        word = tl.load(packed + n * WORDS + k // 8)
        code = (word >> (4 * (k % 8))) & 15
        s = tl.load(scale + n * GROUPS + k // G).to(tl.float32)
        z = tl.load(zero_point + n * GROUPS + k // G).to(tl.float32)
        total += s * (code.to(tl.float32) - z) * tl.load(x + k).to(tl.float32)
    out = tl.sum(total, axis=1)
    rows = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    tl.store(y + rows, round_to(out, y.dtype.element_ty))


@jit
def _eight(words, OUTPUTS: tl.constexpr, QUADS: tl.constexpr):
    """Codes ``[OUTPUTS, QUADS, 32]`` of words: ``join`` adds an axis of two, and the thread keeps what it loaded."""
    words = tl.join(words, words >> 16)
    words = tl.join(words, words >> 8)
    words = tl.join(words, words >> 4)
    return (tl.reshape(words, (OUTPUTS, QUADS, 32)) & 15).to(tl.float32)


@jit
def _step_2(
    x, packed, scale, zero_point, y, K, WORDS, GROUPS,
    G: tl.constexpr, OUTPUTS: tl.constexpr, QUADS: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    total = tl.zeros((OUTPUTS, QUADS), tl.float32)
    for q0 in range(0, K // 32, QUADS):
        words = tl.load(packed + n[:, None] * WORDS + q0 * 4 + tl.arange(0, QUADS * 4)[None, :])
        codes = _eight(words, OUTPUTS, QUADS)
        xs = tl.load(x + q0 * 32 + tl.arange(0, QUADS * 32)).to(tl.float32)
        group = n[:, None] * GROUPS + ((q0 + tl.arange(0, QUADS)) * 32 // G)[None, :]
        s = tl.load(scale + group).to(tl.float32)[:, :, None]
        z = tl.load(zero_point + group).to(tl.float32)[:, :, None]
        total += tl.sum(s * (codes - z) * tl.reshape(xs, (1, QUADS, 32)), axis=2)
    tl.store(y + n, round_to(tl.sum(total, axis=1), y.dtype.element_ty))


@jit
def _step_3(
    x, packed, scale, zero_point, y, K, WORDS, GROUPS,
    G: tl.constexpr, OUTPUTS: tl.constexpr, QUADS: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    total = tl.zeros((OUTPUTS, QUADS), tl.float32)
    for q0 in range(0, K // 32, QUADS):
        words = tl.load(packed + n[:, None] * WORDS + q0 * 4 + tl.arange(0, QUADS * 4)[None, :])
        codes = _eight(words, OUTPUTS, QUADS)
        xs = tl.reshape(tl.load(x + q0 * 32 + tl.arange(0, QUADS * 32)).to(tl.float32), (1, QUADS, 32))
        group = n[:, None] * GROUPS + ((q0 + tl.arange(0, QUADS)) * 32 // G)[None, :]
        s = tl.load(scale + group).to(tl.float32)
        z = tl.load(zero_point + group).to(tl.float32)
        total += s * (tl.sum(codes * xs, axis=2) - z * tl.sum(xs, axis=2))
    tl.store(y + n, round_to(tl.sum(total, axis=1), y.dtype.element_ty))


@jit
def _in_place(words, t: tl.constexpr):
    """Code ``t`` of each word times 16^t: one mask, one conversion."""
    return (words & (15 << (4 * t))).to(tl.float32)


@jit
def _step_4(
    x, packed, scale, zero_point, y, K, WORDS, GROUPS,
    G: tl.constexpr, OUTPUTS: tl.constexpr, QUADS: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    column = tl.arange(0, QUADS * 32)
    undo = ((127 - 4 * (column % 8)) << 23).to(tl.float32, bitcast=True)  # 16^-t: the bits of a power of two
    total = tl.zeros((OUTPUTS, QUADS), tl.float32)
    for q0 in tl.range(0, K // 32, QUADS, num_stages=3):  # asks for the next words before these are used up
        words = tl.load(packed + n[:, None] * WORDS + q0 * 4 + tl.arange(0, QUADS * 4)[None, :])
        words = words.to(tl.uint32, bitcast=True)
        even = tl.join(
            tl.join(_in_place(words, 0), _in_place(words, 4)), tl.join(_in_place(words, 2), _in_place(words, 6))
        )
        odd = tl.join(
            tl.join(_in_place(words, 1), _in_place(words, 5)), tl.join(_in_place(words, 3), _in_place(words, 7))
        )
        codes = tl.reshape(tl.join(even, odd), (OUTPUTS, QUADS, 32))
        xs = tl.load(x + q0 * 32 + column).to(tl.float32)
        sums = tl.sum(tl.reshape(xs, (1, QUADS, 32)), axis=2)
        products = tl.sum(codes * tl.reshape(xs * undo, (1, QUADS, 32)), axis=2)
        group = n[:, None] * GROUPS + ((q0 + tl.arange(0, QUADS)) * 32 // G)[None, :]
        s = tl.load(scale + group).to(tl.float32)
        z = tl.load(zero_point + group).to(tl.float32)
        total += s * (products - z * sums)
    tl.store(y + n, round_to(tl.sum(total, axis=1), y.dtype.element_ty))


class Step(NamedTuple):
    """One kernel of the series, the sizes that it is compiled with (``constants``), and the warps of a program.

    Example:
        >>> [(STEPS[number].outputs, STEPS[number].columns) for number in (1, 4)]
        [(16, 256), (16, 2048)]

    Chapter: advanced/kernels
    """

    kernel: Any
    constants: dict[str, int]
    warps: int

    @property
    def outputs(self) -> int:
        """Outputs of one program."""
        return self.constants["OUTPUTS"]

    @property
    def columns(self) -> int:
        """Columns of one turn of the loop."""
        return self.constants["COLUMNS"] if "COLUMNS" in self.constants else 32 * self.constants["QUADS"]


STEPS = {
    1: Step(_step_1, {"OUTPUTS": 16, "COLUMNS": 256}, 4),
    2: Step(_step_2, {"OUTPUTS": 16, "QUADS": 32}, 4),
    3: Step(_step_3, {"OUTPUTS": 16, "QUADS": 32}, 4),
    4: Step(_step_4, {"OUTPUTS": 16, "QUADS": 64}, 4),
}


def step(number: int, x: Tensor, packed: Tensor, scale: Tensor, zero_point: Tensor, *, group_size: int) -> Tensor:
    r""":math:`y = x W^\top` for one row of ``x``, by the kernel of one step; 5 is `w4a16`.

    Args:
        number: 1 to 5.
        x: ``[1, K]``, float16, bfloat16 or float32; K a multiple of the columns of a turn.
        packed: int32 ``[N, K / 8]`` as in `w4a16`; N a multiple of a program's outputs.
        scale: ``[N, K / G]``, a float dtype.
        zero_point: uint8 ``[N, K / G]``.
        group_size: G, a multiple of 32.

    Returns:
        ``[1, N]`` as ``x``.

    Raises:
        ValueError: a number or a size that is not one of these.
        ImportError: Triton is not installed.

    Example:
        >>> from reference.tensors import pack
        >>> codes = torch.arange(16 * 256).view(16, 256) % 16
        >>> scale, zero_point = torch.ones(16, 2), torch.full((16, 2), 7, dtype=torch.uint8)
        >>> y = step(1, torch.ones(1, 256), pack(codes, 4), scale, zero_point, group_size=128)
        >>> y[0, :2].tolist(), (codes - 7).sum(1)[:2].tolist()
        ([128.0, 128.0], [128, 128])

    Chapter: advanced/kernels
    """
    require_triton()
    if number == 5:
        return w4a16(x, packed, scale, zero_point, group_size=group_size)
    if number not in STEPS:
        raise ValueError(f"number is {number}; it may be 1 to 5")
    kernel, constants, warps = STEPS[number]
    (rows, columns), outputs = x.shape, packed.shape[0]
    if rows != 1:
        raise ValueError(f"x had {rows} rows, may have 1")
    if outputs % STEPS[number].outputs or columns % STEPS[number].columns or group_size % 32:
        raise ValueError(
            f"N, K and group_size were {outputs}, {columns} and {group_size}; they may be multiples of "
            f"{STEPS[number].outputs}, {STEPS[number].columns} and 32 in step {number}"
        )
    y = torch.empty((1, outputs), dtype=x.dtype, device=x.device)
    with torch.cuda.device_of(x):
        kernel[(outputs // STEPS[number].outputs,)](
            x, packed, scale, zero_point, y, columns, columns // 8, columns // group_size,
            G=group_size, **constants, num_warps=warps,
        )  # fmt: skip
    return y


def ladder(
    x: Tensor, packed: Tensor, scale: Tensor, zero_point: Tensor, *, group_size: int
) -> dict[int, Callable[[], Tensor]]:
    """A call of every step on the same tensors, number → call.

    Args:
        x, packed, scale, zero_point, group_size: as :func:`step`; they must fit every step.

    Example:
        >>> from reference.tensors import pack
        >>> codes = torch.arange(16 * 2048).view(16, 2048) % 16
        >>> scale, zero_point = torch.ones(16, 16), torch.full((16, 16), 7, dtype=torch.uint8)
        >>> calls = ladder(torch.ones(1, 2048), pack(codes, 4), scale, zero_point, group_size=128)
        >>> [float(call()[0, 0]) for call in calls.values()], int((codes - 7)[0].sum())
        ([1024.0, 1024.0, 1024.0, 1024.0, 1024.0], 1024)

    Chapter: advanced/kernels
    """
    return {
        number: lambda number=number: step(number, x, packed, scale, zero_point, group_size=group_size)  # type: ignore[misc]
        for number in (*STEPS, 5)
    }
