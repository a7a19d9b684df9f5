"""Checkpoints: read back by us, and by transformers with compressed-tensors, to the same logits."""

import errno
import json
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    CompressedTensorsConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
)

from reference import checkpoint, training, workflow
from reference.checkpoint import compressed_tensors
from reference.coding import container
from reference.files import atomic_directory
from reference.job import Job
from reference.layers import QuantizedLinear
from reference.models import tutorial
from reference.models.families import block_linears
from reference.quantization.activations import ActivationSpec
from reference.quantization.grid import QuantizationSpec
from reference.quantization.round_to_nearest import quantize_layer
from reference.transforms.rotation import rotate

IDS = torch.arange(48).reshape(2, 24) % 128


def tiny_llama(*, tied: bool = True, bias: bool = False, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=tied, attention_bias=bias,
        initializer_range=0.1, dtype=dtype,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()  # .to(dtype) would round the rotary table


@torch.no_grad()
def logits(model: PreTrainedModel, ids: Tensor = IDS) -> Tensor:
    return model(input_ids=ids).logits


def by_transformers(folder: Path, *, dequantize: bool) -> PreTrainedModel:
    """The independent reader; it must neither miss nor leave over anything."""
    options = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if dequantize else {}
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    assert {key: list(found) for key, found in report.items() if found} == {}
    return model.eval()


def check(model: PreTrainedModel, folder: Path, *, ids: Tensor = IDS) -> None:
    expected = logits(model, ids)
    assert torch.equal(logits(checkpoint.load(folder), ids), expected)
    assert torch.equal(logits(by_transformers(folder, dequantize=False), ids), expected)


# --- the same logits ------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [None, 128])
@pytest.mark.parametrize("tied", [True, False])
def test_symmetric_grids_load_everywhere_with_our_logits(
    tmp_path: Path, bits: int, group_size: int | None, tied: bool
) -> None:
    model = tiny_llama(tied=tied)
    before = logits(model)
    workflow.quantize(model, QuantizationSpec(bits, symmetric=True, group_size=group_size))
    assert not torch.equal(logits(model), before), "quantising changed nothing"
    checkpoint.save(model, tmp_path / "out")
    check(model, tmp_path / "out")


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [None, 128])
def test_affine_grids_load_through_the_dequantize_option(tmp_path: Path, bits: int, group_size: int | None) -> None:
    model = tiny_llama()
    workflow.quantize(model, QuantizationSpec(bits, group_size=group_size))
    checkpoint.save(model, tmp_path / "out")
    ours, theirs = logits(model), logits(by_transformers(tmp_path / "out", dequantize=True))
    assert torch.equal(logits(checkpoint.load(tmp_path / "out")), ours)
    # This loader multiplies in the type of the scale, float16, before it widens the product.
    dense = tiny_llama()
    for name, linear in block_linears(dense):
        linear.weight.data = model.get_submodule(name).tensor.dequantize().float()
    assert torch.equal(logits(dense), theirs)
    assert (ours - theirs).abs().max() < 2e-3 * ours.abs().max()


def test_one_scale_per_tensor_loads_everywhere(tmp_path: Path) -> None:
    model = tiny_llama()
    workflow.quantize(model, QuantizationSpec(8, symmetric=True, per_tensor=True))
    checkpoint.save(model, tmp_path / "out")
    check(model, tmp_path / "out")


def test_layers_with_a_bias_keep_it(tmp_path: Path) -> None:
    model = tiny_llama(bias=True)
    with torch.no_grad():
        for _, linear in block_linears(model):
            if linear.bias is not None:
                linear.bias.normal_()
    workflow.quantize(model, QuantizationSpec(4, symmetric=True, group_size=64))
    checkpoint.save(model, tmp_path / "out")
    check(model, tmp_path / "out")


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("outputs", "inputs"), [(8, 4128), (4128, 8)])
def test_long_layers_come_back(bits: int, symmetric: bool, outputs: int, inputs: int) -> None:
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0))
    layer = QuantizedLinear(quantize_layer(weight, QuantizationSpec(bits, symmetric=symmetric)))
    stored = {f"x.{suffix}": tensor for suffix, tensor in compressed_tensors.tensors(layer, "x", {}).items()}
    reader = compressed_tensors.Reader(compressed_tensors.configuration({"x": layer}, []))
    back = reader.take(stored, "x", nn.Linear(inputs, outputs, bias=False))
    assert not stored
    assert torch.equal(back.tensor.dequantize(), layer.tensor.dequantize())


def test_a_bfloat16_model_keeps_its_type(tmp_path: Path) -> None:
    model = tiny_llama(dtype=torch.bfloat16)
    workflow.quantize(model, QuantizationSpec(4, symmetric=True, group_size=128))
    checkpoint.save(model, tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16, torch.int32, torch.int64}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    check(model, tmp_path / "out")


def test_mixed_symmetric_grids_and_layers_left_alone(tmp_path: Path) -> None:
    def spec(name: str) -> QuantizationSpec | None:
        if "o_proj" in name:
            return None
        return QuantizationSpec(8, symmetric=True) if "down" in name else QuantizationSpec(3, True, 64)

    model = tiny_llama()
    workflow.quantize(model, spec)
    assert sum(isinstance(module, QuantizedLinear) for module in model.modules()) == 12
    checkpoint.save(model, tmp_path / "out")
    check(model, tmp_path / "out")


def test_mixed_grids_with_the_dequantize_option_are_another_model_as_the_manual_says(tmp_path: Path) -> None:
    """The locked transformers reads all layers by the first group then, and does not say so. Once it is mended, so is the manual."""
    model = tiny_llama()
    workflow.quantize(model, lambda name: QuantizationSpec(8 if "down" in name else 4, True, group_size=64))
    checkpoint.save(model, tmp_path / "out")
    wrong = logits(by_transformers(tmp_path / "out", dequantize=True))
    assert (wrong - logits(model)).abs().max() > 0.5 * logits(model).abs().max()
    manual = (Path(__file__).parents[1] / "book" / "how_to_run.md").read_text()
    assert "grids of several kinds (`--bits-for`)" in manual


def test_affine_grids_of_several_kinds_are_refused(tmp_path: Path) -> None:
    model = tiny_llama()
    workflow.quantize(model, lambda name: QuantizationSpec(8 if "down" in name else 4))
    with pytest.raises(ValueError, match="transformers cannot load that mixture"):
        checkpoint.save(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_shards_have_an_index_and_load_the_same(tmp_path: Path) -> None:
    model = tiny_llama(tied=False)
    workflow.quantize(model, QuantizationSpec(4, symmetric=True, group_size=128))
    checkpoint.save(model, tmp_path / "out", shard_bytes=60_000)
    shards = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    count = len(shards)
    assert count > 2
    assert shards == [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == shards
    stored = {name: tensor for shard in shards for name, tensor in load_file(tmp_path / "out" / shard).items()}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in stored.values())
    check(model, tmp_path / "out")


def test_a_float_model_makes_the_trip_too(tmp_path: Path) -> None:
    model = tiny_llama(tied=False)
    checkpoint.save(model, tmp_path / "out")
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    check(model, tmp_path / "out")


def test_a_model_that_is_no_language_model_comes_back_as_what_it_was(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=128, num_labels=3,
        pad_token_id=0,
    )  # fmt: skip
    model = LlamaForSequenceClassification(config).eval()
    checkpoint.save(model, tmp_path / "out")
    again = checkpoint.load(tmp_path / "out")
    assert type(again) is LlamaForSequenceClassification
    assert torch.equal(logits(again), logits(model))


def test_a_config_without_architectures_is_a_language_models(saved: Path, tmp_path: Path) -> None:
    folder = damaged(saved, tmp_path / "copy", nothing)
    edit_config(folder, lambda config: config.pop("architectures"))
    assert torch.equal(logits(checkpoint.load(folder)), logits(checkpoint.load(saved)))


def test_weights_that_are_not_contiguous_are_saved_as_they_are(tmp_path: Path) -> None:
    model = tiny_llama(tied=False)
    projection = model.model.layers[0].self_attn.q_proj
    projection.weight = nn.Parameter(projection.weight.detach().T)  # square: another weight, seen by its columns
    assert not projection.weight.is_contiguous()
    checkpoint.save(model, tmp_path / "out")
    check(model, tmp_path / "out")


@pytest.mark.parametrize("group_size", [None, 64])
def test_what_save_would_refuse_is_refused_before(group_size: int | None) -> None:
    model, spec = tiny_llama(), QuantizationSpec(4, symmetric=True, group_size=group_size)
    checkpoint.check(model, {LAYER: spec})
    checkpoint.check(model, {LAYER: spec}, "gptq", moved_groups=True)
    checkpoint.check(model, {LAYER: spec}, activations=ActivationSpec("static"))
    with pytest.raises(ValueError, match=f"{LAYER} has quantised inputs"):
        checkpoint.check(model, {LAYER: spec}, "gptq", activations=ActivationSpec("static"))
    if group_size is None:  # one group has nowhere to move to
        checkpoint.check(model, {LAYER: spec}, moved_groups=True)
        return
    for format in ("compressed-tensors", "awq"):
        with pytest.raises(ValueError, match=f"{LAYER} has groups out of order"):
            checkpoint.check(model, {LAYER: spec}, format, moved_groups=True)


def test_a_head_that_a_rotation_untied_is_saved(tmp_path: Path) -> None:
    model = rotate(tutorial.load())
    workflow.quantize(model, QuantizationSpec(8, symmetric=True))
    checkpoint.save(model, tmp_path / "model")
    ids = torch.arange(64).reshape(2, 32)
    with torch.no_grad():
        assert torch.equal(checkpoint.load(tmp_path / "model")(ids).logits, model(ids).logits)


def test_what_was_loaded_can_be_saved_again_with_the_same_bytes(tmp_path: Path) -> None:
    model = tiny_llama()
    model.generation_config.max_new_tokens = 7
    workflow.quantize(model, QuantizationSpec(3, group_size=64))
    checkpoint.save(model, tmp_path / "one")
    checkpoint.save(checkpoint.load(tmp_path / "one"), tmp_path / "two")
    for path in (tmp_path / "one").iterdir():
        assert (tmp_path / "two" / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_shipped_model_through_transformers(tmp_path: Path) -> None:
    model = tutorial.load()
    workflow.quantize(model, QuantizationSpec(4, symmetric=True, group_size=128))
    checkpoint.save(model, tmp_path / "out", tokenizer=tutorial.tokenizer())
    ids = tutorial.tokenizer()("def main(arguments):\n    return", return_tensors="pt")["input_ids"]
    check(model, tmp_path / "out", ids=ids)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["quantization_status"] == "compressed"
    assert config["ignore"] == ["lm_head"]


# --- bytes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_nbytes_is_what_the_file_holds_of_a_layer(tmp_path: Path, bits: int, symmetric: bool) -> None:
    model = tiny_llama()
    workflow.quantize(model, QuantizationSpec(bits, symmetric=symmetric, group_size=64))
    checkpoint.save(model, tmp_path / "out")
    header = header_of(tmp_path / "out" / "model.safetensors")
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            mine = {key: end - begin for key, (begin, end) in header.items() if key.startswith(f"{name}.")}
            assert mine.pop(f"{name}.weight_shape") == 16  # the format repeats the shape as two int64
            assert sum(mine.values()) == module.tensor.nbytes


def header_of(file: Path) -> dict[str, tuple[int, int]]:
    data = file.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}


def test_4_bit_g128_takes_at_most_30_percent_of_the_linear_weights_in_bfloat16(tmp_path: Path) -> None:
    model = tutorial.load(dtype=torch.bfloat16)
    dense = sum(linear.weight.nbytes for _, linear in block_linears(model))
    names = {name for name, _ in block_linears(model)}
    workflow.quantize(model, QuantizationSpec(4, symmetric=True, group_size=128))
    checkpoint.save(model, tmp_path / "out")
    header = header_of(tmp_path / "out" / "model.safetensors")
    packed = sum(end - begin for name, (begin, end) in header.items() if name.rpartition(".")[0] in names)
    assert 0.25 * dense < packed <= 0.30 * dense


def test_files_follow_the_umask_and_say_that_they_are_from_torch(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        checkpoint.save(tiny_llama(), tmp_path / "out")
    finally:
        left = os.umask(old)
    assert left == 0o027  # reading the umask means setting it: it is put back
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()}
    assert set(modes.values()) == {0o640}, modes
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}  # older transformers refuse a file without it


# --- strict reading -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    model = tiny_llama()
    workflow.quantize(model, QuantizationSpec(4, group_size=64))
    checkpoint.save(model, folder)
    return folder


LAYER = "model.layers.1.mlp.down_proj"


def damaged(saved: Path, target: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    target.mkdir()
    for path in saved.iterdir():
        if path.suffix != ".safetensors":
            (target / path.name).write_bytes(path.read_bytes())
    tensors = load_file(saved / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def cut(name: str, rows: slice) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name] = tensors[name][rows].contiguous()

    return change


def put(name: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.__setitem__(name, tensor)


def drop(name: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.pop(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop(f"{LAYER}.weight_scale"), rf"{LAYER}\.weight_scale is missing from the checkpoint"),
        (drop(f"{LAYER}.weight_shape"), rf"{LAYER}\.weight_shape is missing"),
        (drop(f"{LAYER}.weight_zero_point"), rf"{LAYER}\.weight_zero_point is missing"),
        (drop("model.norm.weight"), r"missing \['model\.norm\.weight'\]"),
        (cut(f"{LAYER}.weight_scale", slice(100)), rf"{LAYER}\.weight_scale has shape \(100, 4\); it should be"),
        (cut(f"{LAYER}.weight_packed", slice(100)), rf"{LAYER}\.weight_packed has shape \(100, 32\); it should be"),
        (cut(f"{LAYER}.weight_shape", slice(1)), rf"{LAYER}\.weight_shape is \[128\]"),
        (put(f"{LAYER}.weight_shape", torch.tensor([128, 0])), rf"{LAYER}\.weight_shape is \[128, 0\]"),
        (put(f"{LAYER}.weight_shape", torch.tensor([-128, 256])), rf"{LAYER}\.weight_shape is \[-128, 256\]"),
        (put(f"{LAYER}.weight_shape", torch.tensor([128, 512])), rf"{LAYER}\.\w+ has shape .* it should be"),
        (put(f"{LAYER}.weight_packed", torch.zeros(128, 32)), rf"{LAYER}\.weight_packed has type torch\.float32"),
        (cut("model.norm.weight", slice(5)), r"model\.norm\.weight has shape \(5,\); config\.json asks for \(128,\)"),
        (put("model.extra", torch.ones(1)), r"not expected \['model\.extra'\]"),
        (put(f"{LAYER}.weight_g_idx", torch.ones(1)), r"not expected .*weight_g_idx"),
    ],
)
def test_a_wrong_tensor_is_refused_by_name(saved: Path, tmp_path: Path, change: Callable, message: str) -> None:
    folder = damaged(saved, tmp_path / "damaged", change)
    with pytest.raises(ValueError, match=message):
        checkpoint.load(folder)


def nothing(tensors: dict[str, Tensor]) -> None:
    pass


def test_a_truncated_file_is_refused_by_name(saved: Path, tmp_path: Path) -> None:
    folder = damaged(saved, tmp_path / "damaged", nothing)
    file = folder / "model.safetensors"
    for length in (file.stat().st_size - 1, file.stat().st_size // 2, 4, 0):
        with file.open("r+b") as stream:
            stream.truncate(length)
        with pytest.raises(ValueError, match=r"model\.safetensors' is damaged"):
            checkpoint.load(folder)


def test_missing_files_are_refused_by_name(saved: Path, tmp_path: Path) -> None:
    folder = damaged(saved, tmp_path / "damaged", nothing)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"is incomplete: model\.safetensors is missing"):
        checkpoint.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"holds no config\.json; it is not a checkpoint"):
        checkpoint.load(folder)
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        checkpoint.load(tmp_path / "nowhere")


def test_a_missing_shard_and_a_damaged_index_are_refused_by_name(tmp_path: Path) -> None:
    checkpoint.save(tiny_llama(), tmp_path / "out", shard_bytes=200_000)
    shard = sorted((tmp_path / "out").glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ValueError, match=f"is incomplete: {shard.name} is missing"):
        checkpoint.load(tmp_path / "out")
    for text in ("{", "{}", "[]"):
        (tmp_path / "out" / "model.safetensors.index.json").write_text(text)
        with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json' is damaged"):
            checkpoint.load(tmp_path / "out")


def edit_config(folder: Path, edit: Callable[[dict], None]) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))


def rotation(*locations: str) -> dict:
    """A scheme of compressed-tensors' ``transform_config``."""
    return {"type": "hadamard", "apply": [{"targets": ["Linear"], "location": place} for place in locations]}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda q: q.update(quant_method="hqq"), "quantised with .hqq., format .pack-quantized.; read here are"),
        (lambda q: q.update(format="float-quantized"), "format 'float-quantized'; read here is compressed-tensors"),
        (lambda q: q.pop("config_groups"), "quantization_config in config.json is incomplete: .*config_groups"),
        (lambda q: q["config_groups"]["group_0"].pop("weights"), "is incomplete: .*weights"),
        (lambda q: q["config_groups"]["group_0"]["weights"].update(num_bits=9), "bits is 9; it may be"),
        (lambda q: q["config_groups"]["group_0"]["weights"].update(type="float"), "or uses a float grid"),
        (lambda q: q["config_groups"]["group_0"]["weights"].update(strategy="block"), "strategy 'block' is not read"),
        (
            lambda q: q["config_groups"]["group_0"].update(input_activations={"num_bits": 8}),
            "are not read here; symmetric integers",
        ),
        (
            lambda q: q.update(kv_cache_scheme={"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False}),
            "the checkpoint quantises keys and values of the cache \\(float of 8 bits\\)",
        ),
        (
            lambda q: q.update(transform_config={"config_groups": {"R4": rotation("weight_output", "input")}}),
            "the checkpoint rotates activations in the call \\(R4\\)",
        ),
        (lambda q: q["config_groups"]["group_0"]["weights"].update(num_bits=3), "has shape .* it should be"),
        (lambda q: q["config_groups"]["group_0"]["weights"].update(group_size=32), "has shape .* it should be"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    saved: Path, tmp_path: Path, edit: Callable, message: str
) -> None:
    folder = damaged(saved, tmp_path / "damaged", nothing)
    edit_config(folder, lambda config: edit(config["quantization_config"]))
    with pytest.raises(ValueError, match=message):
        checkpoint.load(folder)


def test_rotations_that_are_folded_into_the_weights_are_no_matter(saved: Path, tmp_path: Path) -> None:
    """What llm-compressor writes beside the weights: an empty transform_config, or the rotations that it has folded."""
    for number, groups in enumerate(({}, {"config_groups": {"R1": rotation("weight_input", "weight_output")}})):
        folder = damaged(saved, tmp_path / str(number), nothing)
        edit_config(folder, lambda config, groups=groups: config["quantization_config"].update(transform_config=groups))
        ids = torch.arange(8)[None]
        assert torch.equal(checkpoint.load(folder)(ids).logits, checkpoint.load(saved)(ids).logits)


def test_a_config_that_is_not_json_is_refused(saved: Path, tmp_path: Path) -> None:
    folder = damaged(saved, tmp_path / "damaged", nothing)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json' is damaged"):
        checkpoint.load(folder)


# --- whole or not at all --------------------------------------------------------------------------


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="format is 'zip'; it may be compressed-tensors"):
        checkpoint.save(tiny_llama(), tmp_path / "out", "zip")


def test_an_output_that_holds_something_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("mine")
    with pytest.raises(FileExistsError, match="full' is not empty"):
        checkpoint.save(tiny_llama(), tmp_path / "full")
    with pytest.raises(FileExistsError, match="notes' is a file"):
        checkpoint.save(tiny_llama(), tmp_path / "full" / "notes")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["full", "notes"]
    (tmp_path / "empty").mkdir()
    checkpoint.save(tiny_llama(), tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").is_file()


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_a_failure_in_the_middle_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    model = tiny_llama()

    def fail(folder: Path) -> None:
        assert (Path(folder) / "model.safetensors").is_file(), "the weights are already written"
        raise error

    monkeypatch.setattr(model.generation_config, "save_pretrained", fail)
    with pytest.raises(type(error)):
        checkpoint.save(model, tmp_path / "new" / "parent" / "out")
    assert list(tmp_path.iterdir()) == [], "not even the parent folders that it made"


def test_replace_brings_the_old_folder_back_when_the_exchange_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "old").touch()
    rename = Path.rename

    def fail_second(self: Path, other: Path) -> Path:
        if ".tmp-" in self.name:
            raise OSError("no")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", fail_second)
    with pytest.raises(OSError, match="no"), atomic_directory(target, replace=True) as folder:
        (folder / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["target", "old"]
    monkeypatch.undo()
    with atomic_directory(target, replace=True) as folder:
        (folder / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["target", "new"]


def test_a_link_to_an_empty_folder_is_fine_and_the_current_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(FileExistsError, match=r"output '\.' is the folder that this runs in"), atomic_directory("."):
        pytest.fail("would be replaced under our feet")
    assert Path.cwd() == tmp_path / "here"
    assert Path(".").is_dir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    with atomic_directory(tmp_path / "link") as folder:
        (folder / "file").touch()
    assert (tmp_path / "there" / "file").is_file()


def test_a_disk_that_cannot_hold_it_is_refused_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match=r"disk full: .*out' needs [\d,]+ bytes, and 1,000 are free"):
        checkpoint.save(tiny_llama(), tmp_path / "new" / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KiB; only root may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)]
    try:
        done = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        done = False
    if not done:
        pytest.skip("a file system cannot be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_fills_up_while_writing_leaves_nothing(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    usage = shutil.disk_usage(small_disk)
    with pytest.raises(OSError, match="disk full: .* needs"):
        checkpoint.save(tiny_llama(tied=False), small_disk / "out")
    # The room was there when it was looked at, and then another process took it.
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**12))
    with pytest.raises(OSError, match=r"disk full while writing .*out'.*nothing is left of it"):
        checkpoint.save(tiny_llama(tied=False), small_disk / "out")
    with pytest.raises(OSError, match="disk full while writing"), atomic_directory(small_disk / "out") as folder:
        (folder / "large").write_bytes(bytes(2**20))
    assert list(small_disk.iterdir()) == []


def test_each_writer_names_what_did_not_fit_on_the_disk(small_disk: Path) -> None:
    large = torch.randn(2**18)
    with pytest.raises(OSError, match=r"disk full while writing '.*step\.safetensors' .*nothing is left of it"):
        Job(small_disk / "job", {}).put("step", {"large": large}, {})
    with pytest.raises(OSError, match=r"disk full while writing '.*small\.dcz' .*nothing is left of it"):
        container.save(small_disk / "small.dcz", {"large": large})
    layer = nn.Linear(512, 512)
    with pytest.raises(OSError, match=r"disk full while writing '.*state' .*nothing is left of it"):  # by safetensors
        training.save_state(small_disk / "state", layer, [torch.optim.AdamW(layer.parameters())], step=1)
    assert [path.name for path in small_disk.rglob("*")] == ["job", "fingerprint.json"]


def test_any_other_error_of_the_system_passes_unchanged(tmp_path: Path) -> None:
    with pytest.raises(PermissionError) as caught, atomic_directory(tmp_path / "out"):
        raise PermissionError(errno.EACCES, "no")
    assert caught.value.errno == errno.EACCES
    assert list(tmp_path.iterdir()) == []


def test_a_group_index_and_affine_per_tensor_are_refused_by_name(tmp_path: Path) -> None:
    model = tiny_llama()
    workflow.quantize(model, QuantizationSpec(4, per_tensor=True))
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.q_proj is affine with one scale per tensor"):
        checkpoint.save(model, tmp_path / "out")
    model = tiny_llama()
    workflow.quantize(model, QuantizationSpec(4, symmetric=True, group_size=64))
    layer = model.get_submodule(LAYER)
    assert isinstance(layer, nn.Module)
    layer.group_index = torch.arange(256, dtype=torch.int32) // 64
    with pytest.raises(ValueError, match=f"{LAYER} has groups out of order"):
        checkpoint.save(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
