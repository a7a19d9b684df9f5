"""One-shot pruning of a model: what each layer sees, what is reported, what is refused."""

import copy
import re

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from reference.calibration import batches
from reference.layers import QuantizedLinear
from reference.models.families import block_linears
from reference.pruning import magnitude, one_shot, sparsegpt, wanda
from reference.quantization import CalibrationWarning, round_to_nearest
from reference.quantization.grid import QuantizationSpec
from reference.quantization.hessian import HessianAccumulator
from reference.rounding import LayerError


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.1,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def drawn() -> list[torch.Tensor]:
    tokens = torch.randint(0, 64, (4000,), generator=torch.Generator().manual_seed(1))
    return batches(tokens, sequences=12, length=24, batch=3)


def inputs_of(model: nn.Module, name: str, drawn: list[torch.Tensor]) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    with torch.no_grad():
        for ids in drawn:
            model(input_ids=ids)
    handle.remove()
    return seen


def by_hand(method: str, weight: torch.Tensor, inputs: list[torch.Tensor]) -> torch.Tensor:
    if method == "magnitude":
        return weight * magnitude.mask(weight, 0.6)
    if method == "wanda":
        norms = torch.cat([x.flatten(0, 1) for x in inputs]).norm(dim=0)
        return weight * wanda.mask(weight, norms, 0.6)
    accumulator = HessianAccumulator(weight.shape[1])
    for x in inputs:
        accumulator.add(x)
    return sparsegpt.prune_layer(weight, accumulator.hessian, 0.6).weight


@pytest.mark.parametrize("method", one_shot.METHODS)
@pytest.mark.parametrize("name", ["model.layers.0.mlp.down_proj", "model.layers.1.self_attn.o_proj"])
def test_a_layer_is_pruned_for_what_the_pruned_layers_before_it_compute(
    model: LlamaForCausalLM, drawn: list, method: str, name: str
) -> None:
    """The layers after it do not matter for its inputs, so the finished model shows it what it was pruned for."""
    whole = copy.deepcopy(model)
    errors: dict[str, LayerError] = {}
    assert one_shot.prune(model, 0.6, method=method, calibration=drawn, errors=errors) is model
    inputs = inputs_of(model, name, drawn)
    weight = whole.get_submodule(name).weight.detach()
    found = model.get_submodule(name).weight.detach()
    expected = by_hand(method, weight, inputs)
    same = ((found != 0) == (expected != 0)).all(1)  # rows: rounding may turn a near tie
    assert same.double().mean() > 0.9
    torch.testing.assert_close(found[same], expected[same], rtol=0, atol=1e-4)
    if method == "magnitude":
        assert errors[name].of == "weight"
    if method == "sparsegpt":
        rows = torch.cat([x.flatten(0, 1) for x in inputs])
        change = (rows @ (found - weight).T).norm() / (rows @ weight.T).norm()
        assert errors[name] == (pytest.approx(change.item(), rel=1e-3), "output", pytest.approx(0.6, abs=1e-3))
    assert len(errors) == 14


def test_patterns_hold_in_every_layer_and_bits_come_with_them(model: LlamaForCausalLM, drawn: list) -> None:
    spec = QuantizationSpec(4, symmetric=True, group_size=32)
    for method in one_shot.METHODS:
        both = one_shot.prune(copy.deepcopy(model), pattern=(2, 4), method=method, spec=spec, calibration=drawn)
        for _, layer in block_linears(both):
            assert isinstance(layer, QuantizedLinear)
            dense = layer.tensor.dequantize()
            assert int((dense.view(len(dense), -1, 4) != 0).sum(-1).max()) <= 2
    name = "model.layers.0.mlp.up_proj"
    plain = one_shot.prune(copy.deepcopy(model), pattern=(2, 4), method="magnitude")
    rounded = one_shot.prune(copy.deepcopy(model), pattern=(2, 4), method="magnitude", spec=spec)
    expected = round_to_nearest.quantize_layer(plain.get_submodule(name).weight.detach(), spec)
    assert torch.equal(rounded.get_submodule(name).tensor.codes, expected.codes)


def test_skipped_layers_and_all_that_is_no_layer_stay(model: LlamaForCausalLM, drawn: list) -> None:
    before = copy.deepcopy(model.state_dict())
    errors: dict[str, LayerError] = {}
    one_shot.prune(model, 0.5, calibration=drawn, skip=lambda name: "mlp" in name, errors=errors)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"{name}.weight" for name in errors}
    assert len(errors) == 8
    assert all("self_attn" in name for name in errors)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic", "sparsity": 0.5}, "method is 'magic'; it may be magnitude, wanda, sparsegpt"),
        ({}, "sparsity is None and pattern is None; exactly one of them may be given"),
        ({"sparsity": 0.5, "pattern": (2, 4)}, "exactly one of them may be given"),
        ({"sparsity": -0.5}, "sparsity is -0.5; it may be 0 or more and below 1"),
        ({"pattern": (0, 4)}, "pattern is 0:4; it may be n:m with 1 <= n <= m"),
        ({"pattern": (2, 3)}, "sparsegpt needs an m that divides 128"),
        ({"pattern": (2, 3), "method": "wanda"}, "3 does not divide the 64 inputs of model.layers.0.self_attn.q_proj"),
        ({"sparsity": 0.5, "calibration": []}, "calibration is empty; method 'sparsegpt' needs token batches"),
        ({"sparsity": 0.5, "spec": QuantizationSpec(4, zero_in_range=False)}, "zero must be on the grid"),
        ({"sparsity": 0.5, "spec": QuantizationSpec(4, group_size=48)}, "group_size 48 does not divide the 64 inputs"),
        ({"sparsity": 0.5, "skip": lambda name: True}, "skip leaves all 14 linear layers as they are"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_changes(
    model: LlamaForCausalLM, drawn: list, options: dict, message: str
) -> None:
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=re.escape(message)):
        one_shot.prune(model, **{"calibration": drawn} | options)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_too_little_text_is_said(model: LlamaForCausalLM, drawn: list) -> None:
    with pytest.warns(CalibrationWarning, match=r"has 72 tokens, fewer than the 128 inputs of .*down_proj: its Hess"):
        one_shot.prune(model, 0.5, calibration=drawn[:1])
