"""Densities of layers against a bisection, whole counts, and random masks."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference.pruning import densities as layerwise

LENET = {"fc1": (300, 784), "fc2": (100, 300), "fc3": (10, 100)}
SHAPES = st.dictionaries(
    st.sampled_from("abcde"),
    st.lists(st.integers(1, 12), min_size=2, max_size=4).map(tuple),
    min_size=1,
)
DENSITIES = st.floats(0.001, 1)


def by_bisection(shapes, density, kernel):
    """min(1, ε p) of each layer, with the ε at which the sizes add up."""
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    sides = {name: shape if kernel else shape[:2] for name, shape in shapes.items()}
    raw = {name: sum(side) / math.prod(side) for name, side in sides.items()}
    low, high = 0.0, 1 / min(raw.values())
    for _ in range(200):
        middle = (low + high) / 2
        reached = sum(min(1, middle * raw[name]) * sizes[name] for name in shapes)
        low, high = (middle, high) if reached < density * sum(sizes.values()) else (low, middle)
    return {name: min(1, high * raw[name]) for name in shapes}


@given(SHAPES, DENSITIES, st.booleans())
def test_erdos_renyi_equals_a_bisection_over_epsilon(shapes, density, kernel):
    found = layerwise.erdos_renyi_densities(shapes, density, kernel=kernel)
    assert found == pytest.approx(by_bisection(shapes, density, kernel), rel=1e-9, abs=1e-12)


def test_lenets_small_layer_is_dense_and_the_others_take_what_is_left():
    found = layerwise.erdos_renyi_densities(LENET, 0.07)
    assert found["fc3"] == 1
    # epsilon by hand: 0.07 · 266,200 - 1,000 connections over 1,084 + 400 units.
    epsilon = (0.07 * 266_200 - 1000) / 1484
    assert found["fc1"] == pytest.approx(epsilon * 1084 / 235_200)
    assert found["fc2"] == pytest.approx(epsilon * 400 / 30_000)


def test_the_kernel_counts_where_there_is_one():
    shapes = {"conv": (64, 32, 3, 3), "fc": (10, 64)}
    plain = layerwise.erdos_renyi_densities(shapes, 0.02, kernel=False)
    kernel = layerwise.erdos_renyi_densities(shapes, 0.02)
    assert plain["conv"] / plain["fc"] == pytest.approx((64 + 32) / (64 * 32) / (74 / 640))
    assert kernel["conv"] / kernel["fc"] == pytest.approx((64 + 32 + 3 + 3) / (64 * 32 * 9) / (74 / 640))
    assert layerwise.erdos_renyi_densities(LENET, 0.2, kernel=False) == layerwise.erdos_renyi_densities(LENET, 0.2)


def test_full_density_makes_all_layers_dense():
    assert layerwise.erdos_renyi_densities(LENET, 1.0) == dict.fromkeys(LENET, 1.0)
    assert layerwise.uniform_densities(LENET, 0.3, dense=["fc3"]) == {"fc1": 0.3, "fc2": 0.3, "fc3": 1.0}


@given(SHAPES, DENSITIES)
def test_counts_are_near_and_their_sum_is_exact(shapes, density):
    wanted = layerwise.erdos_renyi_densities(shapes, density)
    counts = layerwise.kept_counts(shapes, wanted)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    assert sum(counts.values()) == round(math.fsum(wanted[name] * sizes[name] for name in shapes))
    for name in shapes:
        assert abs(counts[name] - wanted[name] * sizes[name]) < 1 + 1e-6
        assert 0 <= counts[name] <= sizes[name]


def test_counts_by_hand():
    shapes = {"a": (1, 10), "b": (1, 10), "c": (1, 10)}
    assert layerwise.kept_counts(shapes, {"a": 0.24, "b": 0.28, "c": 0.3}) == {"a": 2, "b": 3, "c": 3}
    assert layerwise.kept_counts({"a": (100,)}, {"a": 0.29}) == {"a": 29}


@given(SHAPES, DENSITIES, st.integers(0, 3))
def test_random_masks_hold_exact_counts(shapes, density, seed):
    counts = layerwise.kept_counts(shapes, layerwise.uniform_densities(shapes, density))
    masks = layerwise.random_masks(shapes, counts, torch.Generator().manual_seed(seed))
    assert {name: int(mask.sum()) for name, mask in masks.items()} == counts
    assert {name: tuple(mask.shape) for name, mask in masks.items()} == shapes
    assert all(mask.dtype == torch.bool for mask in masks.values())


def test_random_masks_repeat_with_the_seed_and_differ_without():
    counts = layerwise.kept_counts(LENET, layerwise.uniform_densities(LENET, 0.5))
    a, b, c = (layerwise.random_masks(LENET, counts, torch.Generator().manual_seed(s))["fc1"] for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    # Two random halves agree on about half: 0.5 ± five standard deviations of 235,200 draws.
    assert abs(float((a == c).double().mean()) - 0.5) < 5 * 0.5 / math.sqrt(235_200)


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="density is 0"):
        layerwise.uniform_densities(LENET, 0)
    with pytest.raises(ValueError, match="dense names"):
        layerwise.uniform_densities(LENET, 0.5, dense=["fc4"])
    for shape in ((3,), (3, 0)):
        with pytest.raises(ValueError, match="'w'"):
            layerwise.erdos_renyi_densities({"w": shape}, 0.5)
    with pytest.raises(ValueError, match="densities names"):
        layerwise.kept_counts(LENET, {"fc1": 0.5})
    with pytest.raises(ValueError, match="may be 0 to 1"):
        layerwise.kept_counts({"w": (2, 2)}, {"w": 1.5})
    for counts in ({}, {"w": 5}, {"w": -1}):
        with pytest.raises(ValueError, match="counts of 'w'"):
            layerwise.random_masks({"w": (2, 2)}, counts, torch.Generator())
