"""Derivatives against the exact Hessian of a small network; measurements against quantising by hand."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from reference.dynamic import sensitivity
from reference.quantization.grid import QuantizationSpec

GRIDS = [QuantizationSpec(bits, symmetric=True, group_size=4) for bits in (2, 3, 8)]
NAMES = ["0", "2"]


def network() -> tuple[nn.Sequential, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(4 - 1, 4)).double()
    return model, torch.randn(30, 4).double(), torch.randint(4, (30,))


def exact_hessian(name: str) -> Tensor:
    """Second derivatives by the weight of one layer, ``[n, n]``."""
    model, x, y = network()
    weight = model.get_submodule(name).weight.detach()

    def loss(flat: Tensor) -> Tensor:
        return functional.cross_entropy(functional_call(model, {f"{name}.weight": flat.view_as(weight)}, (x,)), y)

    return torch.autograd.functional.hessian(loss, weight.flatten())


def test_traces_are_those_of_the_exact_hessian() -> None:
    model, x, y = network()
    traces = sensitivity.hessian_traces(model, NAMES, lambda m: functional.cross_entropy(m(x), y), draws=3000)
    for name in NAMES:
        exact = float(exact_hessian(name).trace())
        assert abs(traces[name].mean - exact) < 4 * traces[name].error
        assert traces[name].error < 0.05 * abs(exact)
        assert traces[name].size == 12


def test_the_error_of_a_trace_is_what_the_theory_says() -> None:
    """Signs have variance 2 · (sum of squares off the diagonal); other layers' blocks add theirs."""
    model, x, y = network()
    draws = 4000
    traces = sensitivity.hessian_traces(model, ["0"], lambda m: functional.cross_entropy(m(x), y), draws=draws, seed=5)
    hessian = exact_hessian("0")
    off = hessian - hessian.diag().diag()
    assert traces["0"].error == pytest.approx(float((2 * off.square().sum() / draws).sqrt()), rel=0.1)


def test_fisher_is_the_sum_of_squared_gradients_one_by_one() -> None:
    model, x, y = network()
    found = sensitivity.fisher(
        model, NAMES, list(zip(x.split(2), y.split(2), strict=True)),
        lambda m, s: functional.cross_entropy(m(s[0]), s[1], reduction="sum"), 30,
    )  # fmt: skip
    for name in NAMES:
        expected = torch.zeros_like(model.get_submodule(name).weight)
        for rows in range(0, 30, 2):
            model.zero_grad()
            functional.cross_entropy(model(x[rows : rows + 2]), y[rows : rows + 2], reduction="sum").backward()
            expected += model.get_submodule(name).weight.grad ** 2 / 30
        torch.testing.assert_close(found[name].double(), expected, rtol=1e-5, atol=1e-8)


def test_fisher_is_the_hessian_where_the_model_is_right() -> None:
    """Labels drawn from the model itself, many of them: the diagonals meet for the last layer, whose logits are linear."""
    model, _, _ = network()
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(4000, 4, generator=generator).double()
    y = torch.multinomial(model(x).softmax(-1), 1, generator=generator).squeeze(1)
    found = sensitivity.fisher(
        model, ["2"], list(zip(x.split(1), y.split(1), strict=True)),
        lambda m, s: functional.cross_entropy(m(s[0]), s[1], reduction="sum"), len(x),
    )["2"]  # fmt: skip
    p = model(x).softmax(-1)
    hidden = model[:2](x)
    exact = ((p * (1 - p)).T @ hidden.square()) / len(x)
    torch.testing.assert_close(found.double(), exact, rtol=0.12, atol=1e-3)


def test_predictions_are_quadratic_forms_of_the_rounding_error() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))
    diagonal = {name: torch.rand(model.get_submodule(name).weight.shape) for name in NAMES}
    errors = sensitivity.squared_errors(model, GRIDS, NAMES)
    by_fisher = sensitivity.predicted_by_fisher(model, GRIDS, diagonal)
    flat = {name: sensitivity.Trace(3.0, 0.0, model.get_submodule(name).weight.numel()) for name in NAMES}
    by_hessian = sensitivity.predicted_by_hessian(errors, flat)
    for name, grid in itertools.product(NAMES, GRIDS):
        weight = model.get_submodule(name).weight.detach()
        change = sensitivity.rounded(weight, grid) - weight
        assert errors[name][grid.bits] == pytest.approx(float(change.square().sum()), rel=1e-5)
        assert by_fisher[name][grid.bits] == pytest.approx(float((diagonal[name] * change**2).sum()) / 2, rel=1e-5)
        mean = flat[name].mean / flat[name].size
        assert by_hessian[name][grid.bits] == pytest.approx(mean / 2 * errors[name][grid.bits])


def language() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4)), torch.randn(16, 8)


def test_one_layer_is_quantised_at_a_time_and_restored() -> None:
    model, x = language()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    table = sensitivity.measured(model, GRIDS, NAMES, lambda m: float(m(x).square().sum()))
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    base = float(model(x).detach().square().sum())
    for name, grid in itertools.product(NAMES, GRIDS):
        other, _ = language()
        layer = other.get_submodule(name)
        layer.weight.data = sensitivity.rounded(layer.weight, grid)
        assert table[name][grid.bits] == float(other(x).detach().square().sum()) - base


def test_weights_come_back_after_an_error() -> None:
    model, _ = language()
    before, calls = model[0].weight.clone(), []

    def loss(m: nn.Module) -> float:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("no")
        return 0.0

    with pytest.raises(RuntimeError):
        sensitivity.measured(model, GRIDS, NAMES, loss)
    assert torch.equal(model[0].weight, before)


def test_rank_correlation_knows_only_ranks() -> None:
    values = np.random.default_rng(0).normal(size=20)
    assert sensitivity.rank_correlation(values.tolist(), np.exp(3 * values).tolist()) == pytest.approx(1)
    assert sensitivity.rank_correlation([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(1 - 6 * 2 / (4 * 15))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: sensitivity.measured(nn.Linear(4, 4), [GRIDS[0], replace(GRIDS[0], symmetric=False)], [], len),
            "once",
        ),
        (lambda: sensitivity.fisher(nn.Linear(4, 4), [], [], lambda m, s: s, 0), "count is 0"),
        (lambda: sensitivity.hessian_traces(nn.Linear(4, 4), [""], lambda m: m.weight.sum(), draws=1), "draws is 1"),
        (lambda: sensitivity.rank_correlation([1.0], [1.0]), "2 or more"),
    ],
)
def test_wrong_arguments_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
