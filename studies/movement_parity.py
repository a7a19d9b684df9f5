"""Compare our movement pruning with outputs of the authors' code recorded in ``tests/parity``.

    python studies/movement_parity.py       # seconds

Writes ``book/data/movement_parity.json``: masks that are equal, largest differences of outputs, gradients, penalties and
schedules, and how far two training runs of 120 steps are from the recorded ones.
"""

import json
import platform
from pathlib import Path

import numpy as np
import recording
import torch
from torch import Tensor, nn
from torch.nn import functional

from reference.pruning import movement, score_masks

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "book/data/movement_parity.json"
METHOD = {"topK": "movement", "sigmoied_threshold": "soft", "magnitude": "magnitude", "l0": "l0"}
MASK = {
    "topk": score_masks.topk_mask,
    "sigmoid_threshold": score_masks.threshold_mask,
    "raw_threshold": lambda scores, value: score_masks.threshold_mask(scores, value, sigmoid=False),
    "magnitude": score_masks.magnitude_mask,
}


def load(name: str) -> dict[str, Tensor]:
    with np.load(ROOT / f"tests/parity/{name}.npz", allow_pickle=False) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def gap(found: Tensor, expected: Tensor) -> float:
    return float((found.detach() - expected).abs().max())


def masks() -> dict:
    stored = load("movement_masks")
    cases = [key.split(".", 2) for key in stored if not key.endswith(".scores")]
    same = sum(
        torch.equal(MASK[kind](stored[f"{data}.scores"], float(value)), stored[f"{data}.{kind}.{value}"].float())
        for data, kind, value in cases
    )
    return {"cases": len(cases), "equal": same}


def layers(part: str) -> dict:
    """Outputs and all gradients of masked layers, evaluated as the authors' layer was."""
    stored = load("movement_layer")
    cases = [key.removesuffix(".y") for key in stored if key.startswith(f"{part}.") and key.endswith(".y")]
    cases = [case for case in cases if case.split(".")[1] in METHOD and not case.endswith(".train")]
    largest = 0.0
    for case in cases:
        _, method, value = case.split(".", 2)
        weight = stored[f"{part}.W"]
        plain = nn.Linear(weight.shape[1], weight.shape[0])
        plain.load_state_dict({"weight": weight, "bias": stored[f"{part}.b"]})
        block = tuple(stored["blk.block"].tolist()) if part == "blk" else (1, 1)
        layer = movement.MaskedLinear(plain, METHOD[method], block).eval()
        if method != "magnitude":
            layer.scores.data = stored[f"{part}.S"].clone()
        layer.value = float(value)
        x = stored[f"{part}.x"].clone().requires_grad_()
        y = layer(x)
        y.backward(stored[f"{part}.g"])
        found = {"y": y, "dx": x.grad, "dW": layer.weight.grad, "db": layer.bias.grad}
        if method != "magnitude":
            found["dS"] = layer.scores.grad
        largest = max([largest, *(gap(v, stored[f"{case}.{n}"]) for n, v in found.items() if f"{case}.{n}" in stored)])
    return {"cases": len(cases), "largest_difference": largest}


def schedules() -> dict:
    stored, largest = load("cubic_schedule"), 0.0
    for case in range(5):
        total, warmup, initial, final, first, last, penalty = stored[f"s{case}.setting"].tolist()
        method = "soft" if initial == 0 else "l0" if final == 1 else "movement"
        ours = movement.Schedule(int(total), final, int(first * warmup), int(last * warmup), penalty)
        steps = range(int(total) + 2)
        found = torch.tensor([ours.value(s, method) for s in steps], dtype=torch.float64)
        weight = torch.tensor([ours.penalty_weight(s, method) for s in steps], dtype=torch.float64)
        largest = max(largest, gap(found, stored[f"s{case}.threshold"]), gap(weight, stored[f"s{case}.lambda"]))
    return {"cases": 5, "largest_difference": largest}


def training(run: str, method: str, final: float, penalty: float) -> dict:
    stored = load("movement_trace")
    model = nn.Sequential(nn.Linear(32, 24, bias=False))
    model[0].weight.data = stored[f"{run}.W0"].clone()
    pruner = movement.attach(model, ["0"], method=method, schedule=movement.Schedule(120, final, 10, 20, penalty))
    optimizer = torch.optim.AdamW(pruner.parameter_groups(weight_lr=1e-2, score_lr=1e-2))
    losses = []
    for step in range(120):
        pruner.step(step)
        loss = functional.mse_loss(model(stored[f"{run}.X"]), stored[f"{run}.Y"]) + pruner.penalty()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
    expected = stored[f"{run}.loss"]
    same = pruner.layers["0"].mask().detach() == stored[f"{run}.mask_final"]
    return {
        "steps": 120,
        "weights": same.numel(),
        "equal_mask_entries": int(same.sum()),
        "largest_relative_loss_difference": float(((torch.stack(losses) - expected) / expected).abs().max()),
    }


torch.set_num_threads(1)
values = {
    "masks": masks(),
    "layers": layers("l"),
    "blocks": layers("blk"),
    "schedules": schedules(),
    "hard run": training("hard", "movement", 0.2, 0.0),
    "soft run": training("soft", "soft", 0.5, 2.0),
}
recording.write(
    RESULT,
    what="Our movement pruning against outputs of the authors' code: masks, layers, schedules, two training runs",
    values=values,
    command="python studies/movement_parity.py",
    device=f"{platform.machine()}, one core",
    seed=0,
    packages=("numpy",),
)
print(json.dumps(values, indent=1))
