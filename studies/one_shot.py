"""One-shot pruning of the shipped model: three methods, patterns, joint with quantisation, and masked retraining.

    python studies/tutorial_corpus.py --work /tmp/tutorial             # the training text (Debian's, on CPython 3.11)
    python studies/quantization_aware.py --export /tmp/tutorial --payload /tmp/payload
    python studies/one_shot.py --payload /tmp/payload                  # about ten minutes of one core with AMX, --seeds 1

Writes ``book/data/one_shot.json``. What is finished is kept in ``one_shot.partial.json`` in the payload, so a run
that was stopped, also by ``--minutes`` (exit code 3), goes on where it was.
"""

import argparse
import datetime
import json
import math
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import recording
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from reference import evaluation, workflow
from reference.calibration import batches
from reference.coding import huffman
from reference.data import text
from reference.files import atomic_write
from reference.models import tutorial
from reference.models.families import block_linears
from reference.pruning import one_shot
from reference.pruning.masks import Masks
from reference.quantization.grid import QuantizationSpec
from reference.training import random_windows, train

SPARSITIES, PATTERNS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8), ((2, 4), (4, 8))
DRAWN_THRICE = ("0.5",)
JOINT = ((0.5, 3), (0.5, 4), (0.625, 4), (0.75, 4))
ALONE = (2, 3, 4)
GROUP, WINDOW, COUNT, SEQUENCES, SEEDS = 128, 256, 16, 16, (0, 1, 2)
RETRAINED, STEPS, BATCH, RATES = (0.7,), 64, 8, (3e-4, 1e-3)
SHARE = [0.6, 0.4]  # code, documentation, as the model was trained
RESULT = Path(__file__).resolve().parents[1] / "book/data/one_shot.json"

tokenizer = tutorial.tokenizer()
CALIBRATION = {domain: text.encode(text.read(domain, "calibration"), tokenizer) for domain in text.DOMAINS}


def windows(domain: str, part: str) -> tuple[Tensor, int]:
    """Tokens spread over a whole text, and the bytes that they predict."""
    tokens = text.encode(text.read(domain, part), tokenizer)
    rows = tokens[: len(tokens) // WINDOW * WINDOW].view(-1, WINDOW)
    chosen = rows[:: len(rows) // COUNT][:COUNT]
    names = tokenizer.convert_ids_to_tokens(chosen[:, 1:].flatten().tolist())
    return chosen.flatten(), sum(map(len, names))  # byte-level tokens: one character a byte


def bits_per_byte(model: nn.Module, part: str = "evaluation") -> dict[str, float]:
    found = {}
    for domain in text.DOMAINS:
        tokens, count = windows(domain, part)
        nats = evaluation.token_losses(model, tokens, window=WINDOW, stride=WINDOW)
        found[domain] = round(float(nats.double().sum()) / math.log(2) / count, 5)
    return found


def draw(seed: int) -> list[Tensor]:
    return [rows for domain in text.DOMAINS
            for rows in batches(CALIBRATION[domain], sequences=SEQUENCES, length=WINDOW, seed=seed)]  # fmt: skip


def pruned(method: str, amount: str, seed: int, spec: QuantizationSpec | None = None) -> nn.Module:
    """The shipped model pruned to a sparsity, "0.5", or a pattern, "2:4"."""
    n, _, m = amount.partition(":")
    sparsity, pattern = (None, (int(n), int(m))) if m else (float(amount), None)
    return one_shot.prune(tutorial.load(), sparsity, pattern=pattern, method=method, spec=spec, calibration=draw(seed))


def stored_bits(model: nn.Module) -> dict[str, float]:
    """Bits per weight of quantised layers: packed, as a bitmap with the codes that are not zero, and Huffman-coded."""
    totals, weights = dict.fromkeys(("packed", "bitmap", "huffman"), 0.0), 0
    for _, layer in block_linears(model):
        tensor = layer.tensor
        codes = tensor.codes
        scales = 8 * tensor.scale.nbytes
        kept = int((codes != tensor.spec.middle).sum())
        weights += codes.numel()
        totals["packed"] += 8 * tensor.nbytes
        totals["bitmap"] += codes.numel() + kept * tensor.spec.bits + scales
        totals["huffman"] += 8 * len(huffman.encode(codes.numpy().flatten())) + scales
    return {key: round(value / weights, 4) for key, value in totals.items()}


def joint(sparsity: float | None, bits: int) -> dict:
    spec = QuantizationSpec(bits, symmetric=True, group_size=GROUP)
    if sparsity is None:
        model = workflow.quantize(tutorial.load(), spec, method="gptq", calibration=draw(0))
    else:
        model = pruned("sparsegpt", str(sparsity), 0, spec)
    return {"bits": stored_bits(model), "bits_per_byte": bits_per_byte(model)}


def retrained(method: str, amount: str, seed: int, rate: float, payload: Path, part: str = "evaluation") -> dict:
    """Bits per byte before and after masked training; ``method`` "dense" trains the whole model as long."""
    model = tutorial.load() if method == "dense" else pruned(method, amount, seed)
    before = bits_per_byte(model, part)
    tensors = load_file(payload / "tokens.safetensors")
    tokens = [tensors[name].numpy() for name in sorted(tensors)]
    optimizer = torch.optim.AdamW(model.parameters(), rate, betas=(0.9, 0.95), weight_decay=0.0)
    chosen = {} if method == "dense" else {
        f"{name}.weight": layer.weight.detach() != 0 for name, layer in block_linears(model)
    }  # fmt: skip
    masks = Masks(model, chosen, optimizer)

    def loss_of_step(step: int) -> Tensor:
        rows = random_windows(tokens, SHARE, batch=BATCH, length=WINDOW, seed=seed, step=step)
        with torch.autocast("cpu", torch.bfloat16):
            return model(input_ids=rows, labels=rows).loss

    curve = []
    for row in train(model, loss_of_step, [optimizer], steps=STEPS, warmup=10, decay=0.8):
        masks()
        curve.append(row["loss"])
    assert all(bool((model.get_parameter(name)[~mask] == 0).all()) for name, mask in chosen.items())
    last = sum(curve[-20:]) / 20
    return {"before": before, "after": bits_per_byte(model.eval(), part), "last_loss": round(last, 4)}


def tasks(payload: Path, seeds: int) -> dict[str, Callable[[], object]]:
    """Name → what it computes, in the order in which they are done."""
    found: dict[str, Callable[[], object]] = {"float": lambda: bits_per_byte(tutorial.load())}
    for rate in RATES:
        found[f"rate {rate:g}"] = lambda rate=rate: retrained("sparsegpt", "0.7", 0, rate, payload, "calibration")
    amounts = [*map(str, SPARSITIES), *(f"{n}:{m}" for n, m in PATTERNS)]
    for method in one_shot.METHODS:
        for amount in amounts:
            found[f"swept {method} {amount} {SEEDS[0]}"] = lambda a=(method, amount, SEEDS[0]): bits_per_byte(
                pruned(*a)
            )
    for bits in ALONE:
        found[f"alone {bits}"] = lambda bits=bits: joint(None, bits)
    for sparsity, bits in JOINT:
        found[f"joint {sparsity} {bits}"] = lambda a=(sparsity, bits): joint(*a)
    add_retrained(found, SEEDS[0], payload)
    for seed in SEEDS[1:seeds]:
        for method in one_shot.METHODS[1:]:
            for amount in DRAWN_THRICE:
                found[f"swept {method} {amount} {seed}"] = lambda a=(method, amount, seed): bits_per_byte(pruned(*a))
        add_retrained(found, seed, payload)
    return found


def add_retrained(found: dict[str, Callable[[], object]], seed: int, payload: Path) -> None:
    for method, amount in (("dense", "0"), *((m, str(s)) for s in RETRAINED for m in one_shot.METHODS)):
        found[f"retrained {method} {amount} {seed}"] = lambda a=(method, amount, seed): retrained(
            *a, best_rate(payload), payload
        )


def best_rate(payload: Path) -> float:
    """The rate that is best on calibration text after 70 % were removed."""
    done = read(payload)
    return min(RATES, key=lambda rate: sum(done[f"rate {rate:g}"]["after"].values()))


def read(payload: Path) -> dict:
    file = payload / "one_shot.partial.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def collect(done: dict, payload: Path, seeds: int) -> dict:
    """The recorded values: nested by kind, method, amount."""
    values: dict = {
        "float": done["float"], "steps": STEPS, "tokens": STEPS * BATCH * WINDOW, "rate": best_rate(payload),
        "rates": {f"{rate:g}": done[f"rate {rate:g}"]["after"] for rate in RATES},
        "swept": {}, "retrained": {}, "alone": {}, "joint": {},
    }  # fmt: skip
    for name, value in done.items():
        kind, *rest = name.split()
        if kind in ("swept", "retrained") and int(rest[-1]) >= seeds:
            continue
        if kind in ("swept", "retrained"):
            method, amount, _ = rest
            values[kind].setdefault(method, {}).setdefault(amount, []).append(value)
        elif kind in ("alone", "joint"):
            values[kind][" ".join(rest)] = value
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--payload", type=Path, required=True, help="folder with tokens.safetensors")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin nothing after so long")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="of text and training, 1 to 3")
    options = parser.parse_args()
    stop = time.monotonic() + 60 * options.minutes
    torch.set_num_threads(1)
    done = read(options.payload)
    for name, task in tasks(options.payload, options.seeds).items():
        if name not in done:
            if time.monotonic() > stop:
                sys.exit(3)
            done[name] = task()
            atomic_write(options.payload / "one_shot.partial.json", json.dumps(done).encode())
            sys.stderr.write(f"{datetime.datetime.now():%H:%M:%S} {name}: {done[name]}\n")
    recording.write(
        RESULT,
        what="Bits per byte of the shipped model after magnitude, Wanda and SparseGPT, by sparsity and pattern; jointly "
        f"with quantisation (symmetric, groups of {GROUP}) against GPTQ alone; and after masked retraining. Calibrated on "
        f"{2 * SEQUENCES} sequences of {WINDOW} tokens, measured on {2 * COUNT} windows",
        values=collect(done, options.payload, options.seeds),
        command=f"python studies/one_shot.py --payload /tmp/payload --seeds {options.seeds}",
        device=f"{platform.machine()} CPU with AMX, one thread",
        seed=list(SEEDS[: options.seeds]),
        packages=("numpy",),
    )


if __name__ == "__main__":
    main()
