"""Bits by layer under a byte budget against uniform bits, on held-out text; additivity of the layers' losses.

    python studies/dynamic_bits.py --results /tmp/dynamic          # about five minutes on one core

What is finished is kept in FOLDER/bits.json, so a study that was cut off goes on. ``studies/dynamic.py`` collects it.
"""

import argparse
import json
import random
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from reference import workflow
from reference.calibration import batches
from reference.data import text
from reference.dynamic import sensitivity
from reference.dynamic.allocation import bits_within, stored_bytes
from reference.dynamic.mixed_precision import Divergence, GptqRounding, shapes_of
from reference.files import atomic_write
from reference.models import tutorial
from reference.quantization.grid import QuantizationSpec

DOMAINS, WINDOW = ("code", "documentation"), 256
SPEC = QuantizationSpec(4, symmetric=True, group_size=128)
OPTIONS = (2, 3, 4, 6)
BUDGETS, CONTROLS = (2.125, 2.5, 3.125, 3.5, 4.125), (2.5, 3.125)
UNIFORM = (2, 3, 4)
DRAWS, PAIRS, SENSED, EVALUATED = 16, 8, 256, 2048  # the last two: tokens of a domain
RULES = ("measured", "fisher", "hessian", "shuffled")


def tokens(part: str, count: int) -> dict[str, Tensor]:
    return {name: text.encode(text.read(name, part), tutorial.tokenizer())[:count] for name in DOMAINS}


def solved_on() -> list[Tensor]:
    """What GPTQ calibrates on."""
    return [
        row
        for ids in tokens("calibration", 40_000).values()
        for row in batches(ids, sequences=8, length=WINDOW, seed=0)
    ]


def mean_loss(model: nn.Module, ids: Tensor) -> Tensor:
    logits = model(input_ids=ids).logits[:, :-1].float()
    return functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def tables(model: nn.Module) -> dict:
    """Each rule's number for each layer and width, from the same 512 calibration tokens, and what it took."""
    rows = torch.cat([ids.view(-1, WINDOW) for ids in tokens("calibration", SENSED).values()])
    shapes = shapes_of(model)
    grids, names = [replace(SPEC, bits=bits) for bits in OPTIONS], list(shapes)
    found, seconds = {}, {}
    begun = time.monotonic()
    found["measured"] = sensitivity.measured(model, grids, names, Divergence(model, [rows]))
    seconds["measured"] = time.monotonic() - begun
    begun = time.monotonic()
    rounding = GptqRounding(model, solved_on())
    found["gptq"] = sensitivity.measured(model, grids, names, Divergence(model, [rows]), rounding=rounding)
    seconds["gptq"] = time.monotonic() - begun
    begun = time.monotonic()
    samples = list(rows.view(-1, 128).split(1))
    diagonal = sensitivity.fisher(model, names, samples, lambda m, x: 127 * mean_loss(m, x), 127 * len(samples))
    found["fisher"] = sensitivity.predicted_by_fisher(model, grids, diagonal)
    seconds["fisher"] = time.monotonic() - begun
    begun = time.monotonic()
    traces = sensitivity.hessian_traces(model, names, lambda m: mean_loss(m, rows), draws=DRAWS)
    found["hessian"] = sensitivity.predicted_by_hessian(sensitivity.squared_errors(model, grids, names), traces)
    seconds["hessian"] = time.monotonic() - begun
    order = names[:]
    random.Random(0).shuffle(order)
    # A rule that knows the sizes and how costs fall with bits, but not which layer is which.
    found["shuffled"] = {name: found["measured"][other] for name, other in zip(names, order, strict=True)}
    return {"tables": found, "seconds": seconds, "traces": {name: list(trace) for name, trace in traces.items()}}


def additivity(model: nn.Module, table: sensitivity.Table) -> list[dict]:
    """Divergence with two layers quantised against the sum of the two alone."""
    rows = torch.cat([ids.view(-1, WINDOW) for ids in tokens("calibration", SENSED).values()])
    loss, names, chosen = Divergence(model, [rows]), list(table), random.Random(1)
    found = []
    for bits in (3, 2):
        for _ in range(PAIRS):
            pair = chosen.sample(names, 2)
            weights = [model.get_submodule(name).weight for name in pair]
            kept = [weight.data for weight in weights]
            for weight in weights:
                weight.data = sensitivity.rounded(weight.data, replace(SPEC, bits=bits))
            together = loss(model)
            for weight, before in zip(weights, kept, strict=True):
                weight.data = before
            found.append({"bits": bits, "pair": pair, "together": together, "sum": sum(table[n][bits] for n in pair)})
    return found


class HeldOut:
    """Added loss and divergence from the float model on held-out text, in one pass of the changed model."""

    @torch.no_grad()
    def __init__(self, exact: nn.Module) -> None:
        self.texts = {name: ids.view(-1, 8, WINDOW) for name, ids in tokens("evaluation", EVALUATED).items()}
        self.before = {name: [self.log_probabilities(exact, ids) for ids in rows] for name, rows in self.texts.items()}

    @staticmethod
    def log_probabilities(model: nn.Module, ids: Tensor) -> Tensor:
        return model(input_ids=ids).logits[:, :-1].float().log_softmax(-1)

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> dict[str, dict[str, float]]:
        found = {}
        for name, rows in self.texts.items():
            nats, kl = [], []
            for ids, before in zip(rows, self.before[name], strict=True):
                after = self.log_probabilities(model, ids)
                nats.append((before - after).gather(-1, ids[:, 1:, None]).double().mean())
                kl.append((before.exp() * (before - after)).sum(-1).double().mean())
            found[name] = {"added_nats": float(torch.stack(nats).mean()), "kl": float(torch.stack(kl).mean())}
        return found


def measure(bits: dict[str, int], solver: str, table: sensitivity.Table, held_out: HeldOut) -> dict:
    model = tutorial.load()
    shapes = shapes_of(model)
    workflow.quantize(model, lambda name: replace(SPEC, bits=bits[name]), method=solver, calibration=solved_on())
    for name, shape in shapes.items():  # what the budget counts is what is stored
        assert model.get_submodule(name).tensor.nbytes == stored_bytes(shape, replace(SPEC, bits=bits[name]))
    result: dict = {"bits": bits, **held_out(model)}
    if set(bits.values()) <= set(OPTIONS):
        result["predicted"] = sum(table[name][value] for name, value in bits.items())
    result["bytes"] = sum(stored_bytes(shape, replace(SPEC, bits=bits[name])) for name, shape in shapes.items())
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--time-limit", type=float, default=1e9, help="seconds after which nothing is begun")
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    path, stop = options.results / "bits.json", time.monotonic() + options.time_limit
    done = json.loads(path.read_text()) if path.is_file() else {}
    model = tutorial.load().requires_grad_(True)
    shapes = shapes_of(model)
    weights = sum(rows * columns for rows, columns in shapes.values())

    def keep(key: str, value: object) -> None:
        done[key] = value
        atomic_write(path, json.dumps(done).encode())
        print(key, flush=True)

    if "tables" not in done:
        for key, value in tables(model).items():
            keep(key, value)
        done = json.loads(path.read_text())
    found = {rule: {n: {int(b): v for b, v in row.items()} for n, row in table.items()}
             for rule, table in done["tables"].items()}  # fmt: skip
    if "additivity" not in done:
        keep("additivity", additivity(model, found["measured"]))
    assert tutorial.load().model.layers[0].mlp.up_proj.weight.equal(model.model.layers[0].mlp.up_proj.weight)
    held_out = HeldOut(tutorial.load())
    plan = {  # rule → budgets, by solver
        "round_to_nearest": {"measured": BUDGETS, **dict.fromkeys(RULES[1:], CONTROLS)},
        "gptq": {"measured": (2.5, 3.125, 4.125), "gptq": (2.5, 3.125, 4.125)},
    }
    jobs = [(solver, f"uniform {bits}", dict.fromkeys(shapes, bits)) for solver in plan for bits in UNIFORM]
    for solver, rules in plan.items():
        for rule, budgets in rules.items():
            for budget in budgets:
                bits = bits_within(found[rule], shapes, SPEC, budget * weights / 8)
                jobs.append((solver, f"{rule} {budget}", bits))
    for solver, name, bits in jobs:
        key = f"{solver} {name}"
        if key not in done and time.monotonic() < stop:
            keep(key, measure(bits, solver, found["gptq" if solver == "gptq" else "measured"], held_out))


if __name__ == "__main__":
    main()
