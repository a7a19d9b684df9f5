"""The shipped model and texts are what the book says they are."""

import json

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from reference.data import text
from reference.models import tutorial
from reference.models.families import blocks


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return text.encode(text.read("code")[:2000], tutorial.tokenizer())[:256].unsqueeze(0)


@torch.no_grad()
def logits(model: torch.nn.Module, ids: Tensor) -> Tensor:
    return model(input_ids=ids).logits


def test_it_loads_by_its_path_with_nothing_missing(ids: Tensor) -> None:
    model, report = AutoModelForCausalLM.from_pretrained(tutorial.PATH, output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(logits(model.float(), ids), logits(tutorial.load(), ids))
    tokenizer = AutoTokenizer.from_pretrained(tutorial.PATH)
    sentence = "def f(x):\n    return x + 1  # naïve – 你好\n"
    assert tokenizer.decode(tokenizer(sentence)["input_ids"]) == sentence
    assert len(tokenizer) == 4096


def test_its_architecture_is_the_one_that_the_chapters_describe() -> None:
    config = json.loads((tutorial.PATH / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["hidden_act"] == "silu"  # SwiGLU: gate, up and down
    assert config["num_key_value_heads"] < config["num_attention_heads"]  # grouped-query attention
    assert config["tie_word_embeddings"]
    assert config["hidden_size"] % 128 == config["intermediate_size"] % 128 == 0, "groups of 128 fit"
    assert config["dtype"] == "bfloat16"


def test_it_is_at_most_16_megabytes_and_readable_by_all() -> None:
    files = [path for path in tutorial.PATH.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16_000_000
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in files), "others must be able to read an installed model"


def test_it_is_really_trained(ids: Tensor) -> None:
    nats = torch.nn.functional.cross_entropy(logits(tutorial.load(), ids)[0, :-1], ids[0, 1:])
    assert nats < 4.5, "a uniform guess over 4,096 tokens would cost 8.3"


@pytest.mark.parametrize("factor", [20, 100])
def test_outliers_leave_the_function_alone(ids: Tensor, factor: float) -> None:
    plain, outliers = tutorial.load(), tutorial.load(outliers=factor)
    assert (logits(outliers, ids) - logits(plain, ids)).abs().max() < 1e-4
    changed = [
        name
        for (name, before), (_, after) in zip(plain.named_parameters(), outliers.named_parameters(), strict=True)
        if not torch.equal(before, after)
    ]
    # Each block: two norms, and q, k, v, gate, up that read them.
    assert len(changed) == 7 * plain.config.num_hidden_layers


def test_a_few_channels_grow_by_the_factor_and_the_others_stay(ids: Tensor) -> None:
    def inputs_of_layers(model: torch.nn.Module) -> list[Tensor]:
        seen: list[Tensor] = []
        for block in blocks(model):
            for name in ("self_attn.q_proj", "mlp.gate_proj"):
                block.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
        logits(model, ids)
        return seen

    pairs = list(zip(inputs_of_layers(tutorial.load()), inputs_of_layers(tutorial.load(outliers=50)), strict=True))
    assert len(pairs) == 2 * tutorial.load().config.num_hidden_layers
    for before, after in pairs:
        ratio = after.norm(dim=0) / before.norm(dim=0)
        grown = ratio > 2
        assert grown.sum() == tutorial.OUTLIER_CHANNELS
        assert torch.allclose(ratio[grown], torch.tensor(50.0), rtol=1e-3)
        assert torch.allclose(ratio[~grown], torch.tensor(1.0), rtol=1e-3)


def test_a_factor_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"outliers is 0\.5; it is a factor of at least 1"):
        tutorial.load(outliers=0.5)


def test_dtype_is_that_of_the_weights() -> None:
    assert tutorial.load().dtype == torch.float32
    assert tutorial.load(dtype=torch.bfloat16).dtype == torch.bfloat16
