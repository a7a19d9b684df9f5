"""Train the shipped model on the text of ``tutorial_corpus.py``.

    python studies/tutorial_model.py --work /tmp/tutorial --steps 2800

Resumable: run the same command again after a stop. ``--steps`` may be raised or lowered
as long as the rate has not begun to fall (the last 1,000 steps of 2,800). When the last step is
taken the model goes, in bfloat16, to ``reference/models/tutorial/`` and the loss curve to
the work folder; ``tutorial_card.py`` then measures it and writes the model card.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from reference.files import atomic_directory
from reference.training import random_windows, train

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "reference/models/tutorial"
DOMAINS = ("code", "documentation")
SHARE = [0.6, 0.4]  # of the windows; documentation is the smaller text, so it is seen more often
CONTEXT, BATCH = 512, 16
END = "<|endoftext|>"


def make_tokenizer(work: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 4,096 tokens, trained on as much code as documentation."""
    path = work / "tokenizer.json"
    if not path.exists():
        texts = [(work / f"train_{domain}.txt").read_text() for domain in DOMAINS]
        least = min(map(len, texts))
        chunks = [text[start : start + 20_000] for text in texts for start in range(0, least, 20_000)]
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=4096,
            special_tokens=[END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(chunks, trainer)
        tokenizer.save(str(path))
    return PreTrainedTokenizerFast(
        tokenizer_file=str(path), bos_token=END, eos_token=END, pad_token=END, model_max_length=CONTEXT
    )


def encode(tokenizer: PreTrainedTokenizerFast, work: Path) -> list[np.ndarray]:
    """Token ids of each domain's training text, cached beside it."""
    arrays = []
    for domain in DOMAINS:
        path = work / f"train_{domain}.npy"
        if not path.exists():
            documents = (work / f"train_{domain}.txt").read_text().split("\n\n\n\n")
            ids = [row.ids for row in tokenizer.backend_tokenizer.encode_batch(documents)]
            np.save(path, np.concatenate([np.array(row, dtype=np.uint16) for row in ids]))
        arrays.append(np.load(path, mmap_mode="r"))
    return arrays


def make_model(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=4096, hidden_size=256, intermediate_size=768, num_hidden_layers=6,
            num_attention_heads=4, num_key_value_heads=2, head_dim=64, max_position_embeddings=CONTEXT,
            rms_norm_eps=1e-5, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0, pad_token_id=0,
        )
    )  # fmt: skip


def make_optimizers(model: LlamaForCausalLM, kind: str, rate: float) -> list[torch.optim.Optimizer]:
    """AdamW throughout, or Muon for the matrices of the blocks and AdamW for the rest."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    if kind == "muon":
        return [
            torch.optim.Muon(matrices, lr=rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
        ]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    return [torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder that tutorial_corpus.py filled")
    parser.add_argument("--steps", type=int, default=2800, help=f"optimiser steps of {BATCH} x {CONTEXT} tokens")
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--rate", type=float, default=4e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", default="run", help="name of the run's folder inside --work")
    parser.add_argument("--decay", type=float, default=0.357, help="share of the steps in which the rate falls")
    parser.add_argument("--dry", action="store_true", help="do not write the shipped model")
    options = parser.parse_args()

    torch.set_num_threads(2)
    tokenizer = make_tokenizer(options.work)
    tokens = encode(tokenizer, options.work)
    print({d: f"{len(t):,} tokens" for d, t in zip(DOMAINS, tokens, strict=True)}, flush=True)
    model = make_model(options.seed)
    compiled = torch.compile(model)

    def loss_of_step(step: int) -> torch.Tensor:
        windows = random_windows(tokens, SHARE, batch=BATCH, length=CONTEXT, seed=options.seed, step=step)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return compiled(input_ids=windows, labels=windows).loss

    folder = options.work / options.run
    folder.mkdir(exist_ok=True)
    curve, losses, started = folder / "curve.jsonl", [], time.time()
    optimizers = make_optimizers(model, options.optimizer, options.rate)
    for row in train(
        model, loss_of_step, optimizers, steps=options.steps, warmup=100, decay=options.decay,
        checkpoint=folder / "state", every=200,
    ):  # fmt: skip
        losses.append(row["loss"])
        if row["step"] % 20 == 0 or row["step"] == options.steps:
            line = {"step": row["step"], "tokens": row["step"] * BATCH * CONTEXT, "loss": sum(losses) / len(losses),
                    "rate": row["rate"], "seconds": round(time.time() - started, 1)}  # fmt: skip
            losses = []
            with curve.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(line, flush=True)

    if not options.dry:
        with atomic_directory(TARGET, replace=True) as temporary:
            model.to(torch.bfloat16).save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)


if __name__ == "__main__":
    main()
