"""Pruned weights stay exactly zero, whatever the optimiser; a mask that is applied once does not hold."""

import copy
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from torch.nn import functional

from reference.pruning import magnitude
from reference.pruning.masks import Masks
from reference.training import fit

OPTIMIZERS: dict[str, Callable] = {
    "sgd, momentum, decay": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "sgd, nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adam, L2": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adamw, amsgrad, foreach": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True, foreach=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9),
}


def problem() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))
    x = torch.randn(64, 12, generator=generator)
    return model, x, torch.randint(0, 4, (64,), generator=generator)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.named_parameters() if value.ndim > 1}


def steps(model, x, y, optimizer, count: int, after: Callable[[], object] = lambda: None) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        after()


def test_a_frozen_parameter_is_masked_too() -> None:
    model, x, _ = problem()
    model.requires_grad_(False)
    masks = Masks(model, magnitude.global_masks(weights(model), 0.7))
    assert all(torch.equal(weights(model)[name] == 0, ~keep) for name, keep in masks.masks.items())
    assert not model(x).requires_grad


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("knows_optimizer", [True, False])
def test_pruned_weights_are_exactly_zero_after_every_step(make: Callable, knows_optimizer: bool) -> None:
    model, x, y = problem()
    optimizer = make(model.parameters())
    steps(model, x, y, optimizer, 20)  # gather momentum first
    chosen = magnitude.global_masks(weights(model), 0.7)
    masks = Masks(model, chosen, optimizer if knows_optimizer else None)
    before = copy.deepcopy(model.state_dict())

    def after() -> None:
        masks()
        for name, keep in chosen.items():
            gone = weights(model)[name].detach()[~keep]
            assert torch.equal(gone.view(torch.int32), torch.zeros_like(gone, dtype=torch.int32)), "not even -0.0"

    steps(model, x, y, optimizer, 60, after)
    for name, keep in chosen.items():
        assert (weights(model)[name][keep] != before[name][keep]).any(), "the others must train"


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_zeroing_once_does_not_hold(make: Callable) -> None:
    model, x, y = problem()
    optimizer = make(model.parameters())
    steps(model, x, y, optimizer, 20)
    chosen = magnitude.global_masks(weights(model), 0.7)
    for name, keep in chosen.items():
        weights(model)[name].data.mul_(keep)
    steps(model, x, y, optimizer, 1)
    revived = sum(int((weights(model)[n].detach()[~keep] != 0).sum()) for n, keep in chosen.items())
    assert revived > 0.9 * sum(int((~keep).sum()) for keep in chosen.values())


@pytest.mark.parametrize("name", ["sgd, momentum, decay", "adam, L2", "adamw", "rmsprop"])
def test_masking_only_the_gradient_does_not_hold_either(name: str) -> None:
    """The momentum gathered before the weight was pruned moves it on."""
    model, x, y = problem()
    optimizer = OPTIMIZERS[name](model.parameters())
    steps(model, x, y, optimizer, 20)
    chosen = magnitude.global_masks(weights(model), 0.7)
    for key, keep in chosen.items():
        weights(model)[key].data.mul_(keep)
        weights(model)[key].register_hook(lambda g, keep=keep: g * keep)
    steps(model, x, y, optimizer, 1)
    assert all((weights(model)[key].detach()[~keep] != 0).any() for key, keep in chosen.items())


def test_with_the_optimizer_known_even_a_forgotten_call_does_no_harm() -> None:
    model, x, y = problem()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    steps(model, x, y, optimizer, 20)
    masks = Masks(model, magnitude.global_masks(weights(model), 0.7), optimizer)
    steps(model, x, y, optimizer, 30)
    for key, keep in masks.masks.items():
        assert not weights(model)[key].detach()[~keep].any()
        state = optimizer.state[weights(model)[key]]
        assert not state["exp_avg"][~keep].any()
        assert not state["exp_avg_sq"][~keep].any()
        assert state["exp_avg"][keep].all()


def test_training_is_that_of_the_network_without_the_pruned_weights() -> None:
    """Oracle: the forward pass multiplies by the mask, so that autograd itself gives pruned weights nothing."""
    model, x, y = problem()
    chosen = magnitude.global_masks(weights(model), 0.6)
    w1, b1, w2, b2 = (p.detach().clone().requires_grad_() for p in model.parameters())
    m1, m2 = chosen.values()
    optimizer = torch.optim.SGD([w1, b1, w2, b2], lr=0.1, momentum=0.9)
    for _ in range(25):
        optimizer.zero_grad()
        hidden = functional.relu(x @ (w1 * m1).T + b1)
        functional.cross_entropy(hidden @ (w2 * m2).T + b2, y).backward()
        optimizer.step()
    ours = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    steps(model, x, y, ours, 25, Masks(model, chosen, ours))
    torch.testing.assert_close(weights(model)["0.weight"], w1 * m1, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(model[2].bias, b2, rtol=1e-4, atol=1e-6)


def test_masks_are_a_callback_of_fit_and_clipping_does_not_see_pruned_weights() -> None:
    model, x, y = problem()
    masks = Masks(model, magnitude.global_masks(weights(model), 0.8))
    fit(model, x, y, epochs=3, optimizer=torch.optim.Adam(model.parameters(), lr=0.01), after_step=masks)
    assert masks.density() == pytest.approx(
        float((weights(model)["0.weight"] != 0).sum() + (model[2].weight != 0).sum()) / 256
    )
    functional.cross_entropy(model(x), y).backward()
    for name, keep in masks.masks.items():
        assert not weights(model)[name].grad[~keep].any()


def test_gradual_pruning_updates_masks_and_keeps_those_not_named() -> None:
    model, x, y = problem()
    optimizer = OPTIMIZERS["sgd, momentum, decay"](model.parameters())
    masks = Masks(model, magnitude.global_masks(weights(model), 0.2), optimizer)
    for sparsity in [0.4, 0.6, 0.8]:
        steps(model, x, y, optimizer, 5, masks)
        before = masks.state_dict()
        masks.update(magnitude.global_masks(weights(model), sparsity))
        assert masks.density() == pytest.approx(1 - sparsity, abs=1 / 256)
        assert not any((masks.masks[n] & ~before[n]).any() for n in before), "what is zero is smallest"
    second = masks.masks["2.weight"].clone()
    masks.update({"0.weight": torch.zeros(16, 12, dtype=torch.bool)})
    assert not model[0].weight.any()
    assert torch.equal(masks.masks["2.weight"], second)
    assert masks.densities() == {"0.weight": 0.0, "2.weight": float(second.double().mean())}


def test_a_brought_back_weight_starts_at_rest() -> None:
    model, x, y = problem()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    steps(model, x, y, optimizer, 20)
    all_true = torch.ones(16, 12, dtype=torch.bool)
    masks = Masks(model, {"0.weight": ~all_true}, optimizer)
    steps(model, x, y, optimizer, 3, masks)
    masks.update({"0.weight": all_true})
    assert not model[0].weight.any()
    assert not optimizer.state[model[0].weight]["exp_avg"].any()
    model[2].weight.data.fill_(0.1)
    steps(model, x, y, optimizer, 1, masks)
    assert model[0].weight.any()


def test_state_survives_a_round_trip_through_safetensors() -> None:
    model, _, _ = problem()
    masks = Masks(model, magnitude.global_masks(weights(model), 0.7))
    state = load(save(masks.state_dict()))
    other, _, _ = problem()
    again = Masks(other, {name: torch.ones_like(mask) for name, mask in masks.masks.items()})
    again.load_state_dict(state)
    assert all(torch.equal(again.masks[name], masks.masks[name]) for name in masks.masks)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    state["0.weight"].fill_(True)
    assert again.density() == masks.density(), "a copy, not a view"


def test_release_lets_gradients_flow() -> None:
    model, x, y = problem()
    masks = Masks(model, {"2.weight": torch.zeros(4, 16, dtype=torch.bool)})
    masks.release()
    functional.cross_entropy(model(x), y).backward()
    assert model[2].weight.grad.any()
    assert masks.density() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("turned", [False, True])
def test_zeros_are_those_of_masked_fill_to_the_bit(dtype: torch.dtype, turned: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(6, 10, generator=generator).to(dtype)
    values[0, :3] = torch.tensor([float("nan"), float("inf"), -0.0], dtype=dtype)
    mask = torch.rand(6, 10, generator=generator) > 0.5
    mask[0, :3] = False
    model = nn.Module()
    model.weight = nn.Parameter(values.T.contiguous().T if turned else values.clone())
    masks = Masks(model, {"weight": mask})
    expected = values.masked_fill(~mask, 0)
    assert torch.equal(model.weight, expected)
    assert not torch.signbit(model.weight[~mask]).any()
    (model.weight * values).sum().backward()
    assert torch.equal(model.weight.grad, expected)
    model.weight.data.copy_(values)
    masks()
    assert torch.equal(model.weight, expected)


def test_a_second_derivative_goes_through_the_mask() -> None:
    model = nn.Linear(2, 1, bias=False)
    Masks(model, {"weight": torch.tensor([[True, False]])})
    (first,) = torch.autograd.grad(model.weight.pow(3).sum(), model.weight, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), model.weight)
    torch.testing.assert_close(second, torch.tensor([[6.0, 0.0]]) * model.weight.detach())


def test_nan_under_a_mask_becomes_zero() -> None:
    model, _, _ = problem()
    masks = Masks(model, {"2.weight": torch.zeros(4, 16, dtype=torch.bool)})
    model[2].weight.data.fill_(torch.nan)
    masks()
    assert not model[2].weight.any()


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"weight": torch.ones(4, 16, dtype=torch.bool)}, "no parameter: 0.weight"),
        ({"2.weight": torch.ones(16, 4, dtype=torch.bool)}, r"'2.weight' is torch.bool \(16, 4\)"),
        ({"2.weight": torch.ones(4, 16)}, "torch.float32"),
    ],
)
def test_wrong_masks_are_refused_and_nothing_is_changed(masks: dict, message: str) -> None:
    model, _, _ = problem()
    before = model[0].weight.clone()
    with pytest.raises(ValueError, match=message):
        Masks(model, {"0.weight": torch.zeros(16, 12, dtype=torch.bool)} | masks)
    assert torch.equal(model[0].weight, before)


def test_state_of_other_names_is_refused() -> None:
    model, _, _ = problem()
    masks = Masks(model, {"2.weight": torch.ones(4, 16, dtype=torch.bool)})
    with pytest.raises(ValueError, match="0.weight"):
        masks.load_state_dict({"0.weight": torch.ones(16, 12, dtype=torch.bool)})
