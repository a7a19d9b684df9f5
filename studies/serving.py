"""Served float and quantised: time to the first token, between tokens, throughput and memory, on one core.

    python studies/serving.py [--work DIR]     # about five minutes on one core; resumes

The model is wide and of random weights: its time is spent on weights, where that of the shipped model is spent on Python.
Each checkpoint is served as transformers loads it; those marked packed with the loader of this package. The times of the
processor are what to compare: other jobs on the machine hardly change them. Writes ``book/data/serving.json``.
"""

import argparse
import json
import os
import platform
import tempfile
from pathlib import Path

import recording
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from reference import checkpoint, workflow
from reference.data import text
from reference.deployment import serving
from reference.files import atomic_write
from reference.models import tutorial
from reference.quantization.activations import ActivationSpec
from reference.quantization.grid import QuantizationSpec

RESULT = Path(__file__).resolve().parents[1] / "book/data/serving.json"
PROMPT, FEW = 48, 2
#: Tokens of an answer, requests of one user, requests of four users.
TOKENS, ALONE, TOGETHER = 16, 6, 8
WIDE = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12, "num_attention_heads": 16,
        "num_key_value_heads": 16, "head_dim": 64}  # fmt: skip
#: checkpoint → weights and activations; the second name says whether it is served packed.
GRIDS = {
    "float": None,
    "W4A16": (QuantizationSpec(bits=4, group_size=128, symmetric=True), None),
    "W8A8": (QuantizationSpec(bits=8, group_size=None, symmetric=True), ActivationSpec()),
}
SERVERS = (("float", False), ("W4A16", False), ("W4A16", True), ("W8A8", True))
BATCHING = (("float", False), ("W4A16", True))


def original() -> PreTrainedModel:
    shipped = tutorial.load(dtype=torch.bfloat16)
    torch.manual_seed(0)
    wide = LlamaForCausalLM(LlamaConfig(**{**shipped.config.to_dict(), **WIDE})).to(torch.bfloat16).eval()
    wide.generation_config = shipped.generation_config
    return wide


def export(work: Path, name: str) -> Path:
    folder = work / f"wide-{name}"
    if not folder.exists():
        network = original()
        if GRIDS[name]:
            weights, activations = GRIDS[name]
            workflow.quantize(network, weights, activations=activations)
        checkpoint.save(network, folder, tokenizer=tutorial.tokenizer())
    return folder


def prompts(count: int) -> list[str]:
    tokenizer = tutorial.tokenizer()
    ids = text.encode(text.read("code"), tokenizer)
    return [tokenizer.decode(ids[PROMPT * i : PROMPT * (i + 1)]) for i in range(count)]


def row(load: serving.Load) -> dict:
    return {
        "first": load.first, "between": load.between, "total": load.total, "tokens": load.tokens,
        "processor": load.processor,
        "tokens_per_second": load.tokens_per_second, "answers": len(load.answers), "failed": len(load.failed),
    }  # fmt: skip


def one(folder: Path, packed: bool, batching: bool, work: Path) -> dict:
    with serving.serve(folder, log=work / "server.log", packed=packed, batching=batching) as server:
        serving.measure(server, prompts(2), tokens=TOKENS)  # unpacks or repacks the weights
        loads = {"first": serving.measure(server, prompts(ALONE), tokens=FEW)}
        loads["1"] = serving.measure(server, prompts(ALONE), tokens=TOKENS)
        loads["4"] = serving.measure(server, prompts(TOGETHER), tokens=TOKENS, concurrency=4)
        peak, now = server.memory() or (None, None)
    return {"peak": peak, "resident": now, "loads": {users: row(load) for users, load in loads.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "serving_study")
    work = parser.parse_args().work
    work.mkdir(exist_ok=True)
    state = work / "rows.json"
    found = json.loads(state.read_text()) if state.is_file() else {}
    sizes = {}
    for batching, servers in ((False, SERVERS), (True, BATCHING)):
        for name, packed in servers:
            folder = export(work, name)
            sizes[name] = (folder / "model.safetensors").stat().st_size
            modes = found.setdefault(f"{name}{' packed' if packed else ''}", {})
            mode = "batching" if batching else "in turn"
            if mode not in modes:
                modes[mode] = one(folder, packed, batching, work)
                atomic_write(state, json.dumps(found).encode())
                print(name, packed, mode, modes[mode], flush=True)
    recording.write(
        RESULT,
        what="transformers serve with float and quantised checkpoints: seconds, tokens per second, bytes",
        values={"servers": found, "disk": sizes, "prompt": PROMPT, "few": FEW, "tokens": TOKENS, "wide": WIDE},
        command="python studies/serving.py",
        device=f"{platform.machine()}, {os.cpu_count()} cores shared with other jobs, one thread",
        seed=0,
        packages=("transformers",),
    )
    print("wrote", RESULT)


if __name__ == "__main__":
    main()
