"""The quantised cache: against a plain loop over groups, inside transformers, and bytes as stored."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, MistralConfig

from reference.quantization.kv_cache import (
    CacheSpec,
    QuantizedCacheLayer,
    cache_nbytes,
    cached_losses,
    dequantize_groups,
    quantize_groups,
    quantized_cache,
)

CONFIG = LlamaConfig(
    vocab_size=61, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=256,
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(CONFIG).eval()


def slow(values: list[float], bits: int) -> list[float]:
    """One group in plain Python, with bfloat16 ends as stored."""
    low, high = (torch.tensor(end(values)).bfloat16().float().item() for end in (min, max))
    scale = torch.tensor((high - low) / (2**bits - 1)).bfloat16().float().item()
    if scale == 0:
        return [low] * len(values)
    codes = [min(max(round((v - low) / scale), 0), 2**bits - 1) for v in values]
    return [low + scale * code for code in codes]


@settings(max_examples=50)
@given(st.integers(1, 8), st.lists(st.floats(-100, 100, width=16), min_size=8, max_size=8))
def test_groups_equal_a_plain_loop(bits, values) -> None:
    x = torch.tensor(values).reshape(1, 8)
    found = dequantize_groups(quantize_groups(x, bits, 8), bits, 8, torch.float32)
    assert torch.allclose(found[0], torch.tensor(slow(values, bits)), rtol=1e-5, atol=1e-5)


def test_scale_and_low_end_have_16_bits_of_the_type_that_came() -> None:
    x = torch.tensor([[1.0, 1.0009765625, 1.25, 1.5009765625]])  # ends on float16's grid, not on bfloat16's
    for dtype, stored in [(torch.float16, torch.float16), (torch.bfloat16,) * 2, (torch.float32, torch.bfloat16)]:
        groups = quantize_groups(x.to(dtype), 2, 4)
        assert groups.scale.dtype == groups.low.dtype == stored
        assert groups.scale.item() == pytest.approx((x.to(stored)[0, 3] - x.to(stored)[0, 0]).item() / 3, rel=2**-8)


@pytest.mark.parametrize("keys", ["per_channel", "per_token"])
def test_keys_and_values_are_grouped_as_the_spec_says(keys) -> None:
    generator = torch.Generator().manual_seed(1)
    k, v = torch.randn(2, 2, 3, 24, 16, generator=generator)
    spec = CacheSpec(3, group_size=8, residual=5, keys=keys)
    layer = QuantizedCacheLayer(spec)
    first = layer.update(k, v)
    assert torch.equal(first[0], k)  # the first call attends to what it brings
    assert torch.equal(first[1], v)
    new = torch.randn(2, 2, 3, 1, 16, generator=generator)
    found_k, found_v = layer.update(new[0], new[1])
    stored = 16  # 24 tokens less 5 of residual, in whole groups of 8
    for head in range(3):
        for batch in range(2):
            for t in range(stored):
                for part in range(2):
                    columns = slice(8 * part, 8 * part + 8)
                    expected = slow(v[batch, head, t, columns].tolist(), 3)
                    assert torch.allclose(found_v[batch, head, t, columns], torch.tensor(expected), atol=1e-5)
                    if keys == "per_token":
                        expected = slow(k[batch, head, t, columns].tolist(), 3)
                        assert torch.allclose(found_k[batch, head, t, columns], torch.tensor(expected), atol=1e-5)
            if keys == "per_channel":
                for d in range(16):
                    for begin in range(0, stored, 8):
                        expected = slow(k[batch, head, begin : begin + 8, d].tolist(), 3)
                        assert torch.allclose(
                            found_k[batch, head, begin : begin + 8, d], torch.tensor(expected), atol=1e-5
                        )
    for found, given_, last in ((found_k, k, new[0]), (found_v, v, new[1])):
        assert torch.equal(found[:, :, stored:24], given_[:, :, stored:])
        assert torch.equal(found[:, :, 24:], last)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=8), st.integers(0, 12))
def test_the_way_tokens_arrive_does_not_change_what_is_stored(pieces, residual) -> None:
    total = sum(pieces)
    k, v = torch.randn(2, 1, 2, total, 8, generator=torch.Generator().manual_seed(total))
    layer, whole = (QuantizedCacheLayer(CacheSpec(4, group_size=4, residual=residual)) for _ in range(2))
    whole.update(k, v)
    begin = 0
    for size in pieces:
        layer.update(k[:, :, begin : begin + size], v[:, :, begin : begin + size])
        begin += size
    assert layer.get_seq_length() == whole.get_seq_length() == total
    assert layer.nbytes == whole.nbytes
    empty = k[:, :, :0]
    for mine, other in zip(layer.update(empty, empty), whole.update(empty, empty), strict=True):
        assert torch.equal(mine, other)


def test_bytes_are_the_bits_promised() -> None:
    k, v = torch.randn(2, 2, 4, 256, 64, generator=torch.Generator().manual_seed(2)).bfloat16()
    for bits in (8, 4, 3, 2, 1):
        spec = CacheSpec(bits, residual=0)
        layer = QuantizedCacheLayer(spec)
        layer.update(k, v)
        assert layer.nbytes == spec.bits_per_value() / 8 * 2 * k.numel()


def test_an_outlier_channel_spares_the_others_only_if_keys_are_per_channel() -> None:
    k, v = torch.randn(2, 1, 1, 64, 32, generator=torch.Generator().manual_seed(3))
    k[..., 5] += 100
    errors = {}
    for keys in ("per_channel", "per_token"):
        layer = QuantizedCacheLayer(CacheSpec(2, group_size=32, residual=0, keys=keys))
        layer.update(k, v)
        found, _ = layer.update(k[:, :, :0], v[:, :, :0])
        errors[keys] = (found - k)[..., :5].square().mean().item()
    # Per token the step of a group is about 100 / 3, so that the other channels all become its low end.
    assert errors["per_channel"] < 0.2 < 1 < errors["per_token"]


def test_model_reads_and_generates_through_it(model) -> None:
    ids = torch.randint(0, 61, (2, 80), generator=torch.Generator().manual_seed(4))
    exact = cached_losses(model, ids.flatten(), lambda: DynamicCache(config=CONFIG), window=80, chunk=16)
    with torch.no_grad():
        logits = model(ids).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    assert torch.allclose(exact, expected, atol=1e-4)
    spec = CacheSpec(8, group_size=16, residual=16)
    found = cached_losses(model, ids.flatten(), lambda: quantized_cache(CONFIG, spec), window=80, chunk=16)
    assert (found - exact).abs().max() < 0.02
    assert not torch.equal(found, exact)
    assert not found.requires_grad
    cache, plain = quantized_cache(CONFIG, spec), DynamicCache(config=CONFIG)
    how = {"max_new_tokens": 40, "min_new_tokens": 40, "do_sample": False, "pad_token_id": 0}
    text = model.generate(ids[:1, :8], past_key_values=cache, **how)
    model.generate(ids[:1, :8], past_key_values=plain, **how)
    assert text.shape[1] == cache.get_seq_length() + 1 == 48
    # 47 tokens: one group of 16 is packed in each of two layers and two heads, 31 tokens are not.
    assert cache_nbytes(cache) == 2 * 2 * 2 * 16 * (16 + 4 + 31 * 4)
    assert cache_nbytes(plain) == 2 * 2 * 2 * 47 * 16 * 4


def test_beam_search_reorders_everything() -> None:
    k, v = torch.randn(2, 3, 2, 40, 8, generator=torch.Generator().manual_seed(5))
    layer = QuantizedCacheLayer(CacheSpec(4, group_size=8, residual=8))
    before = layer.update(k, v)
    before = layer.update(k[:, :, :0], v[:, :, :0])
    layer.reorder_cache(torch.tensor([2, 2, 0]))
    after = layer.update(k[:, :, :0], v[:, :, :0])
    for old, new in zip(before, after, strict=True):
        assert torch.equal(new, old[[2, 2, 0]])
    layer.batch_repeat_interleave(2)
    assert layer.update(k.repeat(2, 1, 1, 1)[:, :, :0], v.repeat(2, 1, 1, 1)[:, :, :0])[0].shape[0] == 6
    layer.batch_select_indices(torch.tensor([4]))
    assert torch.equal(layer.update(k[:1, :, :0], v[:1, :, :0])[0], before[0][:1])
    layer.reset()
    assert layer.get_seq_length() == layer.nbytes == 0


def test_wrong_input_is_refused_by_name() -> None:
    for wrong, message in [
        ({"bits": 9}, "bits is 9"),
        ({"bits": 0}, "bits is 0"),
        ({"bits": 4, "group_size": 0}, "group_size is 0"),
        ({"bits": 4, "residual": -1}, "residual -1"),
        ({"bits": 4, "keys": "rows"}, "keys is 'rows'"),
    ]:
        with pytest.raises(ValueError, match=message):
            CacheSpec(**wrong)
    layer = QuantizedCacheLayer(CacheSpec(4, group_size=12))
    with pytest.raises(ValueError, match="group_size 12 does not divide the heads' width, 16"):
        layer.update(torch.zeros(1, 1, 2, 16), torch.zeros(1, 1, 2, 16))
    with pytest.raises(ValueError, match="does not divide the 10 values"):
        quantize_groups(torch.zeros(1, 10), 4, 4)
    with pytest.raises(ValueError, match="sliding_attention"):
        quantized_cache(MistralConfig(sliding_window=8, layer_types=["sliding_attention"] * 32), CacheSpec(4))
    with pytest.raises(ValueError, match="cannot be cropped"):
        QuantizedCacheLayer(CacheSpec(4)).crop(-1)


def test_losses_need_a_window_of_text(model) -> None:
    with pytest.raises(ValueError, match="tokens has 5 entries"):
        cached_losses(model, torch.arange(5), DynamicCache, window=6)
    with pytest.raises(ValueError, match="chunk is 0"):
        cached_losses(model, torch.arange(6), DynamicCache, window=6, chunk=0)


def test_losses_of_a_model_in_training_are_those_of_its_use() -> None:
    torch.manual_seed(0)
    dropping = LlamaForCausalLM(LlamaConfig.from_dict(CONFIG.to_dict() | {"attention_dropout": 0.5}))
    tokens = torch.arange(48)
    cache = partial(quantized_cache, CONFIG, CacheSpec(8, group_size=16))
    found = cached_losses(dropping, tokens, cache, window=48)
    assert dropping.training
    again = cached_losses(dropping.eval(), tokens, cache, window=48)
    assert torch.equal(found, again)
