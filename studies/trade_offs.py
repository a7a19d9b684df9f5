"""Every setting of the trade-off table by every method, on the shipped model.

    python studies/trade_offs.py            # about an hour on one core; goes on where it stopped
    python studies/trade_offs.py --timing   # bytes and speed, some minutes, on an idle machine; then collects

Writes ``book/data/trade_offs.json``: quality of each setting and method over two draws of the calibration text, bytes
with all that is not quantised in bfloat16, and the speed of a decoding step relative to float32 in the same run.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import recording
import torch

from reference import trade_offs
from reference.calibration import batches
from reference.data import text
from reference.files import atomic_write
from reference.hardware.latency import compare
from reference.models import tutorial
from reference.trade_offs import METHODS, SETTINGS
from reference.transforms.rotation import rotate

SEEDS, SEQUENCES, LENGTH, TOKENS = (0, 1), 64, 256, 8192
ONE_DRAW = ("round_to_nearest", "awq")  # reads no text; takes longest
BATCHES = (1, 32)
DOMAINS = ("code", "documentation")
ROOT = Path(__file__).parents[1]
RESULT = ROOT / "book/data/trade_offs.json"
PARTIAL = ROOT / ".cache/trade_offs.json"


def texts() -> dict[str, tuple[torch.Tensor, int]]:
    """The held-out text of both domains: token ids, and bytes of what they spell after the first."""
    tokenizer, found = tutorial.tokenizer(), {}
    for domain in DOMAINS:
        ids = text.encode(text.read(domain), tokenizer)[:TOKENS]
        found[domain] = (ids, len(tokenizer.decode(ids[1:], clean_up_tokenization_spaces=False).encode()))
    return found


def calibration(seed: int) -> list[torch.Tensor]:
    """Half of the sequences from each domain."""
    tokenizer, drawn = tutorial.tokenizer(), []
    for domain in DOMAINS:
        ids = text.encode(text.read(domain, "calibration"), tokenizer)
        drawn += batches(ids, sequences=SEQUENCES // 2, length=LENGTH, seed=seed)
    return drawn


def quality(partial: dict) -> None:
    original, measured = tutorial.load(), texts()
    if "float" not in partial:
        partial["float"] = trade_offs.measure(original, original, measured)._asdict()
    for seed in SEEDS:
        drawn = calibration(seed)
        for name, setting in SETTINGS.items():
            for method in METHODS:
                key = f"{name}/{method}/{seed}"
                if key in partial or (seed and method in ONE_DRAW):
                    continue
                begin = time.perf_counter()
                model = trade_offs.compress(tutorial.load(), setting, method, drawn)
                partial[key] = trade_offs.measure(model, original, measured)._asdict()
                atomic_write(PARTIAL, json.dumps(partial).encode())
                took = time.perf_counter() - begin
                sys.stderr.write(f"{key}: {partial[key]['bits_per_byte']} in {took:.0f} s\n")


def sizes() -> dict:
    """Bytes of the bfloat16 model, of each setting, and of each setting on the rotated model, whose head is untied.

    They do not depend on the solver: rounding to nearest stands for all.
    """
    ids = torch.arange(512)
    found = {}
    for name, setting in [("float", None), *SETTINGS.items()]:
        for rotated in (False, True) if setting else (False,):
            model = tutorial.load(dtype=torch.bfloat16)
            if rotated:
                rotate(model)
            if setting:
                trade_offs.compress(model, setting, "round_to_nearest", [])
            row = trade_offs.measure(model, model, {"numbers": (ids, 1)})
            found[name, rotated] = {k: getattr(row, k) for k in ("bytes_linear", "bytes_total", "resident")}
    return found


def timing() -> dict:
    """Time of one decoding step relative to float32, by setting and batch: best of many, taken in turns."""
    models = {"float32": tutorial.load(), "bfloat16": tutorial.load(dtype=torch.bfloat16)}
    for name, setting in SETTINGS.items():
        models[name] = trade_offs.compress(tutorial.load(), setting, "round_to_nearest", [])
    found: dict = {name: {"execution": {}, "speed": {}} for name in models}
    for batch in BATCHES:
        steps = {name: trade_offs.decode_step(model, batch) for name, model in models.items()}
        times = compare(steps, repeats=150, warmup=5)
        for name, model in models.items():
            found[name]["speed"][str(batch)] = round(times["float32"].best / times[name].best, 3)
            found[name]["execution"][str(batch)] = trade_offs.execution(model, batch)
    return found


def collect(partial: dict, bytes_of: dict, speeds: dict) -> None:
    rows: dict = {}
    original = {k: partial["float"][k] for k in ("bits_per_byte", "kl")} | bytes_of["float", False]
    original["text_bytes"] = {domain: size for domain, (_, size) in texts().items()}
    original["tokens"] = TOKENS
    for key, row in partial.items():
        if key == "float":
            continue
        name, method, seed = key.split("/")
        if int(seed) not in SEEDS:
            continue
        mine = rows.setdefault(name, {}).setdefault(method, {"bits_per_byte": {}, "kl": {}})
        for measure in ("bits_per_byte", "kl"):
            for domain, value in row[measure].items():
                mine[measure].setdefault(domain, []).append(round(value, 5))
        mine |= bytes_of[name, method.startswith("rotation")]
        assert mine["bytes_linear"] == row["bytes_linear"]
    recording.write(
        RESULT,
        what="The shipped model quantised by every setting and method: bits per byte and divergence on "
        f"{TOKENS:,} tokens of each domain, calibrated on {SEQUENCES} sequences of {LENGTH} tokens of both, a number "
        "for each draw (AWQ: one); bytes on disk and in memory, all that is not quantised in bfloat16; speed of a "
        "decoding step relative to float32 in one run",
        values={"float": original, "settings": rows, "speed": speeds},
        command="python studies/trade_offs.py && python studies/trade_offs.py --timing",
        device=recording.ONE_THREAD,
        seed=list(SEEDS),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timing", action="store_true", help="measure bytes and speed, write the result")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    PARTIAL.parent.mkdir(exist_ok=True)
    partial = json.loads(PARTIAL.read_text()) if PARTIAL.is_file() else {}
    if not arguments.timing:
        quality(partial)
        return
    if "float" not in partial:
        sys.exit("error: no quality was measured yet; run without --timing first")
    collect(partial, sizes(), timing())


if __name__ == "__main__":
    main()
