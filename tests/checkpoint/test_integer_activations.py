"""W8A8 and W4A8 checkpoints: what transformers computes from them, and what we do."""

import json
from functools import partial
from pathlib import Path

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from reference import checkpoint, workflow
from reference.calibration import batches
from reference.layers import Int8Linear
from reference.models.families import block_linears
from reference.quantization.activations import ActivationSpec
from reference.quantization.grid import QuantizationSpec

llama = partial(tiny_models.llama, intermediate_size=64, num_hidden_layers=2, initializer_range=0.2)
IDS = torch.arange(24).reshape(2, 12)
CALIBRATION = batches(torch.randint(0, 64, (400,), generator=torch.Generator().manual_seed(0)), sequences=8, length=16)


@torch.no_grad()
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("granularity", ["per_token", "static"])
@pytest.mark.parametrize("method", ["round_to_nearest", "smoothquant+gptq"])
def test_transformers_computes_what_our_integers_do(bits: int, granularity: str, method: str, tmp_path: Path) -> None:
    model, floats = llama(), llama()
    workflow.quantize(
        model, QuantizationSpec(bits, symmetric=True), method=method, activations=ActivationSpec(granularity=granularity),
        calibration=CALIBRATION,
    )  # fmt: skip
    assert all(isinstance(layer, Int8Linear) for _, layer in block_linears(model))
    checkpoint.save(model, tmp_path / "out")
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert {key: found for key, found in report.items() if found} == {}
    ours, theirs = model(IDS).logits, loaded.eval()(IDS).logits
    damage = (ours - floats(IDS).logits).norm()
    assert damage > 0.01 * ours.norm() / 4
    # Theirs multiplies rounded floats; now and then that moves a later activation to the next code.
    assert (ours - theirs).norm() < 0.2 * damage
    again = checkpoint.load(tmp_path / "out")
    assert all(isinstance(layer, Int8Linear) for _, layer in block_linears(again))
    assert torch.equal(again(IDS).logits, ours)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_static_step_is_one_number(bits: int, tmp_path: Path) -> None:
    model = workflow.quantize(
        llama(), QuantizationSpec(bits, symmetric=True), activations=ActivationSpec("static"), calibration=CALIBRATION
    )
    checkpoint.save(model, tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.input_scale"
    assert stored[name].shape == (1,)
    for wrong, words in [(stored[name].expand(2), r"shape \(2,\)"), (stored[name].int(), "type torch.int32")]:
        save_file(
            stored | {name: wrong.contiguous()}, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"}
        )
        with pytest.raises(ValueError, match=f"{name} has {words}"):
            checkpoint.load(tmp_path / "out")


@torch.no_grad()
def test_weights_of_four_bits_may_lie_one_a_byte(tmp_path: Path) -> None:
    """What llm-compressor writes for W4A8 unless it is told otherwise: ``int-quantized``, whatever the bits."""
    model = workflow.quantize(llama(), QuantizationSpec(4, symmetric=True), activations=ActivationSpec())
    checkpoint.save(model, tmp_path / "out")
    file, settings = tmp_path / "out" / "model.safetensors", tmp_path / "out" / "config.json"
    stored = load_file(file)
    for name, layer in block_linears(model):
        del stored[f"{name}.weight_packed"], stored[f"{name}.weight_shape"]
        stored[f"{name}.weight"] = layer.weight
    config = json.loads(settings.read_text())
    config["quantization_config"]["format"] = "int-quantized"
    config["quantization_config"]["config_groups"]["group_0"]["format"] = "int-quantized"
    settings.write_text(json.dumps(config))
    save_file(stored, file, metadata={"format": "pt"})
    again = checkpoint.load(tmp_path / "out")
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()(IDS).logits
    assert (theirs - model(IDS).logits).norm() < 0.2 * (model(IDS).logits - llama()(IDS).logits).norm()

    stored["model.layers.1.mlp.up_proj.weight"][0, 0] = 8
    save_file(stored, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds codes from -\d to 8; 4 bits"):
        checkpoint.load(tmp_path / "out")


def test_wrong_combinations_name_the_layer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"q_proj: quantised activations need a symmetric grid"):
        workflow.quantize(llama(), QuantizationSpec(8), activations=ActivationSpec())
    with pytest.raises(ValueError, match="static activations needs token batches"):
        workflow.quantize(
            llama(), QuantizationSpec(8, symmetric=True), activations=ActivationSpec(granularity="static")
        )
    model = workflow.quantize(llama(), QuantizationSpec(8, symmetric=True), activations=ActivationSpec(restricted=True))
    with pytest.raises(ValueError, match="restricted activation grid"):
        checkpoint.save(model, tmp_path / "no")
    with pytest.raises(ValueError, match="q_proj has quantised inputs; the gptq format can hold weights only"):
        checkpoint.save(model, tmp_path / "no", "gptq")
