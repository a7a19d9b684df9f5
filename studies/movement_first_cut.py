"""What a first cut does to MiniLM after a short warm-up on the topics: lowest and highest scores, smallest, random.

    python studies/movement_first_cut.py        # about a minute on one core

Fine-tunes with all weights kept while scores are learned, then removes a share of each matrix in one go, without any
training after it, and measures the loss on test passages. Writes ``book/data/movement_first_cut.json``.
"""

import json
import platform
from pathlib import Path

import recording
import torch
from torch import Tensor, nn
from torch.nn import functional

from reference.data import topics
from reference.models import minilm
from reference.models.families import block_linears
from reference.pruning import movement, score_masks

RESULT = Path(__file__).resolve().parents[1] / "book/data/movement_first_cut.json"
STEPS, BATCH, LENGTH, RATE, SEED = 24, 24, 48, 2.5e-4, 0
KEPT = (0.95, 0.9, 0.7)

torch.set_num_threads(1)
torch.manual_seed(SEED)
generator = torch.Generator().manual_seed(SEED)
tokenizer, encoder = minilm.tokenizer(), minilm.load()
head = nn.Linear(encoder.config.hidden_size, len(topics.names()))
data = {split: topics.load(split) for split in ("train", "test")}
order = {split: torch.randperm(len(labels), generator=generator) for split, (_, labels) in data.items()}


def loss_of(split: str, number: int) -> Tensor:
    passages, labels = data[split]
    rows = order[split][number * BATCH : (number + 1) * BATCH]
    tokens = tokenizer([passages[row] for row in rows], padding=True, truncation=True, max_length=LENGTH,
                       return_tensors="pt")  # fmt: skip
    real = tokens["attention_mask"].unsqueeze(-1)
    hidden = encoder(**tokens).last_hidden_state
    return functional.cross_entropy(head((hidden * real).sum(1) / real.sum(1)), labels[rows])


@torch.no_grad()
def test_loss() -> float:
    encoder.eval()
    return float(torch.stack([loss_of("test", number) for number in range(3)]).mean())


pruner = movement.attach(encoder, [name for name, _ in block_linears(encoder)], method="movement",
                         schedule=movement.Schedule(10 * STEPS, 0.5, warmup=2 * STEPS))  # fmt: skip
encoder.embeddings.requires_grad_(False)
groups = pruner.parameter_groups(weight_lr=RATE, score_lr=1e-2)
optimizer = torch.optim.AdamW([*groups, {"params": list(head.parameters()), "lr": RATE}], weight_decay=0.0)
before = {name: layer.weight.detach().clone() for name, layer in pruner.layers.items()}
for step in range(STEPS):
    pruner.step(step)
    optimizer.zero_grad()
    loss_of("train", step).backward()
    optimizer.step()

whole, losses = test_loss(), {}
weights = {name: layer.weight.detach().clone() for name, layer in pruner.layers.items()}
orders = {
    "lowest scores": lambda name: pruner.layers[name].scores.detach(),
    "highest scores": lambda name: -pruner.layers[name].scores.detach(),
    "random": lambda name: torch.rand(weights[name].shape, generator=generator),
    "smallest weights": lambda name: weights[name].abs(),
}
for label, ranking in orders.items():
    losses[label] = []
    for kept in KEPT:
        for name, layer in pruner.layers.items():
            layer.weight.data = weights[name] * score_masks.topk_mask(ranking(name), kept)
        losses[label].append(round(test_loss(), 4))
gone = torch.cat([before[n].abs()[score_masks.topk_mask(orders["lowest scores"](n), 0.95) == 0] for n in weights])
size_of_gone = float(gone.mean() / torch.cat([w.abs().flatten() for w in before.values()]).mean())
values = {"steps": STEPS, "kept": KEPT, "whole": round(whole, 4), "losses": losses,
          "mean_size_of_lowest_scores_to_all": round(size_of_gone, 4)}  # fmt: skip
recording.write(
    RESULT,
    what="MiniLM after a warm-up on the topics: test loss in nats when a share of each matrix is removed at once",
    values=values,
    command="python studies/movement_first_cut.py",
    device=f"{platform.machine()}, one core",
    seed=SEED,
    packages=("transformers",),
)
print(json.dumps(values, indent=1))
