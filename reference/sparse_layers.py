"""A layer whose weight keeps two of each four columns."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from reference.kernel_choice import kernels_serve
from reference.sparse_tensors import SparseTensor, expand


class SparseLinear(nn.Module):
    """``y = x Wᵀ + b`` with ``W`` held as a :class:`~reference.sparse_tensors.SparseTensor`: 9/16 of its bytes.

    On a CUDA device, with float16 or bfloat16 values and ``x`` of the same type, and where no gradient is asked for, the
    Triton kernel ``reference.kernels.sparse_24`` reads it as it lies. Otherwise the dense weight is made and forgotten:
    there a 2:4 weight saves memory, not time.

    ``module.to(dtype)`` changes the values' type, as it does a dense weight's.

    Args:
        weight: the sparse weight.
        bias: ``[out_features]`` or None.

    Shape: ``[…, in_features]`` → ``[…, out_features]``, in the type of the input.

    Example:
        >>> linear = nn.Linear(16, 1, bias=False)
        >>> linear.weight.data = torch.tensor([[3.0, 0.0, 0.0, 4.0] * 4])  # two of each four
        >>> layer = SparseLinear.from_linear(linear)
        >>> layer(torch.ones(1, 16)).item(), layer.tensor.nbytes, linear.weight.nbytes  # 8 floats, 8 positions
        (28.0, 34, 64)

    Chapter: advanced/kernels
    """

    values: Tensor
    positions: Tensor
    bias: Tensor | None

    def __init__(self, weight: SparseTensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("values", weight.values)
        self.register_buffer("positions", weight.positions)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    @classmethod
    def from_linear(cls, linear: nn.Linear, weight: SparseTensor | None = None) -> "SparseLinear":
        """The sparse stand-in for ``linear``, keeping its bias.

        Args:
            linear: the layer; its own weight where ``weight`` is None: two of each four columns are zero.
            weight: what to use instead.

        Raises:
            ValueError: shapes differ, or more than two of four columns are not zero.
        """
        weight = SparseTensor.from_dense(linear.weight.detach()) if weight is None else weight
        if tuple(linear.weight.shape) != weight.shape:
            raise ValueError(f"weight is {weight.shape}, the layer that it replaces {tuple(linear.weight.shape)}")
        return cls(weight, linear.bias)

    @property
    def tensor(self) -> SparseTensor:
        """The sparse weight."""
        return SparseTensor(self.values, self.positions)

    def forward(self, x: Tensor) -> Tensor:
        differentiate = torch.is_grad_enabled() and x.requires_grad
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if not differentiate and self._fits_kernel(x):
            from reference.kernels.sparse_24 import sparse_24

            y = sparse_24(x.reshape(-1, self.in_features), self.values, self.positions)
            y = y.reshape(*x.shape[:-1], self.out_features)
            return y if bias is None else y + bias
        return functional.linear(x, expand(self.values, self.positions).to(x.dtype), bias)

    def _fits_kernel(self, x: Tensor) -> bool:
        return x.dtype == self.values.dtype and x.dtype != torch.float32 and kernels_serve(x)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, 2:4"
