"""Mask distances by hand, and the rule that draws an early-bird ticket on sequences made for it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from reference.models.vision import SmallResNet
from reference.pruning import early_bird, magnitude


def mask(text):
    return {"m": torch.tensor([character == "1" for character in text])}


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [("1100", "1100", 0), ("1100", "0011", 1), ("1100", "1010", 0.5), ("1000", "1001", 0.25)],
)
def test_distances_by_hand(first, second, distance):
    assert early_bird.mask_distance(mask(first), mask(second)) == distance


def test_layers_weigh_by_their_size():
    a = {"x": torch.ones(10, dtype=torch.bool), "y": torch.ones(2, 15, dtype=torch.bool)}
    b = {"x": torch.zeros(10, dtype=torch.bool), "y": torch.ones(2, 15, dtype=torch.bool)}
    assert early_bird.mask_distance(a, b) == 10 / 40


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=3, max_size=3))
def test_it_is_a_metric(rows):
    a, b, c = ({"m": torch.tensor(row)} for row in rows)
    d = early_bird.mask_distance
    assert d(a, b) == d(b, a)
    assert (d(a, b) == 0) == torch.equal(a["m"], b["m"])
    assert d(a, c) <= d(a, b) + d(b, c) + 1e-12


@pytest.mark.parametrize("density", [0.5, 0.21, 0.036])
def test_random_masks_are_the_chance_distance_apart(density):
    generator = torch.Generator().manual_seed(0)
    a, b = ({"m": torch.rand(200_000, generator=generator) < density} for _ in range(2))
    chance = early_bird.chance_distance(density)
    assert early_bird.mask_distance(a, b) == pytest.approx(chance, abs=5 * (chance / 200_000) ** 0.5)


def test_below_about_five_percent_kept_the_usual_threshold_is_met_by_chance():
    assert early_bird.chance_distance(0.05) < 0.1 < early_bird.chance_distance(0.06)


def table(sequence):
    return early_bird.distances([mask(text) for text in sequence])


def test_the_table_holds_all_pairs():
    found = table(["1100", "1010", "0011"])
    np.testing.assert_array_equal(found, [[0, 0.5, 1], [0.5, 0, 0.5], [1, 0.5, 0]])


def test_a_ticket_is_drawn_when_the_newest_mask_is_near_its_whole_window():
    #         0       1       2       3       4       5
    masks = ["1100", "0011", "1010", "1010", "1010", "1010"]
    assert early_bird.first_stable(table(masks), window=3, threshold=0.1) == 4
    assert early_bird.first_stable(table(masks), window=4, threshold=0.1) == 5
    assert early_bird.first_stable(table(masks), window=5, threshold=0.1) is None
    assert early_bird.first_stable(table(masks), window=2, threshold=0.1) == 3
    assert early_bird.first_stable(table(masks), window=5, threshold=0.5) == 4


def test_slow_drift_is_seen_where_neighbours_alone_would_hide_it():
    # Each mask differs from the next by one swap in 40 (0.05), from the fourth before by 0.2.
    base = ["1"] * 20 + ["0"] * 20
    masks = []
    for step in range(10):
        now = base.copy()
        for i in range(step):
            now[i], now[39 - i] = "0", "1"
        masks.append("".join(now))
    found = table(masks)
    assert (np.diag(found, 1) == 0.05).all()
    assert early_bird.first_stable(found, window=2, threshold=0.1) == 1
    assert early_bird.first_stable(found, window=5, threshold=0.1) is None
    assert early_bird.first_stable(found, window=5, threshold=0.2) == 4


def test_the_window_must_be_full():
    assert early_bird.first_stable(table(["10"] * 4), window=5) is None
    assert early_bird.first_stable(table(["10"] * 5), window=5) == 4


def slow_channels(model, ratio):
    """The authors' loop: sort all scales, and keep what exceeds the one at position int(n · ratio)."""
    norms = {name: m for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    everything = sorted(abs(value) for m in norms.values() for value in m.weight.tolist())
    cut = everything[int(len(everything) * ratio)]
    return {name: [abs(value) > cut for value in m.weight.tolist()] for name, m in norms.items()}


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.7])
def test_channel_masks_equal_the_authors_loop(ratio):
    torch.manual_seed(0)
    model = SmallResNet(8)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
    found = early_bird.channel_masks(model, ratio)
    assert {name: value.tolist() for name, value in found.items()} == slow_channels(model, ratio)
    channels = sum(len(value) for value in found.values())
    assert sum(int((~value).sum()) for value in found.values()) == int(ratio * channels) + 1


def test_at_the_start_all_scales_are_equal_and_no_channel_is_kept():
    found = early_bird.channel_masks(SmallResNet(8), 0.5)
    assert not any(value.any() for value in found.values())


def test_weight_masks_settle_as_the_weights_do():
    generator = torch.Generator().manual_seed(0)
    noise, signal = torch.randn(8, 50, 40, generator=generator), torch.randn(50, 40, generator=generator)
    masks = [{"w": magnitude.mask(signal + noise[epoch] * 4.0**-epoch, 0.7)} for epoch in range(6)]
    steps = np.diag(early_bird.distances(masks), 1)
    assert (steps[1:] < steps[:-1]).all()
    assert early_bird.first_stable(early_bird.distances(masks), window=3, threshold=0.1) == 3


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="names"):
        early_bird.mask_distance(mask("10"), {"n": torch.ones(2, dtype=torch.bool)})
    for other in ({"m": torch.ones(3, dtype=torch.bool)}, {"m": torch.ones(2)}):
        with pytest.raises(ValueError, match="'m'"):
            early_bird.mask_distance(mask("10"), other)
    with pytest.raises(ValueError, match="no positions"):
        early_bird.mask_distance({}, {})
    with pytest.raises(ValueError, match="batch norm"):
        early_bird.channel_masks(nn.Linear(2, 2), 0.5)
    with pytest.raises(ValueError, match="square"):
        early_bird.first_stable(np.zeros((2, 3)))
    for keywords in ({"window": 1}, {"threshold": 2}):
        with pytest.raises(ValueError, match=next(iter(keywords))):
            early_bird.first_stable(np.zeros((2, 2)), **keywords)
    with pytest.raises(ValueError, match="density is 0"):
        early_bird.chance_distance(0)
