"""Iterative pruning, its controls, and the line between two networks."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from reference.pruning import connectivity, lottery_ticket, ticket_task
from reference.pruning import parallel_training as parallel

PARITY = Path(__file__).parents[1] / "parity"


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(PARITY / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


GOOGLE, OPEN_LTH = load("lth_google"), load("lth_open_lth")


def state(seed: int = 0, models: int = 3) -> parallel.States:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a.weight": (7, 9), "a.bias": (7,), "b.weight": (4, 7)}
    return {name: torch.randn(models, *shape, generator=generator) for name, shape in shapes.items()}


def grow(start: parallel.States, masks: parallel.States) -> parallel.States:
    """A training that needs no data: every living weight grows by its place in the tensor."""
    moved = {name: value + torch.linspace(0, 1, value[0].numel()).view(value[0].shape) for name, value in start.items()}
    return lottery_ticket.masked(moved, masks)


@pytest.mark.parametrize("case", ["plain", "ties"])
def test_whole_rounds_of_googles_code(case: str) -> None:
    """Weights of each round come from the file; masks must be those that its authors' code made of them."""
    layers = ["layer0", "layer1", "layer2"]
    turns = iter(range(6))

    def recorded(start: parallel.States, masks: parallel.States) -> parallel.States:
        turn = min(next(turns), 4)
        return {name: torch.from_numpy(GOOGLE[f"{case}.round{turn}.{name}.w"])[None] for name in layers}

    rounds = lottery_ticket.iterative(
        {name: torch.from_numpy(GOOGLE[f"{case}.round0.{name}.w"])[None] for name in layers},
        recorded,
        fractions={name: float(GOOGLE[f"{case}.percent.{name}"]) for name in layers},
        rounds=5,
        count_rule="round_plus_one",
        tie_rule="all",
        min_keep=0,
    )
    for found in rounds:
        for name in layers if found.number else []:
            expected = GOOGLE[f"{case}.round{found.number - 1}.{name}.mask"].astype(bool)
            np.testing.assert_array_equal(found.masks[name][0].numpy(), expected)
            assert not found.start[name][0][~found.masks[name][0]].any()
    assert found.number == 5


@pytest.mark.parametrize("config", [0, 1, 2])
def test_whole_rounds_of_open_lth(config: int) -> None:
    names = [f"fc.{i}.weight" for i in range(3)]
    turns = iter([0, 1, 2, 3, 3])

    def recorded(start: parallel.States, masks: parallel.States) -> parallel.States:
        turn = next(turns)
        return {name: torch.from_numpy(OPEN_LTH[f"cfg{config}.round{turn}.{name}.w"])[None] for name in names}

    rounds = lottery_ticket.iterative(
        {name: torch.from_numpy(OPEN_LTH[f"cfg{config}.round0.{name}.w"])[None] for name in names},
        recorded,
        fractions=float(OPEN_LTH[f"cfg{config}.fraction"]),
        rounds=4,
        count_rule="ceil_plus_one",
        tie_rule="all",
        min_keep=0,
        dense=[name for name, skip in zip(names, OPEN_LTH[f"cfg{config}.ignored"], strict=True) if skip],
    )
    for found in rounds:
        for name in names if found.number else []:
            expected = OPEN_LTH[f"cfg{config}.round{found.number - 1}.{name}.mask"].astype(bool)
            np.testing.assert_array_equal(found.masks[name][0].numpy(), expected)
    assert found.number == 4


@given(st.floats(0, 0.6), st.floats(0, 0.6), st.integers(0, 50))
def test_rounds_are_nested_and_keep_the_exact_number(first: float, second: float, seed: int) -> None:
    fractions = {"a.weight": first, "b.weight": second}
    alive = {"a.weight": 63, "b.weight": 28}
    before = None
    for found in lottery_ticket.iterative(state(seed), grow, fractions=fractions, rounds=4):
        for name, mask in found.masks.items():
            assert (mask.flatten(1).sum(1) == alive[name]).all()
            assert before is None or not (mask & ~before[name]).any()
            alive[name] -= min(round(fractions[name] * alive[name]), alive[name] - 1)
        before = found.masks


def test_rewinding_starts_at_the_start_and_continuing_at_the_end() -> None:
    start = state()
    for restart in ("rewind", "continue"):
        rounds = list(lottery_ticket.iterative(start, grow, fractions=0.3, rounds=2, restart=restart))
        for earlier, later in itertools.pairwise(rounds):
            source = start if restart == "rewind" else earlier.trained
            for name, value in later.start.items():
                kept = later.masks.get(name, torch.ones_like(value, dtype=torch.bool))
                assert torch.equal(value[kept], source[name][kept])
                assert not value[~kept].any()
    assert rounds[0].masks.keys() == {"a.weight", "b.weight"}


def test_one_fraction_lets_layers_compete() -> None:
    start = state()
    start["b.weight"] = 100 * start["b.weight"].sign()
    masks = lottery_ticket.prune(start, 0.5)
    assert masks["b.weight"].all()
    torch.testing.assert_close(lottery_ticket.density(masks), torch.full((3,), 45 / 91, dtype=torch.float64))


def test_controls_keep_the_counts() -> None:
    like = lottery_ticket.prune(state(), 0.7)
    for masks in (
        lottery_ticket.largest(state(5), like),
        lottery_ticket.random_masks(like, [1, 2, 2]),
        lottery_ticket.shuffled_masks(like, [1, 2, 2]),
    ):
        for name, mask in masks.items():
            assert torch.equal(mask.flatten(1).sum(1), like[name].flatten(1).sum(1))
            assert not torch.equal(mask, like[name])
    shuffled = lottery_ticket.shuffled_masks(like, [1, 2, 3])
    for name, mask in shuffled.items():
        for dimension in (1, 2):
            assert torch.equal(mask.sum(dimension).sort(1).values, like[name].sum(dimension).sort(1).values)
    twice = lottery_ticket.random_masks({k: v[1:2].expand(3, -1, -1) for k, v in like.items()}, [1, 2, 2])
    assert torch.equal(twice["a.weight"][1], twice["a.weight"][2])
    assert not torch.equal(twice["a.weight"][0], twice["a.weight"][1])


def test_largest_is_magnitude_pruning() -> None:
    like = lottery_ticket.prune(state(), {"a.weight": 0.5})
    assert torch.equal(lottery_ticket.largest(state(), like)["a.weight"], like["a.weight"])


def test_signs_have_the_spread_of_their_layer() -> None:
    start = state()
    found = lottery_ticket.signs_only(start, ["a.weight"])
    assert torch.equal(found["a.weight"].sign(), start["a.weight"].sign())
    assert torch.equal(found["b.weight"], start["b.weight"])
    expected = start["a.weight"].flatten(1).std(1, correction=0)
    torch.testing.assert_close(found["a.weight"].abs().flatten(1).amax(1), expected)
    torch.testing.assert_close(found["a.weight"].abs().flatten(1).amin(1), expected)


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="rounds is -1"):
        next(lottery_ticket.iterative(state(), grow, fractions=0.2, rounds=-1))
    with pytest.raises(ValueError, match="restart is 'back'"):
        next(lottery_ticket.iterative(state(), grow, fractions=0.2, rounds=1, restart="back"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"fractions names \['c'\]"):
        lottery_ticket.prune(state(), {"c": 0.2})
    with pytest.raises(ValueError, match="dense is"):
        lottery_ticket.prune(state(), {"a.weight": 0.2}, dense=["a.weight"])
    with pytest.raises(ValueError, match="points is 2"):
        connectivity.errors_between(nn.Linear(2, 2), {}, {}, torch.zeros(1, 2), torch.zeros(1), points=2)


def test_barrier_of_a_network_that_loses_its_sign_on_the_way() -> None:
    """Two one-weight networks, w = 1 and w = 1: no barrier; and a hidden layer with its units exchanged: all lost."""
    net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
    x = torch.tensor([[1.0], [-1.0]])
    y = torch.tensor([0, 1])
    first = {"0.weight": torch.tensor([[[1.0], [-1.0]]]), "2.weight": torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])}
    swapped = {"0.weight": first["0.weight"].flip(1), "2.weight": first["2.weight"].flip(2)}
    for second, expected in ((first, 0.0), (swapped, 0.5)):
        errors = connectivity.errors_between(net, first, second, x, y, points=5)
        assert errors.shape == (5, 1)
        assert errors[0] == errors[-1] == 0
        assert connectivity.barrier(errors).item() == expected
    for alpha, end in ((0.0, first), (1.0, swapped)):
        for name, value in connectivity.between(first, swapped, alpha).items():
            assert torch.equal(value, end[name])


def test_the_task_splits_by_scan_and_stops_early() -> None:
    images = ticket_task.data()
    assert [len(labels) for _, labels in images] == [2200, 788, 4000]
    before = torch.get_rng_state()
    states = ticket_task.initial([3, 3, 4])
    assert torch.equal(torch.get_rng_state(), before)  # its draws are its seeds'
    assert torch.equal(states["fc1.weight"][0], states["fc1.weight"][1])
    assert not torch.equal(states["fc1.weight"][0], states["fc1.weight"][2])
    torch.testing.assert_close(states["fc1.weight"].std(), torch.tensor((2 / 1084) ** 0.5), rtol=0.01, atol=0)
    model = ticket_task.LeNet300()
    watch = ticket_task.EarlyStop(model, images, every=2)
    snapshots = {}

    def look(step: int, state: parallel.States) -> None:
        watch(step, state)
        snapshots[step] = {name: value.clone() for name, value in state.items()}

    parallel.train(model, states, *images.train, steps=6, seeds=[0, 1, 2], rates=[0.1] * 3, after_step=look)
    assert watch.steps == [2, 4, 6]
    for index, step in enumerate(watch.step().tolist()):
        losses = {at: parallel.evaluate(model, snapshots[at], *images.validation)[0][index] for at in watch.steps}
        assert min(losses, key=lambda at: losses[at]) == step
        assert torch.equal(watch.best["fc2.weight"][index], snapshots[step]["fc2.weight"][index])
    assert watch.accuracy().shape == (3,)
