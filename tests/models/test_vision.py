"""The networks of the papers: their layer sizes, counted, and that they learn."""

import pytest
import torch

from reference.data import digits
from reference.evaluation import accuracy
from reference.models.vision import LeNet5, LeNet300, SmallResNet
from reference.training import fit


def weights(model: torch.nn.Module) -> dict[str, int]:
    return {name: p.numel() for name, p in model.named_parameters() if p.ndim > 1}


def test_lenet_300_100_has_the_papers_sizes() -> None:
    """Han et al. 2016, table 2: 235K, 30K, 1K, together 266K."""
    assert weights(LeNet300()) == {"fc1.weight": 784 * 300, "fc2.weight": 300 * 100, "fc3.weight": 1000}
    assert round(sum(weights(LeNet300()).values()) / 1000) == 266


def test_lenet_5_has_the_papers_sizes() -> None:
    """Han et al. 2016, table 3: 0.5K, 25K, 400K, 5K, together 431K."""
    counted = weights(LeNet5())
    assert counted == {"conv1.weight": 500, "conv2.weight": 25_000, "fc1.weight": 400_000, "fc2.weight": 5_000}
    assert sum(counted.values()) == 430_500


@pytest.mark.parametrize("make", [LeNet300, LeNet5, SmallResNet])
def test_images_become_logits(make: type) -> None:
    torch.manual_seed(0)
    assert make()(torch.rand(3, 1, 28, 28)).shape == (3, 10)


def test_residual_stages_halve_the_image_and_double_the_channels() -> None:
    model = SmallResNet(width=8)
    x = torch.rand(2, 8, 28, 28)
    shapes = []
    for stage in model.stages:
        x = stage(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(8, 28, 28), (16, 14, 14), (32, 7, 7)]


def test_a_residual_network_has_no_biases_but_those_of_norms_and_the_head() -> None:
    """Counted by hand, as in He et al. 2016: a convolution before a batch norm needs no bias."""
    width, wide = 4, 0
    for inputs, outputs in ((4, 4), (4, 8), (8, 16)):
        wide += 9 * inputs * outputs + 3 * 9 * outputs**2 + 4 * 2 * outputs  # four convolutions, each with its norm
        wide += 0 if inputs == outputs else inputs * outputs + 2 * outputs  # the shortcut of 1 x 1
    stem, head = 9 * width + 2 * width, 4 * width * 10 + 10
    assert sum(p.numel() for p in SmallResNet(width).parameters()) == stem + wide + head


def test_lenet_learns_the_digits() -> None:
    torch.manual_seed(0)
    model = LeNet300()
    images, labels = digits.load(variations=2)
    before = accuracy(model, *digits.load("test", variations=1))
    losses = fit(model, images, labels, epochs=6, optimizer=torch.optim.Adam(model.parameters(), 1e-3))
    assert losses[-1] < losses[0] / 3
    assert accuracy(model, *digits.load("test", variations=1)) > max(0.85, before)
