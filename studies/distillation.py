"""Does a compressed teacher teach as well? Students of three blocks, taught by the shipped model in several forms.

    python studies/tutorial_corpus.py --work /tmp/tutorial      # the training text (Debian's, on CPython 3.11)
    python studies/quantization_aware.py --export /tmp/tutorial --payload /tmp/payload
    python studies/distillation.py --payload /tmp/payload --results /tmp/distillation
    python studies/distillation.py --results /tmp/distillation --collect book/data/distillation.json

The third command takes the runs of ``distillation_runs.py`` one after the other on one core, about half a minute each; a run that has a
result is skipped, so it goes on where it stopped (``--budget 300`` stops it after so many seconds). The fourth
measures what serving each teacher costs and what cascades of the students give, and writes the result.
"""

import argparse
import functools
import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import recording
import torch
from distillation_measures import cascades, serving
from distillation_runs import JUDGED, SEEDS, TEACHERS, Run, runs
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from reference import workflow
from reference.calibration import batches
from reference.data import text
from reference.distillation.generated_text import generate_windows
from reference.distillation.student import from_layers
from reference.distillation.train import Lesson, distill
from reference.evaluation import token_losses
from reference.files import atomic_write
from reference.models import tutorial
from reference.models.families import block_linears
from reference.pruning.magnitude import row_mask
from reference.quantization.grid import QuantizationSpec
from reference.training import random_windows

BATCH, LENGTH = 4, 128
WINDOW, COUNT = 256, 24  # windows of a domain that are evaluated, spread over the text
CALIBRATION = 16  # sequences of a domain
DOMAINS, SHARE = ("code", "documentation"), [0.6, 0.4]
GENERATED = 320  # windows: what a run reads


def specification(teacher: str) -> QuantizationSpec:
    """The grid of a quantised teacher."""
    return QuantizationSpec(int(teacher.split()[0]), symmetric=True, group_size=64)


@functools.cache
def calibration() -> list[Tensor]:
    rows = []
    for domain in DOMAINS:
        ids = text.encode(text.read(domain, "calibration"), tutorial.tokenizer())
        rows += batches(ids, sequences=CALIBRATION, length=WINDOW, seed=0)
    return rows


def compressed(teacher: str) -> PreTrainedModel:
    """A teacher as it is served: packed layers, or zeros in dense ones."""
    model = tutorial.load()
    if teacher.endswith("bits"):
        workflow.quantize(model, specification(teacher), method="gptq", calibration=calibration())
    elif teacher == "half zero":
        with torch.no_grad():
            for _, linear in block_linears(model):
                linear.weight *= row_mask(linear.weight, 0.5)  # type: ignore[operator, arg-type]
    return model.requires_grad_(False)


@functools.cache
def dense(teacher: str, folder: Path) -> PreTrainedModel:
    """The same function with ordinary layers, which teach faster here; solved once."""
    path = folder / f"teacher {teacher}.safetensors"
    model = tutorial.load()
    if not path.is_file():
        served = compressed(teacher)
        weights = {
            f"{name}.weight": (
                layer.weight if isinstance(layer, nn.Linear) else layer.tensor.dequantize(torch.float32)
            ).contiguous()
            for name, layer in block_linears(served)
        }
        part = path.with_suffix(".part")
        save_file(weights, part)
        part.replace(path)
    model.load_state_dict(load_file(path), strict=False)
    return model.requires_grad_(False)


def generated(run: Run, folder: Path) -> np.ndarray:
    """Text of the teacher's own, ``[windows, length]``."""
    path = folder / f"generated {run.teacher}.safetensors"
    if not path.is_file():
        begun = time.monotonic()
        with torch.autocast("cpu", torch.bfloat16):
            ids = generate_windows(dense(run.teacher, folder), GENERATED, LENGTH, batch=256)
        print(f"{GENERATED} windows written in {time.monotonic() - begun:.0f} s", flush=True)
        part = path.with_suffix(".part")
        save_file({"ids": ids}, part)
        part.replace(path)
    return load_file(path)["ids"].numpy()


@functools.cache
def held_out(part: str) -> dict[str, tuple[Tensor, int]]:
    """Windows ``[COUNT, WINDOW]`` spread over the text, and the bytes that are scored, by domain."""
    tokenizer, found = tutorial.tokenizer(), {}
    sizes = torch.tensor([len(name) for name in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))])
    for domain in DOMAINS:
        ids = text.encode(text.read(domain, part), tokenizer)
        rows = ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)
        rows = rows[:: len(rows) // COUNT][:COUNT]
        found[domain] = (rows, int(sizes[rows[:, 1:]].sum()))
    return found


def bits_per_byte(model: nn.Module, part: str = "evaluation") -> dict[str, float]:
    """In float32, by domain."""
    return {
        domain: token_losses(model, rows.flatten(), window=WINDOW, stride=WINDOW).double().sum().item()
        / (math.log(2) * size)
        for domain, (rows, size) in held_out(part).items()
    }


def untaught(teacher: str, layers: tuple[int, ...], folder: Path) -> dict[str, float]:
    """Bits per byte of a student before its first step, measured once."""
    path = folder / f"untaught {teacher} {' '.join(map(str, layers))}.measured"
    if not path.is_file():
        atomic_write(path, json.dumps(bits_per_byte(from_layers(dense(teacher, folder), layers))).encode())
    return json.loads(path.read_text())


def execute(run: Run, options: argparse.Namespace) -> dict:
    """Train and measure one student, and keep it."""
    teacher = None if run.teacher == "none" else dense(run.teacher, options.results)
    student = from_layers(teacher if run.start == "teacher" and teacher else tutorial.load(), run.layers)
    before = untaught(run.teacher if run.start == "teacher" else "float", run.layers, options.results)
    if run.recipe.attention:  # the other implementations do not tell their maps
        student.set_attn_implementation("eager")
        teacher = tutorial.load().requires_grad_(False)
        teacher.set_attn_implementation("eager")
    if run.text == "real":
        found = load_file(options.payload / "tokens.safetensors")
        tokens, share = [found[name].numpy() for name in sorted(found)], SHARE
    else:
        tokens = list(generated(run, options.results))
        share = [1 / len(tokens)] * len(tokens)
    torch.manual_seed(run.seed)
    lesson = Lesson(student, teacher, run.recipe)
    begun, curve = time.monotonic(), []
    for row in distill(
        lesson, lambda step: random_windows(tokens, share, batch=BATCH, length=LENGTH, seed=run.seed, step=step),
        steps=run.steps, rate=run.rate, warmup=10, decay=0.6, half=True,
    ):  # fmt: skip
        curve.append(row["loss"])
    seconds = time.monotonic() - begun
    student.eval()
    state = {k: v.detach().to(torch.bfloat16).contiguous() for k, v in student.named_parameters()}
    save_file(state, options.results / f"{run.name}.safetensors")
    result = {
        "run": asdict(run), "seconds": round(seconds, 1), "before": before, "after": bits_per_byte(student),
        "parameters": sum(p.numel() for p in student.parameters()),
        "curve": [float(np.mean(part)) for part in np.array_split(curve, 20)],
    }  # fmt: skip
    if run.name in JUDGED:  # this text chooses the rate
        result["calibration"] = bits_per_byte(student, "calibration")
    return result


def train_all(options: argparse.Namespace) -> None:
    """Every run without a result, until the budget is spent."""
    options.results.mkdir(parents=True, exist_ok=True)
    stop = time.monotonic() + options.budget
    for run in runs():
        path = options.results / f"{run.name}.json"
        if path.is_file() or (options.only and run.name != options.only):
            continue
        if time.monotonic() > stop:
            return
        result = execute(run, options)
        atomic_write(path, json.dumps(result).encode())
        print(f"{run.name:32}", {k: round(v, 4) for k, v in result["after"].items()}, result["seconds"], flush=True)


def collect(options: argparse.Namespace) -> None:
    """Write the record."""
    results = {run.name: json.loads((options.results / f"{run.name}.json").read_text())
               for run in runs() if (options.results / f"{run.name}.json").is_file()}  # fmt: skip
    teachers = [name for name in TEACHERS if name != "none"]

    def once(what: str, measured: Callable[[], dict]) -> dict:
        path = options.results / f"{what}.measured"
        if not path.is_file():
            atomic_write(path, json.dumps(measured()).encode())
        return json.loads(path.read_text())

    reached = once("teachers", lambda: {name: bits_per_byte(dense(name, options.results)) for name in teachers})
    measured = {
        "teachers": reached,
        "cascades": once("cascades", lambda: cascades(options.results, {n: one["run"] for n, one in results.items()})),
        "serving": once("serving", lambda: serving({name: compressed(name) for name in teachers}, reached)),
    }
    for one in results.values():
        one["run"] = {k: v for k, v in one["run"].items() if k != "name"}
    recording.write(
        options.collect,
        what="Students of three blocks taught by the shipped model in float, quantised and pruned, three seeds; what "
        "serving each teacher costs; cascades of students",
        values={"runs": results, **measured, "tokens_a_step": BATCH * LENGTH},
        command="python studies/distillation.py --results RESULTS --collect book/data/distillation.json",
        device=f"{platform.machine()}, one core",
        seed=list(SEEDS),
        packages=("numpy", "transformers"),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--payload", type=Path, help="folder with tokens.safetensors")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=math.inf, help="seconds after which no run is started")
    parser.add_argument("--only", help="the name of one run")
    parser.add_argument("--collect", type=Path, help="write the record here")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    collect(chosen) if chosen.collect else train_all(chosen)
