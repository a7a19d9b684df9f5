"""Sensitivity curves against pruning by hand; choices against their definition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from reference.pruning import magnitude, sensitivity

GRID = [0.2, 0.5, 0.8, 0.95]
SCORES = {"robust": [0.9, 0.9, 0.89, 0.8], "fragile": [0.88, 0.8, 0.5, 0.1]}


def two_layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def test_curves_prune_one_layer_and_restore_it() -> None:
    model = two_layers()
    x = torch.randn(20, 6)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def evaluate(network: nn.Module) -> float:
        return -float(network(x).detach().square().sum())

    found = sensitivity.curves(model, ["0.weight", "2.weight"], GRID, evaluate)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    for name in found:
        for sparsity, score in zip(GRID, found[name], strict=True):
            other = two_layers()
            weight = dict(other.named_parameters())[name]
            weight.data *= magnitude.mask(weight, sparsity)
            assert score == evaluate(other)


def test_curves_take_another_rule_and_restore_after_an_error() -> None:
    model = two_layers()
    before = model[0].weight.clone()
    seen = []

    def evaluate(network: nn.Module) -> float:
        seen.append(int((network[0].weight == 0).sum()))
        if len(seen) == 2:
            raise RuntimeError("no")
        return 0.0

    with pytest.raises(RuntimeError):
        sensitivity.curves(model, ["0.weight"], GRID, evaluate, rule=magnitude.row_mask)
    assert seen == [8, 24]
    assert torch.equal(model[0].weight, before)
    with pytest.raises(ValueError, match="0.wieght"):
        sensitivity.curves(model, ["0.wieght"], GRID, evaluate)


def test_tolerance_reads_the_curve_between_its_points() -> None:
    chosen = sensitivity.by_tolerance(SCORES, GRID, 0.9, 0.05)
    assert chosen["robust"] == pytest.approx(0.8 + 0.15 * 4 / 9)
    assert chosen["fragile"] == pytest.approx(0.2 + 0.3 * 0.03 / 0.08)
    assert sensitivity.by_tolerance(SCORES, GRID, 0.9, 1.0) == {"robust": 0.95, "fragile": 0.95}
    assert sensitivity.by_tolerance(SCORES, GRID, 0.9, 0.0) == {"robust": 0.5, "fragile": 0.0}


def test_a_curve_that_recovers_counts_as_fallen() -> None:
    chosen = sensitivity.by_tolerance({"noisy": [0.9, 0.7, 0.9, 0.9]}, GRID, 0.9, 0.1)
    assert chosen["noisy"] == pytest.approx(0.2 + 0.3 * 0.5)


@given(
    st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=1, max_size=4),
    st.lists(st.integers(1, 1000), min_size=4, max_size=4),
    st.floats(0, 0.95),
)
def test_target_is_met_with_equal_losses(curves: list, sizes: list, target: float) -> None:
    scores = {str(i): curve for i, curve in enumerate(curves)}
    size = {str(i): sizes[i] for i in range(len(curves))}
    chosen = sensitivity.by_target(scores, GRID, 0.9, size, target)
    overall = sum(size[name] * chosen[name] for name in scores) / sum(size.values())
    assert overall == pytest.approx(target, abs=1e-9)
    assert all(-1e-12 <= value <= 0.95 + 1e-12 for value in chosen.values())


def test_the_fragile_layer_is_pruned_less() -> None:
    chosen = sensitivity.by_target(SCORES, GRID, 0.9, {"robust": 900, "fragile": 100}, 0.7)
    assert chosen["robust"] > 0.7 > 0.3 > chosen["fragile"]


def test_a_loss_free_target_spares_in_proportion() -> None:
    chosen = sensitivity.by_target({"a": [0.9] * 4, "b": [0.95] * 4}, GRID, 0.9, {"a": 10, "b": 10}, 0.4)
    assert chosen == pytest.approx({"a": 0.4, "b": 0.4})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sensitivity.by_tolerance(SCORES, [0.5, 0.2, 0.8, 0.9], 0.9, 0.1), "rise"),
        (lambda: sensitivity.by_tolerance(SCORES, [0.5, 0.8], 0.9, 0.1), "4 values for 2"),
        (lambda: sensitivity.by_tolerance(SCORES, GRID, 0.9, -1), "tolerance is -1"),
        # NaN is above no limit: a layer that breaks the model would be pruned as far as the grid goes.
        (lambda: sensitivity.by_tolerance({"a": [0.9, float("nan")]}, [0.0, 0.9], 0.9, 0.02), r"scores\['a'\].*nan"),
        (lambda: sensitivity.by_target({"a": [0.9, -float("inf")]}, [0.0, 0.9], 0.9, {"a": 1}, 0.5), "finite"),
        (lambda: sensitivity.by_target(SCORES, GRID, 0.9, {"robust": 1, "fragile": 1}, 0.99), "target is 0.99"),
        (lambda: sensitivity.by_target(SCORES, GRID, 0.9, {"robust": 1}, 0.5), "sizes"),
    ],
)
def test_wrong_arguments_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
