"""GPT-2's transposed layers, made ordinary.

GPT-2 keeps its linear layers as transformers' ``Conv1D`` with a weight ``[in, out]``. Every method
here works on ``[out, in]``, so such layers are exchanged when a model is loaded; files keep theirs.
"""

from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from reference.models.families import replace_module

#: Architectures whose layers are ``Conv1D``.
TRANSPOSED = ("gpt2",)


class TransposedLinear(nn.Linear):
    """A linear layer whose weight goes to and comes from a state dict as ``[in, out]``.

    Example:
        >>> layer = TransposedLinear(3, 2)
        >>> layer.weight.shape, layer.state_dict()["weight"].shape
        (torch.Size([2, 3]), torch.Size([3, 2]))

    Chapter: none (loading)
    """

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = destination[f"{prefix}weight"].T.contiguous()

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *rest: Any) -> None:
        if f"{prefix}weight" in state_dict:
            state_dict = state_dict | {f"{prefix}weight": state_dict[f"{prefix}weight"].T.contiguous()}
        super()._load_from_state_dict(state_dict, prefix, *rest)


def linearize(model: nn.Module) -> nn.Module:
    """Exchange every ``Conv1D`` of ``model`` for a :class:`TransposedLinear`, in place.

    Args:
        model: from transformers.

    Returns:
        ``model``, which computes the same.

    Example:
        >>> model, x = nn.Sequential(Conv1D(nf=2, nx=3)), torch.ones(1, 3)
        >>> before = model(x)
        >>> linearize(model)
        Sequential(
          (0): TransposedLinear(in_features=3, out_features=2, bias=True)
        )
        >>> torch.allclose(model(x), before)
        True

    Chapter: none (loading)
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            inputs, outputs = module.weight.shape
            with torch.device("meta"):
                linear = TransposedLinear(inputs, outputs, bias=module.bias is not None)
            linear.weight = nn.Parameter(module.weight.detach().T.contiguous())
            linear.bias = module.bias
            replace_module(model, name, linear)
    return model
