"""The rows of the trade-off table: bytes and bits by hand arithmetic, quality against other ways to measure it."""

import math

import pytest
import torch

from reference import trade_offs
from reference.evaluation import token_losses
from reference.int8 import Int8Linear
from reference.layers import QuantizedLinear
from reference.models import tutorial
from reference.models.families import block_linears
from reference.trade_offs import METHODS, SETTINGS


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(0, 4096, (1024,), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def original():
    return tutorial.load()


@pytest.fixture(scope="module")
def weights(original) -> int:
    return sum(linear.weight.numel() for _, linear in block_linears(original))


@pytest.mark.parametrize("name", SETTINGS)
def test_linear_bytes_are_bits_and_scales(name, original, weights, ids) -> None:
    setting = SETTINGS[name]
    model = trade_offs.compress(tutorial.load(dtype=torch.bfloat16), setting, "round_to_nearest", [])
    row = trade_offs.measure(model, model, {"noise": (ids, 2000)})
    bits = setting.weights.bits
    scales = sum(m.scale.numel() for m in model.modules() if isinstance(m, QuantizedLinear | Int8Linear))
    assert row.bytes_linear == weights * bits // 8 + 2 * scales
    assert row.bytes_total > row.bytes_linear + 4096 * 256 * 2  # and the embedding
    assert row.kl["noise"] == 0
    losses = token_losses(model, ids, window=256, stride=128)
    assert math.isclose(row.bits_per_byte["noise"], losses.double().sum().item() / math.log(2) / 2000)


def test_resident_bytes_count_the_copy_for_few_rows(original, ids) -> None:
    model = trade_offs.compress(tutorial.load(), SETTINGS["W4A16"], "round_to_nearest", [])
    before = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    row = trade_offs.measure(model, original, {"noise": (ids[:512], 1000)})
    copies = sum(m.copied_bytes for m in model.modules() if isinstance(m, QuantizedLinear))
    assert copies > 0
    # Tied embedding and head are one parameter; other buffers are shared or tiny.
    assert abs(row.resident - before - copies) < 10_000
    assert row.kl["noise"] > 0


@pytest.mark.filterwarnings("ignore::reference.quantization.CalibrationWarning")
@pytest.mark.parametrize("method", METHODS)
def test_methods_quantise_every_layer(method, original, ids) -> None:
    calibration = [ids[:512].reshape(2, 256)]
    model = trade_offs.compress(tutorial.load(), SETTINGS["W4A4"], method, calibration)
    layers = [m for m in model.modules() if isinstance(m, Int8Linear)]
    assert len(layers) == len(list(block_linears(original)))
    assert {(m.spec.bits, m.activations.bits) for m in layers} == {(4, 4)}
    # Rotation unties the head from the embedding.
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == (method != "rotation+gptq")


def test_execution_says_what_happens(original) -> None:
    assert trade_offs.execution(original, 1) == "float"
    quantised = {
        name: trade_offs.compress(tutorial.load(), SETTINGS[name], "round_to_nearest", [])
        for name in ("W8A8", "W4A16", "W3A16")
    }
    assert trade_offs.execution(quantised["W8A8"], 1) == "integer products"
    assert trade_offs.execution(quantised["W4A16"], 1) == "packed int4"
    assert trade_offs.execution(quantised["W4A16"], 32) == "unpacked at each call"
    assert trade_offs.execution(quantised["W3A16"], 1) == "unpacked at each call"


def test_a_decode_step_repeats_itself_and_continues_the_text(original) -> None:
    step = trade_offs.decode_step(original, 3, context=8)
    first = step()
    assert torch.equal(step(), first)
    assert first.shape == (3, 1, 4096)
    ids = torch.arange(27).reshape(3, 9) % 4096
    with torch.no_grad():
        assert torch.allclose(original(ids).logits[:, -1:], first, atol=1e-3)


def test_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="method is 'magic'"):
        trade_offs.compress(tutorial.load(), SETTINGS["W8A8"], "magic", [])
