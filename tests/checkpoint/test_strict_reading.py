"""A folder that is damaged, incomplete or of another kind is refused by name."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import LAYER, logits, tiny_llama
from safetensors.torch import load_file, save_file
from torch import Tensor

from reference import checkpoint


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


def test_a_config_without_architectures_is_a_language_models(saved: Path, tmp_path: Path) -> None:
    folder = damaged(saved, tmp_path / "copy", nothing)
    edit_config(folder, lambda config: config.pop("architectures"))
    assert torch.equal(logits(checkpoint.load(folder)), logits(checkpoint.load(saved)))
