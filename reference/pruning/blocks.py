"""Neurons and attention heads of transformer blocks as groups of coupled rows and columns: a table, not a trace."""

from typing import Any

import numpy as np
from torch import nn

from reference.models.families import blocks, family_of
from reference.pruning.dependency import Group, Slice

# model_type → (configuration key of the MLP's width, whether heads can be removed)
TABLE = {
    "llama": ("intermediate_size", True),
    "mistral": ("intermediate_size", True),
    "qwen2": ("intermediate_size", True),
    "qwen3": ("intermediate_size", True),
    "gemma": ("intermediate_size", True),
    "gemma2": ("intermediate_size", True),
    "opt": ("ffn_dim", False),  # its attention computes the heads' width from the hidden size
    "bert": ("intermediate_size", True),
}
#: Families whose configurations refuse a number of query heads that does not divide the hidden size.
DIVIDING = ("llama", "gemma2")


def neurons(model: nn.Module) -> list[Group]:
    """One group a block: MLP neuron j is row j of the layers that read the residual, column j of the one that writes it.

    Args:
        model: of a family in ``TABLE``.

    Returns:
        A group for each block, in order, of as many units as its MLP is wide.

    Raises:
        ValueError: another family.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=6,
        ...                      num_hidden_layers=1, num_attention_heads=4)
        >>> [group] = neurons(LlamaForCausalLM(config))
        >>> group.size, [f"{part.layer.split('.')[-1]} {part.side}" for part in group.slices]
        (6, ['gate_proj out', 'up_proj out', 'down_proj in'])

    Chapter: pruning/structured
    """
    _row(model)
    _, _, first, last = family_of(model).sublayers
    return [
        _group(path, model, first, last[0], _size(block, last[0], "in_features"))
        for path, block in _named_blocks(model)
    ]


def heads(model: nn.Module) -> list[Group]:
    """One group a block: a key-value head with all query heads that read it, and their columns of the output projection.

    With grouped-query attention a query head cannot go alone: the number of query heads must stay a
    multiple of the number of key-value heads. Where each query head has its own keys (BERT) a unit is one head.

    Args:
        model: of a family in ``TABLE`` whose heads can be removed.

    Returns:
        A group for each block, in order, of as many units as it has key-value heads.

    Raises:
        ValueError: another family.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1,
        ...                      num_attention_heads=4, num_key_value_heads=2)
        >>> [group] = heads(LlamaForCausalLM(config))
        >>> group.slices[0].layer.split(".")[-1], group.slices[0].unit  # two query heads of two rows in each unit
        ('q_proj', array([0, 0, 0, 0, 1, 1, 1, 1]))

    Chapter: pruning/structured
    """
    removable = _row(model)[1]
    config: Any = model.config
    if not removable:
        raise ValueError(f"model is of type {config.model_type!r}, whose heads cannot be removed here")
    first, last, _, _ = family_of(model).sublayers
    # From the layers: BERT's configuration cannot say that heads were removed before.
    return [
        _group(path, model, first, last[0], _size(block, first[1], "out_features") // _head_dim(model))
        for path, block in _named_blocks(model)
    ]


def update_config(model: nn.Module) -> None:
    """Make the configuration and the heads' counters of ``model`` say what its layers' shapes are, in place.

    With all blocks of one shape, ``save_pretrained`` and ``from_pretrained`` then work; except where the family computes
    the heads' width from the hidden size (BERT): fewer heads live in memory only. So do those of a family in ``DIVIDING``
    where the hidden size is no multiple of the number of query heads: the library refuses to save them.

    Args:
        model: of a family in ``TABLE``, its blocks cut alike.

    Raises:
        ValueError: blocks differ in the number of neurons or heads, which the configuration cannot say.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=6,
        ...                      num_hidden_layers=1, num_attention_heads=4)
        >>> model = LlamaForCausalLM(config)
        >>> model.model.layers[0].mlp.down_proj = nn.Linear(4, 8, bias=False)  # 4 of 6 neurons
        >>> update_config(model)
        >>> model.config.intermediate_size
        4

    Chapter: pruning/structured
    """
    config: Any = model.config
    qkv, _, _, (last,) = family_of(model).sublayers
    width = _common(model, last, "in_features")
    old_heads = config.num_attention_heads
    head_dim = _head_dim(model)
    query, key = (_common(model, name, "out_features") // head_dim for name in qkv[:2])
    setattr(config, _row(model)[0], width)
    for _, block in _named_blocks(model):
        attention = block.get_submodule(qkv[0].rpartition(".")[0])
        for name, value in (("num_attention_heads", query), ("num_heads", query), ("num_key_value_heads", key),
                            ("all_head_size", query * head_dim)):  # fmt: skip
            if isinstance(getattr(attention, name, None), int):
                setattr(attention, name, value)
    if query != old_heads and config.model_type != "bert":
        config.head_dim = head_dim
        config.num_attention_heads, config.num_key_value_heads = query, key


def _row(model: nn.Module) -> tuple[str, bool]:
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind not in TABLE:
        raise ValueError(f"model is of type {kind!r}; its neurons and heads are known for {', '.join(sorted(TABLE))}")
    return TABLE[kind]


def _head_dim(model: nn.Module) -> int:
    config: Any = model.config
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _named_blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    path = family_of(model).blocks
    return [(f"{path}.{index}", block) for index, block in enumerate(blocks(model))]


def _size(module: nn.Module, layer: str, attribute: str) -> int:
    return getattr(module.get_submodule(layer), attribute)


def _common(model: nn.Module, layer: str, attribute: str) -> int:
    sizes = [_size(block, layer, attribute) for _, block in _named_blocks(model)]
    if len(set(sizes)) > 1:
        raise ValueError(f"{layer} has {attribute} {sizes}, block by block; one configuration can say only one number")
    return sizes[0]


def _group(path: str, model: nn.Module, rows: tuple[str, ...], columns: str, size: int) -> Group:
    """``size`` units that lie in equal runs in the rows of some layers and the columns of another."""
    slices = []
    for layer, side, attribute in [(r, "out", "out_features") for r in rows] + [(columns, "in", "in_features")]:
        positions = _size(model, f"{path}.{layer}", attribute)
        slices.append(Slice(f"{path}.{layer}", side, np.arange(size).repeat(positions // size)))
    return Group(f"{path}.{columns}", size, tuple(slices))
