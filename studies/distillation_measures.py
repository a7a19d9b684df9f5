"""What ``distillation.py`` measures of finished models: the cost of serving teachers, and cascades of students."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from reference import checkpoint
from reference.data import text
from reference.distillation.cascade import choose_thresholds, mixture, replay
from reference.distillation.confidence import calibration_error, confidence, fit_temperature
from reference.distillation.student import from_layers
from reference.evaluation import size_on_disk
from reference.hardware.latency import compare
from reference.models import tutorial
from reference.pruning.structured import cost
from reference.statistics import interval
from reference.trade_offs import decode_step, execution

ROUNDS = 12
LENGTH, CONTEXT, WINDOWS = 128, 64, 128  # tokens a window, fewest before a prediction, windows of a domain
FITTED = 48  # windows that fit the temperature
STEPS = 40  # quantiles tried as thresholds, for two models; fewer for three
BUDGETS = tuple(round(0.4 + 0.1 * k, 1) for k in range(9))  # mean cost of a row, the teacher's being 1


def serving(teachers: dict[str, PreTrainedModel], measured: dict[str, dict[str, float]]) -> dict[str, dict]:
    """Speed of each teacher, the float one in float32 being 1, and its bytes: one thread, calls in turns, best of many."""
    models = teachers | {"float, bfloat16": tutorial.load(dtype=torch.bfloat16)}
    ids = torch.arange(8 * LENGTH).view(8, LENGTH)

    @torch.no_grad()
    def labels(model: nn.Module) -> None:
        model(input_ids=ids, use_cache=False)

    label = compare({name: lambda m=model: labels(m) for name, model in models.items()}, repeats=ROUNDS)
    write = compare({name: decode_step(model, 1) for name, model in models.items()}, repeats=8 * ROUNDS)
    found: dict[str, dict] = {}
    for name, model in models.items():
        found[name] = {
            "label": label["float"].best / label[name].best,
            "write": write["float"].best / write[name].best,
            "label_by": execution(model, ids.numel()),
            "write_by": execution(model, 1),
            "bits_per_byte": measured.get(name, measured["float"]),
        }
    for name, model in models.items():  # .to() drops the copies of the packed operator, hence after the timing
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.save(model.to(torch.bfloat16), Path(folder) / "model")
            sizes = size_on_disk(Path(folder) / "model")
        found[name] |= {"bytes": sizes["total"], "bytes_linear": sum(sizes[k] for k in ("weights", "scales"))}
    return found


# ---- cascades


def windows(part: str) -> Tensor:
    """``[domains · WINDOWS, LENGTH]``, spread over each text."""
    rows = []
    for domain in text.DOMAINS:
        ids = text.encode(text.read(domain, part), tutorial.tokenizer())
        whole = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
        rows.append(whole[:: len(whole) // WINDOWS][:WINDOWS])
    return torch.cat(rows)


@torch.no_grad()
def logits_of(model: nn.Module, ids: Tensor) -> Tensor:
    """Of the positions that have :data:`CONTEXT` tokens or more before the one to predict."""
    with torch.autocast("cpu", torch.bfloat16):
        return model(input_ids=ids, use_cache=False).logits[:, CONTEXT - 1 : -1].float()


class Answers:
    """Answers of a model with its temperature: ``sure`` and ``right``, ``[windows, positions]``, of a part of the text."""

    def __init__(self, model: nn.Module) -> None:
        held, self.sure, self.right, self.nats = {p: windows(p) for p in text.PARTS}, {}, {}, {}
        chosen = held["calibration"][:: len(held["calibration"]) // FITTED]
        fitted = torch.cat([logits_of(model, ids) for ids in chosen.split(16)])
        self.temperature = fit_temperature(fitted.flatten(0, 1), chosen[:, CONTEXT:].flatten())
        raw = []
        for part, rows in held.items():
            found = []
            for ids in rows.split(16):
                logits, labels = logits_of(model, ids), ids[:, CONTEXT:]
                scaled = logits / self.temperature
                raw += [confidence(logits)] if part == "evaluation" else []
                found.append((confidence(scaled), (logits.argmax(-1) == labels).double(),
                              functional.cross_entropy(scaled.transpose(1, 2), labels, reduction="none")))  # fmt: skip
            self.sure[part], self.right[part], self.nats[part] = (torch.cat(c) for c in zip(*found, strict=True))
        right = self.right["evaluation"].flatten() > 0
        self.record = {
            "temperature": self.temperature,
            "accuracy": float(right.double().mean()),
            "nats": float(self.nats["evaluation"].double().mean()),
            "calibration_error": {
                "before": calibration_error(torch.cat(raw).flatten(), right),
                "after": calibration_error(self.sure["evaluation"].flatten(), right),
            },
        }


def point(chain: Sequence[Answers], costs: list[float], single: list[tuple[Answers, float]], budget: float) -> dict:
    """One cascade, its thresholds chosen on calibration text, against the best blind mixture at the cost that it had."""
    steps = STEPS if len(chain) == 2 else STEPS // 2

    def flat(what: str, part: str) -> list[Tensor]:
        return [getattr(one, what)[part].flatten() for one in chain]

    thresholds = choose_thresholds(
        flat("sure", "calibration"), flat("right", "calibration"), costs, budget, steps=steps
    )  # fmt: skip
    outcome = replay(flat("sure", "evaluation"), flat("right", "evaluation"), costs, thresholds)
    paid = float(outcome.cost.mean())
    accuracy = [float(one.right["evaluation"].mean()) for one, _ in single]
    shares = mixture(accuracy, [price for _, price in single], max(paid, min(price for _, price in single)))
    blind = sum(share * one.right["evaluation"] for share, (one, _) in zip(shares, single, strict=True))
    gain = (outcome.quality.view_as(blind) - blind).mean(1)  # one a window, whose positions are not independent
    mean, half = interval(gain.tolist())
    return {"budget": budget, "thresholds": list(thresholds), "cost": paid, "accuracy": float(outcome.quality.mean()),
            "gain": mean, "half": half, "passed_on": float((outcome.level > 0).double().mean())}  # fmt: skip


def cascades(folder: Path, runs: dict[str, dict]) -> dict:
    """Single models, and curves of cascades."""
    teacher = tutorial.load()
    ids = windows("evaluation")[:1, : (LENGTH + CONTEXT) // 2]

    def products(model: nn.Module) -> int:
        return cost(model, input_ids=ids, use_cache=False, logits_to_keep=1).products

    whole = products(teacher)

    def student(name: str) -> PreTrainedModel:
        model = from_layers(teacher, runs[name]["layers"])
        model.load_state_dict(load_file(folder / f"{name}.safetensors"), strict=False)
        return model.eval()

    last = Answers(teacher)
    models: dict[str, tuple[Answers, float]] = {}
    for name in ("blocks 0 5", "float, seed 0"):
        if name in runs:
            model = student(name)
            models[f"{len(runs[name]['layers'])} blocks"] = (Answers(model), products(model) / whole)
    models["6 blocks"] = (last, 1.0)
    single = list(models.values())
    chains: list[tuple[str, ...]] = [(first, "6 blocks") for first in models if first != "6 blocks"]
    chains += [("2 blocks", "3 blocks", "6 blocks")] if "2 blocks" in models else []
    curves = {
        ", ".join(chain): [
            point([models[n][0] for n in chain], [models[n][1] for n in chain], single, budget)
            for budget in BUDGETS if budget >= models[chain[0]][1]
        ]
        for chain in chains
    }  # fmt: skip
    return {
        "models": {name: one.record | {"cost": price} for name, (one, price) in models.items()},
        "products": whole,
        "curves": curves,
        "windows": len(last.right["evaluation"]),
        "predictions": last.right["evaluation"].numel(),
    }
