"""Measure the shipped model and write its model card and recorded result.

    python studies/tutorial_card.py --work /tmp/tutorial --run final

needs the training text and the loss curve of ``tutorial_model.py``; writes
``book/data/tutorial_model.json`` and ``reference/models/tutorial/README.md``.
"""

import argparse
import json
import lzma
import math
from pathlib import Path

import recording
import torch
from ngram import Ngram

from reference import workflow
from reference.data import text
from reference.evaluation import bits_per_byte, token_losses
from reference.files import atomic_write
from reference.models import tutorial
from reference.quantization.grid import QuantizationSpec

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "book/data/tutorial_model.json"
WINDOW, STRIDE = 512, 256
GROUPINGS = {"per channel": None, "g128": 128}


def measure(model: torch.nn.Module, tokenizer: object) -> dict[str, float]:
    """Bits per byte on both held-out domains, whole texts."""
    result = {}
    for domain in text.DOMAINS:
        content = text.read(domain)
        losses = token_losses(model, text.encode(content, tokenizer), window=WINDOW, stride=STRIDE, batch=16)
        result[domain] = bits_per_byte(losses, len(content.encode()))
    return result


def xz_bits(data: bytes, primer: bytes = b"") -> float:
    """Bits per byte of ``xz -9e``; with a primer, of what ``data`` adds to the compressed primer."""

    def size(content: bytes) -> int:
        return len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))

    return 8 * (size(primer + data) - (size(primer) if primer else 0)) / len(data)


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))


def card(values: dict, record: dict) -> str:
    """The model card, from the recorded numbers alone."""
    baseline, quantised = values["baselines"], values["round_to_nearest"]
    quality = "\n".join(
        f"| {name} | {row['code']:.3f} | {row['documentation']:.3f} |"
        for name, row in {"this model, bfloat16": values["bits_per_byte"], **baseline}.items()
    )
    cost = "\n".join(
        f"| {bits} | {grouping} | {kind} | {row['code']:.3f} | {row['documentation']:.3f} | "
        f"{row['nats_code']:+.3f} | {row['nats_documentation']:+.3f} |"
        for kind, table in quantised.items()
        for bits, columns in table.items()
        for grouping, row in columns.items()
    )
    points = values["curve"][:: max(1, len(values["curve"]) // 12)] + values["curve"][-1:]
    curve = "\n".join(f"| {row['tokens']:,} | {row['loss']:.3f} |" for row in points)
    corpus = json.loads((text.FOLDER / "manifest.json").read_text())
    sizes = "\n".join(f"| {name} | {row['files']} | {row['bytes']:,} |" for name, row in corpus.items())
    return f"""# The shipped model

A language model in transformers' Llama architecture: hidden size 256, 6 blocks, 4 query and 2 key-value heads of
64, SwiGLU of width 768, RMSNorm, byte-level BPE of 4,096 tokens, tied embeddings, context of 512 tokens,
{values["parameters"]:,} parameters, stored in bfloat16 ({values["file_bytes"]:,} bytes). It exists to be compressed
in the chapters of the book. It completes Python and reStructuredText plausibly and is good for nothing else.

Licence of the weights: as the book's code. The text that it learned from is under the PSF licence.

## Quality
Bits per byte on whole held-out texts (windows of {WINDOW} tokens, stride {STRIDE}); smaller is better.

| | code | documentation |
|---|---|---|
{quality}

`xz -9e` alone sees only the held-out text; "after the training text" counts the bytes that the held-out text adds
to the compressed training text of the same domain. The n-gram is interpolated (Witten and Bell), over bytes, with five
bytes of context, and trained on the same text as the model.

## What rounding to the nearest costs
Bits per byte after quantising the linear layers of the blocks, and the loss added, in nats per token.

| bits | grouping | grid | code | documentation | code, nats | documentation, nats |
|---|---|---|---|---|---|---|
{cost}

## Training
{values["tokens"]:,} tokens in {values["steps"]:,} steps of 16 windows of 512 tokens, 60 % code and 40 % documentation;
Muon for the matrices of the blocks, AdamW for the rest, peak rate {values["rate"]}, 100 steps of warm-up, constant,
linear decay over the last {values["decay"]:.0%} of the steps; bfloat16 autocast.
Device: {record["device"]}. Seed {record["seed"]}. Script: `studies/tutorial_model.py` on the text of `studies/tutorial_corpus.py`.

| tokens | training loss, nats per token |
|---|---|
{curve}

## Data
Python source of CPython's standard library and reStructuredText sources of Python's documentation (Debian's
`python3.11-doc`). Files were split whole into training, evaluation and calibration text; training text then lost every
file of which more than a quarter, and every paragraph of which a run of 13 words, also stands in held-out text.
Documents were joined without an end-of-text token, so the model never saw one.

| text | files | bytes |
|---|---|---|
{sizes}

Measured {record["date"]} with torch {record["versions"]["torch"]} and
transformers {record["versions"]["transformers"]}; recorded in `book/data/tutorial_model.json` by `{record["command"]}`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of tutorial_corpus.py and tutorial_model.py")
    parser.add_argument("--run", default="run", help="name of the run inside --work")
    parser.add_argument("--rate", type=float, default=4e-3, help="peak learning rate of the run")
    parser.add_argument("--decay", type=float, default=0.357, help="share of the steps in which the rate fell")
    options = parser.parse_args()

    torch.set_num_threads(2)
    tokenizer = tutorial.tokenizer()
    model = tutorial.load()
    rows = map(json.loads, (options.work / options.run / "curve.jsonl").read_text().splitlines())
    curve = list({row["step"]: row for row in rows}.values())  # steps taken again after a stop count once
    base = measure(model, tokenizer)
    train = {domain: (options.work / f"train_{domain}.txt").read_bytes() for domain in text.DOMAINS}
    held_out = {domain: text.read(domain).encode() for domain in text.DOMAINS}
    ngram = Ngram(b"".join(train.values()), order=5)
    baselines = {
        "xz -9e": {d: xz_bits(held_out[d]) for d in text.DOMAINS},
        "xz -9e, after the training text": {d: xz_bits(held_out[d], train[d]) for d in text.DOMAINS},
        "order-5 n-gram": {d: ngram.bits(held_out[d]) / len(held_out[d]) for d in text.DOMAINS},
    }
    nats = {
        d: math.log(2) * len(held_out[d]) / (len(text.encode(held_out[d].decode(), tokenizer)) - 1)
        for d in text.DOMAINS
    }
    quantised: dict = {}
    for kind in ("symmetric", "affine"):
        for bits in (8, 4, 3, 2):
            for grouping, size in GROUPINGS.items():
                spec = QuantizationSpec(bits, symmetric=kind == "symmetric", group_size=size)
                row = measure(workflow.quantize(tutorial.load(), spec), tokenizer)
                row |= {f"nats_{d}": (row[d] - base[d]) * nats[d] for d in text.DOMAINS}
                quantised.setdefault(kind, {}).setdefault(str(bits), {})[grouping] = row
                print(kind, bits, grouping, row, flush=True)
    record = recording.write(
        DATA,
        what="The shipped model: bits per byte, baselines, cost of round to nearest, loss curve",
        values={
            "parameters": sum(p.numel() for p in model.parameters()),
            "file_bytes": (tutorial.PATH / "model.safetensors").stat().st_size,
            "steps": curve[-1]["step"],
            "tokens": curve[-1]["tokens"],
            "rate": options.rate,
            "decay": options.decay,
            "bits_per_byte": base,
            "baselines": baselines,
            "round_to_nearest": quantised,
            "curve": [{"tokens": row["tokens"], "loss": round(row["loss"], 4)} for row in curve],
        },
        command=f"python studies/tutorial_card.py --work {options.work} --run {options.run}",
        device=f"{processor()}, 2 cores, no GPU",
        seed=0,
        packages=("transformers",),
    )
    atomic_write(tutorial.PATH / "README.md", card(record["values"], record).encode())


if __name__ == "__main__":
    main()
