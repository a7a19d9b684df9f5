"""The cost model against arithmetic done by hand, real tensors, and a search."""

import dataclasses
import itertools
import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from reference.hardware import roofline
from reference.hardware.devices import Device, device, devices
from reference.hardware.roofline import SCHEMES, Scheme, crossovers, linear, ridge, seconds
from reference.hardware.serving import (
    LLAMA_2_7B,
    LLAMA_3_8B,
    DecoderShape,
    attention,
    cache_bytes,
    step_seconds,
    tokens_per_second,
    weight_bytes,
)

W4, W8, W16 = SCHEMES["W4A16"], SCHEMES["W8A8"], SCHEMES["W16A16"]
#: N, K → bytes of the weight and microseconds at 3.35 TB/s, worked out on paper.
BY_HAND = {
    (4096, 4096): (8_388_608 + 2 * 2 * 4096 * 32, 2.66),
    (11008, 4096): (22_544_384 + 2 * 2 * 11008 * 32, 7.15),
    (14336, 4096): (29_360_128 + 2 * 2 * 14336 * 32, 9.31),
    (8192, 8192): (33_554_432 + 2 * 2 * 8192 * 64, 10.6),
}


@pytest.mark.parametrize("shape", BY_HAND)
def test_four_bit_weights_by_hand(shape) -> None:
    weight, microseconds = BY_HAND[shape]
    work = linear(W4, 1, *shape)
    assert work.weight_bytes == weight
    assert work.activation_bytes == 2 * sum(shape)
    assert work.operations == 2 * math.prod(shape)
    assert seconds(work, device("H100 SXM")) * 1e6 == pytest.approx(microseconds, rel=0.005)


def test_the_ratio_of_bytes_is_the_ceiling_of_the_gain() -> None:
    w4, w16 = (linear(s, 1, 4096, 4096) for s in (W4, W16))
    assert w16.weight_bytes / w4.weight_bytes == 16 / 4.25
    assert 3.75 < w16.bytes / w4.bytes < 16 / 4.25
    assert linear(W8, 1, 4096, 4096).weight_bytes == 4096 * 4096 + 4 * 4096


@pytest.mark.parametrize(("name", "rows"), [("H100 SXM", 79), ("A100 80GB SXM", 41), ("H200", 55)])
def test_ridge_of_w4a16_is_where_the_facts_sheet_has_it(name, rows) -> None:
    """Intensity 3.76 M operations per byte against rate over bandwidth; activations push it up by a few rows."""
    card = device(name)
    nominal = card.rate("16-bit") / card.bandwidth / (2 * 4096 * 4096 / linear(W4, 1, 4096, 4096).weight_bytes)
    assert nominal == pytest.approx(rows, abs=1.0)
    exact = ridge(W4, card, 4096, 4096)
    assert nominal < exact < 1.2 * nominal
    work = linear(W4, exact, 4096, 4096)
    assert work.bytes / card.bandwidth == pytest.approx(work.operations / card.rate("16-bit"))


def test_bits_match_tensors_that_are_really_there() -> None:
    rows, outputs, columns, group = 3, 40, 256, 64
    weight = torch.zeros(outputs, columns // 2, dtype=torch.uint8)
    scale, zero = (torch.zeros(outputs, columns // group, dtype=torch.bfloat16) for _ in range(2))
    x, y = torch.zeros(rows, columns, dtype=torch.bfloat16), torch.zeros(rows, outputs, dtype=torch.bfloat16)
    work = linear(dataclasses.replace(W4, group_size=group), rows, outputs, columns)
    assert work.weight_bytes == weight.nbytes + scale.nbytes + zero.nbytes
    assert work.activation_bytes == x.nbytes + y.nbytes
    x8, token = torch.zeros(rows, columns, dtype=torch.int8), torch.zeros(rows)
    assert linear(W8, rows, outputs, columns).activation_bytes == x8.nbytes + token.nbytes + y.nbytes


def test_a_last_group_may_be_partial() -> None:
    assert Scheme("x", 4, 16, "16-bit", group_size=100, scale_bits=16).bits_per_weight(250) == 4 + 16 * 3 / 250
    assert W16.bits_per_weight(7) == 16
    assert SCHEMES["W3A16"].bits_per_weight(4096) == 3.25


def test_efficiencies_stretch_each_side() -> None:
    card = device("A100 80GB SXM")
    few, many = linear(W16, 1, 4096, 4096), linear(W16, 4096, 4096, 4096)
    assert seconds(few, card, memory_efficiency=0.5, rate_efficiency=0.9) == 2 * seconds(few, card)
    assert seconds(many, card, memory_efficiency=0.9, rate_efficiency=0.5) == 2 * seconds(many, card)
    for bad in (0.0, 1.1, -1.0, math.nan):
        with pytest.raises(ValueError, match="memory_efficiency"):
            seconds(few, card, memory_efficiency=bad)


def test_crossover_of_w4a16_and_w8a8_by_hand() -> None:
    """W8A8 still reads while W4A16 computes: a + b M = c M, with a, b from int8 bytes and c from the 16-bit rate."""
    card = device("H100 SXM")
    a = (4096 * 4096 + 4 * 4096) / 3.35e12
    b = (4096 + 2 * 4096 + 4) / 3.35e12
    c = 2 * 4096 * 4096 / 989.4e12
    assert crossovers(W4, W8, card, 4096, 4096) == [pytest.approx(a / (c - b))]
    assert crossovers(W8, W4, card, 4096, 4096) == [pytest.approx(a / (c - b))]


def search(first, second, card, shape, memory, rate) -> list[float]:
    """Bisection of the sign of the difference on a fine logarithmic grid."""

    def difference(rows: float) -> float:
        return seconds(
            linear(first, rows, *shape), card, memory_efficiency=memory[0], rate_efficiency=rate[0]
        ) - seconds(linear(second, rows, *shape), card, memory_efficiency=memory[1], rate_efficiency=rate[1])

    grid = [10 ** (-3 + i * 0.01) for i in range(1200)]
    found = []
    for low, high in itertools.pairwise(grid):
        if difference(low) * difference(high) < 0:
            for _ in range(80):
                middle = (low + high) / 2
                low, high = (middle, high) if difference(low) * difference(middle) > 0 else (low, middle)
            found.append(low)
    return found


@given(
    names=st.lists(st.sampled_from(["W16A16", "W8A8", "W4A16", "W4A8", "W3A16", "W2A16"]), min_size=2, max_size=2),
    card=st.sampled_from(["H100 SXM", "H200", "A100 80GB SXM", "RTX 4090", "L4", "T4"]),
    shape=st.tuples(st.integers(256, 16384), st.integers(256, 16384)),
    efficiencies=st.lists(st.sampled_from([1.0, 0.9, 0.65, 0.3]), min_size=4, max_size=4),
)
def test_crossovers_equal_a_search(names, card, shape, efficiencies) -> None:
    first, second = (SCHEMES[name] for name in names)
    assume(first != second)
    memory, rate = tuple(efficiencies[:2]), tuple(efficiencies[2:])
    solved = crossovers(first, second, device(card), *shape, memory_efficiency=memory, rate_efficiency=rate)
    looked = search(first, second, device(card), shape, memory, rate)
    assert [m for m in solved if 1e-3 < m < 9e8] == pytest.approx(looked, rel=1e-6)


def test_schemes_that_only_touch_do_not_cross() -> None:
    """Three- and four-bit weights end on the same line, the 16-bit rate: the order never turns."""
    card = device("H100 SXM")
    assert crossovers(SCHEMES["W3A16"], W4, card, 4096, 4096) == []
    assert crossovers(W4, W4, card, 4096, 4096) == []


def test_devices_are_whole_and_refuse_what_they_lack() -> None:
    assert list(devices())[:3] == ["H100 SXM", "H200", "A100 80GB SXM"]
    for card in devices().values():
        assert card.cite
        assert card.unchecked == tuple(u for u in card.unchecked if hasattr(card, u))
        if "int8" in card.rates and card.kind == "GPU":
            assert 1.9 <= card.rates["int8"] / card.rates["16-bit"] <= 4.1
    with pytest.raises(ValueError, match="A100 80GB SXM has no rate for 'fp8'"):
        device("A100 80GB SXM").rate("fp8")
    with pytest.raises(ValueError, match="name is 'A1000'; it may be one of H100 SXM"):
        device("A1000")
    with pytest.raises(ValueError, match="bandwidth is 0"):
        Device("x", 0, {})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight_bits": 0}, "weight_bits is 0"),
        ({"scale_bits": -1}, "scale_bits is -1"),
        ({"group_size": 0}, "group_size"),
    ],
)
def test_schemes_refuse(change, words) -> None:
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(W4, **change)
    with pytest.raises(ValueError, match="rows is 0"):
        linear(W4, 0, 8, 8)


# --- whole models ---------------------------------------------------------------------------------


def llama(shape: DecoderShape) -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        head_dim=shape.head_size,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied,
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config).bfloat16()


@pytest.mark.parametrize(
    "shape", [LLAMA_2_7B, LLAMA_3_8B, DecoderShape(3, 64, 96, 8, 2, 16, 100, tied=True)], ids=["2-7B", "3-8B", "tied"]
)
def test_weight_bytes_equal_the_architecture(shape) -> None:
    model = llama(shape)
    parameters = {id(p): p for p in model.parameters()}.values()
    norms = sum(p.numel() for p in parameters if p.dim() == 1)
    assert weight_bytes(shape, W16) == 2 * (sum(p.numel() for p in parameters) - norms)
    blocks = [m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head"]
    assert sorted(shape.linears() * shape.layers) == sorted(tuple(m.weight.shape) for m in blocks)


def test_published_size_of_llama_2_7b() -> None:
    assert weight_bytes(LLAMA_2_7B, W16) == pytest.approx(2 * 6_738_415_616, rel=1e-4)  # its parameter count


def test_cache_is_what_a_cache_holds() -> None:
    from transformers import DynamicCache

    shape = DecoderShape(3, 64, 96, 8, 2, 16, 100)
    cache = DynamicCache()
    for layer in range(shape.layers):
        keys = torch.zeros(5, shape.key_value_heads, 7, shape.head_size, dtype=torch.bfloat16)
        cache.update(keys, keys.clone(), layer)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert cache_bytes(shape, 16, 7, 5) == held
    assert cache_bytes(shape, 4, 7, 5) == held / 4
    work = attention(shape, 16, 7, 5)
    by_hand = 3 * 5 * 8 * (2 * 16 * 7 + 2 * 7 * 16)  # layers, sequences, heads: scores, then values
    assert (work.bytes, work.operations) == (held, by_hand)


def test_one_token_costs_the_weights_once() -> None:
    """At batch one and no context a step's time is bytes over bandwidth, and the embedding is not read."""
    card = device("H100 SXM")
    step = step_seconds(LLAMA_2_7B, W16, card, batch=1, context=0)
    read = weight_bytes(LLAMA_2_7B, W16) - 2 * 32000 * 4096
    assert step == pytest.approx(read / 3.35e12, rel=2e-3)
    assert tokens_per_second(LLAMA_2_7B, W16, card, batch=1, context=0) == 1 / step


def test_batches_help_until_the_card_is_full() -> None:
    card = device("A100 80GB SXM")
    few, more = (tokens_per_second(LLAMA_2_7B, W4, card, batch=b, context=1024) for b in (1, 32))
    read = weight_bytes(LLAMA_2_7B, W4) - 2 * 32000 * 4096
    cache = 2 * 32 * 4096 * 1024 * 2  # half a gigabyte a sequence: batches share weights, not caches
    assert more / few == pytest.approx(32 * (read + cache) / (read + 32 * cache), rel=0.02)
    assert tokens_per_second(LLAMA_2_7B, W4, card, batch=4096, context=1024) is None
    assert tokens_per_second(LLAMA_2_7B, W16, device("T4"), batch=1, context=2**14) is None
    slower = tokens_per_second(LLAMA_2_7B, W4, card, batch=1, context=1024, memory_efficiency=0.5)
    assert slower == pytest.approx(few / 2, rel=1e-6)


def test_shapes_refuse() -> None:
    with pytest.raises(ValueError, match="heads is 6; it may be a multiple of key_value_heads"):
        DecoderShape(1, 8, 8, 6, 4, 2, 9)
    with pytest.raises(ValueError, match="layers is 0"):
        DecoderShape(0, 8, 8, 4, 4, 2, 9)
    with pytest.raises(ValueError, match="context is -1"):
        cache_bytes(LLAMA_2_7B, 16, -1)


def test_every_standard_scheme_is_named_after_its_bits() -> None:
    for name, scheme in roofline.SCHEMES.items():
        assert name == scheme.name == f"W{scheme.weight_bits}A{scheme.activation_bits}"
