"""Token skipping on the shipped model against smaller models of equal cost, and the pair of models for the router.

    python studies/tutorial_corpus.py --work /tmp/tutorial             # the training text (Debian's, on CPython 3.11)
    python studies/quantization_aware.py --export /tmp/tutorial --payload /tmp/payload
    python studies/dynamic_tokens.py --payload /tmp/payload --results /tmp/dynamic      # about 15 minutes on one core

A run that has a result is skipped, so it goes on where it stopped; ``--only NAME`` does one. ``studies/dynamic.py``
collects the results into ``book/data/dynamic.json``. The arms, each from the shipped model's weights, on the same text:

    skip        fitted routers pick half of the tokens in all blocks but the first; the model is trained, they are not
    random      the same, but a coin picks
    routers     only the routers are trained, by gradient, the model stays as it is
    fitted      as skip, and coin as random, but nothing is trained
    narrow      7 of 12 neurons of every block, chosen by Taylor scores: as many products as skip
    shallow     4 of 6 blocks: about as many products as skip
    dense       the whole model, trained as long
    student     3 of 6 blocks, trained longer: the small model of the router
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from reference.data import text
from reference.distillation.student import from_layers
from reference.dynamic.skipping import TokenSkippingMLP, fit_routers, set_thresholds, skip_tokens
from reference.evaluation import bits_per_byte, token_losses
from reference.files import atomic_write
from reference.models import tutorial
from reference.pruning import blocks, importance, structured
from reference.training import random_windows, train

DOMAINS, SHARE = ("code", "documentation"), [0.6, 0.4]
CAPACITY, STEPS, STUDENT_STEPS, BATCH, LENGTH = 0.5, 40, 160, 8, 256
RATE, ROUTER_RATE = 7e-4, 1e-2
CURVE = (0.25, 0.5, 0.75, 1.0)
EVALUATED, CALIBRATED = 4096, 1024  # tokens of a domain
REQUEST, PROMPT, REQUESTS = 192, 64, 200  # tokens of a request, of its beginning; requests of a part and domain


@dataclass(frozen=True)
class Run:
    arm: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.arm}_{self.seed}"


RUNS = [Run("student", 0)]
RUNS += [
    Run(arm, seed)
    for seed in (0, 1, 2)
    for arm in ("skip", "narrow", "random", "routers", "fitted", "coin", "shallow", "dense")
]


class Coin(nn.Module):
    """A router that knows nothing."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.rand(*hidden.shape[:-1], 1, generator=self.generator)


def read(part: str, count: int) -> dict[str, tuple[Tensor, int]]:
    """Token ids and the bytes that they predict, by domain."""
    tokenizer, found = tutorial.tokenizer(), {}
    for domain in DOMAINS:
        ids = text.encode(text.read(domain, part), tokenizer)[:count]
        found[domain] = (ids, len(tokenizer.decode(ids[1:], clean_up_tokenization_spaces=False).encode()))
    return found


def calibration() -> list[Tensor]:
    return [ids.view(-1, LENGTH) for ids, _ in read("calibration", CALIBRATED).values()]


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    logits = model(input_ids=ids).logits[:, :-1].float()
    return functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def make(run: Run) -> nn.Module:
    model = tutorial.load()
    if run.arm in ("skip", "fitted"):
        skip_tokens(model, CAPACITY, routers=fit_routers(model, calibration()))
    elif run.arm == "routers":
        torch.manual_seed(run.seed)
        skip_tokens(model, CAPACITY)
        for layer in model.modules():
            if isinstance(layer, TokenSkippingMLP):
                nn.init.normal_(layer.router.weight, std=0.01)
    elif run.arm in ("random", "coin"):
        skip_tokens(model, CAPACITY, routers=(Coin(100 * run.seed + block) for block in range(1, 6)))
    elif run.arm == "narrow":
        found = blocks.neurons(model)
        scores = importance.taylor_scores(model, found, loss_of, [row[:4] for row in calibration()])
        model = structured.shrink(model, found, structured.keep_best(scores, 5 / 12, multiple=64))
    elif run.arm == "shallow":
        model = from_layers(model, [0, 1, 4, 5])
    elif run.arm == "student":
        model = from_layers(model, [0, 2, 5])
    if run.arm in ("skip", "routers"):  # one of the two is trained
        for name, parameter in model.named_parameters():
            parameter.requires_grad_((".router." in name) is (run.arm == "routers"))
    return model


@torch.no_grad()
def measure(model: nn.Module) -> dict[str, float]:
    model.eval()
    return {
        domain: bits_per_byte(token_losses(model, ids, window=LENGTH, stride=LENGTH // 2, batch=8), size)
        for domain, (ids, size) in read("evaluation", EVALUATED).items()
    }


@torch.no_grad()
def products(model: nn.Module) -> float:
    """Of linear layers, a token: mean over calibration text."""
    rows = torch.cat([row[:4] for row in calibration()])
    return structured.cost(model.eval(), input_ids=rows).products / rows.numel()


@torch.no_grad()
def requests(model: nn.Module, part: str) -> dict[str, list[float]]:
    """Nats a token that the model needs for the rest of each request, given its beginning."""
    found = {}
    for domain, (ids, _) in read(part, REQUEST * REQUESTS).items():
        rows = ids[: len(ids) // REQUEST * REQUEST].view(-1, REQUEST)
        nats = []
        for chunk in rows.split(8):
            logits = model(input_ids=chunk).logits[:, PROMPT - 1 : -1]
            loss = functional.cross_entropy(logits.transpose(1, 2), chunk[:, PROMPT:], reduction="none")
            nats += loss.mean(1).tolist()
        found[domain] = [round(value, 4) for value in nats]
    return found


def execute(run: Run, options: argparse.Namespace) -> dict:
    tensors = load_file(options.payload / "tokens.safetensors")
    tokens: list[np.ndarray] = [tensors[name].numpy() for name in sorted(tensors)]
    model = make(run)
    result: dict = {"arm": run.arm, "seed": run.seed}
    steps = options.steps or {"student": STUDENT_STEPS, "routers": 60, "fitted": 0, "coin": 0}.get(run.arm, STEPS)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    routers = [p for name, p in trainable.items() if ".router." in name]
    others = [p for name, p in trainable.items() if ".router." not in name]
    optimizer = torch.optim.AdamW(
        [{"params": others, "lr": RATE}, {"params": routers, "lr": ROUTER_RATE}], betas=(0.9, 0.95), weight_decay=0.0
    )

    def loss_of_step(step: int) -> Tensor:
        windows = random_windows(tokens, SHARE, batch=BATCH, length=LENGTH, seed=run.seed, step=step)
        with torch.autocast("cpu", torch.bfloat16):
            return loss_of(model, windows)

    begun = time.monotonic()
    curve = [row["loss"] for row in train(model, loss_of_step, [optimizer], steps=steps, warmup=10, decay=0.7)]
    result |= {"steps": steps, "seconds": time.monotonic() - begun, "loss": [float(np.mean(part)) for part in
               np.array_split(curve, min(10, steps) or 1) if len(part)]}  # fmt: skip
    model.eval()
    if run.arm in ("skip", "routers", "random", "fitted", "coin"):
        for capacity in CURVE if run.arm == "routers" else (CAPACITY,):
            picked = set_thresholds(model, calibration(), capacity)
            result.setdefault("curve", []).append(
                {"capacity": capacity, "bits_per_byte": measure(model), "products": products(model),
                 "picked": list(picked.values())}
            )  # fmt: skip
    else:
        result |= {"bits_per_byte": measure(model), "products": products(model)}
    if run.arm == "student":
        save_file(
            {k: v for k, v in model.state_dict().items() if "lm_head" not in k}, options.results / "student.safetensors"
        )
        whole = tutorial.load()
        result["whole"] = {"bits_per_byte": measure(whole), "products": products(whole)}
        result["requests"] = {
            part: {"small": requests(model, part), "large": requests(whole, part)}
            for part in ("calibration", "evaluation")
        }  # fmt: skip
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--payload", type=Path, required=True, help="folder of the training tokens")
    parser.add_argument("--results", type=Path, required=True, help="folder of results, one file a run")
    parser.add_argument("--only", help="name of one run, such as skip_0")
    parser.add_argument("--steps", type=int, default=0, help="of a run, for a trial")
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    for run in RUNS:
        path = options.results / f"{run.name}.json"
        if path.is_file() or (options.only and run.name != options.only):
            continue
        result = execute(run, options)
        atomic_write(path, json.dumps(result).encode())
        print(run.name, {k: v for k, v in result.items() if k != "requests"}, flush=True)


if __name__ == "__main__":
    main()
