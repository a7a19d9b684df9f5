r"""Hadamard matrices: orthogonal, all entries of one size, so that every output is a mean over all inputs.

.. math:: H_{2n} = H_2 \otimes H_n, \qquad H_2 = \tfrac{1}{\sqrt 2} \begin{pmatrix} 1 & 1 \\ 1 & -1 \end{pmatrix}

An input with one large channel comes out flat: its size is spread over all of them. Multiplying by a power of two
takes :math:`n \log_2 n` additions (the fast Walsh-Hadamard transform). Other sizes start from a matrix of Paley's:
for a prime :math:`q` there is one of order :math:`q + 1` if :math:`q \bmod 4 = 3`, and of order :math:`2(q + 1)`
if :math:`q \bmod 4 = 1`.

Sources: Paley 1933, "On orthogonal matrices"; Ashkboos et al. 2024, QuaRot, section 3.
"""

import functools
import math

import torch
from torch import Tensor

from reference.kernel_choice import kernels_serve

#: Orders of the cores that are tried, smallest first; 2^k times one of them is what can be made.
CORES = (1, 12, 20, 28, 36, 44, 60, 76, 108, 140, 164)
#: The kernel's rows hold at most 2^17 numbers for each of the core's.
LARGEST_POWER = 17


def _core_and_power(n: int) -> tuple[int, int]:
    """``(core, k)`` with ``n = core · 2^k``.

    Raises:
        ValueError: no core fits.
    """
    for core in CORES:
        if n >= core and n % core == 0 and (n // core).bit_count() == 1:
            return core, (n // core).bit_length() - 1
    raise ValueError(f"n is {n}; a Hadamard matrix is made here for 2^k times one of {', '.join(map(str, CORES))}")


@functools.cache
def _core(order: int) -> Tensor:
    """Paley's matrix of ±1, int8 ``[order, order]``, in float64 orthogonal up to √order."""
    if order == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    q, double = (order - 1, False) if _is_prime(order - 1) and (order - 1) % 4 == 3 else (order // 2 - 1, True)
    squares = {i * i % q for i in range(1, q)}
    character = torch.tensor([0 if i == 0 else 1 if i in squares else -1 for i in range(q)], dtype=torch.float64)
    index = torch.arange(q)
    jacobsthal = character[(index[:, None] - index[None, :]) % q]
    bordered = torch.zeros(q + 1, q + 1, dtype=torch.float64)
    bordered[1:, 1:] = jacobsthal
    bordered[0, 1:] = 1
    bordered[1:, 0] = 1 if double else -1
    identity = torch.eye(q + 1, dtype=torch.float64)
    if not double:
        return bordered + identity
    pair, corner = torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double(), torch.tensor([[1.0, -1.0], [-1.0, -1.0]]).double()
    return torch.kron(bordered, pair) + torch.kron(identity, corner)


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % i for i in range(2, math.isqrt(n) + 1))


def transform(x: Tensor) -> Tensor:
    """``x H`` along the last axis, ``H`` normalised to be orthogonal.

    On a CUDA device and where no gradient is asked for, the Triton kernel ``reference.kernels.hadamard`` does it in one
    pass over ``x``; it agrees to the rounding of the result's type.

    Args:
        x: ``[..., n]``, floating point. bfloat16 and float16 are computed in float32.

    Returns:
        As ``x``.

    Raises:
        ValueError: ``n`` is no order that can be made here.

    Source: the butterfly of the fast Walsh-Hadamard transform, after the core's product.

    Example:
        >>> transform(torch.tensor([1.0, 0.0, 0.0, 0.0]))
        tensor([0.5000, 0.5000, 0.5000, 0.5000])

    Chapter: quantization/activations
    """
    n = x.shape[-1]
    core, power = _core_and_power(n)
    if kernels_serve(x) and power <= LARGEST_POWER and not (x.requires_grad and torch.is_grad_enabled()):
        from reference.kernels.hadamard import hadamard

        return hadamard(x, _core(core).T.contiguous().to(x.device, torch.float32) if core > 1 else None)
    y = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32).reshape(-1, core, 2**power)
    if core > 1:
        y = torch.einsum("rck,cd->rdk", y, _core(core).to(y))
    for bit in range(power):
        pairs = y.reshape(-1, 2, 2**bit)
        first, second = pairs[:, 0], pairs[:, 1]
        y = torch.stack((first + second, first - second), dim=1)
    return (y.reshape(x.shape) / math.sqrt(n)).to(x.dtype)


def matrix(n: int, seed: int | None = None) -> Tensor:
    """The orthogonal ``H`` that :func:`transform` multiplies by, float64 ``[n, n]``.

    Args:
        n: 2^k times one of :data:`CORES`.
        seed: multiplies each *row* by a random sign: a random rotation that is as flat. None: no signs.

    Raises:
        ValueError: ``n`` is no order that can be made here.

    Example:
        >>> h = matrix(4)
        >>> torch.allclose(h @ h.T, torch.eye(4, dtype=h.dtype), atol=1e-6)
        True

    Chapter: quantization/activations
    """
    result = transform(torch.eye(n, dtype=torch.float64))
    if seed is not None:
        signs = torch.randint(0, 2, (n, 1), generator=torch.Generator().manual_seed(seed)) * 2 - 1
        result = result * signs
    return result
