"""Layers that compute with compressed tensors."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from reference.codebook_layers import CodebookLinear
from reference.int8 import Int8Linear
from reference.kernel_choice import kernels_serve
from reference.quantization.grid import QuantizationSpec
from reference.sparse_layers import SparseLinear
from reference.tensors import QuantizedTensor

__all__ = ["CodebookLinear", "Int8Linear", "QuantizedLinear", "SparseLinear"]

#: Up to this many rows the CPU's packed int4 operator beats dequantising (measured, see
#: benchmarks/packed_linear.py); with 16 rows it is already three times slower.
FEW_ROWS = 4
_INT4_GROUPS = (256, 128, 64, 32)


class QuantizedLinear(nn.Module):
    """``y = x Wᵀ + b`` with ``W`` held as a :class:`~reference.tensors.QuantizedTensor`.

    Three ways to the same numbers, chosen by device and number of rows:

    - a CUDA device, 4 or 2 bits and no gradient asked for: the Triton kernel ``reference.kernels.w4a16``;
    - a CPU, 4 bits, at most four rows and no gradient asked for: torch's packed int4 operator, in
      bfloat16, on a repacked copy of the codes that is made at the first such call;
    - otherwise: dequantise, multiply, forget the dequantised weight.

    The second agrees with the third within 2 % of the largest output, usually 0.4 % (activations,
    scales and zero points are rounded to bfloat16); call :meth:`exact` to do without it.

    ``module.to(dtype)`` changes the bias only: codes and scales are what is stored, and the
    computation follows the type of the input.

    Args:
        weight: the compressed weight.
        bias: ``[out_features]`` or None.

    Shape: ``[..., in_features]`` → ``[..., out_features]``, in the type of the input.

    Example:
        >>> from reference.quantization.round_to_nearest import quantize_layer
        >>> linear = nn.Linear(64, 8, bias=False)
        >>> weight = quantize_layer(linear.weight.detach(), QuantizationSpec(4, symmetric=True, group_size=32))
        >>> layer = QuantizedLinear.from_linear(linear, weight)
        >>> weight.nbytes, linear.weight.nbytes  # 512 codes of 4 bits and 16 scales of 16; 512 floats
        (288, 2048)
        >>> torch.equal(layer(torch.eye(64)).T, weight.dequantize(torch.float32))
        True

    Chapter: quantization/post_training
    """

    packed: Tensor
    scale: Tensor
    packed_zero_point: Tensor | None
    group_index: Tensor | None
    bias: Tensor | None

    def __init__(self, weight: QuantizedTensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.spec: QuantizationSpec = weight.spec
        self.register_buffer("packed", weight.packed)
        self.register_buffer("scale", weight.scale)
        self.register_buffer("packed_zero_point", weight.packed_zero_point)
        self.register_buffer("group_index", weight.group_index)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self._int4: tuple[Tensor, Tensor, int] | None = None
        self._zero_point: Tensor | None = None
        self._exact = False
        self.register_load_state_dict_post_hook(QuantizedLinear._forget)

    def _forget(self, *_: object) -> None:
        """Other codes or scales were loaded: what was made of them is out of date."""
        self._int4 = self._zero_point = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantizedLinear":
        scale = self.scale
        super()._apply(fn, recurse)
        if self.scale.dtype != scale.dtype:  # .half(), .to(bfloat16): would change the weight
            self.scale = scale.to(self.scale.device)
        self._forget()
        return self

    @classmethod
    def from_linear(cls, linear: nn.Linear, weight: QuantizedTensor) -> "QuantizedLinear":
        """The quantised stand-in for ``linear``, keeping its bias.

        Raises:
            ValueError: shapes differ.
        """
        if tuple(linear.weight.shape) != tuple(weight.shape):
            raise ValueError(
                f"weight is {tuple(weight.shape)}, the layer that it replaces {tuple(linear.weight.shape)}"
            )
        return cls(weight, linear.bias)

    @property
    def tensor(self) -> QuantizedTensor:
        """The compressed weight."""
        return QuantizedTensor(
            self.packed, self.scale, self.packed_zero_point,
            (self.out_features, self.in_features), self.spec, self.group_index,
        )  # fmt: skip

    def exact(self, value: bool = True) -> "QuantizedLinear":
        """Do without the int4 operator, so that few rows give the same bits as many."""
        self._exact = value
        return self

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // self.in_features
        # Neither the Triton kernel nor torch's int4 operator has a derivative.
        differentiate = torch.is_grad_enabled() and x.requires_grad
        if not differentiate and self._fits_kernel() and kernels_serve(x):
            return self._forward_kernel(x)
        if x.device.type == "cpu" and self.multiplies_packed(rows) and not differentiate:
            return self._forward_int4(x)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return functional.linear(x, self.tensor.dequantize(x.dtype), bias)

    def multiplies_packed(self, rows: int) -> bool:
        """Whether ``rows`` rows without a gradient are multiplied by the weight as packed, where it now lies."""
        if self._fits_kernel() and kernels_serve(self.scale):
            return True
        return (
            self.packed.device.type == "cpu" and 0 < rows <= FEW_ROWS and bool(self._int4_group()) and not self._exact
        )

    @property
    def copied_bytes(self) -> int:
        """Bytes of the repacked copy for the CPU's int4 operator; 0 before the first call that makes it."""
        return 0 if self._int4 is None else self._int4[0].nbytes + self._int4[1].nbytes

    def _fits_kernel(self) -> bool:
        return (
            self.spec.bits in (2, 4)
            and self.group_index is None
            and not self.spec.per_tensor
            and self.in_features % (32 // self.spec.bits) == 0
            and (self.spec.group_size in (None, self.in_features) or self.spec.group_size % 32 == 0)
        )

    def _forward_kernel(self, x: Tensor) -> Tensor:
        from reference.kernels.w4a16 import w4a16

        if self._zero_point is None and not self.spec.symmetric:
            self._zero_point = self.tensor.zero_point.to(torch.uint8)
        rows = x.reshape(-1, self.in_features)
        y = w4a16(
            rows if rows.stride(1) == 1 else rows.contiguous(),
            self.packed,
            self.scale,
            self._zero_point,
            group_size=self.spec.group_size or self.in_features,
            bits=self.spec.bits,
        ).reshape(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias.to(x.dtype)

    def _int4_group(self) -> int | None:
        """Group size to give to the int4 operator, or None where its limits rule it out.

        The operator takes groups of 32 to 256 that divide the input, and outputs in multiples
        of 16 (others are wrong or crash, so they never get there).
        """
        if self.spec.bits != 4 or self.group_index is not None or self.out_features % 16:
            return None
        run = self.spec.group_size or self.in_features
        return next((g for g in _INT4_GROUPS if run % g == 0), None)

    def _forward_int4(self, x: Tensor) -> Tensor:
        group = self._int4_group()
        assert group is not None
        if self._int4 is None or self._int4[0].device != x.device:
            self._int4 = self._repack(group)
        packed, scale_and_zero, _ = self._int4
        flat = x.reshape(-1, self.in_features).to(torch.bfloat16).contiguous()
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(flat, packed, group, scale_and_zero)
        y = y.to(x.dtype).reshape(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias.to(x.dtype)

    def _repack(self, group: int) -> tuple[Tensor, Tensor, int]:
        """Codes in the operator's own order; it computes (code − 8)·s + zero, zero in weight units."""
        tensor = self.tensor
        groups = self.in_features // group

        def per_group(values: Tensor) -> Tensor:
            values = values.expand(self.out_features, -1) if values.shape[0] == 1 else values
            return values.repeat_interleave(groups // values.shape[1], dim=1)

        # The zero offset is made from the scale as the operator sees it, so that rounding the scale
        # to bfloat16 does not shift a whole group.
        scale = per_group(tensor.scale.to(torch.bfloat16).float())
        zero = (8 - per_group(tensor.zero_point)) * scale
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(tensor.codes.to(torch.int32), 1)
        return packed, torch.stack((scale.T, zero.T), dim=-1).to(torch.bfloat16).contiguous(), group

    def extra_repr(self) -> str:
        grouping = "per tensor" if self.spec.per_tensor else f"group_size={self.spec.group_size}"
        kind = "symmetric" if self.spec.symmetric else "affine"
        return f"{self.in_features}, {self.out_features}, bits={self.spec.bits}, {grouping}, {kind}"
