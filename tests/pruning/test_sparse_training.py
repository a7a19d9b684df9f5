"""SNIP against finite differences of the gate, SET and RigL against a slow loop and their invariants."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from reference.models.vision import LeNet300
from reference.pruning import densities, parallel_training
from reference.pruning import sparse_training as sparse
from reference.pruning.masks import Masks

FRACTIONS = st.floats(0, 1)


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def batch(seed=0, n=7):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (n,), generator=generator)


def weights_of(model):
    return {name: p.detach() for name, p in model.named_parameters() if p.ndim > 1}


def gradients_of(model, data):
    named = {name: p for name, p in model.named_parameters() if p.ndim > 1}
    loss = functional.cross_entropy(model(data[0]), data[1])
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def gated_loss(model, data, name, index, gate):
    parameters = {key: p.detach().clone() for key, p in model.named_parameters()}
    parameters[name].view(-1)[index] *= gate
    return functional.cross_entropy(functional_call(model, parameters, (data[0],)), data[1]).item()


def test_sensitivity_is_the_slope_of_a_gate_on_each_connection():
    model, data = small_net(), batch()
    scores = sparse.connection_sensitivity(weights_of(model), [gradients_of(model, data)])
    slopes = {
        name: torch.tensor(
            [
                abs(gated_loss(model, data, name, i, 1 + 1e-6) - gated_loss(model, data, name, i, 1 - 1e-6)) / 2e-6
                for i in range(weight.numel())
            ],
            dtype=torch.float64,
        ).view(weight.shape)
        for name, weight in weights_of(model).items()
    }
    total = sum(slope.sum() for slope in slopes.values())
    for name, score in scores.items():
        torch.testing.assert_close(score, slopes[name] / total, atol=1e-8, rtol=1e-5)


def test_sensitivity_of_a_linear_least_squares_layer_in_closed_form():
    # One output, loss (w·x - y)²/2: gradient (w·x - y) x, so the score is proportional to abs(w_j x_j).
    w, x, y = torch.tensor([[1.0, -2.0, 0.0, 4.0]]), torch.tensor([3.0, 1.0, 9.0, 0.5]), 2.0
    gradient = ((w @ x) - y) * x[None]
    score = sparse.connection_sensitivity({"w": w}, [{"w": gradient}])["w"]
    torch.testing.assert_close(score, torch.tensor([[3.0, 2.0, 0.0, 2.0]]).double() / 7)


def test_several_batches_score_as_one_large_batch():
    model = small_net()
    parts, whole = [batch(1), batch(2)], batch(1)
    whole = tuple(torch.cat(pair) for pair in zip(*parts, strict=True))
    expected = sparse.connection_sensitivity(weights_of(model), [gradients_of(model, whole)])
    found = sparse.connection_sensitivity(weights_of(model), [gradients_of(model, part) for part in parts])
    single = sparse.connection_sensitivity(weights_of(model), [gradients_of(model, parts[0])])
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
        assert not torch.allclose(found[name], single[name])


@given(st.floats(0, 1, exclude_min=True), st.integers(0, 5))
@settings(max_examples=50)
def test_snip_keeps_an_exact_number_of_the_largest_scores(density, seed):
    generator = torch.Generator().manual_seed(seed)
    weights = {"a": torch.randn(7, 5, generator=generator), "b": torch.randn(3, 7, generator=generator)}
    gradients = {name: torch.randn(w.shape, generator=generator) for name, w in weights.items()}
    masks = sparse.snip_masks(weights, [gradients], density)
    score = np.concatenate([(weights[n].double() * gradients[n].double()).abs().flatten().numpy() for n in weights])
    keep = np.concatenate([masks[name].flatten().numpy() for name in weights])
    order = np.argsort(score, kind="stable")
    expected = np.ones(56, dtype=bool)
    expected[order[: round((1 - density) * 56)]] = False
    np.testing.assert_array_equal(keep, expected)


def test_snip_drops_pixels_that_never_have_ink():
    torch.manual_seed(0)
    model, x = LeNet300(), torch.rand(16, 1, 28, 28)
    x[..., :4] = 0
    masks = sparse.snip_masks(weights_of(model), [gradients_of(model, (x, torch.arange(16) % 10))], 0.5)
    assert not masks["fc1.weight"].view(300, 28, 28)[:, :, :4].any()
    assert masks["fc1.weight"].view(300, 28, 28)[:, :, 4:].any()


def test_a_layer_of_small_scores_can_be_emptied_unless_it_is_guarded():
    weights = {"a": torch.full((4, 4), 1e-9), "b": torch.ones(4, 4)}
    gradients = [{name: torch.ones(4, 4) for name in weights}]
    assert sparse.snip_masks(weights, gradients, 0.25)["a"].sum() == 0
    guarded = sparse.snip_masks(weights, gradients, 0.25, min_keep=2)
    assert (int(guarded["a"].sum()), int(guarded["b"].sum())) == (2, 6)


def test_the_update_fraction_is_a_half_cosine():
    assert sparse.update_fraction(0, end_step=100, fraction=0.3) == 0.3
    assert sparse.update_fraction(50, end_step=100, fraction=0.3) == pytest.approx(0.15)
    for step in range(0, 100, 7):
        expected = 0.3 * math.cos(math.pi * step / 200) ** 2  # (1 + cos 2a)/2 = cos² a
        assert sparse.update_fraction(step, end_step=100) == pytest.approx(expected)
    values = [sparse.update_fraction(step, end_step=100) for step in range(101)]
    assert all(b < a for a, b in itertools.pairwise(values))
    assert values[100] == sparse.update_fraction(5000, end_step=100) == 0


def test_updates_come_every_so_many_steps_and_end():
    assert sparse.update_steps(every=100, end_step=450) == [100, 200, 300, 400]
    assert sparse.update_steps(every=100, end_step=400) == [100, 200, 300]
    assert sparse.update_steps(every=7, end_step=7) == []


@st.composite
def layers(draw):
    shape = (draw(st.integers(1, 6)), draw(st.integers(1, 7)))
    seed = draw(st.integers(0, 2**32 - 1))
    generator = torch.Generator().manual_seed(seed)
    # Halves: ties are common.
    weight = torch.randint(-6, 7, shape, generator=generator) / 2
    gradient = torch.randint(-6, 7, shape, generator=generator) / 2
    mask = torch.rand(shape, generator=generator) < draw(FRACTIONS)
    return weight, mask, gradient


def slow_rigl(weight, mask, gradient, fraction):
    w, m, g = (t.flatten().tolist() for t in (weight, mask, gradient))
    connected = [i for i in range(len(w)) if m[i]]
    moved = int(fraction * len(connected))
    dropped = sorted(connected, key=lambda i: abs(w[i]))[:moved]  # sorted is stable: the first of equals
    stays = [i for i in connected if i not in dropped]
    free = [i for i in range(len(w)) if i not in stays]
    grown = sorted(free, key=lambda i: -abs(g[i]))[:moved]
    return torch.tensor([i in stays or i in grown for i in range(len(w))]).view(mask.shape)


@given(layers(), FRACTIONS)
def test_rigl_equals_a_slow_loop(layer, fraction):
    weight, mask, gradient = layer
    assert torch.equal(
        sparse.rigl_update(weight, mask, gradient, fraction), slow_rigl(weight, mask, gradient, fraction)
    )


@given(layers(), FRACTIONS, st.booleans())
def test_an_update_keeps_the_count_and_moves_no_more_than_the_fraction(layer, fraction, by_gradient):
    weight, mask, gradient = layer
    if by_gradient:
        new = sparse.rigl_update(weight, mask, gradient, fraction)
    else:
        new = sparse.set_update(weight, mask, fraction, torch.Generator().manual_seed(1))
    alive = int(mask.sum())
    assert new.dtype == torch.bool
    assert int(new.sum()) == alive
    dropped, grown = mask & ~new, new & ~mask
    assert int(dropped.sum()) == int(grown.sum()) <= int(fraction * alive)
    if dropped.any() and (mask & new).any():
        moved = int(fraction * alive)
        largest_dropped = weight.abs()[dropped].max()
        assert int((weight.abs()[mask] < largest_dropped).sum()) < moved
    if by_gradient and grown.any() and (~mask & ~new).any():
        assert gradient.abs()[grown].min() >= gradient.abs()[~mask & ~new].max()


def test_nothing_moves_at_fraction_zero_and_everything_can_at_one():
    weight, gradient = torch.arange(1.0, 9).view(2, 4), torch.arange(8.0, 0, -1).view(2, 4)
    mask = weight > 4
    assert torch.equal(sparse.rigl_update(weight, mask, gradient, 0), mask)
    assert torch.equal(sparse.rigl_update(weight, mask, gradient, 1), ~mask)


def test_set_draws_every_free_place_equally_often():
    weight, mask = torch.tensor([5.0, 4.0, 3.0, 2.0, 0.0, 0.0, 0.0, 0.0]), torch.arange(8) < 4
    generator = torch.Generator().manual_seed(0)
    counts = sum(sparse.set_update(weight, mask, 0.5, generator).double() for _ in range(3000)) / 3000
    assert counts[:2].tolist() == [1, 1]
    # Two of the six free places, the two just emptied among them: one in three; five standard deviations.
    assert (counts[2:] - 1 / 3).abs().max() < 5 * math.sqrt(2 / 9 / 3000)


def test_new_connections_start_at_zero_and_the_momentum_of_dropped_ones_is_cleared():
    torch.manual_seed(0)
    layer = nn.Linear(8, 4, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9)
    mask = torch.rand(4, 8) < 0.5
    hold = Masks(layer, {"weight": mask}, optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.randn(5, 8)).square().sum().backward()
        optimizer.step()
        hold()
    before = layer.weight.detach().clone()
    new = sparse.rigl_update(before, mask, torch.randn(4, 8), 0.5)
    hold.update({"weight": new})
    grown, dropped = new & ~mask, mask & ~new
    assert grown.any() and dropped.any()  # noqa: PT018
    assert (layer.weight[grown | dropped] == 0).all()
    assert torch.equal(layer.weight[new & mask], before[new & mask])
    momentum = optimizer.state[layer.weight]["momentum_buffer"]
    assert (momentum[grown | dropped] == 0).all()
    assert (momentum[new & mask] != 0).any()


@pytest.mark.parametrize("method", ["SET", "RigL"])
def test_many_networks_move_as_each_would_alone(method):
    images, labels = torch.rand(64, 1, 28, 28), torch.arange(64) % 10
    model, states = LeNet300(), parallel_training.stack([LeNet300() for _ in range(3)])
    shapes = {name: value.shape[1:] for name, value in states.items() if value.ndim == 3}
    counts = densities.kept_counts(shapes, densities.erdos_renyi_densities(shapes, 0.05))
    drawn = [densities.random_masks(shapes, counts, torch.Generator().manual_seed(seed)) for seed in range(3)]
    masks = {name: torch.stack([one[name] for one in drawn]) for name in shapes}

    def generators():
        return [torch.Generator().manual_seed(9 + seed) for seed in range(3)] if method == "SET" else None

    seen = []
    together = sparse.mover(masks, every=2, end_step=5, generators=generators())

    def watch(step, state, slopes):
        new = together(step, state, slopes)
        if new is not None:
            seen.append((step, {n: state[n].clone() for n in shapes}, {n: slopes[n].clone() for n in shapes}, new))
        return new

    trained = parallel_training.train(
        model, states, images, labels, steps=7, seeds=[0, 1, 2], rates=[1e-2] * 3, batch=16, masks=masks, remask=watch
    )
    assert [step for step, *_ in seen] == [2, 4]
    own, before = generators(), masks
    for step, state, slopes, new in seen:
        moved = sparse.update_fraction(step, end_step=5)
        for name in shapes:
            for index in range(3):
                args = state[name][index], before[name][index]
                expected = (
                    sparse.set_update(*args, moved, own[index])
                    if method == "SET"
                    else sparse.rigl_update(*args, slopes[name][index], moved)
                )
                assert torch.equal(new[name][index], expected)
            assert (new[name].flatten(1).sum(1) == counts[name]).all()
        assert any((new[name] != before[name]).any() for name in shapes)
        before = new
    for name in shapes:
        assert (trained[name][~before[name]] == 0).all()
        assert (trained[name][before[name]] != 0).float().mean() > 0.5


def test_errors_name_what_is_wrong():
    w, m = torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="at least one"):
        sparse.connection_sensitivity({"w": w}, [])
    with pytest.raises(ValueError, match="'w' is missing"):
        sparse.connection_sensitivity({"w": w}, [{"v": w}])
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        sparse.connection_sensitivity({"w": w}, [{"w": torch.ones(3, 2)}])
    for value in (0.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="sum to"):
            sparse.connection_sensitivity({"w": w}, [{"w": torch.full((2, 3), value)}])
    for density in (0, 1.01, float("nan")):
        with pytest.raises(ValueError, match="density is"):
            sparse.snip_masks({"w": w}, [{"w": w}], density)
    with pytest.raises(ValueError, match="fraction is 1.5"):
        sparse.set_update(w, m, 1.5, generator)
    with pytest.raises(ValueError, match="must be bool"):
        sparse.set_update(w, m.float(), 0.5, generator)
    with pytest.raises(ValueError, match="gradient is"):
        sparse.rigl_update(w, m, torch.ones(3, 2), 0.5)
    with pytest.raises(ValueError, match="NaN"):
        sparse.rigl_update(w * torch.nan, m, w, 0.5)
    part = torch.where(torch.arange(w.numel()).view(w.shape) == 0, torch.nan, w)
    with pytest.raises(ValueError, match="NaN"):
        sparse.rigl_update(part, torch.ones_like(m), w, 0.5)
    with pytest.raises(ValueError, match="step is -1"):
        sparse.update_fraction(-1, end_step=10)
    with pytest.raises(ValueError, match="generators has 1"):
        sparse.mover({"w": m[None].expand(2, 2, 3)}, every=1, end_step=5, generators=[generator])
    with pytest.raises(ValueError, match="every is 0"):
        sparse.update_steps(every=0, end_step=10)
