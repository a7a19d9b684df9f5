"""Bits for a budget: from the model to a checkpoint whose bytes are those that were asked for."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from reference import checkpoint, workflow
from reference.dynamic.allocation import bits_within, stored_bytes, stored_total
from reference.dynamic.mixed_precision import Divergence, GptqRounding, choose_bits, shapes_of
from reference.dynamic.sensitivity import measured, rounded
from reference.evaluation import size_on_disk
from reference.models.families import input_groups
from reference.quantization import gptq
from reference.quantization.grid import QuantizationSpec

SPEC = QuantizationSpec(4, symmetric=True, group_size=32)
IDS = [torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(0))]


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            initializer_range=0.2,
        )
    ).eval()  # fmt: skip


@torch.no_grad()
def test_divergence_is_zero_before_and_torch_s_after() -> None:
    exact, changed = model(), model()
    loss = Divergence(exact, IDS)
    assert loss(exact) == 0
    changed.model.layers[0].mlp.up_proj.weight *= 0.5
    before = exact(input_ids=IDS[0]).logits.log_softmax(-1)
    after = changed(input_ids=IDS[0]).logits.log_softmax(-1)
    expected = functional.kl_div(after.flatten(0, 1), before.flatten(0, 1), log_target=True, reduction="batchmean")
    assert loss(changed) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("average", [3.0, 4.5, 5.0])
def test_the_checkpoint_has_the_bytes_of_the_budget(average: float, tmp_path: Path) -> None:
    network = model()
    bits = choose_bits(network, SPEC, average, IDS, options=(2, 3, 4, 8))
    shapes = shapes_of(network)
    assert set(bits) == set(shapes)
    weights = sum(rows * columns for rows, columns in shapes.values())
    planned = sum(stored_bytes(shape, replace(SPEC, bits=bits[name])) for name, shape in shapes.items())
    assert 0.9 * average < 8 * planned / weights <= average
    workflow.quantize(network, lambda name: replace(SPEC, bits=bits[name]))
    checkpoint.save(network, tmp_path / "mixed")
    sizes = size_on_disk(tmp_path / "mixed")
    assert sizes["weights"] + sizes["scales"] + sizes["zero_points"] == planned
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "mixed")
    torch.testing.assert_close(loaded(IDS[0]).logits, network(IDS[0]).logits, rtol=1e-3, atol=1e-3)


def test_a_layer_that_the_output_does_not_hear_gets_the_fewest_bits() -> None:
    network = model()
    with torch.no_grad():  # o_proj of block 0 adds nothing, so its query, key and value do not matter
        network.model.layers[0].self_attn.o_proj.weight.zero_()
    bits = choose_bits(network, SPEC, 5.0, IDS, options=(2, 4, 8))
    assert {bits[f"model.layers.0.self_attn.{name}_proj"] for name in "qkvo"} == {2}
    assert max(bits.values()) == 8


@torch.no_grad()
def test_gptq_s_rounding_is_that_of_the_solver_on_the_float_model_s_inputs() -> None:
    network, rows = model(), [IDS[0][:1], IDS[0][1:]]
    rounding = GptqRounding(network, rows)
    inputs: list[torch.Tensor] = []
    layer = network.model.layers[1].mlp.up_proj
    layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    for ids in rows:
        network(input_ids=ids)
    hessian = sum(2 * x.double().flatten(0, 1).T @ x.double().flatten(0, 1) for x in inputs) / 2
    spec = replace(SPEC, bits=3)
    expected = gptq.quantize_layer(layer.weight, hessian.float(), spec, scale_dtype=torch.float16).dequantize(
        torch.float32
    )
    found = rounding("model.layers.1.mlp.up_proj", layer.weight, spec)
    assert float((found != expected).float().mean()) < 0.01
    assert not torch.equal(found, rounded(layer.weight, spec))


def test_the_solver_that_rounds_decides_who_gets_bits() -> None:
    """One layer that the given rounding leaves exact needs no bits."""
    name = "model.layers.0.mlp.down_proj"

    def rounding(layer: str, weight: torch.Tensor, spec: QuantizationSpec) -> torch.Tensor:
        return weight if layer == name else rounded(weight, spec)

    bits = choose_bits(model(), SPEC, 5.0, IDS, options=(2, 4, 8), rounding=rounding)
    assert bits[name] == 2
    assert choose_bits(model(), SPEC, 5.0, IDS, options=(2, 4, 8))[name] > 2


@pytest.mark.parametrize("average", [3.0, 4.2, 5.5])
def test_layers_of_one_input_get_the_same_bits_and_no_such_choice_is_better(average: float) -> None:
    """Servers join them. The oracle tries all choices of the groups."""
    network = model()
    groups = [group for group in input_groups(network) if ".layers.0." in group[0]]
    options, skip = (2, 4, 8), ["*.layers.1.*"]
    bits = choose_bits(network, SPEC, average, IDS, options=options, skip=skip)
    assert all(len({bits[name] for name in group}) == 1 for group in groups)
    shapes = shapes_of(network, skip)
    grids = [replace(SPEC, bits=option) for option in options]
    table = measured(network, grids, list(shapes), Divergence(network, IDS))
    budget = average * sum(rows * columns for rows, columns in shapes.values()) / 8

    def cost(chosen: dict[str, int]) -> float:
        return sum(table[name][value] for name, value in chosen.items())

    choices = [
        {name: value for group, value in zip(groups, values, strict=True) for name in group}
        for values in product(options, repeat=len(groups))
    ]
    fitting = [one for one in choices if stored_total(one, shapes, lambda value: replace(SPEC, bits=value)) <= budget]
    assert bits in fitting
    assert cost(bits) == pytest.approx(min(map(cost, fitting)))
    split = bits_within(table, shapes, SPEC, budget)
    assert cost(split) <= cost(bits)
    assert any(len({split[name] for name in group}) > 1 for group in groups)  # which no server joins


def test_what_is_skipped_takes_no_part() -> None:
    assert set(shapes_of(model(), ["*.layers.0.*"])) == {name for name in shapes_of(model()) if ".layers.1." in name}
    bits = choose_bits(model(), SPEC, 4.5, IDS, options=(2, 4), skip=["*.mlp.*"])
    assert not any(".mlp." in name for name in bits)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: choose_bits(model(), SPEC, 2.4, IDS, options=(2, 4)), "2 bits in every layer take 2.5"),
        (lambda: choose_bits(model(), SPEC, float("nan"), IDS), "average_bits is nan"),
        (lambda: choose_bits(model(), SPEC, 4.0, IDS, skip=["*"]), "leaves no layer"),
        (lambda: choose_bits(model(), SPEC, 4.0, []), "batches is empty"),
        (lambda: GptqRounding(model(), []), "batches is empty"),
    ],
)
def test_wrong_arguments_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
