"""Networks trained side by side are those trained one after the other."""

import copy
import itertools

import pytest
import torch
from torch import nn

from reference.evaluation import accuracy
from reference.pruning import parallel_training as parallel
from reference.pruning.chain_gradients import chain_gradients
from reference.pruning.masks import Masks
from reference.training import fit


def nets(count: int) -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 4)).double() for _ in range(count)]


@pytest.fixture(scope="module")
def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(70, 12, generator=generator, dtype=torch.float64)
    return images, (images @ torch.randn(12, 4, generator=generator, dtype=torch.float64)).argmax(1)


MAKERS = {
    "adam": (parallel.adam, lambda p, lr: torch.optim.Adam(p, lr)),
    "sgd": (parallel.sgd, lambda p, lr: torch.optim.SGD(p, lr)),
    "momentum, decay": (
        lambda groups: torch.optim.SGD(groups, momentum=0.9, weight_decay=1e-2),
        lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9, weight_decay=1e-2),
    ),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_equals_the_sequential_loop(data: tuple[torch.Tensor, torch.Tensor], maker: str) -> None:
    models, rates, seeds = nets(4), [0.02, 0.02, 0.01, 0.02], [3, 3, 4, 5]
    together, alone = MAKERS[maker]
    masks = {"0.weight": torch.rand(4, 9, 12, generator=torch.Generator().manual_seed(2)) < 0.4}
    fall = lambda step, total: 1 - step / total  # noqa: E731
    found = parallel.train(
        models[0], parallel.stack(models), *data, steps=5 * 5, seeds=seeds, rates=rates, optimizer=together, batch=16,
        masks=masks, schedule=fall,
    )  # fmt: skip
    for index, model in enumerate(copy.deepcopy(models)):
        optimizer = alone(model.parameters(), rates[index])
        hold = Masks(model, {"0.weight": masks["0.weight"][index]}, optimizer)
        fit(model, *data, epochs=5, optimizer=optimizer, batch=16, seed=seeds[index], after_step=hold, schedule=fall)
        for name, value in model.state_dict().items():
            torch.testing.assert_close(found[name][index], value, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("widths", [(12, 4), (12, 9, 4), (12, 9, 7, 4)])
def test_gradients_written_out_equal_those_of_vmap(data: tuple[torch.Tensor, torch.Tensor], widths: tuple) -> None:
    torch.manual_seed(0)
    models = []
    for _ in range(3):
        layers = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
        models.append(nn.Sequential(*layers[:-1]).double())
    states = parallel.stack(models)
    rows = torch.arange(60).view(3, 20)
    expected = parallel.gradients(models[0], states, data[0][rows], data[1][rows])
    found = chain_gradients(models[0], states, data[0][rows].view(3, 20, 3, 4), data[1][rows])
    torch.testing.assert_close(found, expected)
    run = {"steps": 9, "seeds": [0, 1, 2], "rates": [0.1] * 3, "batch": 16}
    one = parallel.train(models[0], states, *data, **run)
    other = parallel.train(models[0], states, *data, gradient=chain_gradients, **run)
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("layers", "inputs"),
    [
        ([nn.Linear(12, 9), nn.Linear(9, 4)], 11),
        ([nn.Linear(12, 9, bias=False), nn.Linear(9, 4)], 12),
        ([nn.Linear(12, 9), nn.Linear(9, 4, bias=False)], 12),
        ([nn.Linear(12, 9), nn.Linear(8, 4)], 12),
    ],
)
def test_gradients_written_out_refuse_other_networks(layers: list[nn.Module], inputs: int) -> None:
    model = nn.Sequential(*layers)
    with pytest.raises(ValueError, match="it must hold weight"):
        chain_gradients(model, parallel.stack([model]), torch.zeros(1, 5, inputs), torch.zeros(1, 5, dtype=torch.long))


def test_gradients_written_out_do_not_depend_on_the_order_of_a_file(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    model, states = nets(1)[0], parallel.stack(nets(2))
    batch = data[0][:40].view(2, 20, 12), data[1][:40].view(2, 20)
    found, _ = chain_gradients(model, dict(sorted(states.items())), *batch)
    torch.testing.assert_close(found, chain_gradients(model, states, *batch)[0])


def test_a_run_in_two_parts_is_the_whole_run(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    models = nets(3)
    common = {"seeds": [1, 2, 3], "rates": [0.1, 0.1, 0.2], "optimizer": parallel.sgd, "batch": 16}
    states = parallel.stack(models)
    whole = parallel.train(models[0], states, *data, steps=13, **common)
    half = parallel.train(models[0], states, *data, steps=6, **common)
    both = parallel.train(models[0], half, *data, steps=13, start=6, **common)
    for name, value in whole.items():
        torch.testing.assert_close(both[name], value, rtol=1e-12, atol=0)


def test_evaluation_and_members(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    models = nets(3)
    states = parallel.stack(models)
    loss, right = parallel.evaluate(models[0], states, *data, batch=33)
    for index, model in enumerate(models):
        single = parallel.member(models[0], states, index)
        assert torch.equal(single(data[0]), model(data[0]))
        expected = nn.functional.cross_entropy(model(data[0]), data[1])
        torch.testing.assert_close(loss[index], expected.detach())
        assert right[index] == accuracy(model, *data)


def test_new_masks_hold_and_their_momentum_is_forgotten(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    models = nets(2)
    first = torch.rand(2, 9, 12, generator=torch.Generator().manual_seed(2)) < 0.5
    seen = {}

    def swap(step: int, states: parallel.States, slopes: parallel.States) -> dict[str, torch.Tensor] | None:
        if step != 3:
            return None
        seen["dense"] = slopes["0.weight"][~first].abs().max()
        return {"0.weight": ~first}

    def check(step: int, states: parallel.States) -> None:
        dead = first if step > 3 else ~first
        assert (states["0.weight"][dead] == 0).all()

    parallel.train(
        models[0], parallel.stack(models), *data, steps=6, seeds=[0, 1], rates=[0.1, 0.2], batch=16,
        optimizer=lambda groups: torch.optim.SGD(groups, momentum=0.9), masks={"0.weight": first},
        remask=swap, after_step=check,
    )  # fmt: skip
    assert seen["dense"] > 0


def test_errors_name_the_argument(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    models = nets(2)
    states = parallel.stack(models)
    run = {"steps": 2, "seeds": [0, 1], "rates": [0.1, 0.1]}
    with pytest.raises(ValueError, match="seeds and rates are 1 and 2"):
        parallel.train(models[0], states, *data, **run | {"seeds": [0]})
    with pytest.raises(ValueError, match="start is 3"):
        parallel.train(models[0], states, *data, start=3, **run)
    with pytest.raises(ValueError, match="mask '0.weight' is torch.float32"):
        parallel.train(models[0], states, *data, masks={"0.weight": torch.ones(2, 9, 12)}, **run)
    with pytest.raises(ValueError, match="mask 'other'"):
        parallel.train(models[0], states, *data, masks={"other": torch.ones(2, dtype=torch.bool)}, **run)
    with pytest.raises(ValueError, match="at least one"):
        parallel.stack([])
    with pytest.raises(ValueError, match=r"models\[1\]"):
        parallel.stack([nn.Linear(2, 2), nn.Linear(2, 3)])
    with pytest.raises(ValueError, match="buffers"):
        parallel.stack([nn.BatchNorm1d(2)])
