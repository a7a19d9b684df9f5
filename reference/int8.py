"""Layers that multiply integers: int8 activations × int8 weights, summed exactly in int32."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from reference.kernel_choice import kernels_serve
from reference.quantization.activations import ActivationSpec, quantize_activations
from reference.quantization.grid import QuantizationSpec
from reference.quantization.hadamard import transform
from reference.quantization.round_to_nearest import quantize_layer
from reference.tensors import QuantizedTensor

#: Columns whose sum of products cannot leave int32, whatever the codes, which is (2³¹ − 1) // 128².
MOST_INPUTS = (2**31 - 1) // 128**2
#: Columns whose sum of products float32 holds exactly, which is 2²⁴ / 128².
_EXACT_IN_FLOAT = 1024


def integer_product(x: Tensor, weight: Tensor) -> Tensor:
    """``x weightᵀ`` of int8 matrices, exact.

    Uses ``torch._int_mm``, with padding where CUDA asks for multiples of 8; elsewhere, and on
    processors on which it is not exact, float32 products of 1,024 columns at a time, which are.

    Args:
        x: int8 ``[rows, in]``.
        weight: int8 ``[out, in]``.

    Returns:
        int32 ``[rows, out]``.

    Raises:
        TypeError: not int8.
        ValueError: not matrices of the same width, or more than 131,071 columns, whose sum could
            leave int32.

    Example:
        >>> x = torch.tensor([[100, 100]], dtype=torch.int8)
        >>> integer_product(x, torch.tensor([[100, 100], [1, -1]], dtype=torch.int8))  # no overflow
        tensor([[20000,     0]], dtype=torch.int32)

    Chapter: quantization/smoothquant
    """
    if x.dtype != torch.int8 or weight.dtype != torch.int8:
        raise TypeError(f"x is {x.dtype} and weight {weight.dtype}; both must be int8")
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(f"x is {tuple(x.shape)}, weight {tuple(weight.shape)}; they must be [rows, in] and [out, in]")
    if x.shape[1] > MOST_INPUTS:
        raise ValueError(f"x has {x.shape[1]} columns; sums in int32 are exact up to {MOST_INPUTS:,}")
    if x.numel() == 0 or weight.numel() == 0:
        return torch.zeros(len(x), len(weight), dtype=torch.int32, device=x.device)
    # torch's product goes by the strides, also where they mean nothing: those of a single row, of rows repeated.
    x = x.reshape(-1).view(x.shape)
    if x.is_cuda:
        return _padded(x, weight)
    # torch 2.13 misreads the layout of a weight with a single column.
    if x.device.type == "cpu" and x.shape[1] > 1 and _int_mm_is_exact():
        return torch._int_mm(x, weight.T)
    return _in_float(x, weight)


def _padded(x: Tensor, weight: Tensor) -> Tensor:
    """``torch._int_mm`` on CUDA: more than 16 rows, and columns and outputs in multiples of 8."""
    rows, columns, outputs = len(x), -x.shape[1] % 8, -len(weight) % 8
    x = nn.functional.pad(x, (0, columns, 0, max(0, 17 - rows)))
    if columns or outputs:
        weight = nn.functional.pad(weight, (0, columns, 0, outputs))
    return torch._int_mm(x, weight.T)[:rows, : weight.shape[0] - outputs]


def _in_float(x: Tensor, weight: Tensor) -> Tensor:
    total = torch.zeros(len(x), len(weight), dtype=torch.int32, device=x.device)
    for begin in range(0, x.shape[1], _EXACT_IN_FLOAT):
        part = slice(begin, begin + _EXACT_IN_FLOAT)
        total += (x[:, part].float() @ weight[:, part].float().T).to(torch.int32)
    return total


@functools.cache
def _int_mm_is_exact() -> bool:
    """Whether this processor sums int8 products without saturating.

    x86 processors without VNNI (before 2019) add pairs of products in 16 bits: 127·127 + 127·127
    becomes 32,767, and torch does not say so.
    """
    weight = torch.full((8, 64), 127, dtype=torch.int8)
    rows = torch.tensor([[127], [-128]], dtype=torch.int8).expand(2, 64).contiguous()
    expected = torch.tensor([[127 * 127 * 64], [-128 * 127 * 64]], dtype=torch.int32).expand(2, 8)
    many = rows.repeat(16, 1)
    return (
        torch.equal(torch._int_mm(rows, weight.T), expected)
        and torch.equal(torch._int_mm(rows[:1], weight.T), expected[:1])
        and torch.equal(torch._int_mm(many, weight.T), expected.repeat(16, 1))
    )


class _NoDerivative(torch.autograd.Function):
    """Rounding has none that helps; without this the gradient would be cut off silently."""

    @staticmethod
    def forward(ctx: object, x: Tensor, y: Tensor) -> Tensor:
        return y

    @staticmethod
    def backward(ctx: object, *_: Tensor) -> None:
        raise RuntimeError("Int8Linear has no derivative; train with fake quantisation and convert afterwards")


class Int8Linear(nn.Module):
    r"""``y = x Wᵀ + b`` in integers: :math:`y_{to} = s^x_t\, s^w_o \sum_j q^x_{tj} q^w_{oj} + b_o`.

    The activations are quantised in the call, the sum is exact in int32, both scales and the bias
    come after it in float32. On a CUDA device that is two Triton kernels: ``reference.kernels.quantize_activations``
    (for a step a token) and ``reference.kernels.w8a8``. With groups along the input each group is a sum of its own, scaled
    before it is added: exact too, and slower. ``module.to(dtype)`` changes the bias only. There is no
    derivative: going backward raises.

    Args:
        weight: symmetric, 8 bits or fewer (W4A8: 4-bit codes are held one a byte), from any solver.
        activations: how the input is quantised.
        bias: ``[out_features]`` or None.
        input_scale: ``[1]``, of ``granularity="static"``.
        channel_scale: ``[in_features]``; the input is divided by it before it is quantised, for
            models that have no place to fold it into. ``weight`` is that of the multiplied columns.
        hadamard: the input is rotated by :func:`reference.quantization.hadamard.transform` before it is
            quantised. ``weight`` is that of the rows rotated alike, so that the product is the same.

    Attributes:
        weight: int8 ``[out_features, in_features]``, the codes less the middle one.
        scale: ``[out_features, groups]`` or ``[1, 1]``, as stored.

    Shape: ``[..., in_features]`` → ``[..., out_features]``, in the type of the input.

    Raises:
        ValueError: the grid is affine, groups are not consecutive, or a scale does not fit.

    Example:
        >>> linear = nn.Linear(2, 1, bias=False)
        >>> linear.weight.data = torch.tensor([[1.0, -0.5]])
        >>> layer = Int8Linear.from_linear(linear)
        >>> layer.weight  # the step is 2/255
        tensor([[127, -64]], dtype=torch.int8)
        >>> bool((layer(torch.tensor([[3.0, 4.0]])) - 1).abs() < 0.05)
        True

    Chapter: quantization/smoothquant
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None
    input_scale: Tensor | None
    channel_scale: Tensor | None

    def __init__(
        self,
        weight: QuantizedTensor,
        activations: ActivationSpec | None = None,
        bias: Tensor | None = None,
        *,
        input_scale: Tensor | None = None,
        channel_scale: Tensor | None = None,
        hadamard: bool = False,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.spec: QuantizationSpec = weight.spec
        self.activations = activations or ActivationSpec()
        self.hadamard = hadamard
        if not self.spec.symmetric:
            raise ValueError("weight has an affine grid; integer products need a symmetric one, where code 0 is zero")
        if weight.group_index is not None:
            raise ValueError("weight has a group index; integer sums need consecutive groups (static_groups=True)")
        if (self.activations.granularity == "static") != (input_scale is not None):
            raise ValueError(f"input_scale is for static activations and them alone, not {self.activations}")
        if input_scale is not None and not (input_scale.numel() == 1 and 0 < input_scale < torch.inf):
            raise ValueError(f"input_scale is {input_scale}; it must be one positive number")
        if channel_scale is not None and not (
            tuple(channel_scale.shape) == (self.in_features,) and ((channel_scale > 0) & channel_scale.isfinite()).all()
        ):
            raise ValueError(f"channel_scale must be {self.in_features} positive numbers")
        self.register_buffer("weight", (weight.codes.to(torch.int16) - self.spec.middle).to(torch.int8))
        self.register_buffer("scale", weight.scale)
        for name, tensor in (("bias", bias), ("input_scale", input_scale), ("channel_scale", channel_scale)):
            self.register_buffer(name, None if tensor is None else tensor.detach().clone())

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        weight: QuantizedTensor | None = None,
        activations: ActivationSpec | None = None,
        *,
        input_scale: Tensor | None = None,
        channel_scale: Tensor | None = None,
        hadamard: bool = False,
    ) -> "Int8Linear":
        """The integer stand-in for ``linear``, keeping its bias.

        Args:
            weight: what a solver made of ``linear.weight``, its columns multiplied by ``channel_scale``, its
                rows rotated if ``hadamard``. By default they are that, and rounded to nearest, here: 8 bits,
                one scale an output channel.
            activations, input_scale, channel_scale, hadamard: as in the class.

        Raises:
            ValueError: shapes differ, or as in the class.
        """
        if weight is None:
            columns = linear.weight.detach()
            if channel_scale is not None:
                columns = columns * channel_scale.to(columns)
            if hadamard:
                columns = transform(columns)
            weight = quantize_layer(columns, QuantizationSpec(8, symmetric=True))
        if tuple(linear.weight.shape) != tuple(weight.shape):
            raise ValueError(
                f"weight is {tuple(weight.shape)}, the layer that it replaces {tuple(linear.weight.shape)}"
            )
        scales = {"input_scale": input_scale, "channel_scale": channel_scale}
        return cls(weight, activations, linear.bias, **scales, hadamard=hadamard)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Int8Linear":
        stored = {name: getattr(self, name) for name in ("scale", "input_scale", "channel_scale")}
        super()._apply(fn, recurse)
        for name, before in stored.items():  # .half(), .to(bfloat16): would change weight or codes
            if before is not None and getattr(self, name).dtype != before.dtype:
                setattr(self, name, before.to(self.weight.device))
        return self

    @property
    def tensor(self) -> QuantizedTensor:
        """The compressed weight, as the constructor takes it."""
        codes = (self.weight.to(torch.int16) + self.spec.middle).to(torch.uint8)
        zero_point = torch.full_like(self.scale, self.spec.middle, dtype=torch.int32)
        return QuantizedTensor.from_codes(codes, self.scale, zero_point, self.spec)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            rows = x.detach().reshape(-1, self.in_features)
            y = self._by_kernels(rows) if self._fits_kernels(rows) else self._by_torch(rows)
            y = y.to(x.dtype).reshape(*x.shape[:-1], self.out_features)
        return _NoDerivative.apply(x, y) if torch.is_grad_enabled() and x.requires_grad else y

    def _prepared(self, rows: Tensor) -> Tensor:
        """The rows as they are quantised: in float32, scaled and rotated where the layer does that."""
        rows = rows.float()
        if self.channel_scale is not None:
            rows = rows / self.channel_scale.float()
        return transform(rows) if self.hadamard else rows

    def _by_torch(self, rows: Tensor) -> Tensor:
        codes, step = quantize_activations(self._prepared(rows), self.activations, self.input_scale)
        y = self._multiply(codes).mul_(step)
        return y if self.bias is None else y.add_(self.bias.float())

    def _fits_kernels(self, rows: Tensor) -> bool:
        """One scale an output or one in all, and few enough columns for a sum in int32."""
        whole = self.spec.group_size in (None, self.in_features)
        return whole and 0 < self.in_features <= MOST_INPUTS and kernels_serve(rows)

    def _by_kernels(self, rows: Tensor) -> Tensor:
        from reference.kernels import quantize_activations as kernel
        from reference.kernels.w8a8 import w8a8

        spec = self.activations
        plain = self.channel_scale is None and not self.hadamard
        fused = plain and spec.granularity == "per_token" and spec.bits == 8
        if fused and self.in_features <= kernel.MOST_COLUMNS:
            rows = rows if rows.stride(1) == 1 else rows.contiguous()
            codes, step = kernel.quantize_activations(rows, restricted=spec.restricted)
        else:
            codes, step = quantize_activations(self._prepared(rows), spec, self.input_scale)
            step = step.reshape(-1).expand(len(rows)).contiguous()
        scale = self.scale.float().reshape(-1).expand(self.out_features).contiguous()
        return w8a8(codes, self.weight, step, scale, self.bias, dtype=rows.dtype)

    def _multiply(self, codes: Tensor) -> Tensor:
        """Codes times weight, float32 ``[rows, out_features]``."""
        scale = self.scale.float()
        size = self.spec.group_size or self.in_features
        if size == self.in_features:
            return integer_product(codes, self.weight).float().mul_(scale.T)
        y = torch.zeros(len(codes), self.out_features, device=codes.device)
        for group in range(self.in_features // size):
            part = slice(group * size, (group + 1) * size)
            product = integer_product(codes[:, part].contiguous(), self.weight[:, part].contiguous())
            y += product.float() * scale[:, group]
        return y

    def extra_repr(self) -> str:
        kind = f"{self.spec.bits}-bit weights, {self.activations.bits}-bit {self.activations.granularity} activations"
        return f"{self.in_features}, {self.out_features}, {kind}{', rotated' if self.hadamard else ''}"
