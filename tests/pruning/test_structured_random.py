"""Channels of networks drawn at random: what is cut out must compute what zeros in its place compute."""

import random

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from reference.pruning import structured
from reference.pruning.dependency import groups


class Drawn(nn.Module):
    """A program on feature maps: each step reads one or two of the maps so far, and adds one."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.layers = nn.ModuleList()
        self.steps: list[tuple] = []
        shapes = [(3, 8)]  # channels and width of each map
        for _ in range(draw.randint(4, 12)):
            one = draw.randrange(len(shapes))
            channels, width = shapes[one]
            kind = draw.choice(["conv", "conv", "norm", "relu", "depthwise", "add", "cat", "gate", "pool"])
            if kind in ("add", "cat"):
                fits = [n for n, s in enumerate(shapes) if s[1] == width and (kind == "cat" or s[0] == channels)]
                two = draw.choice(fits)
                self.steps.append((kind, one, two))
                shapes.append((channels + shapes[two][0] if kind == "cat" else channels, width))
                continue
            if kind == "pool" and width < 4:
                kind = "relu"
            self.steps.append((kind, one, len(self.layers)))
            if kind == "conv":
                channels, out = draw.choice([4, 6, 8]), channels
                self.layers.append(nn.Conv2d(out, channels, 3, padding=1, bias=draw.random() < 0.5))
            elif kind == "norm":
                self.layers.append(nn.BatchNorm2d(channels, affine=draw.random() < 0.5))
            elif kind == "depthwise":
                times = draw.choice([1, 2])
                self.layers.append(nn.Conv2d(channels, channels * times, 3, padding=1, groups=channels))
                channels *= times
            elif kind == "gate":
                squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 2, 1), nn.ReLU())
                self.layers.append(squeeze.extend([nn.Conv2d(2, channels, 1), nn.Sigmoid()]))
            shapes.append((channels, width // 2 if kind == "pool" else width))
        channels, width = shapes[-1]
        self.last = nn.Linear(channels * width**2, 2)
        for layer in self.modules():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.normal_(layer.running_mean)
                nn.init.uniform_(layer.running_var, 0.5, 2)
                if layer.affine:
                    nn.init.normal_(layer.weight)
                    nn.init.normal_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for kind, one, other in self.steps:
            x = maps[one]
            if kind in ("add", "cat"):
                x = x + maps[other] if kind == "add" else torch.cat([x, maps[other]], dim=1)
            elif kind == "relu":
                x = functional.relu(x)
            elif kind == "pool":
                x = functional.max_pool2d(x, 2)
            else:
                x = x * self.layers[other](x) if kind == "gate" else self.layers[other](x)
            maps.append(x)
        return self.last(torch.flatten(maps[-1], 1))


@pytest.mark.parametrize("seed", range(40))
@torch.no_grad()
def test_the_small_network_equals_the_masked_one(seed: int) -> None:
    torch.manual_seed(seed)
    model, x = Drawn(seed).eval(), torch.randn(2, 3, 8, 8)
    found = groups(model, x)
    keep = structured.keep_best({g.name: torch.rand(g.size) for g in found if not g.fixed}, 0.5)
    small, zeros = structured.shrink(model, found, keep), structured.masked(model, found, keep)
    torch.testing.assert_close(small(x), zeros(x), atol=1e-4, rtol=1e-4)
    if keep:
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
