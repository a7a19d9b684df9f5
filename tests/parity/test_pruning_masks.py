"""Count and tie rules, schedule, against masks and values recorded from published codes (see README.md)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from reference.pruning import magnitude, schedules


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parent / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


GOOGLE, OPEN_LTH, WANDA = load("lth_google"), load("lth_open_lth"), load("wanda")
SCHEDULE, MOVEMENT = load("cubic_schedule"), load("movement_masks")
PLUS_ONE_ALL = {"count_rule": "round_plus_one", "tie_rule": "all"}


@pytest.mark.parametrize("case", ["plain", "ties"])
@pytest.mark.parametrize("layer", ["layer0", "layer1", "layer2"])
def test_google_lottery_ticket_rounds(case: str, layer: str) -> None:
    alive = None
    for turn in range(5):
        weight = torch.from_numpy(GOOGLE[f"{case}.round{turn}.{layer}.w"])
        percent = float(GOOGLE[f"{case}.percent.{layer}"])
        alive = magnitude.mask(weight, percent, alive=alive, **PLUS_ONE_ALL)
        np.testing.assert_array_equal(alive.numpy(), GOOGLE[f"{case}.round{turn}.{layer}.mask"].astype(bool))


@pytest.mark.parametrize("edge", range(4))
def test_google_edges_remove_one_more_than_ours(edge: int) -> None:
    weight, percent = torch.from_numpy(GOOGLE[f"edge{edge}.w"]), float(GOOGLE[f"edge{edge}.percent"])
    expected = GOOGLE[f"edge{edge}.mask"].astype(bool)
    np.testing.assert_array_equal(magnitude.mask(weight, percent, **PLUS_ONE_ALL).numpy(), expected)
    assert int(magnitude.mask(weight, percent).sum()) == expected.sum() + 1


@pytest.mark.parametrize("config", [0, 1, 2])
def test_open_lth_rounds(config: int) -> None:
    names = [f"fc.{i}.weight" for i in range(3)]
    dense = [name for name, skip in zip(names, OPEN_LTH[f"cfg{config}.ignored"], strict=True) if skip]
    alive = None
    for turn in range(4):
        weights = {name: torch.from_numpy(OPEN_LTH[f"cfg{config}.round{turn}.{name}.w"]) for name in names}
        alive = magnitude.global_masks(
            weights,
            float(OPEN_LTH[f"cfg{config}.fraction"]),
            alive=alive,
            dense=dense,
            count_rule="ceil_plus_one",
            tie_rule="all",
            min_keep=0,
        )
        for name in names:
            expected = OPEN_LTH[f"cfg{config}.round{turn}.{name}.mask"].astype(bool)
            np.testing.assert_array_equal(alive[name].numpy(), expected)


@pytest.mark.parametrize("layer", [f"block{b}.{part}" for b in (0, 1) for part in ("up", "down")])
def test_wanda_repository_magnitude(layer: str) -> None:
    weight = torch.from_numpy(WANDA[f"{layer}.W"])
    keep = magnitude.mask(weight, 0.5, count_rule="floor_plus_one", tie_rule="all")
    np.testing.assert_array_equal(keep.numpy(), WANDA[f"magnitude_s50.{layer}.mask"].astype(bool))
    np.testing.assert_array_equal(
        magnitude.n_of_m(weight, 2, 4).numpy(), WANDA[f"magnitude_2of4.{layer}.mask"].astype(bool)
    )


@pytest.mark.parametrize("key", [k for k in MOVEMENT if ".magnitude." in k])
def test_movement_magnitude_binarizer(key: str) -> None:
    scores, density = torch.from_numpy(MOVEMENT[f"{key.split('.')[0]}.scores"]), float(key.split(".magnitude.")[1])
    keep = magnitude.mask(scores, 1 - density, count_rule="floor_kept")
    np.testing.assert_array_equal(keep.numpy(), MOVEMENT[key].astype(bool))


def test_movement_keeps_what_its_density_says() -> None:
    """The code is given the density d and keeps ``int(d n)``; we are given 1 - d, where d can no longer be exact."""
    for hundredth in range(1, 100):
        for total in (5, 10, 100, 1000, 4096):
            removed = magnitude.removed_count(1 - hundredth / 100, total, "floor_kept")
            assert total - removed == int(hundredth / 100 * total), (hundredth, total)


@pytest.mark.parametrize("case", range(5))
def test_movement_schedule(case: int) -> None:
    total, warmup, initial, final, first, last, _ = SCHEDULE[f"s{case}.setting"]
    found = [
        schedules.cubic(step, int(total), initial, final, int(first * warmup), int(last * warmup))
        for step in range(int(total) + 2)
    ]
    np.testing.assert_allclose(found, SCHEDULE[f"s{case}.threshold"], rtol=1e-12)
