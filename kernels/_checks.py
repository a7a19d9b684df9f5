"""Refusals that kernels share: what a tensor was, by name, and what it may be."""

from __future__ import annotations

import torch
from torch import Tensor

from ._triton import INTERPRETED, require_triton

FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def check_tensors(
    allowed: dict[str, tuple[Tensor | None, tuple[torch.dtype, ...], int]], strided: tuple[str, ...] = ("x",)
) -> None:
    """Types, axes, devices and strides of ``{name: (tensor, dtypes, axes)}``; None stands for an option left out.

    The first tensor's device is everyone's. ``strided`` tensors need stride 1 along their last axis only, others
    are contiguous.
    """
    require_triton()
    first = next(iter(allowed))
    for name, (tensor, dtypes, axes) in allowed.items():
        if tensor is None and name != first:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} was {type(tensor).__name__}, may be a torch.Tensor")
        if tensor.dtype not in dtypes:
            raise TypeError(f"{name} was {tensor.dtype}, may be {' or '.join(map(str, dtypes))}")
        if tensor.dim() != axes:
            raise ValueError(
                f"{name} had shape {list(tensor.shape)}, may have {('one axis', 'two axes', 'three axes')[axes - 1]}"
            )
        device = allowed[first][0].device  # type: ignore[union-attr]
        if tensor.device != device:
            raise ValueError(f"{name} was on {tensor.device}, may be on {first}'s device, {device}")
        if name not in strided and not tensor.is_contiguous():
            raise ValueError(f"{name} had strides {tensor.stride()}, may be contiguous: call .contiguous()")
    for name in strided:
        check_rows(name, allowed[name][0])


def check_rows(name: str, tensor: Tensor | None) -> None:
    """Stride 1 along the last axis, and rows close enough for 32-bit offsets within a tile; then the device."""
    if tensor is None:
        return
    if tensor.device.type != "cuda" and not (INTERPRETED.value and tensor.device.type == "cpu"):
        raise ValueError(
            f"{name} was on {tensor.device}, may be on a CUDA device (on the CPU only in a process started with "
            "TRITON_INTERPRET=1, for tests)"
        )
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise ValueError(
            f"{name} had strides {tensor.stride()}, may have stride 1 along its last axis: call .contiguous()"
        )
    if tensor.dim() > 1 and tensor.shape[0] > 1 and tensor.stride(0) >= 2**24:
        raise ValueError(
            f"{name} had row stride {tensor.stride(0)}, may have one below 2**24 (offsets in a tile are 32-bit)"
        )


def check_shape(name: str, tensor: Tensor | None, shape: list[int], why: str) -> None:
    if tensor is not None and list(tensor.shape) != shape:
        raise ValueError(f"{name} had shape {list(tensor.shape)}, may have {shape} {why}")


def check_size(name: str, tensor: Tensor) -> None:
    """Fewer elements than 32-bit offsets can tell apart."""
    if tensor.numel() >= 2**31:
        raise ValueError(f"{name} had {tensor.numel()} elements, may have fewer than 2**31 (offsets are 32-bit)")


def check_start(name: str, tensor: Tensor | None) -> None:
    """Read as 32-bit numbers it must begin where one does, in the memory and in its storage (which is what torch asks)."""
    if tensor is not None and (tensor.data_ptr() % 4 or tensor.storage_offset() * tensor.element_size() % 4):
        raise ValueError(f"{name} began at an odd address, may begin at a multiple of 4 bytes: call .clone()")


def check_capability(device: torch.device, least: tuple[int, int], what: str) -> None:
    """Refuse GPUs that lack ``what``; the interpreter has it."""
    if device.type == "cuda" and torch.version.hip is None:
        found = torch.cuda.get_device_capability(device)
        if found < least:
            raise ValueError(
                f"x was on {device}, a GPU of capability {found[0]}.{found[1]}; {what} needs {least[0]}.{least[1]} or more"
            )
