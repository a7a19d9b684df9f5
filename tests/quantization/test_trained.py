"""What trains is what is served: codes, weights and outputs before and after conversion."""

import copy

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from reference import workflow
from reference.layers import Int8Linear, QuantizedLinear
from reference.models.families import block_linears
from reference.quantization.activations import ActivationSpec
from reference.quantization.grid import QuantizationSpec
from reference.quantization.preparation import convert, first_grid, prepare, solved
from reference.quantization.recovery import objective, parameter_groups
from reference.quantization.round_to_nearest import quantize_layer
from reference.quantization.trained import TrainedLinear, into_cells, round_together
from reference.tensors import QuantizedTensor

IDS = torch.arange(64).view(2, 32) * 7 % 96
SPECS = {
    "symmetric groups": QuantizationSpec(2, symmetric=True, group_size=16),
    "affine groups": QuantizationSpec(3, group_size=32),
    "channels": QuantizationSpec(4, symmetric=True),
    "affine channels": QuantizationSpec(2),
    "tensor": QuantizationSpec(4, symmetric=True, per_tensor=True),
}


def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64)  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for _, linear in block_linears(model):
            linear.weight.mul_(5)  # type: ignore[operator]
    return model


def trained(model: nn.Module, teacher: nn.Module, steps: int = 5, rate: float = 3e-3) -> list[float]:
    optimizer = torch.optim.AdamW(parameter_groups(model, rate))
    loss, losses = objective(model, "distillation", teacher), []
    for _ in range(steps):
        value = loss(IDS)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())
    return losses


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_served_outputs_are_the_trained_ones(spec: QuantizationSpec) -> None:
    model = prepare(tiny(), spec)
    trained(model, tiny())
    model.eval()
    layers = [layer for _, layer in block_linears(model)]
    assert all(isinstance(layer, TrainedLinear) for layer in layers)
    for layer in layers:
        assert torch.equal(layer.quantized_weight, layer.tensor().dequantize(torch.float32))  # type: ignore[operator]
    with torch.no_grad():
        before = model(input_ids=IDS).logits
        served = convert(copy.deepcopy(model))
        assert all(isinstance(layer, QuantizedLinear) for _, layer in block_linears(served))
        assert torch.equal(served(input_ids=IDS).logits, before)
    assert not any(isinstance(layer, nn.Linear) for _, layer in block_linears(model))


@pytest.mark.parametrize("granularity", ["per_token", "per_tensor", "static"])
@pytest.mark.parametrize("bits", [8, 4])
def test_integer_layers_serve_what_was_trained(granularity: str, bits: int) -> None:
    """Equal up to the order of sums, layer by layer; in the model a value on an edge may move by a code.

    Restricted, because otherwise the largest input of a token lies *on* an edge, at 7.5 steps.
    """
    activations = ActivationSpec(granularity, bits=bits, restricted=True)
    names = [name for name, _ in block_linears(tiny())]
    model = prepare(tiny(), QuantizationSpec(8, symmetric=True), activations=activations,
                    absmax=dict.fromkeys(names, torch.tensor(2.0)) if granularity == "static" else None)  # fmt: skip
    trained(model, tiny(), steps=3)
    first = next(layer for _, layer in block_linears(model))
    assert isinstance(first, TrainedLinear)
    x = torch.randn(50, 32)
    served = first.converted()
    assert isinstance(served, Int8Linear)
    with torch.no_grad():
        assert torch.allclose(served(x), first(x), rtol=1e-4, atol=1e-5)
        before = model.eval()(input_ids=IDS).logits
        after = convert(model)(input_ids=IDS).logits
    assert (after - before).norm() < 0.02 * before.norm()
    if granularity == "static":
        assert first.input_scale is not None
        assert first.input_scale.item() != pytest.approx(2 / activations.steps, rel=1e-6)  # it was trained


@pytest.mark.parametrize("spec", [SPECS[name] for name in ("symmetric groups", "affine groups", "channels")],
                         ids=["symmetric", "affine", "alone"])  # fmt: skip
def test_rounding_together_changes_no_number(spec: QuantizationSpec) -> None:
    one, other = prepare(tiny(), spec), round_together(prepare(tiny(), spec))
    for model in (one, other):
        objective(model, "distillation", tiny())(IDS).backward()
    for (name, p), (_, q) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert torch.allclose(p.grad, q.grad, rtol=1e-4, atol=1e-7), name
    with torch.no_grad():
        assert torch.equal(one(input_ids=IDS).logits, other(input_ids=IDS).logits)
        assert torch.equal(convert(other)(input_ids=IDS).logits, one(input_ids=IDS).logits)


def test_layers_whose_steps_are_stored_in_other_types_are_rounded_apart() -> None:
    """A float32 layer of tiny weights stores bfloat16 steps: another group of layers, with factors of its own."""
    spec, x = QuantizationSpec(4, symmetric=True, group_size=4), torch.randn(3, 8)
    linears = [nn.Linear(8, 4, bias=False), nn.Linear(4, 6, bias=False)]
    with torch.no_grad():
        linears[1].weight.mul_(1e-6)
    starts = [quantize_layer(linear.weight.detach(), spec) for linear in linears]
    assert [start.scale.dtype for start in starts] == [torch.float16, torch.bfloat16]
    one, other = (
        nn.Sequential(*(TrainedLinear(linear, start) for linear, start in zip(linears, starts, strict=True)))
        for _ in range(2)
    )
    outputs = one(x), round_together(other)(x)
    assert torch.equal(*outputs)
    for output in outputs:
        output.sum().backward()
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_layers_are_rounded_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    import reference.quantization.trained as module

    sizes, exact = [], module.lsq
    monkeypatch.setattr(module, "lsq", lambda x, *rest, **more: sizes.append(x.numel()) or exact(x, *rest, **more))
    model = round_together(prepare(tiny(), SPECS["symmetric groups"]))
    total = sum(layer.weight.numel() for _, layer in block_linears(model))  # type: ignore[misc]
    for _ in range(2):
        model(input_ids=IDS)
    assert sizes == [total, total]


def test_gradient_factors_are_those_of_the_paper() -> None:
    """1/√(N Q_P): of all weights for a step of weights, of all inputs for the step of inputs."""
    weight, linear = torch.randn(8, 32), nn.Linear(32, 8)
    for bits in (2, 4, 8):
        start, inputs = quantize_layer(weight, QuantizationSpec(bits, symmetric=True)), ActivationSpec(bits=bits)
        highest = 2 ** (bits - 1) - 1
        found = TrainedLinear(linear, start, activations=inputs)
        assert found.factor == pytest.approx((256 * highest) ** -0.5)
        assert found.input_factor == pytest.approx((32 * highest) ** -0.5)
        plain = TrainedLinear(linear, start, activations=inputs, scaled=False)
        assert plain.factor == plain.input_factor == 1


def test_layers_whose_steps_are_stored_in_other_types_are_rounded_together_too() -> None:
    def model() -> LlamaForCausalLM:
        made = tiny()
        made.model.layers[0].mlp.up_proj.weight.data.mul_(1e-6)  # beyond float16: steps in bfloat16
        return prepare(made, SPECS["symmetric groups"])

    one, other = model(), round_together(model())
    assert len({layer.scale_dtype for _, layer in block_linears(one)}) == 2
    for each in (one, other):
        objective(each, "distillation", tiny())(IDS).backward()
    for (name, p), (_, q) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, rtol=1e-4, atol=1e-7), name


def test_a_bfloat16_model_with_biases_trains() -> None:
    config = Qwen2Config(vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                         num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64)  # fmt: skip
    torch.manual_seed(0)
    teacher = Qwen2ForCausalLM(config).to(torch.bfloat16).eval()
    model = prepare(copy.deepcopy(teacher), SPECS["symmetric groups"])
    q_proj = model.model.layers[0].self_attn.q_proj
    assert isinstance(q_proj, TrainedLinear)
    assert q_proj.bias is not None
    trained(model, teacher, steps=1)
    assert q_proj(torch.ones(1, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16
    with torch.no_grad():
        before = model(input_ids=IDS).logits
        assert torch.equal(convert(model)(input_ids=IDS).logits, before)


def test_distillation_at_two_bits_brings_the_model_back() -> None:
    teacher = tiny()
    model = prepare(tiny(), SPECS["symmetric groups"], start="lsq")
    losses = trained(model, teacher, steps=60, rate=1e-2)
    assert losses[-1] < 0.4 * losses[0]


def test_learned_steps_beat_fixed_ones() -> None:
    """From the range of the weights, which is a bad grid at 2 bits."""
    teacher, ends = tiny(), {}
    for learned in (True, False):
        model = prepare(tiny(), QuantizationSpec(2, symmetric=True))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(learned or not name.endswith("log_step"))
        ends[learned] = trained(model, teacher, steps=40, rate=1e-2)[-1]
    assert ends[True] < ends[False]


def test_steps_stay_positive_under_any_gradient() -> None:
    model = prepare(tiny(), SPECS["symmetric groups"])
    layer = next(layer for _, layer in block_linears(model))
    assert isinstance(layer, TrainedLinear)
    with torch.no_grad():
        layer.log_step -= 8
    assert (layer.scale > 0).all()
    assert torch.isfinite(layer.quantized_weight).all()


def test_starts_with_the_codes_of_gptq_and_near_the_float_weights() -> None:
    spec = SPECS["affine groups"]
    rows = [IDS, IDS.flip(1)]
    found = solved(workflow.quantize(tiny(), spec, method="gptq", calibration=rows))
    model, exact = prepare(tiny(), spec, start=found), dict(tiny().named_parameters())
    moved = 0.0
    for name, layer in block_linears(model):
        assert isinstance(layer, TrainedLinear)
        start, weight = found[name], exact[f"{name}.weight"].detach()
        assert torch.equal(layer.tensor().codes, start.codes)
        assert torch.equal(layer.quantized_weight, start.dequantize(torch.float32))
        nearest = (layer.weight - weight).abs()
        assert (nearest <= (start.dequantize(torch.float32) - weight).abs() + 1e-6).all()
        moved += float((nearest > 0).float().mean())
    assert 0 < moved / 14 < 0.9


def test_weights_in_their_cells_stay() -> None:
    weight = torch.randn(8, 32)
    start = quantize_layer(weight, SPECS["affine groups"])
    assert torch.equal(into_cells(weight, start), weight)


@pytest.mark.parametrize("depth", [0.0, 0.2, 0.5])
def test_weights_moved_into_another_cell_lie_that_deep(depth: float) -> None:
    weight = torch.randn(8, 32)
    start, other = (quantize_layer(w, QuantizationSpec(4, symmetric=True)) for w in (weight, weight.roll(1, 0)))
    target = QuantizedTensor.from_codes(other.codes, start.scale, start.zero_point, start.spec)
    found = into_cells(weight, target, depth) / start.scale.float()
    codes = other.codes.float() - 8
    moved = other.codes != start.codes
    assert moved.any()
    side = (weight / start.scale.float() - codes).sign()  # of the cell, from which the weight comes
    assert torch.allclose((found - codes)[moved], (side * (0.5 - max(depth, 1e-3)))[moved], atol=1e-4)
    assert torch.equal(found.round().clamp(-8, 7), codes)


def test_lsq_start_has_the_papers_step() -> None:
    weight = torch.randn(8, 32)
    spec = SPECS["symmetric groups"]
    start = first_grid(weight, spec, "lsq")
    expected = 2 * weight.view(8, 2, 16).abs().mean(-1)
    assert torch.allclose(start.scale.float(), expected, rtol=1e-3)


def test_wrong_arguments_are_named() -> None:
    weight, linear = torch.randn(8, 32), nn.Linear(32, 8)
    affine = quantize_layer(weight, SPECS["affine groups"])
    with pytest.raises(ValueError, match="depth is 0.6; it may be 0 to 0.5"):
        into_cells(weight, affine, 0.6)
    with pytest.raises(ValueError, match="start is 'best'"):
        first_grid(weight, SPECS["channels"], "best")
    with pytest.raises(ValueError, match="start 'lsq' is for symmetric grids"):
        first_grid(weight, SPECS["affine groups"], "lsq")
    with pytest.raises(ValueError, match="an affine grid; integer products need a symmetric one"):
        TrainedLinear(linear, affine, activations=ActivationSpec())
    with pytest.raises(ValueError, match="input_scale is for static"):
        TrainedLinear(linear, quantize_layer(weight, SPECS["channels"]), activations=ActivationSpec("static"))
    with pytest.raises(ValueError, match=r"start is \(8, 32\)"):
        TrainedLinear(nn.Linear(16, 8), affine)
    index = QuantizedTensor(affine.packed, affine.scale, affine.packed_zero_point, affine.shape, affine.spec,
                            torch.zeros(32, dtype=torch.int32))  # fmt: skip
    with pytest.raises(ValueError, match="start has a group index"):
        TrainedLinear(linear, index)
    model = tiny()
    found = solved(workflow.quantize(tiny(), SPECS["channels"]))
    with pytest.raises(ValueError, match="start has the grid"):
        prepare(model, SPECS["affine channels"], start=found)
    with pytest.raises(ValueError, match="static activations need absmax"):
        prepare(model, SPECS["channels"], activations=ActivationSpec("static"))
    assert all(isinstance(layer, nn.Linear) for _, layer in block_linears(model))  # nothing was changed
    with pytest.raises(ValueError, match="no trained layer to convert"):
        convert(model)
    with pytest.raises(ValueError, match="leaves no float linear layer"):
        prepare(model, lambda name: None)
