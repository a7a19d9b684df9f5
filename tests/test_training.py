"""The training loop: its schedule by hand, its windows, and a resumed run against an unbroken one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reference.training import fit, load_state, random_windows, save_state, train, trapezoid


def test_trapezoid_by_hand() -> None:
    """Four steps of rise, a plateau, the last five of ten steps of fall."""
    factors = [trapezoid(step, 10, warmup=4, decay=0.5) for step in range(10)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2])


def test_trapezoid_without_rise_or_fall_is_one() -> None:
    assert [trapezoid(step, 5, warmup=0, decay=0.0) for step in range(5)] == [1.0] * 5


def test_trapezoid_reaches_zero_after_the_last_step() -> None:
    assert trapezoid(10, 10, warmup=0, decay=0.3) == 0.0


def test_plateau_does_not_know_the_length_of_the_run() -> None:
    """What makes a long run extendable: the first steps are the same whatever the total."""
    short, long = ([trapezoid(s, total, warmup=10, decay=0.2) for s in range(80)] for total in (100, 1000))
    assert short == long


@given(st.integers(1, 200), st.integers(0, 50), st.floats(0, 1))
def test_trapezoid_stays_between_zero_and_one(total: int, warmup: int, decay: float) -> None:
    factors = [trapezoid(step, total, warmup=warmup, decay=decay) for step in range(total)]
    assert all(0 < factor <= 1 for factor in factors)


CORPUS = [np.arange(1000, dtype=np.uint16), np.arange(5000, 5300, dtype=np.uint16)]
OPTIONS = {"batch": 16, "length": 20}


def test_windows_repeat_with_seed_and_step() -> None:
    first = random_windows(CORPUS, [0.5, 0.5], **OPTIONS, seed=3, step=7)
    assert torch.equal(first, random_windows(CORPUS, [0.5, 0.5], **OPTIONS, seed=3, step=7))
    assert not torch.equal(first, random_windows(CORPUS, [0.5, 0.5], **OPTIONS, seed=3, step=8))
    assert not torch.equal(first, random_windows(CORPUS, [0.5, 0.5], **OPTIONS, seed=4, step=7))


def test_windows_are_runs_of_one_domain() -> None:
    windows = random_windows(CORPUS, [0.5, 0.5], **OPTIONS, seed=0, step=0)
    assert windows.dtype == torch.int64
    assert tuple(windows.shape) == (16, 20)
    assert (windows.diff(dim=1) == 1).all()


def test_share_decides_how_often_a_domain_is_drawn() -> None:
    drawn = torch.cat([random_windows(CORPUS, [0.9, 0.1], **OPTIONS, seed=0, step=s)[:, 0] for s in range(200)])
    assert (drawn < 5000).float().mean().item() == pytest.approx(0.9, abs=0.03)
    assert (random_windows(CORPUS, [0.0, 1.0], **OPTIONS, seed=0, step=0) >= 5000).all()


def test_a_domain_of_exactly_one_window_can_be_drawn() -> None:
    windows = random_windows([np.arange(20)], [1.0], batch=3, length=20, seed=0, step=0)
    assert torch.equal(windows, torch.arange(20).expand(3, 20))


def test_the_last_window_of_a_domain_can_be_drawn() -> None:
    starts = {int(w[0]) for s in range(50) for w in random_windows([np.arange(23)], [1.0], **OPTIONS, seed=0, step=s)}
    assert starts == {0, 1, 2, 3}


def make() -> tuple[nn.Module, list[torch.optim.Optimizer]]:
    """A small network under two optimisers with different rates, as the study uses."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    first = torch.optim.AdamW(model[0].parameters(), lr=0.02)
    second = torch.optim.SGD(model[2].parameters(), lr=0.05, momentum=0.9)
    return model, [first, second]


def loss_of(model: nn.Module) -> object:
    def loss(step: int) -> Tensor:
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
        return (model(x) - x[:, :3].sin()).square().mean()

    return loss


def run(steps: int, stop: int | None = None, **options: object) -> tuple[nn.Module, list[dict]]:
    model, optimizers = make()
    seen = []
    for state in train(model, loss_of(model), optimizers, steps=steps, warmup=3, decay=0.5, **options):
        seen.append(state)
        if state["step"] == stop:
            break
    return model, seen


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("stop", [4, 6, 11])
def test_a_resumed_run_is_bit_for_bit_the_unbroken_one(stop: int, tmp_path: Path) -> None:
    unbroken, all_steps = run(12)
    run(12, stop=stop, checkpoint=tmp_path / "state", every=2)
    resumed, later = run(12, checkpoint=tmp_path / "state", every=2)
    assert [state["step"] for state in later] == list(range(stop // 2 * 2 + 1, 13))
    assert later == all_steps[-len(later) :]
    assert same_weights(unbroken, resumed)


def test_a_finished_run_takes_no_more_steps(tmp_path: Path) -> None:
    finished, _ = run(5, checkpoint=tmp_path / "state", every=100)
    again, seen = run(5, checkpoint=tmp_path / "state", every=100)
    assert seen == []
    assert same_weights(finished, again)


def test_first_steps_equal_plain_pytorch() -> None:
    ours, seen = run(6)
    model, optimizers = make()
    loss = loss_of(model)
    peaks = [o.param_groups[0]["lr"] for o in optimizers]
    losses = []
    for step in range(6):
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * trapezoid(step, 6, warmup=3, decay=0.5)
            optimizer.zero_grad()
        value = loss(step)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        losses.append(value.item())
    assert [state["loss"] for state in seen] == losses
    assert same_weights(ours, model)


def test_the_loss_falls() -> None:
    _, seen = run(60)
    assert seen[-1]["loss"] < 0.5 * seen[0]["loss"]


def test_the_gradient_is_clipped() -> None:
    """Plain SGD at rate one moves by at most the clip."""
    model = nn.Linear(4, 1, bias=False)
    before = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    list(train(model, lambda step: 1e6 * model.weight.sum(), [optimizer], steps=1, clip=0.5))
    assert (model.weight.detach() - before).norm().item() == pytest.approx(0.5, rel=1e-4)


def test_state_comes_back_whole(tmp_path: Path) -> None:
    model, optimizers = make()
    for _ in train(model, loss_of(model), optimizers, steps=3):
        pass
    save_state(tmp_path / "state", model, optimizers, 3)
    other, others = make()
    assert load_state(tmp_path / "state", other, others) == 3
    assert same_weights(model, other)
    for one, two in zip(optimizers, others, strict=True):
        saved, loaded = one.state_dict()["state"], two.state_dict()["state"]
        assert saved.keys() == loaded.keys()
        for index, entries in saved.items():
            assert all(torch.equal(torch.as_tensor(v), loaded[index][k]) for k, v in entries.items())


def test_running_statistics_go_on_after_a_break(tmp_path: Path) -> None:
    """They are no parameters, and evaluation reads nothing else of the batches seen before the break."""
    images = torch.randn(6, 8, 4, generator=torch.Generator().manual_seed(1))

    def run(checkpoint: Path | None, steps: int) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        optimizer = torch.optim.Adam(model.parameters())
        taken = train(model, lambda step: model(images[step]).square().sum(), [optimizer], steps=6, checkpoint=checkpoint,
                      every=3)  # fmt: skip
        for _ in range(steps):
            next(taken, None)
        return model

    run(tmp_path / "state", 4)  # killed behind the state of step 3
    broken, whole = run(tmp_path / "state", 6).state_dict(), run(None, 6).state_dict()
    assert int(whole["1.num_batches_tracked"]) == 6
    assert all(torch.equal(value, broken[name]) for name, value in whole.items())


def test_a_model_left_in_evaluation_mode_is_trained_in_training_mode() -> None:
    model, optimizers = make()
    modes = []
    for _ in train(
        model.eval(), lambda step: (modes.append(model.training), loss_of(model)(step))[1], optimizers, steps=2
    ):
        model.eval()
    assert modes == [True, True]


def test_fit_is_gradient_descent_on_shuffled_batches() -> None:
    """One step on one whole batch, by hand; the schedule scales it and the rate is back at the end."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2, bias=False)
    x, y = torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1])
    start = model.weight.detach().clone()
    loss = nn.functional.cross_entropy(x @ start.T, y)
    probabilities = (x @ start.T).softmax(1)
    gradient = (probabilities - nn.functional.one_hot(y, 2)).T @ x / 5
    calls: list[int] = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    history = fit(
        model, x, y, epochs=1, optimizer=optimizer, batch=8, after_step=lambda: calls.append(1), schedule=lambda *_: 0.5
    )
    assert history == pytest.approx([loss.item()])
    assert torch.allclose(model.weight, start - 0.25 * gradient, atol=1e-6)
    assert calls == [1]
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_fit_repeats_with_its_seed_and_refuses_bad_data() -> None:
    def trained(seed: int) -> Tensor:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        x = torch.randn(40, 3)
        fit(
            model,
            x,
            (x[:, 0] > 0).long(),
            epochs=2,
            optimizer=torch.optim.SGD(model.parameters(), 0.1),
            batch=4,
            seed=seed,
        )
        return model.weight.detach()

    assert torch.equal(trained(1), trained(1))
    assert not torch.equal(trained(1), trained(2))
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match="equally many"):
        fit(model, torch.zeros(3, 3), torch.zeros(2, dtype=torch.long), epochs=1, optimizer=optimizer)
    with pytest.raises(ValueError, match="loss became nan in epoch 1"):
        fit(model, torch.full((3, 3), torch.nan), torch.zeros(3, dtype=torch.long), epochs=1, optimizer=optimizer)
