"""Which units of a transformer go next: neurons or attention heads, whichever costs less loss for each weight removed."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from reference.models.families import block_linears
from reference.pruning import blocks, importance, structured
from reference.pruning.dependency import Group

KINDS = ("neurons", "heads")


class Cut(NamedTuple):
    """A cut that was tried: ``kind`` of the units, the smaller ``model``, ``weights`` removed, ``loss`` added, in nats.

    Example:
        >>> cut = Cut("neurons", model=None, weights=2_000_000, loss=0.5)
        >>> cut.price
        0.25

    Chapter: practice/pruning_pipeline
    """

    kind: str
    model: Any
    weights: int
    loss: float

    @property
    def price(self) -> float:
        """Loss for each million of weights removed."""
        return 1e6 * self.loss / self.weights


def block_weights(model: nn.Module) -> int:
    """Weights in the linear layers of the blocks.

    Args:
        model: of :mod:`reference.models.families`.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=16,
        ...                      num_hidden_layers=1, num_attention_heads=2)
        >>> block_weights(LlamaForCausalLM(config)), 4 * 8 * 8 + 3 * 8 * 16  # attention, then the MLP
        (640, 640)

    Chapter: none (counts)
    """
    return sum(layer.get_parameter("weight").numel() for _, layer in block_linears(model))


def neuron_weights(model: nn.Module) -> int:
    """Weights that go with one neuron in each block.

    Args:
        model: of a family whose neurons are known, all blocks alike.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=16,
        ...                      num_hidden_layers=1, num_attention_heads=2)
        >>> neuron_weights(LlamaForCausalLM(config))  # a row of two layers, a column of the third
        24

    Chapter: none (counts)
    """
    neurons = blocks.neurons(model)
    layers = {part.layer for group in neurons for part in group.slices}
    return sum(model.get_submodule(name).get_parameter("weight").numel() for name in layers) // neurons[0].size


def next_token_loss(model: Any, ids: Tensor) -> Tensor:
    """Cross-entropy of the next token over a batch of windows ``[batch, length]``, nats.

    Args:
        model: maps ``input_ids`` to an output with ``logits``.
        ids: int64 ``[batch, length]``, length 2 or more.

    Example:
        >>> from types import SimpleNamespace
        >>> undecided = lambda input_ids, use_cache: SimpleNamespace(logits=torch.zeros(*input_ids.shape, 4))
        >>> round(math.exp(next_token_loss(undecided, torch.tensor([[2, 0, 3]]))), 3)  # four tokens, equally likely
        4.0

    Chapter: none (a loss)
    """
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


def cuts(model: nn.Module, batches: list[Tensor], wanted: int, most: int, *, multiple: int = 16) -> list[Cut]:
    """The cuts that are possible now, the cheapest first.

    Units are scored by the first-order Taylor criterion, and both cuts are tried on the same calibration batches: what is
    held out must not choose.

    Args:
        model: in float32, of a family whose units are known.
        batches: token ids ``[batch, length]``.
        wanted: weights that the cut should remove, over all blocks; neurons go in this number, rounded; of heads one
            key-value head with all its query heads in each block, or as many as a model that can be saved needs.
        most: weights that it may remove.
        multiple: the number of neurons that stays is a multiple of this.

    Returns:
        One cut for each kind that removes something and at most ``most``; none where nothing can go.

    Raises:
        ValueError: the family's units are not known.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=8, hidden_size=16, intermediate_size=32,
        ...                      num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2)
        >>> model, ids = LlamaForCausalLM(config), torch.arange(16).view(2, 8) % 8
        >>> found = cuts(model, [ids], wanted=700, most=1000)
        >>> sorted((cut.kind, cut.weights) for cut in found)  # 16 neurons; a key-value head with its two query heads
        [('heads', 384), ('neurons', 768)]
        >>> found[0].price <= found[1].price
        True

    Chapter: practice/pruning_pipeline
    """
    before, found = block_weights(model), []
    with torch.no_grad():
        base = _mean_loss(model, batches)
    possible = _possible(model, wanted, multiple)
    units = [group for groups, _, _ in possible for group in groups]
    if not units:
        return []
    scores = importance.taylor_scores(model, units, next_token_loss, batches)  # of both kinds from one gradient
    for groups, ratio, kind in possible:
        own = {group.name: scores[group.name] for group in groups if not group.fixed}
        keep = structured.keep_best(own, ratio, multiple=multiple if kind == "neurons" else 1)
        smaller = structured.shrink(model, groups, keep)
        removed = before - block_weights(smaller)
        if not 0 < removed <= most:
            continue
        with torch.no_grad():
            found.append(Cut(kind, smaller, removed, _mean_loss(smaller, batches) - base))
    return sorted(found, key=lambda cut: cut.price)


def _possible(model: nn.Module, wanted: int, multiple: int) -> list[tuple[list[Group], float, str]]:
    neurons, each = blocks.neurons(model), neuron_weights(model)
    size = neurons[0].size
    count = max(multiple, math.ceil(wanted / each / multiple - 1e-9) * multiple)
    found = [(neurons, count / size, "neurons")] if count < size else []
    if blocks.TABLE[model.config.model_type][1]:  # type: ignore[index, union-attr]
        heads = blocks.heads(model)
        if gone := _fewest_heads(model.config, heads[0].size):
            found.append((heads, gone / heads[0].size, "heads"))
    return found


def _fewest_heads(config: Any, size: int) -> int:
    """Key-value heads to remove so that the configuration can say what is left; 0 where no number does."""
    queries = config.num_attention_heads // (getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    whole = config.model_type in blocks.DIVIDING
    fits = [gone for gone in range(1, size) if not whole or config.hidden_size % ((size - gone) * queries) == 0]
    return fits[0] if fits else 0


def _mean_loss(model: nn.Module, batches: list[Tensor], loss: Callable = next_token_loss) -> float:
    return sum(float(loss(model, ids)) for ids in batches) / len(batches)
