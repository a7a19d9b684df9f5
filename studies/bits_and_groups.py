"""Bits of a code times weights that share a scale, by rounding to nearest: bytes and loss of the shipped model.

    python studies/bits_and_groups.py       # some minutes on one core; goes on where it stopped

Writes ``book/data/bits_and_groups.json``, which the widget of the chapter on trade-offs shows. Grids are symmetric; all that
is not quantised is counted in bfloat16.
"""

import json
import platform
import sys
from pathlib import Path

import recording
import torch

from reference import trade_offs
from reference.data import text
from reference.files import atomic_write
from reference.models import tutorial
from reference.quantization.grid import QuantizationSpec
from reference.trade_offs import Setting

BITS, GROUPS, TOKENS = (8, 6, 4, 3, 2), (None, 128, 32), 4096
METHOD = "round_to_nearest"
ROOT = Path(__file__).parents[1]
RESULT = ROOT / "book/data/bits_and_groups.json"
PARTIAL = ROOT / ".cache/bits_and_groups.json"


def texts() -> dict[str, tuple[torch.Tensor, int]]:
    """The first held-out tokens of both domains, and the bytes that all but the first spell."""
    tokenizer, found = tutorial.tokenizer(), {}
    for domain in text.DOMAINS:
        ids = text.encode(text.read(domain), tokenizer)[:TOKENS]
        found[domain] = (ids, len(tokenizer.decode(ids[1:], clean_up_tokenization_spaces=False).encode()))
    return found


def one(bits: int | None, group: int | None, measured: dict) -> dict:
    """Quality of the float32 model on this grid, and bytes of the bfloat16 model on it; ``bits`` None: neither is rounded."""
    setting = bits and Setting(QuantizationSpec(bits, symmetric=True, group_size=group))
    original, models = tutorial.load(), [tutorial.load(), tutorial.load(dtype=torch.bfloat16)]
    if setting:
        models = [trade_offs.compress(model, setting, METHOD, []) for model in models]
    quality = trade_offs.measure(models[0], original, measured)
    size = trade_offs.measure(models[1], models[1], {"numbers": (torch.arange(512), 1)})
    return {
        "bits_per_byte": {domain: round(value, 5) for domain, value in quality.bits_per_byte.items()},
        "kl": {domain: round(value, 5) for domain, value in quality.kl.items()},
        "bytes_linear": size.bytes_linear,
        "bytes_total": size.bytes_total,
    }


def main() -> None:
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    PARTIAL.parent.mkdir(exist_ok=True)
    partial = json.loads(PARTIAL.read_text()) if PARTIAL.is_file() else {}
    measured = texts()
    for bits, group in [(None, None), *((b, g) for b in BITS for g in GROUPS)]:
        key = f"{bits}/{group}"
        if key not in partial:
            partial[key] = one(bits, group, measured)
            atomic_write(PARTIAL, json.dumps(partial).encode())
            sys.stderr.write(f"{key}: {partial[key]}\n")
    rows = {str(b): {str(g or "row"): partial[f"{b}/{g}"] for g in GROUPS} for b in BITS}
    recording.write(
        RESULT,
        what="Bits times group size, rounded to nearest: bytes, bits per byte and divergence of the shipped model",
        values={"float": partial["None/None"], "grids": rows, "tokens": TOKENS},
        command="python studies/bits_and_groups.py",
        device=f"{platform.processor() or platform.machine()}, one thread",
        seed=0,
    )


if __name__ == "__main__":
    main()
