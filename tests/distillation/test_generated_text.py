"""Text that the model writes: greedy at first, then sampled; its own distribution, and repeatable."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from reference.distillation.generated_text import generate_windows


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=24, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                         num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64)  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(20)
    return model


def test_first_tokens_are_the_most_likely_ones(model: LlamaForCausalLM) -> None:
    windows = generate_windows(model, 64, 10, greedy=(3, 6), batch=16)
    with torch.no_grad():
        best = model(input_ids=windows).logits.argmax(-1)
    follows = windows[:, 1:] == best[:, :-1]
    assert follows[0::2, :2].all()
    assert follows[1::2, :5].all()
    assert not follows[:, 5:].all()
    assert len(set(windows[:, 0].tolist())) > 12  # random starts


def test_later_tokens_follow_the_models_distribution(model: LlamaForCausalLM) -> None:
    """Their mean surprise is the entropy of the model's predictions."""
    windows = generate_windows(model, 512, 24, greedy=(1,), batch=512)
    with torch.no_grad():
        predictions = model(input_ids=windows).logits[:, :-1].log_softmax(-1)
    surprise = -predictions.gather(-1, windows[:, 1:, None]).mean()
    entropy = -(predictions.exp() * predictions).sum(-1).mean()
    assert surprise == pytest.approx(entropy.item(), rel=0.05)


def test_repeats_with_its_seed(model: LlamaForCausalLM) -> None:
    first = generate_windows(model, 6, 8, seed=3, batch=4)
    assert torch.equal(first, generate_windows(model, 6, 8, seed=3, batch=4))
    assert not torch.equal(first, generate_windows(model, 6, 8, seed=4, batch=4))
    assert tuple(first.shape) == (6, 8)
    assert first.dtype == torch.int64


def test_nothing_to_write_is_refused(model: LlamaForCausalLM) -> None:
    with pytest.raises(ValueError, match="count is 0"):
        generate_windows(model, 0, 8)
