"""The GPTQ and AWQ formats, read back by an unpacker that works on strings of bits."""

import json
import re
from functools import partial
from pathlib import Path

import pytest
import tiny_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from reference import checkpoint, workflow
from reference.calibration import batches
from reference.checkpoint import awq, gptq
from reference.checkpoint.stored import float16_scale
from reference.layers import QuantizedLinear
from reference.models.families import block_linears
from reference.quantization.grid import QuantizationSpec
from reference.quantization.round_to_nearest import quantize_layer
from reference.tensors import QuantizedTensor

llama = partial(tiny_models.llama, intermediate_size=64, num_hidden_layers=2, num_key_value_heads=4)
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
IDS = torch.arange(24).reshape(2, 12)


def bits_of(words: list[int]) -> str:
    """Bit 0 of word 0 first."""
    return "".join(format(word & 0xFFFFFFFF, "032b")[::-1] for word in words)


def stream(words: list[int], bits: int, count: int) -> list[int]:
    text = bits_of(words)
    return [int(text[i * bits : (i + 1) * bits][::-1], 2) for i in range(count)]


def slow_gptq(stored: dict[str, Tensor], name: str, bits: int, offset: int) -> Tensor:
    """float64 weight ``[out, in]``, one number at a time."""
    qweight, qzeros, scales, index = (stored[f"{name}.{s}"] for s in ("qweight", "qzeros", "scales", "g_idx"))
    inputs, outputs = len(index), scales.shape[1]
    zeros = [[(z + offset) % 2**bits for z in stream(row.tolist(), bits, outputs)] for row in qzeros]
    weight = torch.empty(outputs, inputs, dtype=torch.float64)
    for o in range(outputs):
        codes = stream(qweight[:, o].tolist(), bits, inputs)
        for i, (code, group) in enumerate(zip(codes, index.tolist(), strict=True)):
            weight[o, i] = float(scales[group, o]) * (code - zeros[group][o])
    return weight


def slow_awq(stored: dict[str, Tensor], name: str, group_size: int) -> Tensor:
    qweight, qzeros, scales = (stored[f"{name}.{s}"] for s in ("qweight", "qzeros", "scales"))
    inputs, outputs = qweight.shape[0], scales.shape[1]

    def nibble(words: Tensor, row: int, o: int) -> int:
        word = int(words[row, o // 8]) & 0xFFFFFFFF
        return word >> (4 * AWQ_ORDER.index(o % 8)) & 15

    weight = torch.empty(outputs, inputs, dtype=torch.float64)
    for o in range(outputs):
        for i in range(inputs):
            group = i // group_size
            weight[o, i] = float(scales[group, o]) * (nibble(qweight, i, o) - nibble(qzeros, group, o))
    return weight


def saved(model: nn.Module, folder: Path, format: str) -> tuple[dict[str, Tensor], dict]:
    checkpoint.save(model, folder, format)  # type: ignore[arg-type]
    return load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("bits", gptq.BITS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("moved", [True, False])
def test_gptq_files_mean_what_the_layers_compute(bits: int, symmetric: bool, moved: bool, tmp_path: Path) -> None:
    model = workflow.quantize(
        llama(), QuantizationSpec(bits, symmetric=symmetric, group_size=16), method="gptq", act_order=moved,
        static_groups=False, calibration=batches(torch.randint(0, 64, (400,)), sequences=8, length=16),
        scale_dtype=torch.float16,
    )  # fmt: skip
    stored, config = saved(model, tmp_path / "out", "gptq")
    quantization = config["quantization_config"]
    assert (quantization["bits"], quantization["group_size"], quantization["sym"]) == (bits, 16, symmetric)
    assert quantization["desc_act"] is moved
    assert json.loads((tmp_path / "out" / "quantize_config.json").read_text()) == quantization
    offset = {"gptq": 1, "gptq_v2": 0}[quantization["checkpoint_format"]]
    name, layer = next(block_linears(model))
    expected = layer.tensor.dequantize(torch.float64)
    torch.testing.assert_close(slow_gptq(stored, name, bits, offset), expected, rtol=0, atol=0)
    loaded = checkpoint.load(tmp_path / "out")
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    group_index = next(block_linears(loaded))[1].group_index
    assert (group_index is not None) == moved


def test_layers_left_in_float_are_named_for_loaders(tmp_path: Path) -> None:
    """vLLM and GPTQModel ask ``dynamic``, first pattern that matches; transformers asks for the layers that remain."""
    four, eight = QuantizationSpec(4, symmetric=True, group_size=32), QuantizationSpec(8, symmetric=True, group_size=32)

    def grid(name: str) -> QuantizationSpec | None:
        if name.endswith("down_proj") or name == "model.layers.0.self_attn.v_proj":
            return None
        return eight if name == "model.layers.1.mlp.up_proj" else four

    model = workflow.quantize(llama(), grid, scale_dtype=torch.float16)
    checkpoint.save(model, tmp_path / "out", "gptq")
    found = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]

    def bits(name: str) -> int | None:
        for pattern, rule in found["dynamic"].items():
            if re.match(pattern[2:], name):
                return None if pattern.startswith("-:") else rule["bits"]
        return found["bits"]

    names = [name for name, _ in block_linears(model)]
    assert {name: bits(name) for name in names} == {name: (spec := grid(name)) and spec.bits for name in names}
    remaining = [name for group in found["modules_in_block_to_quantize"] for name in group]
    quantized = {name for name in names if any(name == each or name.endswith(f".{each}") for each in remaining)}
    assert quantized == {name for name in names if grid(name)}
    assert torch.equal(checkpoint.load(tmp_path / "out")(IDS).logits, model(IDS).logits)


def test_a_rule_for_fused_parts_leaves_the_other_layers_alone() -> None:
    """Queries, keys and values of one kind: a server asks for them as one, and for the output projection alone."""
    names = [f"model.layers.{block}.self_attn.{part}_proj" for block in range(2) for part in "qkvo"]
    eight, four = QuantizationSpec(8, symmetric=True), QuantizationSpec(4, symmetric=True)
    grids = {name: eight if name[-6] in "qkv" else four for name in names}
    grids["model.layers.1.self_attn.o_proj"] = QuantizationSpec(2, symmetric=True)
    grids |= {f"model.layers.{block}.mlp.down_proj": four for block in range(6)}
    codes = torch.zeros(32, 32, dtype=torch.uint8)
    layers: dict[str, nn.Module] = {
        name: QuantizedLinear(
            QuantizedTensor.from_codes(codes, torch.ones(32, 1).half(), torch.full((32, 1), spec.middle), spec)
        )
        for name, spec in grids.items()
    }
    found = gptq.configuration(layers, [])

    def bits(name: str) -> int:
        matches = [rule for pattern, rule in found["dynamic"].items() if re.match(pattern[2:], name)]
        return (matches[0] if matches else found)["bits"]

    assert found["bits"] == 4
    assert {name: bits(name) for name in names} == {name: grids[name].bits for name in names}
    assert [bits(f"model.layers.{block}.self_attn.qkv_proj") for block in range(2)] == [8, 8]
    reader = gptq.Reader(found)
    assert {name: reader.spec(name, {"qweight"}) for name in names} == {name: grids[name] for name in names}


def layer_of(zero_point: int, bits: int = 4) -> QuantizedLinear:
    """64 inputs in two groups, 32 outputs; the first output's zero point is another one."""
    codes = torch.randint(0, 2**bits, (32, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    zero_points = torch.full((32, 2), 2 ** (bits - 1), dtype=torch.int32)
    zero_points[0] = zero_point
    scale = torch.rand(32, 2, generator=torch.Generator().manual_seed(1)).half()
    return QuantizedLinear(QuantizedTensor.from_codes(codes, scale, zero_points, QuantizationSpec(bits, group_size=32)))


def test_one_layer_with_a_zero_point_of_zero_decides_for_the_whole_file() -> None:
    """Version 1 cannot hold it, and a folder has one version."""
    layers: dict[str, nn.Module] = {"a": layer_of(3), "b": layer_of(0), "c": layer_of(5)}
    found = gptq.configuration(layers, [])
    assert found["checkpoint_format"] == "gptq_v2"
    for name, layer in layers.items():
        stored = {f"{name}.{suffix}": tensor for suffix, tensor in gptq.tensors(layer, name, found).items()}
        assert stream(stored[f"{name}.qzeros"][0].tolist(), 4, 32) == layer.tensor.zero_point[:, 0].tolist()
        back = gptq.Reader(found).take(stored, name, nn.Linear(64, 32, bias=False))
        assert torch.equal(back.tensor.zero_point, layer.tensor.zero_point)
    assert gptq.configuration({"a": layer_of(3), "c": layer_of(5)}, [])["checkpoint_format"] == "gptq"


def gptq_file(**changes: Tensor | None) -> tuple[dict, dict[str, Tensor]]:
    """Configuration and tensors of a layer ``x``; a tensor is replaced, or left out where it is None."""
    layer = layer_of(3)
    configuration = gptq.configuration({"x": layer}, [])
    stored = gptq.tensors(layer, "x", configuration) | changes
    return configuration, {f"x.{suffix}": tensor for suffix, tensor in stored.items() if tensor is not None}


def test_a_gptq_file_without_a_group_index_has_its_groups_in_order() -> None:
    configuration, stored = gptq_file(g_idx=None)
    back = gptq.Reader(configuration).take(stored, "x", nn.Linear(64, 32, bias=False))
    assert back.group_index is None
    assert torch.equal(back.tensor.dequantize(), layer_of(3).tensor.dequantize())


def test_a_gptq_file_whose_groups_moved_is_not_read_without_its_index() -> None:
    configuration, stored = gptq_file(g_idx=None)
    with pytest.raises(ValueError, match=r"x\.g_idx is missing.*desc_act"):
        gptq.Reader(configuration | {"desc_act": True}).take(dict(stored), "x", nn.Linear(64, 32, bias=False))
    static = configuration | {"desc_act": True, "static_groups": True}
    back = gptq.Reader(static).take(dict(stored), "x", nn.Linear(64, 32, bias=False))
    assert torch.equal(back.tensor.dequantize(), layer_of(3).tensor.dequantize())


@pytest.mark.parametrize("outside", [2, -1])
def test_a_group_that_is_not_there_is_refused(outside: int) -> None:
    index = torch.arange(64, dtype=torch.int32) // 32
    index[5] = outside
    configuration, stored = gptq_file(g_idx=index)
    with pytest.raises(ValueError, match=r"x\.g_idx .*there are 2 groups"):
        gptq.Reader(configuration).take(stored, "x", nn.Linear(64, 32, bias=False))


@pytest.mark.parametrize(
    ("configuration", "words"),
    [
        ({"bits": 4}, "group_size None; the gptq format needs it"),
        ({"group_size": 128}, "bits None; the gptq format needs it"),
        ({"bits": "4", "group_size": 128}, "bits '4'"),
        ({"bits": 4, "group_size": 128, "format": "marlin"}, "format 'marlin'; read here are gptq and gptq_v2"),
        ({"bits": 4, "group_size": 128, "checkpoint_format": "bitblas"}, "format 'bitblas'"),
    ],
)
def test_gptq_configurations_that_are_not_read_are_refused(configuration: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        gptq.Reader(configuration)


def test_gptqs_version_is_read_from_either_word() -> None:
    """GPTQModel writes both; files of its early versions have ``format`` alone, AutoGPTQ's have neither."""
    base = {"bits": 4, "group_size": 32}
    versions = [{}, {"format": "gptq"}, {"format": "gptq_v2"}, {"checkpoint_format": "gptq_v2", "format": "gptq"}]
    assert [gptq.Reader(base | words).offset for words in versions] == [1, 1, 0, 0]


def test_moved_groups_read_without_their_index_are_other_weights(tmp_path: Path) -> None:
    model = workflow.quantize(
        llama(), QuantizationSpec(4, group_size=16), method="gptq", act_order=True, static_groups=False,
        calibration=batches(torch.randint(0, 64, (400,)), sequences=8, length=16), scale_dtype=torch.float16,
    )  # fmt: skip
    with pytest.raises(ValueError, match="compressed-tensors cannot hold a group index"):
        checkpoint.save(model, tmp_path / "no")
    with pytest.raises(ValueError, match="only the gptq format can hold"):
        checkpoint.save(model, tmp_path / "no", "awq")
    assert not (tmp_path / "no").exists()


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from(gptq.BITS), st.booleans())
def test_any_codes_and_zero_points_come_back(data: st.DataObject, bits: int, zeros: bool) -> None:
    outputs, groups = data.draw(st.sampled_from([32, 64])), data.draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    codes = torch.randint(0, 2**bits, (outputs, 32 * groups), generator=generator).to(torch.uint8)
    low = 0 if zeros else 1
    zero_point = torch.randint(low, 2**bits, (outputs, groups), generator=generator, dtype=torch.int32)
    if zeros:
        zero_point[0, 0] = 0
    scale = (torch.rand(outputs, groups, generator=generator) + 0.5).half()
    layer = QuantizedLinear(QuantizedTensor.from_codes(codes, scale, zero_point, QuantizationSpec(bits, group_size=32)))
    configuration = gptq.configuration({"layers.0.x": layer}, [])
    assert configuration["checkpoint_format"] == ("gptq_v2" if zeros else "gptq")
    stored = {f"layers.0.x.{s}": t for s, t in gptq.tensors(layer, "layers.0.x", configuration).items()}
    back = gptq.Reader(configuration).take(stored, "layers.0.x", nn.Linear(32 * groups, outputs, bias=False))
    assert not stored
    assert torch.equal(back.tensor.codes, codes)
    assert torch.equal(back.tensor.zero_point, zero_point)
    assert torch.equal(back.tensor.scale, scale)


@pytest.mark.parametrize("symmetric", [True, False])
def test_awq_files_mean_what_the_layers_compute(symmetric: bool, tmp_path: Path) -> None:
    model = workflow.quantize(
        llama(), QuantizationSpec(4, symmetric=symmetric, group_size=16), method="awq", scale_dtype=torch.float16,
        calibration=batches(torch.randint(0, 64, (400,)), sequences=8, length=16),
    )  # fmt: skip
    stored, config = saved(model, tmp_path / "out", "awq")
    assert config["quantization_config"]["version"] == "gemm"
    for name, layer in list(block_linears(model))[-2:]:
        expected = layer.tensor.dequantize(torch.float64)
        torch.testing.assert_close(slow_awq(stored, name, 16), expected, rtol=0, atol=0)
    assert torch.equal(checkpoint.load(tmp_path / "out")(IDS).logits, model(IDS).logits)


def test_awq_words_of_one_group_that_fill_no_block_are_written(tmp_path: Path) -> None:
    """A row of 3 words was a view of a block of 4, which is not written."""
    layer = QuantizedLinear(quantize_layer(torch.randn(24, 32), QuantizationSpec(4)))
    found = awq.tensors(layer, "gate_proj", {})
    assert found["qzeros"].untyped_storage().nbytes() == found["qzeros"].nbytes == 12
    checkpoint.save_torch_state_dict(found, tmp_path)
    assert all(torch.equal(tensor, found[name]) for name, tensor in load_file(tmp_path / "model.safetensors").items())


def test_what_the_formats_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    model = workflow.quantize(llama(), QuantizationSpec(3, symmetric=True), scale_dtype=torch.float16)
    with pytest.raises(ValueError, match=r"model\.layers\.0\.self_attn\.q_proj has 3 bits; the awq format holds 4"):
        checkpoint.save(model, tmp_path / "no", "awq")
    model = workflow.quantize(llama(), QuantizationSpec(5), scale_dtype=torch.float16)
    with pytest.raises(ValueError, match="has 5 bits; the gptq format holds 2, 3, 4 and 8"):
        checkpoint.save(model, tmp_path / "no", "gptq")
    model = workflow.quantize(llama(), QuantizationSpec(4))
    for _, layer in block_linears(model):
        layer.scale = layer.scale.to(torch.bfloat16) * 1e-6
    with pytest.raises(ValueError, match="scales of .* that are no float16 numbers"):
        checkpoint.save(model, tmp_path / "no", "gptq")
    assert not (tmp_path / "no").exists()


def test_one_scale_that_is_no_float16_number_is_enough_to_refuse() -> None:
    scale = torch.tensor([[0.5], [2.0**-30], [1.0]], dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="x has 1 scales of 3 that are no float16 numbers, the first 9.313e-10"):
        float16_scale(scale, "x", "gptq")
    assert float16_scale(scale[::2], "x", "gptq").dtype == torch.float16


def test_foreign_symmetric_files_with_other_zero_points_are_refused() -> None:
    layer = QuantizedLinear(
        QuantizedTensor.from_codes(
            torch.zeros(32, 32, dtype=torch.uint8),
            torch.ones(32, 1).half(),
            torch.full((32, 1), 8),
            QuantizationSpec(4),
        )
    )
    configuration = gptq.configuration({"x": layer}, []) | {"sym": True, "checkpoint_format": "gptq_v2"}
    stored = {f"x.{s}": t for s, t in gptq.tensors(layer, "x", configuration | {"checkpoint_format": "gptq"}).items()}
    with pytest.raises(ValueError, match="is checkpoint_format right"):
        gptq.Reader(configuration).take(stored, "x", nn.Linear(32, 32, bias=False))


def test_biases_of_zeros_that_the_model_lacks_are_dropped_and_others_refused(tmp_path: Path) -> None:
    """AutoGPTQ writes a bias for each layer that it packs, whether the model has one or not."""
    model = workflow.quantize(llama(), QuantizationSpec(4, symmetric=True, group_size=32), scale_dtype=torch.float16)
    stored, _ = saved(model, tmp_path / "plain", "gptq")
    expected = checkpoint.load(tmp_path / "plain")(IDS).logits
    packed = sorted(name.removesuffix(".qweight") for name in stored if name.endswith(".qweight"))
    biases = {f"{name}.bias": torch.zeros(stored[f"{name}.scales"].shape[1]).half() for name in packed}

    def foreign(**changed: Tensor) -> Path:
        save_file(stored | biases | changed, tmp_path / "plain" / "model.safetensors")
        return tmp_path / "plain"

    again = checkpoint.load(foreign())
    assert torch.equal(again(IDS).logits, expected)
    assert not [name for name in again.state_dict() if name.endswith(".bias")]
    name = "model.layers.1.mlp.down_proj.bias"
    one = biases[name].clone()
    one[-1] = 1e-3
    with pytest.raises(ValueError, match=rf"{name} holds other values than 0, and the model has no bias there"):
        checkpoint.load(foreign(**{name: one}))
    with pytest.raises(ValueError, match=rf"{name} has shape \(3,\); it should be \(32,\)"):
        checkpoint.load(foreign(**{name: one[:3]}))
    with pytest.raises(ValueError, match=r"not expected \['lm_head.bias'\]"):  # in float: not AutoGPTQ's doing
        checkpoint.load(foreign(**{"lm_head.bias": torch.zeros(64)}))


@pytest.mark.parametrize("group_size", [32, None])
@pytest.mark.parametrize("symmetric", [True, False])
def test_an_awq_layer_comes_back_with_its_grid(group_size: int | None, symmetric: bool) -> None:
    spec = QuantizationSpec(4, symmetric=symmetric, group_size=group_size)
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    layer = QuantizedLinear(quantize_layer(weight, spec, scale_dtype=torch.float16))
    found = awq.configuration({"x": layer}, [])
    assert found["group_size"] == (-1 if group_size is None else group_size)
    assert found["modules_to_not_convert"] is None
    stored = {f"x.{suffix}": tensor for suffix, tensor in awq.tensors(layer, "x", found).items()}
    torch.testing.assert_close(
        slow_awq(stored, "x", group_size or 64), layer.tensor.dequantize(torch.float64), rtol=0, atol=0
    )
    back = awq.Reader(found).take(stored, "x", nn.Linear(64, 16, bias=False))
    assert not stored
    assert back.spec == spec
    assert torch.equal(back.tensor.dequantize(), layer.tensor.dequantize())


@pytest.mark.parametrize(
    ("configuration", "words"),
    [
        ({"version": "gemv"}, "version 'gemv', 4 bits"),
        ({"format": "GEMV_fast"}, "version 'gemv_fast', 4 bits"),
        ({"bits": 8}, "version 'gemm', 8 bits"),
        ({"zero_point": False}, "zero_point False"),
    ],
)
def test_awq_configurations_that_are_not_read_are_refused(configuration: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        awq.Reader(configuration)


def test_nibbles_of_a_word_in_awq_order() -> None:
    """By hand: output k of eight lies at the nibble whose place in the order is k."""
    (word,) = awq.interleave(torch.arange(8, dtype=torch.uint8).reshape(1, 8)).flatten().tolist()
    assert f"{word & 0xFFFFFFFF:08x}" == "75316420"
