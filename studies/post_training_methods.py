"""Four ways to round the shipped model, side by side: bits, calibration text and its seed, text measured.

    python studies/post_training_methods.py            # about 20 minutes on two cores; goes on where it stopped

Writes ``book/data/post_training_methods.json``: bits per byte by bits, method, calibration text and measured text,
one number for each seed of the calibration.
"""

import json
import sys
from pathlib import Path

import recording
import torch

from reference import workflow
from reference.calibration import batches
from reference.data import text
from reference.evaluation import bits_per_byte, token_losses
from reference.files import atomic_write
from reference.models import tutorial
from reference.quantization.grid import QuantizationSpec

METHODS = ("round_to_nearest", "gptq", "awq", "smoothquant+gptq")
BITS, GROUP, SEEDS = (4, 3, 2), 128, (0, 1, 2)
SEQUENCES, LENGTH, TOKENS = 32, 256, 8192
DOMAINS = ("code", "documentation")
ROOT = Path(__file__).parents[1]
RESULT = ROOT / "book/data/post_training_methods.json"
PARTIAL = ROOT / ".cache/post_training_methods.json"


def main() -> None:
    torch.set_num_threads(1)
    tokenizer = tutorial.tokenizer()
    texts = {}
    for domain in DOMAINS:
        ids = text.encode(text.read(domain), tokenizer)[:TOKENS]
        texts[domain] = (ids, len(tokenizer.decode(ids[1:], clean_up_tokenization_spaces=False).encode()))
    calibration = {domain: text.encode(text.read(domain, "calibration"), tokenizer) for domain in DOMAINS}

    def measure(model: torch.nn.Module) -> dict[str, float]:
        losses = {d: token_losses(model, ids, window=LENGTH, stride=LENGTH // 2) for d, (ids, _) in texts.items()}
        return {domain: bits_per_byte(found, texts[domain][1]) for domain, found in losses.items()}

    PARTIAL.parent.mkdir(exist_ok=True)
    rows = json.loads(PARTIAL.read_text()) if PARTIAL.is_file() else []
    done = {(r["method"], r["bits"], r["calibration"], r["seed"]) for r in rows}
    floats = measure(tutorial.load())
    todo = [("round_to_nearest", bits, None, None) for bits in BITS]
    todo += [(m, b, d, s) for s in SEEDS for b in BITS for m in METHODS[1:] for d in DOMAINS]
    for method, bits, domain, seed in todo:
        if (method, bits, domain, seed) in done:
            continue
        drawn = batches(calibration[domain], sequences=SEQUENCES, length=LENGTH, seed=seed) if domain else None
        spec = QuantizationSpec(bits, symmetric=True, group_size=GROUP)
        model = workflow.quantize(tutorial.load(), spec, method=method, calibration=drawn)
        for measured, value in measure(model).items():
            rows.append({
                "method": method, "bits": bits, "calibration": domain, "seed": seed, "text": measured,
                "bits_per_byte": round(value, 5), "float_bits_per_byte": round(floats[measured], 5),
            })  # fmt: skip
        atomic_write(PARTIAL, json.dumps(rows).encode())
        sys.stderr.write(f"{method} {bits} {domain} {seed}: {rows[-2]['bits_per_byte']} {rows[-1]['bits_per_byte']}\n")
    recording.write(
        RESULT,
        what="Bits per byte of the shipped model after round to nearest, GPTQ, AWQ and SmoothQuant with GPTQ, "
        f"symmetric, groups of {GROUP}, calibrated on {SEQUENCES} sequences of {LENGTH} tokens, "
        f"measured on {TOKENS:,} tokens",
        values=_by_setting(rows),
        command="python studies/post_training_methods.py",
        device=recording.ONE_THREAD,
        seed=list(SEEDS),
    )


def _by_setting(rows: list[dict]) -> dict:
    """Nested as bits → method → calibration → measured text → a list over seeds, and the float model."""
    values: dict = {"float": {row["text"]: row["float_bits_per_byte"] for row in rows}}
    for row in rows:
        method = values.setdefault(f"{row['bits']} bits", {}).setdefault(row["method"], {})
        seen = method.setdefault(f"calibrated on {row['calibration']}" if row["calibration"] else "no calibration", {})
        seen.setdefault(row["text"], []).append(row["bits_per_byte"])
    return values


if __name__ == "__main__":
    main()
