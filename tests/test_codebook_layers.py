"""Layers of shared weights: same outputs as dense ones, gradients that sum, a zero that stays."""

import pytest
import torch
from torch import nn

from reference.codebook_layers import CodebookConv2d, CodebookLinear
from reference.coding.weight_sharing import share


def shared_linear(seed: int = 0) -> tuple[nn.Linear, CodebookLinear]:
    torch.manual_seed(seed)
    linear = nn.Linear(12, 9)
    tensor = share(linear.weight, linear.weight.abs() > 0.1, 3)
    with torch.no_grad():
        linear.weight.copy_(tensor.to_dense())
    return linear, CodebookLinear.from_linear(linear, tensor)


def test_outputs_equal_the_dense_layer() -> None:
    linear, layer = shared_linear()
    x = torch.randn(4, 5, 12)
    assert torch.equal(layer(x), linear(x))


@pytest.mark.parametrize(
    "options", [{}, {"stride": 2, "padding": 1}, {"groups": 2}, {"padding": "same", "dilation": 2}]
)
def test_convolutions_equal_the_dense_layer(options: dict) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, **options)
    tensor = share(conv.weight, conv.weight.abs() > 0.05, 4)
    with torch.no_grad():
        conv.weight.copy_(tensor.to_dense())
    layer = CodebookConv2d.from_conv(conv, tensor)
    x = torch.randn(2, 4, 9, 9)
    assert torch.equal(layer(x), conv(x))


def test_centroid_gradient_is_the_sum_over_members() -> None:
    linear, layer = shared_linear()
    x, g = torch.randn(7, 12), torch.randn(7, 9)
    (linear(x) * g).sum().backward()
    (layer(x) * g).sum().backward()
    for number, found in enumerate(layer.weight.centroids.grad, start=1):
        members = layer.weight.codes == number
        assert found == pytest.approx(float(linear.weight.grad[members].sum()), abs=1e-5)


def test_centroid_gradient_equals_finite_differences() -> None:
    _, layer = shared_linear()
    layer = layer.double()
    x = torch.randn(7, 12, dtype=torch.float64)

    def loss(centroids: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, {"weight.centroids": centroids}, (x,)).tanh().square().sum()

    assert torch.autograd.gradcheck(loss, (layer.weight.centroids.detach().requires_grad_(),))


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.5),
    ],
)
def test_training_moves_the_values_and_never_the_zero(optimizer: object) -> None:
    _, layer = shared_linear()
    before, mask = layer.tensor, layer.tensor.mask
    steps = optimizer(layer.parameters())
    for _ in range(20):
        loss = (layer(torch.randn(8, 12)) - 1).square().mean()
        steps.zero_grad()
        loss.backward()
        steps.step()
    after = layer.tensor
    assert after.codebook[0] == 0
    assert not after.to_dense()[~mask].any()
    assert torch.equal(after.codes, before.codes)
    assert not torch.allclose(after.codebook, before.codebook)


def test_state_dict_brings_codes_and_values_back() -> None:
    _, layer = shared_linear(0)
    _, other = shared_linear(1)
    x = torch.randn(3, 12)
    assert not torch.equal(layer(x), other(x))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), other(x))
    assert set(layer.state_dict()) == {"bias", "weight.centroids", "weight.codes"}


def test_other_shapes_are_refused() -> None:
    _, layer = shared_linear()
    with pytest.raises(ValueError, match="the layer that it replaces"):
        CodebookLinear.from_linear(nn.Linear(3, 3), layer.tensor)
    conv = nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")
    tensor = share(conv.weight, torch.ones_like(conv.weight, dtype=torch.bool), 2)
    with pytest.raises(ValueError, match="'circular'"):
        CodebookConv2d.from_conv(conv, tensor)
