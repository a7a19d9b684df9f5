"""Three kernels whose faults the interpreter hides or makes: what a green test on the CPU does not say.

Triton's interpreter runs programs one after another with NumPy. It checks arithmetic and indexing; it cannot see a race,
it reads past the end of a view without a word, and it rounds to bfloat16 by cutting.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import torch
from torch import Tensor

from ._triton import jit, require_triton, tl


@jit
def _to_bfloat16(x, y, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i).to(tl.bfloat16))


@jit
def _count(total):
    tl.store(total, tl.load(total) + 1)  # read, add, write: another program may write in between


@jit
def _sum(x, y, COUNT: tl.constexpr):
    tl.store(y, tl.sum(tl.load(x + tl.arange(0, COUNT)), axis=0))  # no mask


def to_bfloat16(x: Tensor) -> Tensor:
    """Convert float32 to bfloat16 inside a kernel: to nearest on a GPU, cut off in the interpreter.

    Args:
        x: float32, a power of two of elements, contiguous.

    Returns:
        bfloat16, the shape of ``x``.

    Example:
        >>> x = torch.tensor([1 + 3 * 2**-9, 1.0])  # three quarters of the way from 1 to the next bfloat16
        >>> to_bfloat16(x).tolist()  # interpreted
        [1.0, 1.0]
        >>> x.bfloat16().tolist()
        [1.0078125, 1.0]

    Chapter: advanced/kernels
    """
    require_triton()
    y = torch.empty_like(x, dtype=torch.bfloat16)
    _to_bfloat16[(1,)](x, y, BLOCK=x.numel())
    return y


def count_programs(programs: int, device: str | torch.device = "cpu") -> int:
    """Let each program add one to the same number without an atomic: a race, and right in the interpreter.

    Args:
        programs: to launch, 1 or more.
        device: of the number.

    Example:
        >>> count_programs(5)  # on a GPU it is any number from 1 to 5
        5

    Chapter: advanced/kernels
    """
    require_triton()
    total = torch.zeros(1, dtype=torch.int32, device=device)
    _count[(programs,)](total)
    return int(total)


def sum_without_mask(x: Tensor, count: int) -> float:
    """Sum ``count`` elements from where ``x`` begins, whether or not they belong to it.

    Args:
        x: float32, contiguous; a view into something larger, or the read ends outside of the process's memory.
        count: a power of two.

    Example:
        >>> memory = torch.tensor([1.0, 2.0, 10.0, 20.0])
        >>> sum_without_mask(memory[:2], 4)  # two of the four were not given
        33.0

    Chapter: advanced/kernels
    """
    require_triton()
    y = torch.empty(1, device=x.device)
    _sum[(1,)](x, y, COUNT=count)
    return float(y)
