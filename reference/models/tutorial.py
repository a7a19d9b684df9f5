"""The shipped language model: small, really trained, and the subject of every chapter."""

from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from reference.models.families import blocks, family_of

PATH = Path(__file__).parent / "tutorial"
OUTLIER_CHANNELS = 4


def load(outliers: float | None = None, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load the shipped model for evaluation.

    Args:
        outliers: a factor, usually 20 to 100. A few channels of every norm's output become
            that much larger, and the columns of the linear layers that read them that much
            smaller, so the model is *the same function*. Models of some billion parameters grow
            such channels by themselves; one of this size does not, and this stands in for it.
        dtype: of the weights; they are stored in bfloat16.

    Returns:
        A ``LlamaForCausalLM`` in evaluation mode.

    Raises:
        ValueError: ``outliers`` is below 1.

    Example:
        >>> model, twin, ids = load(), load(outliers=50), torch.arange(16)[None]
        >>> torch.allclose(model(ids).logits, twin(ids).logits, atol=1e-2)  # the same function
        True

    Chapter: quantization/post_training
    """
    model = AutoModelForCausalLM.from_pretrained(PATH, dtype=dtype).eval()
    if outliers is not None:
        if outliers < 1:
            raise ValueError(f"outliers is {outliers}; it is a factor of at least 1")
        _add_outliers(model, outliers)
    return model


def tokenizer() -> PreTrainedTokenizerBase:
    """The byte-level BPE tokenizer of the shipped model, 4,096 tokens.

    Example:
        >>> tokenizer()("def main():")["input_ids"], tokenizer().tokenize("def main():")  # Ġ is a space
        ([666, 2250, 971], ['def', 'Ġmain', '():'])

    Chapter: quantization/post_training
    """
    return AutoTokenizer.from_pretrained(PATH)


@torch.no_grad()
def _add_outliers(model: PreTrainedModel, factor: float) -> None:
    """Scale the same few channels of each norm up and the following weights' columns down."""
    family = family_of(model)
    channels = torch.randperm(model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    channels = channels[:OUTLIER_CHANNELS]
    for block in blocks(model):
        for scaling in family.scalings:
            if isinstance(block.get_submodule(scaling.previous), nn.Linear):
                continue
            block.get_parameter(f"{scaling.previous}.weight")[channels] *= factor
            for name in scaling.linears:
                block.get_parameter(f"{name}.weight")[:, channels] /= factor
