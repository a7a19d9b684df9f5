"""The calculator against files, real modules, published peaks, and answers found by counting."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import checkpoint, trade_offs
from reference.deployment import calculator
from reference.deployment.calculator import (
    CHUNK,
    MODELS,
    checkpoint_bytes,
    estimate,
    largest_batch,
    largest_context,
    losses,
    needed,
)
from reference.evaluation import tensor_bytes
from reference.hardware.devices import Device, device
from reference.hardware.memory import decoder_memory
from reference.hardware.roofline import SCHEMES, Scheme, linear, seconds
from reference.hardware.serving import LLAMA_2_7B, cache_bytes, prefill_seconds, step_seconds, tokens_per_second
from reference.models import tutorial
from reference.quantization.activations import ActivationSpec
from reference.quantization.grid import QuantizationSpec
from reference.trade_offs import SETTINGS, Setting

ROOT = Path(__file__).parents[2]
GIB = 2**30
#: What our files hold: 16-bit scales, no zero point unless the grid is affine.
STORED = {
    "W16A16": (SCHEMES["W16A16"], None),
    "W8A8": (replace(SCHEMES["W8A8"], scale_bits=16), SETTINGS["W8A8"]),
    "W4A16": (replace(SCHEMES["W4A16"], zero_bits=0), SETTINGS["W4A16"]),
    "W4A8": (replace(SCHEMES["W4A8"], zero_bits=0), SETTINGS["W4A8"]),
    "W3A16": (replace(SCHEMES["W3A16"], zero_bits=0), SETTINGS["W3A16"]),
    "W8A16": (
        replace(SCHEMES["W4A16"], weight_bits=8, zero_bits=0, group_size=None),
        Setting(QuantizationSpec(8, symmetric=True)),
    ),
    "W4A16 affine": (
        replace(SCHEMES["W4A16"], zero_bits=4, group_size=64),
        Setting(QuantizationSpec(4, symmetric=False, group_size=64)),
    ),
    "W4A16 whole rows": (
        replace(SCHEMES["W4A16"], zero_bits=0, group_size=None),
        Setting(QuantizationSpec(4, symmetric=True), ActivationSpec()),
    ),
}


@pytest.mark.parametrize("name", STORED)
def test_a_checkpoint_has_the_bytes_that_were_predicted(name, tmp_path) -> None:
    scheme, setting = STORED[name]
    model = tutorial.load(dtype=torch.bfloat16)
    if setting is not None:
        trade_offs.compress(model, setting, "round_to_nearest", [])
    checkpoint.save(model, tmp_path / "model")
    assert sum(tensor_bytes(tmp_path / "model").values()) == checkpoint_bytes(MODELS["tutorial"], scheme)


def test_the_published_peaks_of_a_7b_model_lie_just_above() -> None:
    """SqueezeLLM, table 1: 12.7 GB in 16 bits, 3.7 in 4 bits with a table for each row, 128 tokens."""
    for scheme, peak in ((SCHEMES["W16A16"], 12.7), (replace(SCHEMES["W4A16"], group_size=None), 3.7)):
        predicted = needed(LLAMA_2_7B, scheme, batch=1, context=128).total / GIB
        assert 0.93 * peak < predicted < peak


def test_an_estimate_is_made_of_the_parts_it_names() -> None:
    shape, scheme, card = MODELS["Llama-3-8B"], SCHEMES["W8A8"], device("H100 SXM")
    found = estimate(shape, scheme, card, batch=16, context=4096)
    assert found.step == step_seconds(shape, scheme, card, batch=16, context=4096)
    assert found.prefill == prefill_seconds(shape, scheme, card, batch=16, prompt=4096)
    assert found.memory.cache == cache_bytes(shape, 16, 4096, 16)
    assert found.tokens_per_second == tokens_per_second(shape, scheme, card, batch=16, context=4096)
    assert found.fits
    for capacity, fits in ((found.memory.total, True), (found.memory.total * (1 - 1e-9), False), (10e9, False)):
        assert estimate(shape, scheme, card, batch=16, context=4096, capacity=capacity).fits == fits
    assert estimate(shape, scheme, device("Snapdragon 8 Gen 3"), batch=1, context=16).fits, "its memory is not known"


def test_prefill_counts_every_product_of_a_real_forward_pass() -> None:
    """On a device without memory limits, time is operations: those that torch counts, less what causality spares."""
    from torch.utils.flop_counter import FlopCounterMode

    model, tokens = tutorial.load(), 64
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(2, tokens, dtype=torch.int64), logits_to_keep=1)
    counted = counter.get_total_flops()
    shape = MODELS["tutorial"]
    free = Device("x", 1e30, {"16-bit": 1.0})
    ours = prefill_seconds(shape, SCHEMES["W16A16"], free, batch=2, prompt=tokens)
    # torch multiplies the whole square of scores, we the half that a token may see; the rotations' angles are a product too.
    spared = 4 * shape.layers * shape.heads * shape.head_size * 2 * (tokens**2 - tokens * (tokens + 1) / 2)
    angles = counted - ours - spared
    assert 0 <= angles < 1e-4 * counted


def test_a_prompt_of_one_token_takes_a_step() -> None:
    shape, scheme, card = MODELS["Llama-2-7B"], SCHEMES["W4A16"], device("L4")
    one = prefill_seconds(shape, scheme, card, batch=3, prompt=1)
    assert one == pytest.approx(step_seconds(shape, scheme, card, batch=3, context=1), rel=1e-12)


def test_without_a_rate_only_bytes_limit_a_step() -> None:
    shape, scheme, phone = MODELS["Llama-2-7B"], SCHEMES["W4A16"], device("Snapdragon 8 Gen 3")
    found = estimate(shape, scheme, phone, batch=1, context=256)
    assert found.prefill is None
    moved = sum(linear(scheme, 1, n, k).bytes for n, k in shape.linears()) * shape.layers
    moved += linear(SCHEMES["W16A16"], 1, shape.vocabulary, shape.hidden).bytes + cache_bytes(shape, 16, 256)
    assert found.step == pytest.approx(moved / phone.bandwidth, rel=1e-12)
    half = estimate(shape, scheme, phone, batch=1, context=256, memory_efficiency=0.5)
    assert half.step == pytest.approx(2 * found.step, rel=1e-12)


def test_activations_are_those_of_the_wider_moment() -> None:
    shape, scheme = MODELS["Llama-2-7B"], SCHEMES["W4A16"]
    long = needed(shape, scheme, batch=1, context=100_000)
    assert long.activations == decoder_memory(shape, scheme, batch=1, context=1, tokens=CHUNK).activations
    crowd = needed(shape, scheme, batch=5000, context=1)
    assert crowd.activations == decoder_memory(shape, scheme, batch=5000, context=1).activations
    assert crowd.activations > needed(shape, scheme, batch=1, context=1).activations


@settings(deadline=None, max_examples=40)
@given(
    model=st.sampled_from(sorted(MODELS)),
    scheme=st.sampled_from(sorted(SCHEMES)),
    capacity=st.floats(1e6, 2e11),
    other=st.integers(1, 5000),
)
def test_the_largest_fits_and_one_more_does_not(model, scheme, capacity, other) -> None:
    shape, scheme = MODELS[model], SCHEMES[scheme]
    for found, size in (
        (largest_batch(shape, scheme, capacity, context=other), lambda n: {"batch": n, "context": other}),
        (largest_context(shape, scheme, capacity, batch=other), lambda n: {"batch": other, "context": n}),
    ):
        assert found == 0 or needed(shape, scheme, **size(found)).total <= capacity
        assert needed(shape, scheme, **size(found + 1)).total > capacity


def test_the_largest_batch_by_counting() -> None:
    shape, scheme = MODELS["Llama-2-7B"], SCHEMES["W4A16"]
    count = next(n for n in itertools.count() if needed(shape, scheme, batch=n + 1, context=4096).total > 24e9)
    assert largest_batch(shape, scheme, 24e9, context=4096) == count == 9
    assert largest_batch(shape, SCHEMES["W16A16"], 12e9, context=1) == 0


def test_losses_have_a_source_and_grow_with_fewer_bits() -> None:
    keys = (ROOT / "book/references.bib").read_text()
    for row in calculator._published():
        assert f"{{{row['cite']}," in keys
        assert row["model"] in MODELS
        assert row["scheme"] in SCHEMES
    for model in MODELS.keys() - {"Llama-3.2-1B"}:
        least = [losses(model, scheme)[0] for scheme in ("W8A8", "W4A16")]
        assert 0 < least[0].before < least[1].after
        assert least[0].per_cent < least[1].per_cent
        assert len({loss.before for scheme in SCHEMES for loss in losses(model, scheme)}) == 1
    tutorial_rows = losses("tutorial", "W3A16")
    assert [row.after for row in tutorial_rows] == sorted(row.after for row in tutorial_rows)
    assert {row.method for row in tutorial_rows} >= {"gptq", "awq", "round_to_nearest"}
    assert losses("tutorial", "W16A16") == losses("Llama-3-8B", "W2A16") == []
    (awq,) = losses("Llama-2-7B", "W4A16")
    assert awq.per_cent == pytest.approx(2.376, abs=0.001)


def test_the_throughput_is_the_sum_of_all_its_steps() -> None:
    shape, scheme, card = MODELS["Llama-3-8B"], SCHEMES["W4A16"], device("A100 80GB SXM")
    reading = prefill_seconds(shape, scheme, card, batch=8, prompt=100)  # which gives the first token
    steps = [step_seconds(shape, scheme, card, batch=8, context=100 + n) for n in range(1, 42)]
    found = calculator.throughput(shape, scheme, card, batch=8, prompt=100, answer=42)
    assert found == pytest.approx(8 * 42 / (reading + sum(steps)), rel=1e-12)
    one = calculator.throughput(shape, scheme, card, batch=8, prompt=100, answer=1)
    assert one == pytest.approx(8 / reading, rel=1e-12)
    odd = calculator.throughput(shape, scheme, card, batch=8, prompt=100, answer=41)
    assert 8 * 41 / (reading + sum(steps[:-1])) <= odd < found * 1.001


def test_nothing_published_is_faster_than_the_bound() -> None:
    """TensorRT-LLM's table for a 7B model: batch, tokens of prompt and answer, tokens a second."""
    fp8 = Scheme("FP8", 8, 8, "fp8", cache_bits=8)
    rows = {
        ("H100 SXM", fp8): [
            (768, 128, 128, 19694),
            (112, 128, 2048, 6818),
            (80, 2048, 128, 2244),
            (48, 2048, 2048, 2740),
        ],
        ("A100 80GB SXM", SCHEMES["W16A16"]): [(384, 128, 128, 5586), (60, 128, 2048, 1928), (52, 2048, 128, 591)],
    }
    for (name, scheme), cases in rows.items():
        for batch, prompt, answer, measured in cases:
            bound = calculator.throughput(LLAMA_2_7B, scheme, device(name), batch=batch, prompt=prompt, answer=answer)
            assert 0.35 < measured / bound < 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: estimate(*s, batch=0, context=1), "batch is 0 and context 1"),
        (lambda s: estimate(*s, batch=1, context=0), "batch is 1 and context 0"),
        (lambda s: estimate(*s, batch=1, context=1, capacity=0), "capacity is 0"),
        (lambda s: estimate(*s, batch=1, context=1, rate_efficiency=2), "rate_efficiency is 2"),
        (lambda s: prefill_seconds(*s, batch=1, prompt=0), "prompt is 0"),
        (lambda s: calculator.throughput(*s, batch=1, prompt=1, answer=0), "answer is 0"),
        (lambda s: losses("GPT", "W8A8"), "model is 'GPT'"),
    ],
)
def test_wrong_arguments_are_refused(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call((MODELS["Llama-2-7B"], SCHEMES["W4A16"], device("L4")))


def test_a_faster_device_is_never_slower() -> None:
    shape, scheme, card = MODELS["Llama-3-8B"], SCHEMES["W8A8"], device("A100 80GB SXM")
    before = estimate(shape, scheme, card, batch=64, context=1024)
    for change in ({"bandwidth": 2 * card.bandwidth}, {"rates": {k: 2 * v for k, v in card.rates.items()}}):
        after = estimate(shape, scheme, replace(card, **change), batch=64, context=1024)
        assert after.step <= before.step
        assert after.prefill < before.prefill or "bandwidth" in change
    work = linear(scheme, 64, 4096, 4096)
    assert seconds(work, card) >= work.bytes / card.bandwidth
