"""Resident memory against what is allocated, model bytes against files, shapes against a real model."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_model
from torch import nn

from reference.hardware import memory
from reference.hardware.memory import added_peak, decoder_memory, model_bytes, resident
from reference.hardware.roofline import SCHEMES
from reference.hardware.serving import LLAMA_2_7B, DecoderShape
from reference.models import tutorial

needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="only Linux shows a process's memory so")
MEGA = 2**20

FRESH = """
import torch
from reference.hardware.memory import resident
before = resident()
held = torch.ones(64 * 2**20 // 4)
during = resident()
del held
after = resident()
print(during.now - before.now, after.peak - before.now, after.now - before.now)
"""


@needs_proc
def test_resident_sees_what_is_allocated_and_remembers_the_peak() -> None:
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, check=True)
    grown, peak, left = (int(word) / MEGA for word in done.stdout.split())
    assert 63 < grown < 72
    assert peak >= grown - 0.5
    assert left < 16


@needs_proc
def test_added_peak_sees_memory_that_is_given_back() -> None:
    def work() -> int:
        a = torch.ones(96 * MEGA // 4)
        for _ in range(8):
            a.mul_(1.0)
        return int(a.numel())

    result, peak = added_peak(work)
    assert result == 24 * MEGA
    assert 90 < peak / MEGA < 130
    with pytest.raises(KeyError):
        added_peak(lambda: {}["missing"])


def test_without_proc_the_peak_is_known(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(memory, "STATUS", tmp_path / "missing")
    found = resident()
    assert found.now == found.peak > MEGA


def test_model_bytes_equal_the_file(tmp_path) -> None:
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(10, 20, dtype=torch.bfloat16)
            self.two = nn.Linear(10, 20, bias=False, dtype=torch.bfloat16)
            self.two.weight = self.one.weight
            self.register_buffer("codes", torch.zeros(7, dtype=torch.uint8))

    model = Model()
    assert model_bytes(model) == {"parameters": 2 * 220, "buffers": 7}
    save_model(model, str(tmp_path / "m.safetensors"))
    header = int.from_bytes((tmp_path / "m.safetensors").read_bytes()[:8], "little")
    assert sum(model_bytes(model).values()) == (tmp_path / "m.safetensors").stat().st_size - 8 - header


def test_model_bytes_on_meta_are_those_that_the_model_will_take() -> None:
    def model() -> nn.Module:
        layers = nn.Sequential(nn.Linear(10, 20), nn.BatchNorm1d(20), nn.Linear(20, 10), nn.Linear(10, 20, bias=False))
        layers[3].weight = layers[0].weight
        return layers

    with torch.device("meta"):
        promised = model_bytes(model())
    assert promised == model_bytes(model()) == {"parameters": 4 * (220 + 40 + 210), "buffers": 4 * 40 + 8}


def shape_of(config) -> DecoderShape:
    return DecoderShape(
        config.num_hidden_layers,
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        config.vocab_size,
        tied=config.tie_word_embeddings,
    )


def test_decoder_memory_of_the_shipped_model() -> None:
    model = tutorial.load(dtype=torch.bfloat16)
    counted = decoder_memory(shape_of(model.config), SCHEMES["W16A16"], batch=3, context=50)
    norms = 2 * sum(p.numel() for p in model.parameters() if p.dim() == 1)
    assert counted.weights == model_bytes(model)["parameters"] - norms
    with torch.no_grad():
        cache = model(input_ids=torch.zeros(3, 50, dtype=torch.long), use_cache=True).past_key_values
    assert counted.cache == sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert counted.total == sum(counted)


def test_activations_by_hand() -> None:
    """Llama-2-7B, one sequence: prefill of 2048 tokens is widest in the feed-forward net."""
    counted = decoder_memory(LLAMA_2_7B, SCHEMES["W4A16"], batch=1, context=2048, tokens=2048)
    assert counted.activations == 2 * 2048 * (4096 + 4096 + 2 * 11008)
    all_logits = decoder_memory(LLAMA_2_7B, SCHEMES["W4A16"], batch=1, context=2048, tokens=2048, logits=2048)
    assert all_logits.activations == 2 * 2048 * 4096 + 4 * 2048 * 32000
    assert counted.cache == 2 * 32 * 4096 * 2048 * 2
    with pytest.raises(ValueError, match="tokens is 0"):
        decoder_memory(LLAMA_2_7B, SCHEMES["W4A16"], batch=1, context=1, tokens=0)
