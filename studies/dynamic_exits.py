"""Exit heads for MiniLM on the topics task: the encoder as it is, a head after each number of blocks.

    python studies/dynamic_exits.py --results /tmp/dynamic          # about three minutes on one core

The mean hidden states are kept in FOLDER/features.safetensors. ``studies/dynamic.py`` collects the results.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from reference.data import topics
from reference.dynamic.early_exit import calibrate, choose
from reference.dynamic.routing import bootstrap
from reference.files import atomic_write
from reference.models import minilm

LONGEST, BLOCKS, REGULARISATION = 96, 6, 0.002
SETS = ((0,), (4,), (0, 4), (0, 2, 4), (1, 2, 3, 4, 5))
SHIPPED = (0, 4)
TOLERANCES = (0.0, 0.005, 0.01, 0.02)


@torch.no_grad()
def features() -> dict[str, Tensor]:
    """Means over real tokens of the hidden states, ``[passages, blocks + 1, hidden]``, and labels, by split."""
    encoder, tokenizer = minilm.load(), minilm.tokenizer()
    found = {}
    for split in topics.SPLITS:
        texts, labels = topics.load(split)
        ids = tokenizer(texts, truncation=True, max_length=LONGEST)["input_ids"]
        order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
        means = torch.zeros(len(ids), BLOCKS + 1, encoder.config.hidden_size)
        for begin in range(0, len(order), 64):
            rows = order[begin : begin + 64]
            batch = tokenizer.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="pt")
            with torch.autocast("cpu", torch.bfloat16):
                hidden = encoder(**batch, output_hidden_states=True).hidden_states
            mask = batch["attention_mask"].unsqueeze(-1)
            means[rows] = torch.stack([(h.float() * mask).sum(1) / mask.sum(1) for h in hidden], 1)
        found[split], found[f"{split}.labels"] = means, labels
    return found


def head(x: Tensor, labels: Tensor) -> nn.Linear:
    """Logistic regression on standardised features, the standardisation folded in."""
    mean, scale = x.mean(0), x.std(0)
    fitted = LogisticRegression(C=REGULARISATION, max_iter=300).fit(((x - mean) / scale).numpy(), labels.numpy())
    layer = nn.Linear(x.shape[1], len(fitted.classes_))
    weight = torch.from_numpy(fitted.coef_).float() / scale
    layer.weight.data = weight
    layer.bias.data = torch.from_numpy(fitted.intercept_).float() - weight @ mean
    return layer


def accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(-1) == labels).double().mean())


@torch.no_grad()
def evaluate(exits: tuple[int, ...], logits: dict[str, Tensor], labels: dict[str, Tensor]) -> list[dict]:
    rows, last = [], BLOCKS
    chosen = {split: logits[split][[*exits, last]] for split in ("validation", "test")}
    for tolerance in TOLERANCES:
        thresholds = calibrate(chosen["validation"], labels["validation"], tolerance)
        answer = choose(chosen["test"], thresholds)
        right = (answer.logits.argmax(-1) == labels["test"]).double()
        change = right - (chosen["test"][-1].argmax(-1) == labels["test"]).double()
        low, high = bootstrap(lambda rows, change=change: float(change[rows].mean()), len(change), draws=1000)
        rows.append({
            "tolerance": tolerance, "thresholds": [round(float(t), 4) for t in thresholds],
            "accuracy": float(right.mean()), "change": float(change.mean()), "low": low, "high": high,
            "blocks": float(torch.tensor([*exits, last]).double()[answer.exit].mean()),
            "leave": [float((answer.exit == k).double().mean()) for k in range(len(exits) + 1)],
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True)
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    cache = options.results / "features.safetensors"
    if not cache.is_file():
        save_file(features(), cache)
    data = load_file(cache)
    labels = {split: data[f"{split}.labels"] for split in topics.SPLITS}
    heads = [head(data["train"][:, k], labels["train"]) for k in range(BLOCKS + 1)]
    with torch.no_grad():
        logits = {split: torch.stack([heads[k](data[split][:, k]) for k in range(BLOCKS + 1)]) for split in labels}
    result = {
        "fixed": [{"blocks": k, **{split: accuracy(logits[split][k], labels[split]) for split in labels}}
                  for k in range(BLOCKS + 1)],
        "early": {",".join(map(str, exits)): evaluate(exits, logits, labels) for exits in SETS},
        "shipped": SHIPPED,
    }  # fmt: skip
    save_file(
        {
            f"exits.{k}.{name}": p.detach().contiguous()
            for k in (*SHIPPED, BLOCKS)
            for name, p in heads[k].named_parameters()
        },
        options.results / "heads.safetensors",
    )
    atomic_write(options.results / "exits.json", json.dumps(result).encode())
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
