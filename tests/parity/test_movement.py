"""Masks, layers, regularisers, schedule and two training runs of movement pruning, recorded from the authors' code."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from reference.pruning import movement, score_masks


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parent / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


MASKS, LAYER, TRACE = load("movement_masks"), load("movement_layer"), load("movement_trace")
SCHEDULE = load("cubic_schedule")
METHOD = {"topK": "movement", "sigmoied_threshold": "soft", "magnitude": "magnitude", "l0": "l0"}  # spelled so
MASK = {
    "topk": score_masks.topk_mask,
    "sigmoid_threshold": score_masks.threshold_mask,
    "raw_threshold": lambda scores, value: score_masks.threshold_mask(scores, value, sigmoid=False),
    "magnitude": score_masks.magnitude_mask,
}


@pytest.mark.parametrize("key", [key for key in MASKS if not key.endswith(".scores")])
def test_masks_are_equal(key: str) -> None:
    data, kind, value = key.split(".", 2)
    found = MASK[kind](torch.from_numpy(MASKS[f"{data}.scores"]), float(value))
    np.testing.assert_array_equal(found.numpy(), MASKS[key])


def masked(part: str, method: str, value: float, block: tuple[int, int] = (1, 1)) -> movement.MaskedLinear:
    weight = torch.from_numpy(LAYER[f"{part}.W"])
    plain = nn.Linear(weight.shape[1], weight.shape[0])
    plain.load_state_dict({"weight": weight, "bias": torch.from_numpy(LAYER[f"{part}.b"])})
    layer = movement.MaskedLinear(plain, METHOD[method], block)
    if method != "magnitude":
        layer.scores.data = torch.from_numpy(LAYER[f"{part}.S"]).clone()
    layer.value = value
    return layer


def check(layer: movement.MaskedLinear, part: str, case: str) -> None:
    x = torch.from_numpy(LAYER[f"{part}.x"]).requires_grad_()
    y = layer(x)
    y.backward(torch.from_numpy(LAYER[f"{part}.g"]))
    found = {"y": y, "dx": x.grad, "dW": layer.weight.grad, "db": layer.bias.grad}
    if layer.method != "magnitude":
        found["dS"] = layer.scores.grad
    for name, value in found.items():
        if f"{case}.{name}" in LAYER:
            np.testing.assert_allclose(value.detach(), LAYER[f"{case}.{name}"], rtol=1e-5, atol=1e-6, err_msg=name)
    assert f"{case}.dW" in LAYER


@pytest.mark.parametrize(
    "case", sorted({k.rpartition(".")[0] for k in LAYER if k.startswith("l.") and k.endswith(".y")})
)
def test_layers_have_equal_outputs_and_gradients(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, method, value = case.removesuffix(".train").split(".", 2)
    if method == "threshold":  # on the raw score: a mask that no method of ours uses
        monkeypatch.setattr(
            "reference.pruning.masked_linear.threshold_mask",
            lambda scores, at: score_masks.threshold_mask(scores, at, sigmoid=False),
        )
        method = "sigmoied_threshold"
    layer = masked("l", method, float(value)).train(case.endswith(".train"))
    if layer.training:
        monkeypatch.setattr(torch, "rand_like", lambda _: torch.from_numpy(LAYER[f"{case}.u"]))
    check(layer, "l", case)


@pytest.mark.parametrize(
    "case", sorted({k.rpartition(".")[0] for k in LAYER if k.startswith("blk.") and k.endswith(".y")})
)
def test_blocks_share_a_score_and_sum_its_gradient(case: str) -> None:
    _, method, value = case.split(".", 2)
    layer = masked("blk", method, float(value), tuple(int(size) for size in LAYER["blk.block"]))
    np.testing.assert_array_equal(layer.mask().detach().numpy(), LAYER[f"{case}.mask"])
    check(layer, "blk", case)


@pytest.mark.parametrize("name", ["l1", "l0"])
def test_regularisers(name: str) -> None:
    scores = [torch.from_numpy(LAYER[f"reg.S{i}"]).clone().requires_grad_() for i in (0, 1)]
    value = getattr(score_masks, f"{name}_penalty")(scores)
    value.backward()
    np.testing.assert_allclose(value.item(), LAYER[f"reg.{name}.value"], rtol=1e-6)
    for i, tensor in enumerate(scores):
        np.testing.assert_allclose(tensor.grad, LAYER[f"reg.{name}.dS{i}"], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("case", range(5))
def test_schedule_and_weight_of_the_penalty(case: int) -> None:
    total, warmup, initial, final, first, last, penalty = SCHEDULE[f"s{case}.setting"]
    method = "soft" if initial == 0 else "l0" if final == 1 else "movement"
    schedule = movement.Schedule(int(total), final, int(first * warmup), int(last * warmup), penalty)
    steps = range(int(total) + 2)
    np.testing.assert_allclose([schedule.value(s, method) for s in steps], SCHEDULE[f"s{case}.threshold"], rtol=1e-12)
    np.testing.assert_allclose(
        [schedule.penalty_weight(s, method) for s in steps], SCHEDULE[f"s{case}.lambda"], rtol=1e-12
    )


@pytest.mark.parametrize(
    ("run", "method", "final", "penalty"), [("hard", "movement", 0.2, 0.0), ("soft", "soft", 0.5, 2.0)]
)
def test_training_takes_the_same_path(run: str, method: str, final: float, penalty: float) -> None:
    data = {name: torch.from_numpy(TRACE[f"{run}.{name}"]) for name in ("X", "Y", "W0")}
    model = nn.Sequential(nn.Linear(32, 24, bias=False))
    model[0].weight.data = data["W0"].clone()
    schedule = movement.Schedule(120, final, warmup=10, cooldown=20, penalty=penalty)
    pruner = movement.attach(model, ["0"], method=method, schedule=schedule)
    optimizer = torch.optim.AdamW(pruner.parameter_groups(weight_lr=1e-2, score_lr=1e-2))
    losses: list[float] = []
    for step in range(120):
        value = pruner.step(step)
        assert value == pytest.approx(TRACE[f"{run}.threshold"][step], abs=1e-7)
        loss: Tensor = functional.mse_loss(model(data["X"]), data["Y"]) + pruner.penalty()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if f"{run}.S_after_{step}" in TRACE:
            scores = pruner.layers["0"].scores.detach()
            np.testing.assert_allclose(scores, TRACE[f"{run}.S_after_{step}"], atol=1e-4)
    np.testing.assert_allclose(losses, TRACE[f"{run}.loss"], rtol=1e-4)
    np.testing.assert_array_equal(pruner.layers["0"].mask().detach().numpy(), TRACE[f"{run}.mask_final"])
    np.testing.assert_allclose(model[0].weight.detach(), TRACE[f"{run}.W_final"], atol=1e-4)
