"""Scales and thin matrices beside fixed codes: exact gradients, frozen rest, served as trained."""

import copy
import dataclasses

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from reference import workflow
from reference.layers import QuantizedLinear
from reference.models.families import block_linears
from reference.quantization import formats
from reference.quantization.grid import QuantizationSpec
from reference.quantization.low_cost import LowRankLinear, NF4Linear, ScalesLinear, add_low_rank, train_scales
from reference.quantization.preparation import convert
from reference.quantization.recovery import objective, parameter_groups
from reference.quantization.round_to_nearest import quantize_layer

IDS = torch.arange(64).view(2, 32) * 7 % 96
SPEC = QuantizationSpec(2, group_size=16)


def tiny(value_heads: int = 1, width: int = 32) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=96, hidden_size=width, intermediate_size=64, num_hidden_layers=1,
                         num_attention_heads=2, num_key_value_heads=value_heads, max_position_embeddings=64)  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for _, linear in block_linears(model):
            linear.weight.mul_(5)  # type: ignore[operator]
    return model


def steps(model: nn.Module, count: int = 20, width: int = 32) -> list[float]:
    optimizer, losses = torch.optim.AdamW(parameter_groups(model, 1e-2)), []
    loss = objective(model, "distillation", tiny(width=width))
    for _ in range(count):
        value = loss(IDS)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())
    return losses


def test_scales_train_and_codes_stay() -> None:
    quantized = workflow.quantize(tiny(), SPEC)
    codes = {name: layer.tensor.codes for name, layer in block_linears(quantized)}  # type: ignore[union-attr]
    model = train_scales(quantized)
    assert all(name.endswith("log_step") for name, p in model.named_parameters() if p.requires_grad)
    losses = steps(model)
    assert losses[-1] < 0.9 * losses[0]
    with torch.no_grad():
        before = model.eval()(input_ids=IDS).logits
        served = convert(copy.deepcopy(model))
        assert torch.equal(served(input_ids=IDS).logits, before)
    for name, layer in block_linears(served):
        assert isinstance(layer, QuantizedLinear)
        assert torch.equal(layer.tensor.codes, codes[name])
        assert layer.tensor.scale.dtype == torch.float16


def test_scales_of_a_bfloat16_layer_with_a_bias_train() -> None:
    linear = nn.Linear(32, 4, dtype=torch.bfloat16)
    layer = ScalesLinear(quantize_layer(linear.weight, SPEC), linear.bias)
    x = torch.ones(2, 32, dtype=torch.bfloat16)
    y = layer(x)
    y.sum().backward()
    assert layer.log_step.grad is not None
    assert layer.bias is not None
    assert layer.bias.grad is not None
    assert torch.equal(layer.converted()(x), y)


def test_gradient_of_a_scale_is_exact() -> None:
    """Linear in the scale, so finite differences hold: no estimator."""
    layer = ScalesLinear(quantize_layer(torch.randn(4, 32), SPEC, scale_dtype=torch.float32)).double()
    x = torch.randn(3, 32, dtype=torch.float64)

    def loss(log_step: torch.Tensor) -> torch.Tensor:
        steps = (layer.codes - layer.zero_point.repeat_interleave(16, 1)).double()
        return (x @ (log_step.exp().repeat_interleave(16, 1) * steps).T).square().sum()

    start = layer.log_step.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, start)
    (expected,) = torch.autograd.grad(loss(start), start)
    layer.float()(x.float()).square().sum().backward()
    assert layer.log_step.grad is not None
    assert torch.allclose(layer.log_step.grad.double(), expected, rtol=1e-3)


@pytest.mark.parametrize("base", ["codes", "nf4"])
def test_low_rank_trains_beside_a_frozen_base(base: str) -> None:
    make = None if base == "codes" else (lambda name, linear: NF4Linear(linear.weight))
    width = 32 if base == "codes" else 64
    model = workflow.quantize(tiny(), SPEC) if base == "codes" else tiny(width=64)
    with torch.no_grad():
        alone = workflow.quantize(tiny(), SPEC)(input_ids=IDS).logits if base == "codes" else None
        model = add_low_rank(model, 4, base=make)
        if alone is not None:  # up is zero at first
            assert torch.equal(model(input_ids=IDS).logits, alone)
    assert {n.rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad} == {"down", "up"}
    kept = {name: layer.base.packed.clone() for name, layer in block_linears(model)}  # type: ignore[union-attr]
    losses = steps(model, width=width)
    assert losses[-1] < 0.7 * losses[0]
    before = model(input_ids=IDS).logits.detach()
    served = convert(model)
    assert torch.allclose(served(input_ids=IDS).logits, before, atol=0.02 * float(before.abs().max()))
    for name, layer in block_linears(served):
        assert isinstance(layer, LowRankLinear)
        assert torch.equal(layer.base.packed, kept[name])
        assert torch.equal(layer.down, layer.down.bfloat16().float())
        assert layer.nbytes == 2 * 4 * (layer.in_features + layer.out_features)


def test_start_from_the_error_is_the_best_of_its_rank() -> None:
    """Eckart–Young: what is left of the error are its smaller singular values."""
    weight = torch.randn(24, 32)
    base = QuantizedLinear(quantize_layer(weight, SPEC))
    error = weight - base.tensor.dequantize(torch.float32)
    layer = LowRankLinear(base, 5, error=error)
    left = error - (layer.up @ layer.down).detach()
    assert torch.allclose(left.norm(), torch.linalg.svdvals(error)[5:].norm(), rtol=1e-4)
    whole = add_low_rank(
        tiny(2),
        32,
        base=lambda _, linear: QuantizedLinear(quantize_layer(linear.weight.detach(), SPEC)),
        from_error=True,
    )
    assert torch.allclose(whole(input_ids=IDS).logits, tiny(2)(input_ids=IDS).logits, atol=1e-3)


def test_nf4_layer_computes_with_the_formats_values() -> None:
    linear = nn.Linear(128, 6)
    layer = NF4Linear(linear.weight, linear.bias)
    values = formats.quantize(linear.weight.detach(), formats.FORMATS["nf4"]).dequantize()
    x = torch.randn(3, 128)
    assert torch.equal(layer(x), nn.functional.linear(x, values, linear.bias))
    assert layer.packed.nbytes + layer.scale.nbytes == 6 * 128 / 2 + 6 * 2 * 2


def test_a_half_precision_input_stays_one() -> None:
    base = QuantizedLinear(quantize_layer(torch.randn(8, 32), SPEC))
    x, error = torch.randn(3, 32), torch.randn(8, 32).bfloat16()
    layer = LowRankLinear(base, 8, error=error)
    found = layer(x.bfloat16())
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), base(x) + x @ error.float().T, rtol=0.05, atol=0.3)


def test_wrong_arguments_are_named() -> None:
    base = QuantizedLinear(quantize_layer(torch.randn(8, 32), SPEC))
    index = dataclasses.replace(base.tensor, group_index=torch.zeros(32, dtype=torch.int32))
    with pytest.raises(ValueError, match="weight has a group index"):
        ScalesLinear(index)
    with pytest.raises(ValueError, match="rank is 9; it may be 1 to 8"):
        LowRankLinear(base, 9)
    with pytest.raises(ValueError, match="from_error needs base"):
        add_low_rank(tiny(), 4, from_error=True)
    with pytest.raises(ValueError, match=r"q_proj is a Linear; base must make a quantised layer"):
        add_low_rank(tiny(), 4)
    with pytest.raises(ValueError, match="no quantised layer whose scales could train"):
        train_scales(tiny())
    with pytest.raises(ValueError, match="a block of 64 does not divide the 32 columns"):
        NF4Linear(torch.randn(2, 32))
