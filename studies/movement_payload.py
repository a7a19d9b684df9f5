"""What the movement study starts from: MiniLM's encoder in half precision and the topics task as token ids.

    python studies/movement_payload.py FOLDER     # writes payload.safetensors, for a machine without the model

The embedding table is cut to the tokens that the task uses, and ids are numbered anew; numbers are rounded to float16,
so that a run from a payload and one from the model itself start from the same weights.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from reference.data import topics
from reference.models import minilm
from reference.models.stacked import StackedEncoder

LONGEST = 96  # tokens of a passage, the rest is cut off


def make() -> tuple[dict[str, Tensor], dict]:
    """Tensors and settings: the encoder under the names of a BertModel, and ``{split}.ids`` (0 is padding),
    ``.lengths``, ``.labels``."""
    model, tokenizer = minilm.load(), minilm.tokenizer()
    tensors, encoded = {}, {}
    for split in topics.SPLITS:
        texts, labels = topics.load(split)
        encoded[split] = tokenizer(texts, truncation=True, max_length=LONGEST)["input_ids"]
        tensors[f"{split}.labels"] = labels.to(torch.uint8)
    used = sorted({token for rows in encoded.values() for row in rows for token in row} - {tokenizer.pad_token_id})
    used.insert(0, tokenizer.pad_token_id)
    new = {token: i for i, token in enumerate(used)}
    for split, rows in encoded.items():
        ids = torch.zeros(len(rows), LONGEST, dtype=torch.int16)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor([new[token] for token in row], dtype=torch.int16)
        tensors[f"{split}.ids"] = ids
        tensors[f"{split}.lengths"] = torch.tensor([len(row) for row in rows], dtype=torch.uint8)
    state = model.state_dict()
    state["embeddings.word_embeddings.weight"] = state["embeddings.word_embeddings.weight"][used]
    state["embeddings.position_embeddings.weight"] = state["embeddings.position_embeddings.weight"][:LONGEST]
    classes = len(topics.names())
    kept = StackedEncoder(state, [0], classes=classes, heads=model.config.num_attention_heads).names()
    tensors |= {name: state[name].half().contiguous() for name in kept}
    meta = {"classes": classes, "heads": model.config.num_attention_heads, "topics": topics.names()}
    return tensors, meta


def export(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors, meta = make()
    save_file(tensors, folder / "payload.safetensors", metadata={"settings": json.dumps(meta)})
    size = (folder / "payload.safetensors").stat().st_size
    words = len(tensors["embeddings.word_embeddings.weight"])
    print(f"{folder / 'payload.safetensors'}: {size / 2**20:.1f} MiB, {words:,} words")


def load(folder: Path | None) -> tuple[dict[str, Tensor], dict]:
    """From a payload, or without a folder from the model and the task themselves."""
    if folder is None:
        return make()
    with safe_open(folder / "payload.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["settings"])  # noqa: SIM118


if __name__ == "__main__":
    export(Path(sys.argv[1]))
