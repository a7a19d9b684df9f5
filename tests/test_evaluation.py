"""Loss, agreement and bytes, each against a slower or simpler way to the same number."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from reference import checkpoint, workflow
from reference.evaluation import (
    accuracy,
    agreement,
    bits_per_byte,
    perplexity,
    size_on_disk,
    tensor_bytes,
    token_losses,
    windows,
)
from reference.quantization.grid import QuantizationSpec


def tiny_llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3, tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return tiny_llama()


def text_of(count: int) -> Tensor:
    return torch.randint(0, 97, (count,), generator=torch.Generator().manual_seed(count))


class Uniform(nn.Module):
    """Every token is as likely as every other."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, self.vocabulary))


# --- windows --------------------------------------------------------------------------------------


@st.composite
def layouts(draw: st.DrawFn) -> tuple[int, int, int]:
    window = draw(st.integers(2, 40))
    return draw(st.integers(2, 200)), window, draw(st.integers(1, window))


@given(layouts())
def test_windows_score_every_token_once(layout: tuple[int, int, int]) -> None:
    count, window, stride = layout
    spans = windows(count, window, stride)
    scored = [token for _, end, first in spans for token in range(first, end)]
    assert scored == sorted(set(scored))
    missing = set(range(count)) - set(scored)
    # Without overlap the first token of each window has nothing before it.
    assert missing == ({0} if stride < window else set(range(0, count, window)))
    for begin, end, first in spans:
        assert begin < first < end <= count
        assert end - begin <= window


@given(layouts())
def test_scored_tokens_have_window_minus_stride_tokens_before_them(layout: tuple[int, int, int]) -> None:
    count, window, stride = layout
    for begin, end, first in windows(count, window, stride)[1:]:
        for token in range(first, end):
            assert token - begin >= min(max(window - stride, 1), token)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 8, 4), "tokens has 1 entries; at least 2"),
        ((9, 1, 1), "window is 1; it may be 2 or more"),
        ((9, 8, 9), r"stride is 9; it may be 1 to window \(8\)"),
        ((9, 8, 0), "stride is 0"),
    ],
)
def test_windows_that_cannot_be_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        windows(*arguments)


# --- loss -----------------------------------------------------------------------------------------


@torch.no_grad()
def oracle(model: nn.Module, tokens: Tensor, window: int, stride: int) -> list[float]:
    """One token at a time: put the window's tokens before it through the model, read its probability."""
    losses, end = [], min(window, len(tokens))
    begin = 0
    for token in range(1, len(tokens)):
        while token >= end:
            begin += stride
            end = min(begin + window, len(tokens))
        if token == begin:
            continue
        context = tokens[begin:token].unsqueeze(0)
        probabilities = model(input_ids=context).logits[0, -1].double().softmax(-1)
        losses.append(-math.log(probabilities[tokens[token]].item()))
    return losses


@pytest.mark.parametrize(
    ("count", "window", "stride"), [(40, 16, 8), (41, 16, 16), (23, 10, 3), (12, 32, 16), (33, 8, 1)]
)
def test_losses_equal_one_token_at_a_time(model: nn.Module, count: int, window: int, stride: int) -> None:
    tokens = text_of(count)
    expected = torch.tensor(oracle(model, tokens, window, stride), dtype=torch.float64)
    found = token_losses(model, tokens, window=window, stride=stride)
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    assert torch.allclose(found.double(), expected, atol=1e-4)
    assert perplexity(model, tokens, window=window, stride=stride) == pytest.approx(
        expected.mean().exp().item(), rel=1e-5
    )


def test_a_wide_vocabulary_is_added_up_without_a_bias() -> None:
    ids = torch.randint(4096, (2, 50), generator=torch.Generator().manual_seed(1))
    logits = 2 * torch.randn(2, 50, 4096, generator=torch.Generator().manual_seed(2))
    logits[..., 0] += 14  # the many others are small beside the first: what rounding takes from each adds up
    model = nn.Module()
    model.forward = lambda input_ids: SimpleNamespace(logits=logits)
    exact = functional.cross_entropy(logits.double()[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    found = token_losses(model, ids.flatten(), window=50, stride=50).view(2, 49)
    assert (found - exact).abs().max() < 5e-6
    assert abs((found - exact).mean()) < 2e-6


@pytest.mark.parametrize("batch", [1, 2, 3, 100])
def test_batch_size_does_not_matter(model: nn.Module, batch: int) -> None:
    tokens = text_of(150)
    one = token_losses(model, tokens, window=16, stride=12, batch=8)
    assert torch.allclose(token_losses(model, tokens, window=16, stride=12, batch=batch), one, atol=1e-5)


def test_progress_sees_every_batch(model: nn.Module) -> None:
    seen = []
    token_losses(model, text_of(64), window=16, stride=16, batch=2, progress=lambda items: seen.extend(items) or items)
    assert [len(batch) for batch in seen] == [2, 2]
    perplexity(model, text_of(64), window=16, stride=16, batch=3, progress=lambda items: seen.extend(items) or items)
    assert [len(batch) for batch in seen[2:]] == [3, 1]


class Dropping(nn.Module):
    """A table of logits behind a dropout that only training knows; the batch norm beside it is frozen by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(torch.randn(97, 97, generator=torch.Generator().manual_seed(3)))
        self.drop, self.frozen = nn.Dropout(0.5), nn.BatchNorm1d(2).eval()

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.drop(self.table(input_ids)))


def test_a_model_in_training_is_measured_as_it_will_be_used_and_stays_in_training() -> None:
    model, calm, tokens = Dropping(), Dropping().eval(), text_of(64)
    expected = functional.cross_entropy(calm(tokens).logits[:-1], tokens[1:], reduction="none")
    assert torch.allclose(token_losses(model, tokens, window=16, stride=8), expected)
    assert agreement(model, calm, tokens, window=16) == agreement(calm, model, tokens, window=16) == (1.0, 0.0)
    assert agreement(model, model, tokens, window=16) == (1.0, 0.0)
    assert (model.training, model.drop.training, model.frozen.training) == (True, True, False)
    assert not any(module.training for module in calm.modules())


def test_no_measure_keeps_a_graph() -> None:
    model, seen = Dropping(), []
    model.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    token_losses(model, text_of(20), window=10, stride=10)
    agreement(model, model, text_of(20), window=20)
    identity = nn.Identity()
    identity.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    accuracy(identity, torch.eye(3), torch.arange(3))
    assert seen == [False] * 4


def test_a_uniform_model_costs_log_of_the_vocabulary() -> None:
    tokens, vocabulary = text_of(100), 97
    losses = token_losses(Uniform(vocabulary), tokens, window=10, stride=5)
    assert perplexity(Uniform(vocabulary), tokens, window=10, stride=5) == pytest.approx(vocabulary, rel=1e-5)
    assert bits_per_byte(losses, 250) == pytest.approx(math.log2(vocabulary) * 99 / 250, rel=1e-6)


def test_an_impossible_token_gives_infinite_perplexity_and_no_error() -> None:
    class Never(Uniform):
        def forward(self, input_ids: Tensor) -> SimpleNamespace:
            logits = torch.zeros(*input_ids.shape, 97)
            logits[..., 1:] = -1e30
            return SimpleNamespace(logits=logits)

    assert perplexity(Never(97), torch.ones(20, dtype=torch.int64), window=8, stride=8) == math.inf


def test_wrong_tokens_are_refused(model: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"tokens has shape \(1, 40\); it must be one row of ids"):
        token_losses(model, text_of(40).unsqueeze(0), window=8, stride=8)
    with pytest.raises(ValueError, match="tokens holds id 97; the model knows 97: another tokenizer's text"):
        token_losses(model, torch.tensor([1, 97]), window=8, stride=8)
    with pytest.raises(ValueError, match="text_bytes is 0; it must be positive"):
        bits_per_byte(torch.ones(3), 0)


# --- agreement ------------------------------------------------------------------------------------


def test_a_model_agrees_with_itself(model: nn.Module) -> None:
    assert agreement(model, model, text_of(64), window=16) == (1.0, 0.0)


@torch.no_grad()
def test_agreement_is_top_1_and_kl_from_the_original(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    other, tokens = tiny_llama(seed=1), text_of(50)
    result = agreement(other, model, tokens, window=16, batch=2)
    same, divergence = [], []
    for start in (0, 16, 32):  # the tail of 2 is left out
        ids = tokens[start : start + 16].unsqueeze(0)
        theirs, ours = (m(input_ids=ids).logits[0].double().softmax(-1) for m in (model, other))
        same += (ours.argmax(-1) == theirs.argmax(-1)).tolist()
        divergence += (theirs * (theirs / ours).log()).sum(-1).tolist()
    assert result.top1 == pytest.approx(sum(same) / 48)
    assert result.kl == pytest.approx(sum(divergence) / 48, rel=1e-4)
    assert 0 < result.top1 < 1 or result.kl > 0.1
    with pytest.raises(ValueError, match="tokens has 50 entries; window 64 needs at least as many"):
        agreement(other, model, tokens, window=64)
    for pair in ((model, other), (other, model)):  # ids that only one of the two knows
        with monkeypatch.context() as patch:
            patch.setattr(other.config, "vocab_size", int(tokens.max()))
            with pytest.raises(ValueError, match=f"tokens holds id {tokens.max()}; the model knows {tokens.max()}"):
                agreement(*pair, tokens, window=16)


# --- bytes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard_bytes", [10**9, 20_000])
def test_bytes_by_kind_are_the_sums_of_the_tensors(tmp_path: Path, shard_bytes: int) -> None:
    model = tiny_llama()
    workflow.quantize(model, QuantizationSpec(4, group_size=16))
    checkpoint.save(model, tmp_path / "out", shard_bytes=shard_bytes)
    files = list((tmp_path / "out").glob("*.safetensors"))
    assert (len(files) > 1) == (shard_bytes < 10**6)
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    kinds = {
        "weights": "weight_packed", "scales": "weight_scale", "zero_points": "weight_zero_point",
        "embeddings": ("embed_tokens.weight", "lm_head.weight"),
    }  # fmt: skip
    sizes = size_on_disk(tmp_path / "out")
    for kind, suffix in kinds.items():
        assert sizes[kind] == sum(tensor.nbytes for name, tensor in tensors.items() if name.endswith(suffix)) > 0, kind
    assert sizes["other"] == sum(
        tensor.nbytes for name, tensor in tensors.items() if name.endswith(("norm.weight", "weight_shape"))
    )
    assert sizes["total"] == sum(file.stat().st_size for file in files)
    assert tensor_bytes(tmp_path / "out") == {name: tensor.nbytes for name, tensor in tensors.items()}


def test_the_bytes_of_gpt2_are_told_apart_by_its_own_names(tmp_path: Path) -> None:
    config = GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=96, n_positions=64)
    model = GPT2LMHeadModel(config)
    model.save_pretrained(tmp_path)
    sizes = size_on_disk(tmp_path)
    assert sizes["embeddings"] == (96 + 64) * 32 * 4
    assert sizes["weights"] == sum(m.weight.nbytes for m in model.transformer.h.modules() if isinstance(m, Conv1D))
    assert sizes["other"] == sum(p.nbytes for p in model.transformer.parameters() if p.ndim == 1)  # norms and biases


def test_a_float_model_has_weights_and_no_scales(tmp_path: Path) -> None:
    model = tiny_llama()
    checkpoint.save(model, tmp_path / "out")
    sizes = size_on_disk(tmp_path / "out")
    assert sizes["scales"] == sizes["zero_points"] == 0
    assert sizes["embeddings"] == 2 * 97 * 32 * 4
    assert sizes["weights"] == sum(
        m.weight.nbytes for n, m in model.named_modules() if "proj" in n and hasattr(m, "weight")
    )


def test_a_folder_without_tensors_and_a_file_that_holds_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no \.safetensors file"):
        size_on_disk(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(4)}, file)
    good = file.read_bytes()
    for data in (b"", b"\x01", b"\xff" * 100, good[:20], b"\x02" + bytes(7) + b"[]"):
        file.write_bytes(data)
        with pytest.raises(ValueError, match=r"model\.safetensors' is not a safetensors file"):
            size_on_disk(tmp_path)


# --- accuracy -------------------------------------------------------------------------------------


def test_accuracy_counts_the_right_answers() -> None:
    logits = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    model = torch.nn.Identity().train()
    assert accuracy(model, logits, torch.tensor([1, 0, 0]), batch=2) == pytest.approx(2 / 3)
    assert model.training
    # With dropout at work, which zeroes all of these, no largest logit would be left but the first.
    dropping = nn.Dropout(1.0).train()
    assert accuracy(dropping, logits, torch.tensor([1, 0, 1])) == 1
    assert dropping.training
    assert not accuracy(dropping.eval(), logits, torch.tensor([0, 1, 0]))
    assert not dropping.training
    for wrong in (torch.tensor([1]), torch.tensor([1, 0, 0, 1])):
        with pytest.raises(ValueError, match="equally many"):
            accuracy(model, logits, wrong)
    with pytest.raises(ValueError, match="equally many and some"):
        accuracy(model, logits[:0], torch.tensor([]))
