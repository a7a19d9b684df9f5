"""Refuse by name what a kernel would read wrongly."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from . import _triton

Dtypes = torch.dtype | tuple[torch.dtype, ...]


def check_tensors(tensors: Mapping[str, Tensor], dtypes: Mapping[str, Dtypes], axes: int | Mapping[str, int]) -> None:
    """Types, dtypes, number of axes and device of all; all but ``x`` contiguous. The first one says which device.

    Raises:
        TypeError: something is not a tensor, or of another dtype.
        ValueError: number of axes, strides or device do not fit.
    """
    first = next(iter(tensors))
    for name, tensor in tensors.items():
        allowed = dtypes[name] if isinstance(dtypes[name], tuple) else (dtypes[name],)
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} was {type(tensor).__name__}, may be a torch.Tensor")
        if tensor.dtype not in allowed:
            raise TypeError(f"{name} was {tensor.dtype}, may be {' or '.join(map(str, allowed))}")
        wanted = axes if isinstance(axes, int) else axes[name]
        if tensor.dim() != wanted:
            raise ValueError(f"{name} had shape {list(tensor.shape)}, may have {_count(wanted)}")
        if tensor.device != tensors[first].device:
            raise ValueError(f"{name} was on {tensor.device}, may be on {first}'s device, {tensors[first].device}")
        if name != "x" and not tensor.is_contiguous():
            raise ValueError(f"{name} had strides {tensor.stride()}, may be contiguous: call .contiguous()")
        if tensor.numel() >= 2**31:
            raise ValueError(f"{name} had {tensor.numel()} entries, may have fewer than 2**31 (offsets are 32-bit)")


def check_device(name: str, tensor: Tensor) -> None:
    """Kernels run on CUDA devices; on the CPU only where Triton interprets them.

    Raises:
        ValueError: ``tensor`` is elsewhere.
    """
    if tensor.device.type != "cuda" and not (_triton.INTERPRETED.value and tensor.device.type == "cpu"):
        raise ValueError(
            f"{name} was on {tensor.device}, may be on a CUDA device (on the CPU only in a process started with "
            "TRITON_INTERPRET=1, for tests)"
        )


def check_rows(x: Tensor, columns: int, weight: str) -> None:
    """``x [M, K]`` has stride 1 along K, and as many columns as the weight.

    Raises:
        ValueError: it has not.
    """
    if x.shape[1] != columns:
        raise ValueError(f"x had {x.shape[1]} columns, may have {columns}, which {weight}")
    if columns > 1 and x.stride(1) != 1:
        raise ValueError(f"x had strides {x.stride()}, may have stride 1 along its last axis: call .contiguous()")
    if x.shape[0] > 1 and not 0 <= x.stride(0) < 2**24:
        raise ValueError(f"x had row stride {x.stride(0)}, may have one below 2**24 (offsets in a tile are 32-bit)")


def _count(axes: int) -> str:
    return {1: "one axis", 2: "two axes", 3: "three axes"}[axes]
