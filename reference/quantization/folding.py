r"""Batch normalisation folded into the convolution before it, and convolutions that train quantised.

In evaluation :math:`y = \gamma\,(w * x + b - \mu)/\sqrt{\sigma^2 + \epsilon} + \beta` is a convolution with
:math:`w' = w\,\gamma/\sqrt{\sigma^2 + \epsilon}`. A device runs that one, so it is :math:`w'` that must be rounded.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from reference.models.families import replace_module
from reference.quantization import round_to_nearest
from reference.quantization.grid import QuantizationSpec
from reference.quantization.quantization_aware import pact
from reference.quantization.trained import TrainedLinear


@torch.no_grad()
def fold_batch_norm(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """One convolution that computes what both do in evaluation.

    Args:
        convolution: its output is read by ``norm`` alone.
        norm: with running statistics.

    Returns:
        A new convolution with bias.

    Raises:
        ValueError: the channels differ, or the norm keeps no statistics.

    Source: Jacob et al. 2018, section 3.2.

    Example:
        >>> convolution, norm = nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1, eps=0.0)
        >>> norm.running_mean.fill_(1.0), norm.running_var.fill_(4.0), convolution.weight.data.fill_(3.0).item()
        (tensor([1.]), tensor([4.]), 3.0)
        >>> folded = fold_batch_norm(convolution, norm)  # (3x - 1) / 2
        >>> folded.weight.item(), folded.bias.item()
        (1.5, -0.5)

    Chapter: quantization/quantization_aware
    """
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("norm keeps no running statistics; only fixed ones can be folded")
    if convolution.out_channels != norm.num_features:
        raise ValueError(f"norm has {norm.num_features} channels, the convolution {convolution.out_channels}")
    gain = (norm.running_var + norm.eps).rsqrt()
    shift = -norm.running_mean * gain
    if norm.affine:
        gain, shift = gain * norm.weight, shift * norm.weight + norm.bias
    if convolution.bias is not None:
        shift = shift + gain * convolution.bias
    folded = nn.Conv2d(
        convolution.in_channels, convolution.out_channels, convolution.kernel_size,  # type: ignore[arg-type]
        convolution.stride, convolution.padding, convolution.dilation, convolution.groups,  # type: ignore[arg-type]
        bias=True, padding_mode=convolution.padding_mode, device=gain.device, dtype=convolution.weight.dtype,
    )  # fmt: skip
    folded.weight.copy_(convolution.weight * gain[:, None, None, None])
    folded.bias.copy_(shift)  # type: ignore[union-attr]
    return folded


def fold_batch_norms(model: nn.Module, pairs: dict[str, str]) -> nn.Module:
    """Fold each norm into its convolution, in place; the norm becomes an identity.

    Args:
        model: in evaluation mode.
        pairs: norm's name by convolution's name.

    Returns:
        ``model``.

    Raises:
        ValueError: a name is not what it should be.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2)).eval()
        >>> fold_batch_norms(model, {"0": "1"})
        Sequential(
          (0): Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1))
          (1): Identity()
        )

    Chapter: quantization/quantization_aware
    """
    for name, norm_name in pairs.items():
        convolution, norm = model.get_submodule(name), model.get_submodule(norm_name)
        if not isinstance(convolution, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
            raise ValueError(f"pairs has {name!r}: {norm_name!r}; they must name a Conv2d and a BatchNorm2d")
        replace_module(model, name, fold_batch_norm(convolution, norm))
        replace_module(model, norm_name, nn.Identity())
    return model


class TrainedConv2d(nn.Module):
    """A convolution with a fake-quantised weight, one step an output channel, and PACT on what it reads.

    Args:
        convolution: folded, usually.
        spec: grid of the weight as a matrix ``[out, in·height·width]``.
        clip: first value at which the input, which must not be negative, is clipped; None leaves it alone.
        input_bits: of the clipped input.

    Raises:
        ValueError: the convolution pads by something else than zeros.

    Example:
        >>> convolution = nn.Conv2d(1, 1, (1, 3), bias=False)
        >>> convolution.weight.data = torch.tensor([[[[-1.0, 0.25, 2.0]]]])
        >>> layer = TrainedConv2d(convolution, QuantizationSpec(2), clip=7.0, input_bits=3)
        >>> layer.rows.quantized_weight.tolist()  # a step of 1
        [[-1.0, 0.0, 2.0]]
        >>> layer(torch.tensor([[[[9.0, 1.0, 1.0]]]])).item()  # 9 is clipped to 7
        -5.0

    Chapter: quantization/quantization_aware
    """

    def __init__(
        self, convolution: nn.Conv2d, spec: QuantizationSpec, *, clip: float | None = None, input_bits: int = 8
    ) -> None:
        super().__init__()
        if convolution.padding_mode != "zeros":
            raise ValueError(f"convolution pads by {convolution.padding_mode!r}; only zero padding can be trained")
        self.shape, self.input_bits = convolution.weight.shape, input_bits
        self.stride, self.padding = convolution.stride, convolution.padding
        self.dilation, self.groups = convolution.dilation, convolution.groups
        rows = nn.Linear(self.shape[1:].numel(), self.shape[0], bias=False, device=convolution.weight.device)
        rows.weight = nn.Parameter(convolution.weight.detach().flatten(1))
        self.rows = TrainedLinear(rows, round_to_nearest.quantize_layer(rows.weight.detach(), spec))
        self.clip = None if clip is None else nn.Parameter(torch.tensor([clip], device=rows.weight.device))
        self.bias = None if convolution.bias is None else nn.Parameter(convolution.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        if self.clip is not None:
            x = pact(x, self.clip, self.input_bits)
        weight = self.rows.quantized_weight.reshape(self.shape).to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return functional.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
