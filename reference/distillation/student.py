"""A student cut out of its teacher."""

import copy
from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from reference.models.families import blocks, family_of


def from_layers(teacher: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """A copy of ``teacher`` that keeps only some of its blocks.

    Args:
        teacher: a model of :mod:`reference.models.families`; it is not changed.
        layers: indices of the blocks to keep, rising.

    Returns:
        A model with ``len(layers)`` blocks, embeddings and head copied.

    Raises:
        ValueError: ``layers`` is empty, not rising, or beyond the teacher's blocks.

    Source: Sanh et al. 2019, "DistilBERT", section 2 (one layer out of two).

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8,
        ...                      num_hidden_layers=4, num_attention_heads=2)
        >>> teacher = LlamaForCausalLM(config)
        >>> student = from_layers(teacher, [0, 2])
        >>> third, copied = (model.model.layers[n].mlp.up_proj.weight for model, n in ((teacher, 2), (student, 1)))
        >>> student.config.num_hidden_layers, bool((third == copied).all())
        (2, True)

    Chapter: overview
    """
    path = family_of(teacher).blocks
    count = len(blocks(teacher))
    if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= count:
        raise ValueError(f"layers is {list(layers)}; it may be rising indices from 0 to {count - 1}")
    student = copy.deepcopy(teacher)
    parent, _, name = path.rpartition(".")
    setattr(student.get_submodule(parent), name, nn.ModuleList(blocks(student)[index] for index in layers))
    for number, block in enumerate(blocks(student)):
        for module in block.modules():  # the key-value cache is addressed by this number
            if hasattr(module, "layer_idx"):
                setattr(module, "layer_idx", number)  # noqa: B010 (mypy has no such attribute)
    student.config.num_hidden_layers = len(layers)
    if getattr(student.config, "layer_types", None):
        student.config.layer_types = [student.config.layer_types[index] for index in layers]
    return student
