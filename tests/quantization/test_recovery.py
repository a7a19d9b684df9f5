"""Which parameter gets which rate, and what the two objectives are, written out."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from reference.quantization.grid import QuantizationSpec
from reference.quantization.low_cost import add_low_rank
from reference.quantization.preparation import prepare
from reference.quantization.recovery import objective, parameter_groups
from reference.workflow import quantize

IDS = torch.arange(64).view(2, 32) * 7 % 96


def tiny(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                         num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True)  # fmt: skip
    return LlamaForCausalLM(config).eval()


def test_weights_steps_and_the_rest_have_their_rates() -> None:
    model = prepare(tiny(), QuantizationSpec(3, group_size=16))
    groups = parameter_groups(model, 1e-3, step_rate=2e-3, rest_rate=3e-3)
    by_rate = {group["lr"]: {id(p) for p in group["params"]} for group in groups}
    names = {id(p): name for name, p in model.named_parameters()}
    assert all(names[i].endswith("proj.weight") for i in by_rate[1e-3])
    assert all(names[i].endswith(("log_step", "zero_point")) for i in by_rate[2e-3])
    assert {names[i].split(".")[-2] for i in by_rate[3e-3]} == {
        "embed_tokens", "norm", "input_layernorm", "post_attention_layernorm",
    }  # fmt: skip
    assert sum(map(len, by_rate.values())) == len(names)


def test_a_rest_rate_of_zero_freezes_the_rest() -> None:
    model = prepare(tiny(), QuantizationSpec(3, symmetric=True))
    assert len(parameter_groups(model, 1e-3, rest_rate=0)) == 2
    assert not model.model.embed_tokens.weight.requires_grad
    assert not model.model.norm.weight.requires_grad
    low_rank = add_low_rank(quantize(tiny(), QuantizationSpec(3)), 2)
    (group,) = parameter_groups(low_rank, 1e-3)
    assert len(group["params"]) == 2 * 7


def test_embeddings_are_the_rest_whatever_their_names() -> None:
    config = GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=96, n_positions=64)
    model = GPT2LMHeadModel(config)  # wte and wpe, no "embed" in them
    parameter_groups(model, 1e-3, rest_rate=0)
    kept = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert kept == {name for name, p in model.named_parameters() if name.startswith("transformer.h.") and p.ndim == 2}
    assert all(not p.requires_grad for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters())


def test_cross_entropy_is_that_of_transformers() -> None:
    model = tiny()
    assert objective(model, "cross_entropy")(IDS).item() == pytest.approx(
        model(input_ids=IDS, labels=IDS).loss.item(), rel=1e-5
    )


def test_distillation_is_zero_at_the_teacher_and_the_divergence_elsewhere() -> None:
    model, teacher = tiny(), tiny(1)
    assert objective(model, "distillation", tiny())(IDS).item() == pytest.approx(0, abs=1e-6)
    ours, theirs = (functional.log_softmax(m(input_ids=IDS).logits.double(), -1) for m in (model, teacher))
    expected = (theirs.exp() * (theirs - ours)).sum(-1).mean()
    found = objective(model, "distillation", teacher)(IDS)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    found.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in model.parameters())


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="kind is 'mse'; it may be cross_entropy or distillation"):
        objective(tiny(), "mse")
    with pytest.raises(ValueError, match="teacher is None"):
        objective(tiny(), "distillation")
