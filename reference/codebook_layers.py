"""Layers whose weights share a few values, so that training moves the values."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from reference.coding.planes import pack_planes
from reference.coding.weight_sharing import CodebookTensor
from reference.kernel_choice import kernels_serve


class SharedWeight(nn.Module):
    r"""A weight as shared values; calling it gives the dense weight, differentiable in the values.

    Autograd sums: the gradient of a centroid is
    :math:`\partial L / \partial c_k = \sum_{ij} \partial L / \partial W_{ij}\,[I_{ij} = k]`, over kept
    weights only. A sum, not a mean: a crowded cluster moves faster, which the rate has to allow for.

    Entry 0 of the codebook, the zero of pruned weights, is not a parameter. So no optimiser can move it.

    Args:
        tensor: the shared weight.

    Attributes:
        centroids: parameter, float32 ``[2^bits − 1]``, entries 1 and up of the codebook.
        codes: buffer, uint8, the shape of the weight.

    Source: Han et al. 2016, section 3.3, eq. 3.

    Example:
        >>> codes = torch.tensor([[0, 1, 2], [2, 0, 2]], dtype=torch.uint8)
        >>> shared = SharedWeight(CodebookTensor(torch.tensor([0.0, -1.0, 2.0, 5.0]), codes, bits=2))
        >>> shared().tolist()
        [[0.0, -1.0, 2.0], [2.0, 0.0, 2.0]]
        >>> shared().sum().backward()
        >>> shared.centroids.grad  # how often each value is used
        tensor([1., 3., 0.])

    Chapter: pruning/deep_compression
    """

    codes: Tensor
    _places: Tensor
    _members: Tensor

    def __init__(self, tensor: CodebookTensor) -> None:
        super().__init__()
        self.bits = tensor.bits
        self.centroids = nn.Parameter(tensor.codebook[1:].clone())
        self.register_buffer("codes", tensor.codes.clone())
        self._index()
        self.register_load_state_dict_post_hook(lambda module, _: module._index())

    def _index(self) -> None:
        """List the kept places once: forward and backward then touch these alone."""
        flat = self.codes.flatten()
        self.register_buffer("_places", flat.nonzero().squeeze(1), persistent=False)
        self.register_buffer("_members", flat[self._places].long() - 1, persistent=False)

    def forward(self) -> Tensor:
        kept = self.centroids.index_select(0, self._members)
        dense = self.centroids.new_zeros(self.codes.numel())
        return dense.scatter(0, self._places, kept).view(self.codes.shape)

    @property
    def tensor(self) -> CodebookTensor:
        """The shared weight as it is now."""
        values = self.centroids.detach().float()
        return CodebookTensor(torch.cat([values.new_zeros(1), values]), self.codes, self.bits)


class CodebookLinear(nn.Module):
    """``y = x Wᵀ + b`` with a :class:`SharedWeight`.

    On a CUDA device and where no gradient is asked for (``torch.no_grad()``), the Triton kernel
    ``reference.kernels.codebook`` reads the indices packed; otherwise the dense weight is made and forgotten.

    Shape: ``[…, in_features]`` → ``[…, out_features]``.

    Args:
        tensor: the shared weight, ``[out_features, in_features]``.
        bias: ``[out_features]`` or None.

    Example:
        >>> codes = torch.tensor([[0, 1, 2], [2, 0, 2]], dtype=torch.uint8)
        >>> layer = CodebookLinear(CodebookTensor(torch.tensor([0.0, -1.0, 2.0, 5.0]), codes, bits=2))
        >>> layer(torch.ones(1, 3)).tolist()  # 0 - 1 + 2, 2 + 0 + 2
        [[1.0, 4.0]]

    Chapter: pruning/deep_compression
    """

    def __init__(self, tensor: CodebookTensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = SharedWeight(tensor)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self._packed: tuple[object, Tensor] | None = None
        self._table: tuple[object, Tensor] | None = None

    @classmethod
    def from_linear(cls, linear: nn.Linear, tensor: CodebookTensor) -> "CodebookLinear":
        """The stand-in for ``linear``, keeping its bias.

        Raises:
            ValueError: shapes differ.
        """
        _check_shape(linear.weight, tensor)
        return cls(tensor, linear.bias)

    @property
    def tensor(self) -> CodebookTensor:
        """The shared weight as it is now."""
        return self.weight.tensor

    def forward(self, x: Tensor) -> Tensor:
        if self._fits_kernel(x):
            return self._forward_kernel(x)
        return functional.linear(x, self.weight(), self.bias)

    def _fits_kernel(self, x: Tensor) -> bool:
        differentiate = torch.is_grad_enabled() and (x.requires_grad or self.weight.centroids.requires_grad)
        return (
            not differentiate and self.weight.bits >= 2 and x.dtype == self.weight.centroids.dtype and kernels_serve(x)
        )

    def _forward_kernel(self, x: Tensor) -> Tensor:
        from reference.kernels.codebook import codebook

        codes, centroids = self.weight.codes, self.weight.centroids
        if self._packed is None or self._packed[0] != _state(codes):
            self._packed = (_state(codes), pack_planes(codes, self.weight.bits))
        if self._table is None or self._table[0] != _state(centroids):
            self._table = (_state(centroids), self.weight.tensor.codebook)
        y = codebook(x.reshape(-1, codes.shape[1]), self._packed[1], self._table[1])
        y = y.reshape(*x.shape[:-1], codes.shape[0])
        return y if self.bias is None else y + self.bias.to(x.dtype)


class CodebookConv2d(nn.Module):
    """A convolution with a :class:`SharedWeight` of shape ``[out, in / groups, height, width]``.

    Shape: ``[n, in, h, w]`` → as :class:`torch.nn.Conv2d` with zero padding.

    Args:
        tensor: the shared weight.
        bias: ``[out]`` or None.
        stride, padding, dilation, groups: as of :class:`torch.nn.Conv2d`.

    Example:
        >>> codes = torch.tensor([[[[1]], [[2]]]], dtype=torch.uint8)  # 1 × 1, two channels in
        >>> layer = CodebookConv2d(CodebookTensor(torch.tensor([0.0, -1.0, 2.0, 5.0]), codes, bits=2))
        >>> layer(torch.tensor([[[[3.0]], [[4.0]]]])).item()  # -1 · 3 + 2 · 4
        5.0

    Chapter: pruning/deep_compression
    """

    def __init__(
        self,
        tensor: CodebookTensor,
        bias: Tensor | None = None,
        *,
        stride: tuple[int, ...] = (1, 1),
        padding: tuple[int, ...] | str = (0, 0),
        dilation: tuple[int, ...] = (1, 1),
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.weight = SharedWeight(tensor)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, tensor: CodebookTensor) -> "CodebookConv2d":
        """The stand-in for ``conv``, keeping its bias and geometry.

        Raises:
            ValueError: shapes differ, or the padding is not of zeros.
        """
        _check_shape(conv.weight, tensor)
        if conv.padding_mode != "zeros":
            raise ValueError(f"conv pads by {conv.padding_mode!r}; only zero padding can be shared")
        return cls(
            tensor, conv.bias, stride=conv.stride, padding=conv.padding, dilation=conv.dilation, groups=conv.groups
        )

    @property
    def tensor(self) -> CodebookTensor:
        """The shared weight as it is now."""
        return self.weight.tensor

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(
            x, self.weight(), self.bias, self.stride, self.padding, self.dilation, self.groups
        )  # fmt: skip


def _state(tensor: Tensor) -> object:
    """Changes whenever the tensor's values may have changed: moved, replaced or written to."""
    return tensor.data_ptr(), tensor.device, tensor._version


def _check_shape(weight: Tensor, tensor: CodebookTensor) -> None:
    if weight.shape != tensor.codes.shape:
        raise ValueError(
            f"tensor has shape {tuple(tensor.codes.shape)}, the layer that it replaces {tuple(weight.shape)}"
        )
