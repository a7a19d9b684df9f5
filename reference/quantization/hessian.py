r"""The Hessian of a linear layer's squared error, collected from calibration inputs.

The error of a row, :math:`\lVert (w - \hat w) X^\top \rVert^2`, is quadratic, and its second derivative
:math:`2 X^\top X` is the same for every row and every :math:`w`: one matrix a layer input.
"""

import torch
from scipy.linalg import blas
from torch import Tensor

MIRROR_BLOCK = 256


class HessianAccumulator:
    r"""Running mean of :math:`\frac{2}{n} \sum X^\top X` over ``n`` calibration sequences.

    The product is symmetric; on a CPU only half of it is computed, and mirrored when it is read.

    Args:
        in_features: columns of the layer's input.
        dtype: float32, or float64 for a long or badly scaled calibration set.
        device: where the sum is kept.

    Attributes:
        sequences: how many sequences went in.

    Chapter: none (the gptq chapter is to come)
    """

    def __init__(
        self, in_features: int, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
    ) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype is {dtype}; it may be float32 or float64")
        self._sum = torch.zeros(in_features, in_features, dtype=dtype, device=device)
        self._upper_only = False
        self.sequences = 0

    @property
    def hessian(self) -> Tensor:
        """``[in_features, in_features]``; the sum itself, so that ranks can reduce it in place."""
        if self._upper_only:
            for begin in range(0, len(self._sum), MIRROR_BLOCK):
                rows = self._sum[begin : begin + MIRROR_BLOCK]
                rows[:, :begin] = self._sum[:begin, begin : begin + MIRROR_BLOCK].T
                corner = rows[:, begin : begin + MIRROR_BLOCK]
                corner.copy_(corner.triu() + corner.triu(1).T)
            self._upper_only = False
        return self._sum

    def add(self, inputs: Tensor, name: str = "inputs") -> None:
        """Add the inputs of one batch.

        Args:
            inputs: ``[sequences, ..., in_features]``; a matrix ``[tokens, in_features]`` counts as one sequence.
            name: what to call the layer in an error.

        Raises:
            ValueError: another width, or values that are not finite; nothing is added then.
        """
        if inputs.ndim < 2 or inputs.shape[-1] != len(self._sum):
            raise ValueError(f"{name} has shape {tuple(inputs.shape)}; its last axis must be {len(self._sum)}")
        if not inputs.numel():
            return
        rows = inputs.detach().reshape(-1, inputs.shape[-1]).to(self._sum)
        if not all_finite(rows):
            raise ValueError(f"{name} holds NaN or infinite activations; the model overflows before this layer")
        total = self.sequences + (inputs.shape[0] if inputs.ndim > 2 else 1)
        old, new = self.sequences / total, 2 / total
        if self._sum.device.type == "cpu":
            # BLAS counts columns first: its lower triangle is our upper one.
            syrk = blas.ssyrk if rows.dtype == torch.float32 else blas.dsyrk
            syrk(new, rows.contiguous().numpy().T, beta=old, c=self._sum.numpy().T, lower=1, overwrite_c=1)
            self._upper_only = True
        else:
            self._sum.addmm_(rows.T, rows, beta=old, alpha=new)
        self.sequences = total

    def merge(self, other: "HessianAccumulator") -> None:
        """Take in what another accumulator, of another rank or shard, has seen.

        Raises:
            ValueError: the other one has another width.
        """
        if len(other.hessian) != len(self._sum):
            raise ValueError(f"other has {len(other.hessian)} columns; it must have {len(self._sum)}")
        total = self.sequences + other.sequences
        if total:
            mine = self.hessian.mul_(self.sequences / total)
            mine.add_(other.hessian.to(mine), alpha=other.sequences / total)
            self.sequences = total


def all_finite(values: Tensor) -> bool:
    """Whether all ``values`` are finite, without a temporary of their size.

    Chapter: none (check)
    """
    low, high = values.aminmax()  # NaN wins both
    return bool(low.isfinite() & high.isfinite())
