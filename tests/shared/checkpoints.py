"""What the tests of checkpoints share: a small Llama, its logits, and the independent reader."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    CompressedTensorsConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from reference import checkpoint

IDS = torch.arange(48).reshape(2, 24) % 128
LAYER = "model.layers.1.mlp.down_proj"


def tiny_llama(*, tied: bool = True, bias: bool = False, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=tied, attention_bias=bias,
        initializer_range=0.1, dtype=dtype,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()  # .to(dtype) would round the rotary table


@torch.no_grad()
def logits(model: PreTrainedModel, ids: Tensor = IDS) -> Tensor:
    return model(input_ids=ids).logits


def by_transformers(folder: Path, *, dequantize: bool) -> PreTrainedModel:
    """The independent reader; it must neither miss nor leave over anything."""
    options = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if dequantize else {}
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    assert {key: list(found) for key, found in report.items() if found} == {}
    return model.eval()


def check(model: PreTrainedModel, folder: Path, *, ids: Tensor = IDS) -> None:
    expected = logits(model, ids)
    assert torch.equal(logits(checkpoint.load(folder), ids), expected)
    assert torch.equal(logits(by_transformers(folder, dequantize=False), ids), expected)
