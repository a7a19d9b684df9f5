"""Compressed tensors: codes, scales and zero points as they lie on the disk.

Packing is one dense little-endian bit stream a row: value ``k`` of a row occupies bits
``[k·b, (k+1)·b)``, bit 0 is the lowest bit of word 0, words are int32, and values straddle
words where ``b`` does not divide 32. So 32 values of 3 bits take 3 words, 12 bytes. It is the
layout of compressed-tensors' ``pack-quantized`` (any width) and of GPTQ's ``qweight`` transposed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from reference.quantization import grid
from reference.quantization.grid import QuantizationSpec

#: The integer of so many bytes.
_NUMBER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def pack(values: Tensor, bits: int) -> Tensor:
    """Pack the rows of ``values`` into dense bit streams.

    Args:
        values: ``[rows, n]`` integers, each in ``[0, 2^bits − 1]``.
        bits: 1 to 8.

    Returns:
        int32 ``[rows, ceil(n·bits / 32)]``; unused bits of the last word are zero.

    Raises:
        ValueError: ``bits`` is out of range, a value does not fit into it, or ``values`` is not
            an integer matrix.

    Example:
        >>> pack(torch.tensor([[1, 2, 3, 0]], dtype=torch.uint8), 4)
        tensor([[801]], dtype=torch.int32)

    Chapter: quantization/post_training
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"bits is {bits}; it may be 1 to 8")
    if values.ndim != 2 or values.is_floating_point():
        raise ValueError(f"values must be an integer matrix, got {values.dtype} of shape {tuple(values.shape)}")
    if values.numel() and (int(values.min()) < 0 or int(values.max()) >= 2**bits):
        raise ValueError(
            f"values run from {int(values.min())} to {int(values.max())}; {bits} bits hold 0 to {2**bits - 1}"
        )
    rows, n = values.shape
    words = -(-n * bits // 32)
    # 32 values of b bits fill exactly b words, whatever b is.
    blocks = max(1, -(-n // 32))
    # Flat: the strides of a single row mean nothing, and a view as another type goes by them.
    spread = functional.pad(values.to(torch.uint8), (0, blocks * 32 - n)).reshape(-1)
    if 8 % bits == 0:  # whole values a byte: as many bytes as one number are pushed together in its lowest
        runs = spread.view(_NUMBER[8 // bits])
        joined = runs.clone()
        for place in range(1, 8 // bits):
            joined |= runs >> (8 - bits) * place
        stream = joined.to(torch.uint8)
    else:  # 8 values fill b bytes
        runs = spread.view(torch.int64)
        joined = runs & (2**bits - 1)
        for place in range(1, 8):
            joined |= (runs >> (8 - bits) * place) & (2**bits - 1 << bits * place)
        stream = joined.view(torch.uint8).view(-1, 8)[:, :bits].reshape(-1)
    whole = stream.view(torch.int32).view(rows, blocks * bits)
    # A part in memory of its own: one row's is contiguous as it stands, and safetensors writes no views.
    return whole if words == whole.shape[1] else whole[:, :words].clone(memory_format=torch.contiguous_format)


def unpack(packed: Tensor, bits: int, n: int) -> Tensor:
    """Undo :func:`pack`.

    Args:
        packed: int32 ``[rows, ceil(n·bits / 32)]``.
        bits: as packed.
        n: values a row.

    Returns:
        uint8 ``[rows, n]``.

    Raises:
        ValueError: ``bits`` is out of range, or the number of words does not fit ``n`` and ``bits``.

    Example:
        >>> unpack(pack(torch.tensor([[5, 1, 7]], dtype=torch.uint8), 3), 3, 3)
        tensor([[5, 1, 7]], dtype=torch.uint8)

    Chapter: quantization/post_training
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"bits is {bits}; it may be 1 to 8")
    rows, count = packed.shape
    if count != -(-n * bits // 32):
        raise ValueError(f"packed has {count} words a row; {n} values of {bits} bits need {-(-n * bits // 32)}")
    if not packed.numel():
        return torch.empty(rows, n, dtype=torch.uint8, device=packed.device)
    stream = packed.reshape(-1).view(torch.uint8)
    if 8 % bits == 0:
        joined = stream.to(_NUMBER[8 // bits])
        values = joined.clone()
        for place in range(1, 8 // bits):
            values |= joined << (8 - bits) * place
        values &= sum(2**bits - 1 << 8 * place for place in range(8 // bits))
    else:  # 8 values of b bits fill exactly b bytes, at most 8: one 64-bit number a run of 8 values
        runs = -(-n // 8)
        stream = stream.view(rows, 4 * count)[:, : runs * bits]
        stream = functional.pad(stream, (0, runs * bits - stream.shape[1]))
        joined = functional.pad(stream.reshape(rows, runs, bits), (0, 8 - bits)).view(torch.int64)
        values = joined & (2**bits - 1)
        for place in range(1, 8):
            values |= (joined << (8 - bits) * place) & (2**bits - 1 << 8 * place)
    return values.reshape(-1).view(torch.uint8).view(rows, -1)[:, :n].clone(memory_format=torch.contiguous_format)


def storage_dtype(weight: Tensor) -> torch.dtype:
    """16-bit type for the scales of ``weight``: its own if it has 16 bits, else float16.

    A float32 weight whose grid would leave float16's normal range gets bfloat16.

    Example:
        >>> storage_dtype(torch.zeros(1, dtype=torch.bfloat16))
        torch.bfloat16

    Chapter: quantization/post_training
    """
    if weight.dtype in (torch.float16, torch.bfloat16):
        return weight.dtype
    limits = torch.finfo(torch.float16)
    largest = torch.maximum(weight.amax(1), -weight.amin(1))  # weight.abs() would be a copy
    smallest = largest[largest > 0].amin() if (largest > 0).any() else largest.new_tensor(1.0)
    # A step is absmax/255 or more (8 bits), and a grid ends at 4/3·absmax or before (2 bits).
    fits = smallest / 255 >= limits.tiny and largest.amax() <= limits.max * 3 / 4
    return torch.float16 if fits else torch.bfloat16


@dataclass(frozen=True, eq=False)  # comparing tensors field by field has no truth value
class QuantizedTensor:
    """A weight as packed codes, 16-bit scales and packed zero points.

    Attributes:
        packed: int32 ``[out, ceil(in·bits / 32)]``, :func:`pack` of the codes along the input.
        scale: float16 or bfloat16 ``[out, groups]``; ``[1, 1]`` per tensor.
        packed_zero_point: int32 ``[ceil(out·bits / 32), groups]``, packed along the *output*;
            None for a symmetric grid, whose zero point is ``2^(bits−1)``.
        shape: ``(out_features, in_features)``.
        spec: the grid.
        group_index: int32 ``[in]``, the group of each column where groups are not consecutive
            (act-order), else None.

    Example:
        >>> codes = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]], dtype=torch.uint8)
        >>> scale, zero_point = torch.tensor([[0.5], [2.0]], dtype=torch.bfloat16), torch.tensor([[0], [3]])
        >>> tensor = QuantizedTensor.from_codes(codes, scale, zero_point, QuantizationSpec(2))
        >>> tensor.dequantize(torch.float32)
        tensor([[ 0.0000,  0.5000,  1.0000,  1.5000],
                [ 0.0000, -2.0000, -4.0000, -6.0000]])
        >>> tensor.packed.nbytes, tensor.scale.nbytes, tensor.nbytes  # and one word of zero points
        (8, 4, 16)

    Chapter: quantization/post_training
    """

    packed: Tensor
    scale: Tensor
    packed_zero_point: Tensor | None
    shape: tuple[int, int]
    spec: QuantizationSpec
    group_index: Tensor | None = None

    @classmethod
    def from_codes(
        cls, codes: Tensor, scale: Tensor, zero_point: Tensor, spec: QuantizationSpec, group_index: Tensor | None = None
    ) -> "QuantizedTensor":
        """Pack codes ``[out, in]`` and zero points ``[out, groups]``; scales are stored as given.

        Raises:
            ValueError: shapes of scale or zero point do not fit the codes and the spec, or a
                symmetric spec comes with another zero point than its middle code.
        """
        groups, rest = (1, 0) if spec.per_tensor else divmod(codes.shape[1], spec.group_size or codes.shape[1])
        if rest:
            raise ValueError(f"group_size {spec.group_size} does not divide the {codes.shape[1]} columns of codes")
        expected = (1 if spec.per_tensor else codes.shape[0], groups)
        for name, tensor in (("scale", scale), ("zero_point", zero_point)):
            if tuple(tensor.shape) != expected:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}; codes and spec need {expected}")
        if spec.symmetric and bool((zero_point != spec.middle).any()):
            raise ValueError(f"zero_point of a symmetric grid of {spec.bits} bits is {spec.middle} everywhere")
        packed_zero_point = None if spec.symmetric else pack(zero_point.T.contiguous(), spec.bits).T.contiguous()
        shape = (codes.shape[0], codes.shape[1])
        return cls(pack(codes, spec.bits), scale.contiguous(), packed_zero_point, shape, spec, group_index)

    @property
    def codes(self) -> Tensor:
        """uint8 ``[out, in]``, columns in their original order."""
        return unpack(self.packed, self.spec.bits, self.shape[1])

    @property
    def zero_point(self) -> Tensor:
        """int32 of the shape of ``scale``."""
        if self.packed_zero_point is None:
            return torch.full_like(self.scale, self.spec.middle, dtype=torch.int32)
        rows = self.scale.shape[0]
        return unpack(self.packed_zero_point.T.contiguous(), self.spec.bits, rows).T.to(torch.int32).contiguous()

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """``scale · (code − zero_point)``, ``[out, in]``.

        Args:
            dtype: type of the product and of the result; the scale's if None.
        """
        scale = self.scale if dtype is None else self.scale.to(dtype)
        if self.group_index is None:
            return grid.dequantize(self.codes, scale, self.zero_point, self.spec)
        columns = self.group_index.long()
        return (self.codes.to(torch.int16) - self.zero_point[:, columns]).to(scale.dtype) * scale[:, columns]

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales, zero points and group index, as stored."""
        stored = (self.packed, self.scale, self.packed_zero_point, self.group_index)
        return sum(tensor.nbytes for tensor in stored if tensor is not None)
