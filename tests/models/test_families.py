"""The table of architectures, held against what the models do when they run."""

import copy
import itertools
import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from reference import checkpoint, workflow
from reference.job import Job
from reference.layers import QuantizedLinear
from reference.models import loading
from reference.models.conv1d import TRANSPOSED, linearize
from reference.models.families import FAMILIES, block_linears, blocks, family_of, family_of_type, replace_module
from reference.models.streaming import StreamedModel
from reference.quantization.grid import QuantizationSpec
from reference.quantization.round_to_nearest import quantize_layer

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 32,
}  # fmt: skip
DECODER = SMALL | {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
CONFIGS = {
    "llama": DECODER,
    "mistral": DECODER,
    "qwen2": DECODER,
    "qwen3": DECODER,
    "gemma": DECODER,
    "gemma2": DECODER | {"query_pre_attn_scalar": 8},
    "phi3": DECODER,
    "opt": SMALL | {"ffn_dim": 48, "word_embed_proj_dim": 32, "pad_token_id": 0},
    "gpt2": SMALL | {"n_inner": 48},
    "gpt_neox": SMALL | {"intermediate_size": 48},
    "bert": SMALL | {"intermediate_size": 48},
}
IDS = torch.arange(24).reshape(2, 12)


def tiny(kind: str, **fields: object) -> nn.Module:
    """Random weights, norms included, so that nothing is equal by accident."""
    config = transformers.AutoConfig.for_model(kind, **CONFIGS[kind] | fields)
    auto = transformers.AutoModel if kind == "bert" else transformers.AutoModelForCausalLM
    torch.manual_seed(0)
    model = linearize(auto.from_config(config).eval())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@torch.no_grad()
def output(model: nn.Module) -> Tensor:
    result = model(input_ids=IDS)
    return result.logits if "logits" in result else result.last_hidden_state


every_kind = pytest.mark.parametrize("kind", FAMILIES)


def test_every_architecture_of_the_table_is_tried_here() -> None:
    assert set(CONFIGS) == set(FAMILIES)


@every_kind
def test_every_linear_layer_of_the_blocks_is_in_the_table_in_forward_order(kind: str) -> None:
    model, called = tiny(kind), []
    prefix = f"{family_of(model).blocks}."
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.startswith(prefix):
            module.register_forward_pre_hook(lambda *_, name=name: called.append(name))
    output(model)
    listed = [name for name, _ in block_linears(model)]
    assert len(listed) == len(set(listed))
    assert listed == called
    assert all(model.get_submodule(name) is module for name, module in block_linears(model))


@every_kind
def test_layers_of_a_group_read_the_same_input_and_groups_do_not(kind: str) -> None:
    model, seen = tiny(kind), {}
    for name, module in block_linears(model):
        module.register_forward_pre_hook(lambda _, args, name=name: seen.__setitem__(name, args[0].clone()))
    output(model)
    family = family_of(model)
    for index in range(2):
        firsts = []
        for group in family.sublayers:
            inputs = [seen[f"{family.blocks}.{index}.{name}"] for name in group]
            assert all(torch.equal(other, inputs[0]) for other in inputs[1:])
            firsts.append(inputs[0])
        for before, after in itertools.pairwise(firsts):
            assert before.shape != after.shape or not torch.equal(before, after)


@every_kind
def test_a_channel_can_move_from_a_norm_into_the_layers_that_read_it(kind: str) -> None:
    model = tiny(kind).double()
    expected = output(model)
    precision = 1e-5 if kind.startswith("gemma") else 1e-9  # Gemma's norms compute in float32
    factor = torch.rand(32, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.5
    offset = 1 if kind.startswith("gemma") else 0  # Gemma's norms multiply by 1 + weight
    first, moved = blocks(model)[0], 0
    scalings = [(s.previous, s.linears) for s in family_of(model).scalings]
    norms = [(path, linears) for path, linears in scalings if not isinstance(first.get_submodule(path), nn.Linear)]
    with torch.no_grad():
        for block in blocks(model):
            for path, linears in norms:
                norm = block.get_submodule(path)
                norm.weight.copy_((norm.weight + offset) * factor - offset)
                if getattr(norm, "bias", None) is not None:
                    norm.bias.mul_(factor)
                broken = output(model)
                assert (broken - expected).abs().max() > 1e-3, f"{path} does not matter: the test has no teeth"
                for name in linears:
                    block.get_submodule(name).weight.div_(factor)
                moved += 1
                assert torch.allclose(output(model), expected, rtol=0, atol=precision * expected.abs().max().item())
    assert moved == 2 * len(norms)
    assert (moved == 0) == (kind == "bert")  # a residual reads every norm of a post-norm encoder


@every_kind
def test_embedding_and_head_are_where_the_table_says(kind: str) -> None:
    model = tiny(kind)
    family = family_of(model)
    assert model.get_submodule(family.embedding) is model.get_input_embeddings()
    if family.head is None:
        assert model.get_output_embeddings() is None
    else:
        assert model.get_submodule(family.head) is model.get_output_embeddings()


@every_kind
def test_workflow_quantises_every_listed_layer_and_no_other(kind: str) -> None:
    model = tiny(kind)
    floats = copy.deepcopy(model)
    workflow.quantize(model, QuantizationSpec(8, group_size=16))
    changed = [name for name, module in model.named_modules() if isinstance(module, QuantizedLinear)]
    assert changed == [name for name, module in model.named_modules() if name in dict(block_linears(floats))]
    expected, found = output(floats), output(model)
    assert not torch.equal(found, expected)
    assert (found - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize("kind", [kind for kind in FAMILIES if kind not in TRANSPOSED])
def test_transformers_loads_what_we_save_with_our_output(kind: str, tmp_path: Path) -> None:
    model = tiny(kind)
    workflow.quantize(model, QuantizationSpec(4, symmetric=True, group_size=16))
    checkpoint.save(model, tmp_path / "out")
    loaded, report = type(model).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert {key: found for key, found in report.items() if found} == {}
    assert torch.equal(output(loaded.eval()), output(model))
    assert torch.equal(output(checkpoint.load(tmp_path / "out")), output(model))


@pytest.mark.parametrize("kind", TRANSPOSED)
def test_transposed_layers_go_through_the_gptq_format_and_others_say_so(kind: str, tmp_path: Path) -> None:
    config = transformers.AutoConfig.for_model(kind, **CONFIGS[kind] | {"n_inner": 64})
    original = transformers.AutoModelForCausalLM.from_config(config).eval()
    model = linearize(copy.deepcopy(original))
    assert torch.allclose(output(model), output(original), rtol=0, atol=1e-6)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in original.state_dict().items())
    model.load_state_dict(original.state_dict())
    assert torch.allclose(output(model), output(original), rtol=0, atol=1e-6)
    workflow.quantize(model, QuantizationSpec(4, symmetric=True, group_size=16), scale_dtype=torch.float16)
    with pytest.raises(ValueError, match="keeps its layers transposed"):
        checkpoint.save(model, tmp_path / "no")
    checkpoint.save(model, tmp_path / "out", format="gptq")
    assert torch.equal(output(checkpoint.load(tmp_path / "out")), output(model))


@pytest.mark.parametrize("kind", TRANSPOSED)
def test_transposed_layers_that_stay_in_float_keep_their_weights(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **CONFIGS[kind] | {"n_inner": 64})
    model = linearize(transformers.AutoModelForCausalLM.from_config(config).eval())
    checkpoint.save(model, tmp_path / "float")
    assert torch.equal(output(checkpoint.load(tmp_path / "float")), output(model))
    assert torch.equal(output(type(model).from_pretrained(tmp_path / "float").eval()), output(model))
    first = f"{family_of(model).blocks}.0."
    workflow.quantize(
        model, lambda name: None if name.startswith(first) else QuantizationSpec(8, symmetric=True, group_size=16),
        scale_dtype=torch.float16,
    )  # fmt: skip
    checkpoint.save(model, tmp_path / "half", format="gptq")
    assert torch.equal(output(checkpoint.load(tmp_path / "half")), output(model))


def test_an_encoder_below_a_task_head_is_found() -> None:
    config = transformers.BertConfig(**CONFIGS["bert"])
    model = transformers.BertForMaskedLM(config)
    assert next(name for name, _ in block_linears(model)) == "bert.encoder.layer.0.attention.self.query"
    assert model.get_submodule(family_of(model).embedding) is model.get_input_embeddings()


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::reference.quantization.CalibrationWarning")
@pytest.mark.parametrize("method", ["smoothquant", "awq"])
def test_opt_with_norms_behind_the_residual_is_not_rescaled(method: str) -> None:
    """OPT-350M: the residual reads what its norms give, so a scale moved into the layers behind them changes the function."""
    model = tiny("opt", do_layer_norm_before=False, word_embed_proj_dim=16)
    expected = output(model)
    with pytest.raises(ValueError, match="OPTForCausalLM has no norm that"):
        workflow.quantize(model, QuantizationSpec(8, group_size=16), method=method, calibration=[IDS])
    assert torch.equal(output(model), expected)
    workflow.quantize(model, QuantizationSpec(8, group_size=16), method="gptq", calibration=[IDS])
    assert (output(model) - expected).norm() < 0.1 * expected.norm()


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::reference.quantization.CalibrationWarning")
def test_opt_whose_norms_have_no_weights_is_not_smoothed_but_awq_finds_other_places() -> None:
    """Galactica: OPT without biases and without weights in its norms."""
    model = tiny("opt", layer_norm_elementwise_affine=False, enable_bias=False)
    expected = output(model)
    with pytest.raises(ValueError, match="OPTForCausalLM has no norm that 'smoothquant' could fold a scale into"):
        workflow.quantize(model, QuantizationSpec(8, group_size=16), method="smoothquant", calibration=[IDS])
    workflow.quantize(model, QuantizationSpec(8, group_size=16), method="awq", calibration=[IDS])
    assert 0 < (output(model) - expected).norm() < 0.1 * expected.norm()


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::reference.quantization.CalibrationWarning")
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_a_scale_goes_through_the_activation_of_opt_only_if_that_is_a_relu(activation: str) -> None:
    """Galactica's is a GELU: relu(x / s) is relu(x) / s, gelu(x / s) is not."""
    model = tiny("opt", activation_function=activation)
    places = [scaling.previous for scaling in family_of(model).scalings]
    assert ("fc1" in places) == (activation == "relu")
    assert len(places) == 3 + (activation == "relu")
    expected = output(model)
    workflow.quantize(model, QuantizationSpec(8, group_size=16), method="awq", calibration=[IDS])
    assert (output(model) - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize(("kind", "here", "there"), [("gpt2", "transformer.", ""), ("bert", "", "bert.")])
def test_files_of_a_base_model_and_of_a_tasks_model_are_streamed_too(
    kind: str, here: str, there: str, tmp_path: Path
) -> None:
    """GPT-2's file on the hub is a base model's, without the prefix; one of a model with a task's head has it."""
    model = tiny(kind)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {there + name.removeprefix(here): tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    streamed = StreamedModel(tmp_path)
    assert streamed.streams
    for index in range(2):
        streamed.enter(f"{family_of(model).blocks}.{index}")
    assert torch.equal(output(streamed.complete()), output(model))
    assert torch.equal(output(loading.load_float(tmp_path)), output(model))


@pytest.mark.parametrize("tied", [False, True])
@every_kind
def test_a_folder_that_transformers_wrote_is_read_as_transformers_reads_it(
    kind: str, tied: bool, tmp_path: Path
) -> None:
    """GPT-NeoX's head has another name in the files than in the model."""
    model = tiny(kind, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "float")
    found, theirs = checkpoint.load(tmp_path / "float"), type(model).from_pretrained(tmp_path / "float").eval()
    assert type(found) is type(theirs)
    if kind != "bert":  # an encoder has no head
        assert tied == (found.get_output_embeddings().weight is found.get_input_embeddings().weight)
    assert torch.equal(output(found), output(theirs))
    assert torch.equal(output(found), output(model))
    if kind not in TRANSPOSED:  # what we write, transformers reads under our names too
        checkpoint.save(found, tmp_path / "ours")
        again, report = type(model).from_pretrained(tmp_path / "ours", output_loading_info=True)
        assert not any(report.values())
        assert torch.equal(output(again.eval()), output(model))


def test_a_quantised_head_is_read_under_the_name_that_transformers_gives_it(tmp_path: Path) -> None:
    model = tiny("gpt_neox")
    for name in ("lm_head", "gpt_neox.layers.0.mlp.dense_h_to_4h"):
        linear = model.get_submodule(name)
        packed = quantize_layer(linear.weight.detach(), QuantizationSpec(4, group_size=16))
        replace_module(model, name, QuantizedLinear.from_linear(linear, packed))
    checkpoint.save(model, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {name.replace("lm_head.", "embed_out."): tensor for name, tensor in load_file(file).items()}
    assert "embed_out.weight_packed" in tensors
    save_file(tensors, file, metadata={"format": "pt"})
    assert torch.equal(output(checkpoint.load(tmp_path)), output(model))


def test_an_unknown_architecture_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="architecture 'mamba' is not known here; supported are bert, gemma, gemma2"):
        family_of_type("mamba")
    with pytest.raises(ValueError, match="architecture 'Linear' is not known here"):
        family_of(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"LlamaModel has no blocks at 'model\.layers'"):
        blocks(transformers.LlamaModel(transformers.LlamaConfig(**DECODER)))


def test_a_config_that_names_no_class_is_read_as_a_causal_language_models(tmp_path: Path) -> None:
    model = tiny("llama")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for names in ([], None, ["NoSuchClass"]):
        (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": names}))
        assert loading.model_class(tmp_path) is transformers.AutoModelForCausalLM
    assert torch.equal(output(loading.load_float(tmp_path)), output(model))
    streamed = StreamedModel(tmp_path)
    for index in range(2):
        streamed.enter(f"{family_of(model).blocks}.{index}")
    assert torch.equal(output(streamed.complete()), output(model))


def test_replace_module_puts_it_there_and_only_there() -> None:
    model = tiny("llama")
    new = nn.Linear(32, 32)
    before = dict(model.named_modules())
    replace_module(model, "model.layers.1.self_attn.q_proj", new)
    after = dict(model.named_modules())
    assert after.pop("model.layers.1.self_attn.q_proj") is new
    assert all(before[name] is module for name, module in after.items())


# --- the workflow's own promises ------------------------------------------------------------------


def test_an_error_leaves_the_model_as_it_was_and_names_the_layer() -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.get_submodule("model.layers.1.mlp.up_proj").weight[3, 4] = float("nan")
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.up_proj holds 1 NaN"):
        workflow.quantize(model, QuantizationSpec(4))
    assert not any(isinstance(module, QuantizedLinear) for module in model.modules())
    with pytest.raises(ValueError, match=r"does not divide the 48 inputs of model\.layers\.0\.mlp\.down_proj"):
        workflow.quantize(tiny("llama"), QuantizationSpec(4, group_size=32))


def test_wrong_calls_of_the_workflow_are_refused() -> None:
    model = tiny("llama")
    with pytest.raises(ValueError, match="method is 'magic'; it may be round_to_nearest"):
        workflow.quantize(model, QuantizationSpec(4), method="magic")
    workflow.quantize(model, QuantizationSpec(4))
    with pytest.raises(ValueError, match="is it quantised already"):
        workflow.quantize(model, QuantizationSpec(4))


@pytest.mark.filterwarnings("ignore::reference.quantization.CalibrationWarning")
@every_kind
def test_streamed_from_its_files_a_model_is_quantised_to_the_same_bits(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    tiny(kind).save_pretrained(folder, max_shard_size="20KB")
    assert (folder / "model.safetensors.index.json").is_file()
    method, spec = ("gptq" if kind == "bert" else "smoothquant+gptq"), QuantizationSpec(4, group_size=16)
    whole = loading.load_float(folder)
    workflow.quantize(whole, spec, method=method, calibration=[IDS])
    streamed = StreamedModel(folder)
    assert streamed.streams == (kind != "gpt_neox")  # whose head transformers renames while it loads
    assert all(parameter.is_meta == streamed.streams for parameter in blocks(streamed.model).parameters())
    workflow.quantize(
        streamed.model, spec, method=method, calibration=[IDS], streamed=streamed, job=Job(tmp_path / "job", {})
    )
    state = streamed.complete().state_dict()
    expected = whole.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert torch.equal(output(streamed.model), output(whole))
    if kind not in TRANSPOSED:  # whose format wants sizes of 32
        checkpoint.save(streamed.model, tmp_path / "out")
        assert torch.equal(output(checkpoint.load(tmp_path / "out")), output(whole))
