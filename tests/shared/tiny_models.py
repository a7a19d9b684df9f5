"""Models of random weights that take a moment, with a tokenizer of single bytes: one of each architecture that a test needs."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

_SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_DECODER = _SIZES | {"intermediate_size": 128, "num_key_value_heads": 2, "vocab_size": 256, "initializer_range": 0.1}


def tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={byte: index for index, byte in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="Ā")


def build(architecture: str, positions: int = 128) -> PreTrainedModel:
    """``"llama"``, ``"qwen3"``, ``"opt"`` or ``"bert"`` (an encoder), the same weights each time."""
    torch.manual_seed(0)
    if architecture == "llama":
        return LlamaForCausalLM(LlamaConfig(**_DECODER, max_position_embeddings=positions))
    if architecture == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**_DECODER, head_dim=16, max_position_embeddings=positions))
    if architecture == "opt":
        config = _SIZES | {"ffn_dim": 128, "word_embed_proj_dim": 64, "vocab_size": 256, "init_std": 0.2}
        return OPTForCausalLM(OPTConfig(**config, max_position_embeddings=positions))
    if architecture == "bert":
        return BertModel(BertConfig(**_SIZES, intermediate_size=128, vocab_size=256, max_position_embeddings=positions))
    raise ValueError(f"architecture {architecture!r} is not one of llama, qwen3, opt, bert")


def llama(**changes: object) -> LlamaForCausalLM:
    """The smallest that most tests of a method take: 64 tokens, three blocks of 32 channels; the same weights each time."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**sizes | changes)).eval()


def save(model: PreTrainedModel, folder: Path) -> Path:
    """Model and tokenizer as a folder that ``from_pretrained`` reads."""
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
