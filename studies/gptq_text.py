"""What GPTQ's calibration text decides: how much of it, of which domain, and seen through which model.

    python studies/gptq_text.py            # about six minutes on one core

Writes ``book/data/gptq_text.json``: extra bits per byte of the shipped model, one number for each draw of the text.
"""

import copy
import math
import sys
import warnings
from pathlib import Path

import recording
import torch

from reference import evaluation, workflow
from reference.calibration import batches
from reference.data import text
from reference.models import tutorial
from reference.models.families import block_linears
from reference.quantization import CalibrationWarning, gptq
from reference.quantization.grid import QuantizationSpec

WINDOW, COUNT, GROUP = 256, 16, 128
AMOUNTS, AMOUNT_SEEDS = (1, 2, 4, 8, 16, 32, 64), (0, 1, 2)
INPUT_BITS, INPUT_SEEDS = (3, 2), tuple(range(8))
RESULT = Path(__file__).resolve().parents[1] / "book/data/gptq_text.json"

tokenizer = tutorial.tokenizer()
original = tutorial.load()


def windows(domain: str) -> tuple[torch.Tensor, float]:
    """Held-out tokens spread over the whole text, and the bytes that they predict."""
    tokens = text.encode(text.read(domain), tokenizer)
    rows = tokens[: len(tokens) // WINDOW * WINDOW].view(-1, WINDOW)
    chosen = rows[:: len(rows) // COUNT][:COUNT]
    names = tokenizer.convert_ids_to_tokens(chosen[:, 1:].flatten().tolist())
    return chosen.flatten(), sum(map(len, names))  # byte-level tokens: one character a byte


HELDOUT = {domain: windows(domain) for domain in text.DOMAINS}
CALIBRATION = {domain: text.encode(text.read(domain, "calibration"), tokenizer) for domain in text.DOMAINS}


def bits_per_byte(model: torch.nn.Module) -> dict[str, float]:
    found = {}
    for domain, (tokens, count) in HELDOUT.items():
        nats = evaluation.token_losses(model, tokens, window=WINDOW, stride=WINDOW)
        found[domain] = float(nats.double().sum()) / math.log(2) / count
    return found


FLOAT = bits_per_byte(original)


def extra(model: torch.nn.Module) -> dict[str, float]:
    return {domain: round(value - FLOAT[domain], 5) for domain, value in bits_per_byte(model).items()}


def draw(domain: str, sequences: int, seed: int) -> list[torch.Tensor]:
    return batches(CALIBRATION[domain], sequences=sequences, length=WINDOW, seed=seed)


def as_quantised(spec: QuantizationSpec, calibration: list[torch.Tensor]) -> dict[str, float]:
    model = copy.deepcopy(original)
    return extra(workflow.quantize(model, spec, method="gptq", calibration=calibration, act_order=True))


def from_original(spec: QuantizationSpec, calibration: list[torch.Tensor]) -> dict[str, float]:
    """All Hessians from one run of the float model."""
    model = copy.deepcopy(original)
    linears = dict(block_linears(model))
    sums = {name: gptq.HessianAccumulator(linear.in_features) for name, linear in linears.items()}
    hooks = [
        linear.register_forward_pre_hook(lambda _, args, name=name: sums[name].add(args[0]))
        for name, linear in linears.items()
    ]
    for batch in calibration:
        model(input_ids=batch)
    for hook in hooks:
        hook.remove()
    for name, linear in linears.items():
        found = gptq.quantize_layer(linear.weight, sums[name].hessian, spec, act_order=True, static_groups=True)
        linear.weight.data = found.dequantize()
    return extra(model)


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", CalibrationWarning)  # too little text is the question here
    values: dict = {"calibration": {}, "inputs": {}}
    spec = QuantizationSpec(3, symmetric=True, group_size=GROUP)
    for domain in text.DOMAINS:
        for amount in AMOUNTS:
            seen = [as_quantised(spec, draw(domain, amount, seed)) for seed in AMOUNT_SEEDS]
            values["calibration"].setdefault(f"calibrated on {domain}", {})[str(amount)] = {
                measured: [one[measured] for one in seen] for measured in text.DOMAINS
            }
            sys.stderr.write(f"{domain} {amount}: {seen[0]}\n")
    for bits in INPUT_BITS:
        spec = QuantizationSpec(bits, symmetric=True, group_size=GROUP)
        for seed in INPUT_SEEDS:
            mixed = draw("code", 16, seed) + draw("documentation", 16, seed)
            for label, method in (("as quantised so far", as_quantised), ("of the original model", from_original)):
                found = values["inputs"].setdefault(f"{bits} bits", {}).setdefault(label, {})
                for measured, value in method(spec, mixed).items():
                    found.setdefault(measured, []).append(value)
            sys.stderr.write(f"{bits} bits, draw {seed}\n")
    recording.write(
        RESULT,
        what=f"Extra bits per byte of the shipped model after GPTQ, symmetric, groups of {GROUP}, act-order with static "
        f"groups, on {COUNT} windows of {WINDOW} tokens a domain: `calibration`, 3 bits, by domain and number of "
        f"calibration sequences; `inputs`, half-and-half text, Hessians of the model as quantised so far or of the original",
        values=values,
        command="python studies/gptq_text.py",
        device=recording.ONE_THREAD,
        seed=list(INPUT_SEEDS),
    )


if __name__ == "__main__":
    main()
