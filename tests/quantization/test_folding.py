"""Folded norms compute the same; convolutions on folded weights train and serve."""

import copy

import pytest
import torch
from torch import nn

from reference.models.vision import SmallResNet
from reference.quantization.folding import TrainedConv2d, fold_batch_norm, fold_batch_norms
from reference.quantization.grid import QuantizationSpec


def used(channels: int, affine: bool = True) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, affine=affine)
    norm.running_mean.copy_(torch.randn(channels))  # type: ignore[union-attr]
    norm.running_var.copy_(0.1 + torch.rand(channels))  # type: ignore[union-attr]
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return norm.eval()


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"stride": 2, "padding": 1, "groups": 2}], ids=str)
def test_folded_convolution_is_convolution_and_norm(options: dict, affine: bool) -> None:
    torch.manual_seed(0)
    convolution, norm = nn.Conv2d(4, 6, 3, **options), used(6, affine)
    x = torch.randn(3, 4, 9, 9)
    assert (fold_batch_norm(convolution, norm)(x) - norm(convolution(x))).abs().max() < 1e-5
    convolution, norm, x = convolution.double(), norm.double(), x.double()
    assert (fold_batch_norm(convolution, norm)(x) - norm(convolution(x))).abs().max() < 1e-12


def pairs(model: nn.Module) -> dict[str, str]:
    found = {"conv": "bn"}
    for name, module in model.named_modules():
        if name.endswith(("conv1", "conv2")):
            found[name] = name.replace("conv", "bn")
        if name.endswith("shortcut") and isinstance(module, nn.Sequential):
            found[f"{name}.0"] = f"{name}.1"
    return found


def test_a_network_without_its_norms_computes_the_same() -> None:
    torch.manual_seed(0)
    model = SmallResNet(8)
    model.train()(torch.randn(32, 1, 28, 28))  # running statistics that are not 0 and 1
    model.eval()
    x = torch.randn(2, 1, 28, 28)
    folded = fold_batch_norms(copy.deepcopy(model), pairs(model))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert torch.allclose(folded(x), model(x), atol=1e-5)


def test_a_trained_convolution_computes_with_its_packed_weight() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(4, 6, 3, stride=2, padding=1)
    layer = TrainedConv2d(convolution, QuantizationSpec(3, symmetric=True), clip=1.5, input_bits=4)
    x = torch.rand(2, 4, 8, 8) * 2
    y = layer(x)
    y.square().sum().backward()
    assert layer.clip is not None
    assert layer.clip.grad is not None
    assert layer.clip.grad != 0
    weight = layer.rows.tensor().dequantize(torch.float32).view(6, 4, 3, 3)
    step = 1.5 / 15
    rounded = (x.clamp(0, 1.5) / step).round() * step
    expected = nn.functional.conv2d(rounded, weight, convolution.bias, 2, 1)
    assert torch.allclose(y, expected, atol=1e-5)


def test_what_cannot_be_folded_is_refused() -> None:
    convolution = nn.Conv2d(4, 6, 3)
    with pytest.raises(ValueError, match="pads by 'reflect'"):
        TrainedConv2d(nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), QuantizationSpec(4))
    with pytest.raises(ValueError, match="keeps no running statistics"):
        fold_batch_norm(convolution, nn.BatchNorm2d(6, track_running_stats=False))
    with pytest.raises(ValueError, match="norm has 5 channels, the convolution 6"):
        fold_batch_norm(convolution, nn.BatchNorm2d(5))
    with pytest.raises(ValueError, match="must name a Conv2d and a BatchNorm2d"):
        fold_batch_norms(nn.Sequential(convolution, nn.ReLU()), {"0": "1"})
