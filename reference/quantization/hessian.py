r"""The Hessian of a linear layer's squared error, collected from calibration inputs.

The error of a row, :math:`\lVert (w - \hat w) X^\top \rVert^2`, is quadratic, and its second derivative
:math:`2 X^\top X` is the same for every row and every :math:`w`: one matrix a layer input.
"""

import warnings

import torch
from scipy.linalg import blas
from torch import Tensor

from reference.quantization import CalibrationWarning

MIRROR_BLOCK = 256
DAMPING_STEPS = 12


class HessianAccumulator:
    r"""Mean of :math:`2 X^\top X` over calibration sequences, whatever the order they come in.

    The product of a batch is made in ``dtype``; the sum of the products is kept in float64, so neither
    the order of the batches nor how they are dealt out to ranks changes the Hessian that is read in
    float32. The product is symmetric: on a CPU only half of it is computed.

    Args:
        in_features: columns of the layer's input.
        dtype: of the products and of :attr:`hessian`: float32, or float64 for badly scaled inputs.
        device: where the sum is kept.

    Attributes:
        sum: float64 ``[in_features, in_features]``, the sum of :math:`X^\top X`; on a CPU its upper half.
        sequences: how many sequences went in.

    Raises:
        ValueError: ``dtype`` is another one.

    Example:
        >>> seen = HessianAccumulator(2)
        >>> seen.add(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))  # two tokens, one sequence
        >>> seen.hessian
        tensor([[20., 28.],
                [28., 40.]])

    Chapter: quantization/gptq
    """

    def __init__(
        self, in_features: int, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
    ) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype is {dtype}; it may be float32 or float64")
        self.sum = torch.zeros(in_features, in_features, dtype=torch.float64, device=device)
        self.dtype = dtype
        self.sequences = 0

    @property
    def hessian(self) -> Tensor:
        """``[in_features, in_features]`` of ``dtype``, symmetric; zero before the first batch."""
        mean = torch.empty_like(self.sum, dtype=self.dtype)
        torch.mul(self.sum, 2 / max(self.sequences, 1), out=mean)
        for begin in range(0, len(mean), MIRROR_BLOCK):
            rows = mean[begin : begin + MIRROR_BLOCK]
            rows[:, :begin] = mean[:begin, begin : begin + MIRROR_BLOCK].T
            corner = rows[:, begin : begin + MIRROR_BLOCK]
            corner.copy_(corner.triu() + corner.triu(1).T)
        return mean

    def add(self, inputs: Tensor, name: str = "inputs") -> None:
        """Add the inputs of one batch.

        Args:
            inputs: ``[sequences, ..., in_features]``; a matrix ``[tokens, in_features]`` counts as one sequence.
            name: what to call the layer in an error.

        Raises:
            ValueError: another width, or values that are not finite; nothing is added then.
        """
        if inputs.ndim < 2 or inputs.shape[-1] != len(self.sum):
            raise ValueError(f"{name} has shape {tuple(inputs.shape)}; its last axis must be {len(self.sum)}")
        if not inputs.numel():
            return
        rows = inputs.detach().reshape(-1, inputs.shape[-1]).to(self.sum.device, self.dtype)
        if not all_finite(rows):
            raise ValueError(f"{name} holds NaN or infinite activations; the model overflows before this layer")
        if self.sum.device.type == "cpu":
            # BLAS counts columns first: its lower triangle is our upper one.
            syrk = blas.ssyrk if self.dtype == torch.float32 else blas.dsyrk
            self.sum += torch.from_numpy(syrk(1.0, rows.contiguous().numpy().T, lower=1).T)
        else:
            self.sum += rows.T @ rows
        self.sequences += inputs.shape[0] if inputs.ndim > 2 else 1

    def merge(self, other: "HessianAccumulator") -> None:
        """Take in what another accumulator, of another rank or shard, has seen.

        Raises:
            ValueError: the other one has another width.
        """
        if len(other.sum) != len(self.sum):
            raise ValueError(f"other has {len(other.sum)} columns; it must have {len(self.sum)}")
        self.sum += other.sum.to(self.sum.device)
        self.sequences += other.sequences


def all_finite(values: Tensor) -> bool:
    """Whether all ``values`` are finite, without a temporary of their size.

    Example:
        >>> all_finite(torch.tensor([1.0, 2.0])), all_finite(torch.tensor([1.0, float("nan")]))
        (True, False)

    Chapter: none (check)
    """
    low, high = values.aminmax()  # NaN wins both
    return bool(low.isfinite() & high.isfinite())


def factor_dtype(hessian: Tensor) -> torch.dtype:
    """Type that a Hessian is factorised in: float64 where it has that, else float32.

    Example:
        >>> factor_dtype(torch.eye(2, dtype=torch.bfloat16)), factor_dtype(torch.eye(2, dtype=torch.float64))
        (torch.float32, torch.float64)

    Chapter: none (linear algebra)
    """
    return torch.float64 if hessian.dtype == torch.float64 else torch.float32


def inverse_factor(
    hessian: Tensor, order: Tensor | None, diagonal: Tensor, damping: float, name: str
) -> tuple[Tensor, float]:
    """Upper triangular ``U`` with ``(H + λI)⁻¹ = Uᵀ U``, and the damping that it took.

    Args:
        hessian: ``[in, in]``.
        order: int64 ``[in]``, in which its rows and columns are taken; None for as they are.
        diagonal: ``[in]``, that of the Hessian in ``order``; it replaces what the Hessian has there.
        damping: λ as a fraction of the mean of ``diagonal``; doubled until the factorisation succeeds.
        name: what to call the layer.

    Returns:
        ``U`` in float32, and the fraction that was used.

    Raises:
        ValueError: no damping up to 2^11 times as much was enough.

    Warns:
        CalibrationWarning: more damping was used than asked for.

    Example:
        >>> hessian = torch.tensor([[4.0, 0.0], [0.0, 1.0]])
        >>> U, used = inverse_factor(hessian, None, hessian.diagonal(), 0.0, "layer")
        >>> U.T @ U, used
        (tensor([[0.2500, 0.0000],
                [0.0000, 1.0000]]), 0.0)

    Chapter: none (linear algebra)
    """
    info = torch.empty((), dtype=torch.int32, device=hessian.device)
    used = damping
    for _ in range(DAMPING_STEPS):
        copy = hessian.clone() if order is None else hessian[order[:, None], order]
        # Column by column, as LAPACK counts, so that each of the three steps overwrites the one copy.
        U = copy.to(diagonal.dtype).mT
        U.diagonal().copy_(diagonal + used * diagonal.mean())
        torch.linalg.cholesky_ex(U, out=(U, info))
        if not info:
            torch.cholesky_inverse(U, out=U)
            torch.linalg.cholesky_ex(U, upper=True, out=(U, info))
        # A value that is not finite anywhere in a column of U makes its diagonal so too; the solver divides by it.
        if not info and all_finite(U.diagonal().float()) and U.diagonal().float().all():
            if used != damping:
                warnings.warn(
                    f"{name}: the Hessian could not be factorised with damping {damping:g}; {used:g} was used. "
                    "More, or more varied, calibration text is the cure",
                    CalibrationWarning,
                    stacklevel=4,  # the caller of the solver
                )
            return U.float(), used
        used = max(used * 2, 1e-4)
    raise ValueError(f"hessian of {name} cannot be factorised even with damping {used / 2:g}; is it symmetric?")


def check(weight: Tensor, hessian: Tensor, damping: float, block_size: int, name: str) -> None:
    """Refuse what no column-by-column solver can use.

    Args:
        weight: ``[out, in]``.
        hessian: ``[in, in]``.
        damping, block_size: as of :func:`reference.quantization.gptq.quantize_layer`.
        name: what to call the layer in the message.

    Raises:
        ValueError: shapes do not match, the Hessian is not finite, negative on its diagonal or zero, or ``damping`` or
            ``block_size`` is out of range.

    Example:
        >>> check(torch.ones(3, 2), torch.zeros(2, 2), 0.01, 128, "up_proj")
        Traceback (most recent call last):
            ...
        ValueError: hessian of up_proj is zero; no calibration input other than zero has reached this layer

    Chapter: none (check)
    """
    size = weight.shape[1]
    if tuple(hessian.shape) != (size, size):
        raise ValueError(f"hessian of {name} has shape {tuple(hessian.shape)}; the weight needs {(size, size)}")
    if not all_finite(hessian):
        raise ValueError(f"hessian of {name} holds NaN or infinite values; the activations overflowed")
    if (hessian.diagonal() < 0).any():
        raise ValueError(f"hessian of {name} has negative diagonal entries; it is a sum of squares")
    if not hessian.diagonal().any():
        raise ValueError(f"hessian of {name} is zero; no calibration input other than zero has reached this layer")
    check_damping(damping)
    if block_size < 1:
        raise ValueError(f"block_size is {block_size}; it may be 1 or more")


def check_damping(damping: float) -> None:
    """Refuse a share of the diagonal that no solver can use.

    Args:
        damping: as of :func:`reference.quantization.gptq.quantize_layer`.

    Raises:
        ValueError: negative, 1000 or more, or NaN.

    Example:
        >>> check_damping(-0.01)
        Traceback (most recent call last):
            ...
        ValueError: damping is -0.01; it may be 0 or more and below 1000 (0.01 is usual)

    Chapter: none (check)
    """
    if not 0 <= damping < 1e3:
        raise ValueError(f"damping is {damping}; it may be 0 or more and below 1000 (0.01 is usual)")
