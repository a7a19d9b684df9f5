"""Whether a tensor goes to the Triton kernels or to torch's operations."""

import importlib.util

import torch
from torch import Tensor

#: Types of device whose tensors go to the Triton kernels. Tests add "cpu", which interprets them.
KERNEL_DEVICES = {"cuda"}


def kernels_serve(x: Tensor) -> bool:
    """Whether the Triton kernels multiply ``x``: it is 16- or 32-bit floats on a GPU that they compile for.

    Args:
        x: activations, or another tensor of their type and device.

    Example:
        >>> kernels_serve(torch.zeros(1, dtype=torch.int8)), kernels_serve(torch.zeros(1))  # integers; a CPU
        (False, False)

    Chapter: none (plumbing: chooses a path)
    """
    return (
        x.device.type in KERNEL_DEVICES
        and x.dtype in (torch.float16, torch.bfloat16, torch.float32)
        and importlib.util.find_spec("triton") is not None
        and (not x.is_cuda or torch.cuda.get_device_capability(x.device) >= (8, 0))
    )
