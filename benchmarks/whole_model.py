"""Time GPTQ on a whole model over its floor, and beside llm-compressor.

    python benchmarks/whole_model.py --peer /path/to/venv/bin/python

The floor of the shipped model with 128 sequences of 256 tokens of its calibration text: one forward through the blocks,
the symmetric products of every group's inputs, and for every layer the factorisations and block products of the
solver, each measured alone in the same process on one thread; the best of several turns counts. The peer, in a
virtual environment of its own, gets the same folder, the same tokens and one thread; both times leave out loading
and saving, and both results are measured by reading their checkpoints here. Only ratios within one run are comparable.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import torch
from gptq import floor as solver_floor
from packed_linear import cpu
from torch import Tensor, nn

from reference import checkpoint, evaluation, workflow
from reference.calibration import batches, capture, walk_blocks
from reference.data import text
from reference.models import tutorial
from reference.models.families import blocks, family_of
from reference.quantization.grid import QuantizationSpec
from reference.quantization.hessian import HessianAccumulator

SEQUENCES, LENGTH, BATCH = 128, 256, 8
HELD_OUT = 16384
RESULT = Path(__file__).parent / "results" / "whole_model.json"
PEER = """
import json, sys, time
import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
folder, output, tokens, bits, method = sys.argv[1:]
rows = json.load(open(tokens))
data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})
weights = {"num_bits": int(bits), "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}
groups = {"all": {"targets": ["Linear"], "weights": weights}}
kind = GPTQModifier if method == "gptq" else QuantizationModifier
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
start = time.perf_counter()
oneshot(model=model, dataset=data, recipe=[kind(config_groups=groups, ignore=["lm_head"])],
        num_calibration_samples=len(rows), max_seq_length=len(rows[0]), shuffle_calibration_samples=False)
seconds = time.perf_counter() - start
model.save_pretrained(output)
import llmcompressor
print(json.dumps({"seconds": seconds, "version": llmcompressor.__version__}))
"""


def seconds(function: Callable[[], object]) -> float:
    """Wall clock of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def forward(model: nn.Module, drawn: list[Tensor]) -> float:
    """Seconds of the batches' way through the blocks."""
    return seconds(lambda: walk_blocks(model, drawn, lambda _, block, calls: capture(block, calls, ())[0]))


def products(model: nn.Module, tokens: list[int]) -> float:
    """Seconds of the symmetric products, batch by batch, of every group of layers that share an input."""
    total = 0.0
    for group in family_of(model).sublayers:
        width = blocks(model)[0].get_submodule(group[0]).get_parameter("weight").shape[1]
        inputs = [torch.randn(1, count, width) for count in tokens]
        accumulator = HessianAccumulator(width)
        total += seconds(lambda inputs=inputs, accumulator=accumulator: [accumulator.add(batch) for batch in inputs])
    return total * len(blocks(model))


def solves(model: nn.Module) -> float:
    """Seconds of the factorisations, one for each group, and of the block products of its layers' rows."""
    total = 0.0
    for group in family_of(model).sublayers:
        weights = [blocks(model)[0].get_submodule(name).get_parameter("weight").detach() for name in group]
        width = weights[0].shape[1]
        inputs = torch.randn(4 * width, width)
        hessian = inputs.T @ inputs
        total += sum(solver_floor(hessian, torch.cat(weights).T.contiguous()))
    return total * len(blocks(model))


def ours(drawn: list[Tensor], bits: int, output: Path | None = None) -> float:
    """Seconds of the whole run; the result is saved if ``output`` is given."""
    model = tutorial.load()
    spec = QuantizationSpec(bits, symmetric=True, group_size=128)
    options = {"act_order": True, "static_groups": True}
    took = seconds(lambda: workflow.quantize(model, spec, method="gptq", calibration=drawn, **options))  # type: ignore[arg-type]
    if output is not None:
        checkpoint.save(model, output)
    return took


def loss(folder: Path) -> float:
    """Nats a token of a checkpoint on held-out code."""
    ids = text.encode(text.read("code"), tutorial.tokenizer())[:HELD_OUT]
    return evaluation.token_losses(checkpoint.load(folder), ids, window=LENGTH, stride=LENGTH).double().mean().item()


def peer(python: str, drawn: list[Tensor], bits: int, method: str, folder: Path) -> tuple[float, float, str]:
    """Seconds and loss of llm-compressor, and its version."""
    tokens, output = folder / "tokens.json", folder / f"peer-{method}-{bits}"
    tokens.write_text(json.dumps(torch.cat(drawn).tolist()))
    command = [python, "-c", PEER, str(tutorial.PATH), str(output), str(tokens), str(bits), method]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"llm-compressor failed:\n{done.stderr[-3000:]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return found["seconds"], loss(output), found["version"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="python of an environment with llm-compressor; without it only the floor")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2])
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ids = text.encode(text.read("code", "calibration"), tutorial.tokenizer())
    drawn = batches(ids, sequences=SEQUENCES, length=LENGTH, batch=BATCH)
    counts = [batch.numel() for batch in drawn]
    model = tutorial.load()
    parts = dict.fromkeys(("forward", "products", "solver"), float("inf"))
    whole = float("inf")
    for _ in range(arguments.turns):
        parts["forward"] = min(parts["forward"], forward(model, drawn))
        parts["products"] = min(parts["products"], products(model, counts))
        parts["solver"] = min(parts["solver"], solves(model))
        whole = min(whole, ours(drawn, 4))
    floor = sum(parts.values())
    values: dict = {"floor": parts | {"total": floor}, "ours": whole, "ours_over_floor": whole / floor, "beside": {}}
    versions = {"torch": torch.__version__}
    if arguments.peer:
        with tempfile.TemporaryDirectory() as name:
            for bits in arguments.bits:
                nearest = peer(arguments.peer, drawn, bits, "round_to_nearest", Path(name))
                theirs = [peer(arguments.peer, drawn, bits, "gptq", Path(name)) for _ in range(arguments.turns)]
                mine = min(ours(drawn, bits, Path(name) / f"{turn}-{bits}") for turn in range(arguments.turns))
                took = min(seconds for seconds, *_ in theirs)
                versions["llmcompressor"] = theirs[0][2]
                values["beside"][f"{bits} bits"] = {
                    "ours": {"seconds": mine, "nats": loss(Path(name) / f"0-{bits}")},
                    "llm-compressor": {"seconds": took, "nats": theirs[0][1]},
                    "llm-compressor, round to nearest": {"nats": nearest[1]},
                    "time_over_theirs": mine / took,
                }
                print(json.dumps(values["beside"][f"{bits} bits"]), file=sys.stderr)
    with tempfile.TemporaryDirectory() as name:
        checkpoint.save(tutorial.load(), Path(name) / "float")
        values["float_nats"] = loss(Path(name) / "float")
    result = {
        "command": "python " + " ".join(sys.argv), "date": date.today().isoformat(), "device": cpu(), "threads": 1,
        "versions": versions, "values": values,
    }  # fmt: skip
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
