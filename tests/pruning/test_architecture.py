"""Units and connections on a path against a search of all paths, and small dense networks by size."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from reference.models.vision import LeNet300
from reference.pruning import architecture


@st.composite
def chains(draw):
    sizes = draw(st.lists(st.integers(1, 4), min_size=2, max_size=5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    density = draw(st.floats(0, 1))
    return [torch.rand(b, a, generator=generator) < density for a, b in itertools.pairwise(sizes)]


def all_paths(masks):
    sizes = [masks[0].shape[1], *(mask.shape[0] for mask in masks)]
    for path in itertools.product(*(range(size) for size in sizes)):
        if all(masks[i][path[i + 1], path[i]] for i in range(len(masks))):
            yield path


@given(chains())
def test_live_is_what_lies_on_a_path(masks):
    paths = list(all_paths(masks))
    units = architecture.live_units(masks)
    for level, live in enumerate(units):
        assert set(live.nonzero().flatten().tolist()) == {path[level] for path in paths}
    for layer, live in enumerate(architecture.live_connections(masks)):
        assert {tuple(pair) for pair in live.nonzero().tolist()} == {(p[layer + 1], p[layer]) for p in paths}
    assert architecture.widths(masks) == [int(live.sum()) for live in units]


def test_a_dead_unit_takes_its_neighbours_with_it():
    # Input 0 → a → b, but b is not read; input 1 → c → d → output.
    first = torch.tensor([[1, 0], [0, 1]], dtype=torch.bool)
    second = torch.tensor([[1, 0], [0, 1]], dtype=torch.bool)
    third = torch.tensor([[0, 1]], dtype=torch.bool)
    assert architecture.widths([first, second, third]) == [1, 1, 1, 1]


def test_without_dead_connections_the_function_changes_by_constants_only():
    generator = torch.Generator().manual_seed(0)
    sizes = [20, 15, 12, 4]
    masks = [torch.rand(b, a, generator=generator) < 0.08 for a, b in itertools.pairwise(sizes)]
    live = architecture.live_connections(masks)
    assert 0 < sum(int(m.sum()) for m in live) < sum(int(m.sum()) for m in masks)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 15), nn.ReLU(), nn.Linear(15, 12), nn.ReLU(), nn.Linear(12, 4))
    outputs = []
    x = torch.randn(6, 20)
    for chosen in (masks, live):
        h = x
        for number, mask in enumerate(chosen):
            h = nn.functional.linear(h, model[2 * number].weight * mask, model[2 * number].bias)
            h = h.relu() if number < 2 else h
        outputs.append(h)
    change = outputs[0] - outputs[1]
    torch.testing.assert_close(change, change[:1].expand_as(change))


def test_parameters_are_those_of_the_network():
    assert architecture.parameters([784, 300, 100, 10]) == sum(p.numel() for p in LeNet300().parameters())


@given(st.integers(900, 300_000))
def test_the_budget_is_used_and_not_exceeded(budget):
    sizes = architecture.dense_widths(budget, (300, 100), 784, 10)
    assert sizes[0] == 784
    assert sizes[-1] == 10
    spent = architecture.parameters(sizes)
    assert spent <= budget
    for level in (1, 2):  # one unit more in either layer would be too many
        wider = sizes.copy()
        wider[level] += 1
        assert architecture.parameters(wider) > budget


def test_the_dense_network_is_found_at_its_own_size():
    assert architecture.dense_widths(266_610, (300, 100), 784, 10) == [784, 300, 100, 10]
    assert architecture.dense_widths(266_610, (3, 1), 784, 10) == [784, 300, 100, 10]


def test_errors_name_what_is_wrong():
    ones = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="masks is empty"):
        architecture.live_units([])
    with pytest.raises(ValueError, match="must be bool"):
        architecture.widths([ones.float()])
    with pytest.raises(ValueError, match="2 outputs"):
        architecture.live_connections([ones, ones])
    with pytest.raises(ValueError, match="sizes is"):
        architecture.parameters([3])
    with pytest.raises(ValueError, match="proportions is"):
        architecture.dense_widths(10_000, (3, 0), 784, 10)
    with pytest.raises(ValueError, match="budget is 100"):
        architecture.dense_widths(100, (3, 1), 784, 10)
