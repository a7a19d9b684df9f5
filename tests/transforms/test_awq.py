"""AWQ on blocks of several architectures: what must not change, what must, and what is refused."""

import copy
import threading
from collections.abc import Callable

import pytest
import torch
import transformers
from torch import Tensor, nn

from reference.calibration import Call, walk_blocks
from reference.data import text
from reference.models import tutorial
from reference.models.conv1d import linearize
from reference.models.families import Scaling, blocks, family_of
from reference.quantization import awq, round_to_nearest
from reference.quantization.grid import QuantizationSpec
from reference.transforms.awq import scale_block

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 32,
}  # fmt: skip
DECODER = SMALL | {"intermediate_size": 48, "head_dim": 8, "pad_token_id": 0, "num_key_value_heads": 4}
GROUPED = DECODER | {"num_key_value_heads": 2}
CONFIGS = {
    "llama": ("llama", DECODER),
    "llama, grouped queries": ("llama", GROUPED),
    "qwen2": ("qwen2", DECODER),
    "qwen3, grouped queries": ("qwen3", GROUPED),
    "gemma": ("gemma", DECODER),
    "gemma2": ("gemma2", DECODER | {"query_pre_attn_scalar": 8}),
    "phi3, grouped queries": ("phi3", GROUPED),
    "opt": ("opt", SMALL | {"ffn_dim": 48, "word_embed_proj_dim": 32, "pad_token_id": 0}),
    "gpt2": ("gpt2", SMALL | {"n_inner": 48}),
    "gpt_neox": ("gpt_neox", SMALL | {"intermediate_size": 48}),
}
IDS = torch.arange(24).reshape(2, 12)
SPEC = QuantizationSpec(3, group_size=16)


def tiny(kind: str, **changes: object) -> nn.Module:
    """float64, random norms and biases too, some channels large, so that scales are far from one."""
    model_type, config = CONFIGS[kind]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(model_type, **(config | changes))
    )
    model = linearize(model.eval()).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for scaling in family_of(model).scalings:
            for block in blocks(model):
                weight = block.get_submodule(scaling.previous).get_parameter("weight")
                weight[-4:] *= 8
    return model


def first_block(kind: str, **changes: object) -> tuple[nn.Module, list[Call], tuple[Scaling, ...]]:
    """The first block, and its calls on two batches."""
    model, found = tiny(kind, **changes), []

    class Found(Exception):
        pass

    def visit(_: str, block: nn.Module, calls: list[Call]) -> list[Tensor]:
        found.extend((block, calls))
        raise Found

    with pytest.raises(Found):
        walk_blocks(model, list(IDS.split(1)), visit)
    return found[0], found[1], family_of(model).scalings


def run(block: nn.Module, calls: list[Call]) -> Tensor:
    with torch.no_grad():
        results = [block(*args, **kwargs) for args, kwargs in calls]
    return torch.cat([result[0] if isinstance(result, tuple) else result for result in results])


def round_weights(block: nn.Module) -> None:
    for module in block.modules():
        if isinstance(module, nn.Linear):
            rounded = round_to_nearest.quantize_layer(module.weight.detach(), SPEC, scale_dtype=torch.float32)
            module.weight.data = rounded.dequantize().to(module.weight)


@pytest.mark.parametrize("kind", CONFIGS)
def test_scaling_changes_weights_and_not_the_model(kind: str) -> None:
    model = tiny(kind)
    before = copy.deepcopy(model)
    family = family_of(model)
    scalings = [s for s in family.scalings if "grouped" not in kind or s.previous != "self_attn.v_proj"]
    assert scalings
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
        walk_blocks(
            model, [IDS], lambda path, block, calls: scale_block(block, calls, family.scalings, SPEC, clip=False)
        )
        found = model(input_ids=IDS).logits
    # transformers computes RMSNorm in float32, whatever the model's type.
    tolerance = 1e-10 if kind in ("opt", "gpt2", "gpt_neox") else 1e-5
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()
    expected_changes = {f"{path}.weight" for s in scalings for path in (s.previous, *s.linears)}
    for block, original in zip(blocks(model), blocks(before), strict=True):
        same = original.state_dict()
        changed = {name for name, tensor in block.state_dict().items() if not torch.equal(tensor, same[name])}
        assert {name for name in changed if name.endswith("weight")} == expected_changes


def test_next_block_gets_what_the_float_block_computes() -> None:
    block, calls, scalings = first_block("llama")
    expected = run(block, calls)
    outputs = scale_block(block, calls, scalings, SPEC)
    assert torch.equal(torch.cat(outputs), expected)
    assert not torch.allclose(run(block, calls), expected, rtol=1e-5)  # the clipping came after


@pytest.mark.parametrize("clip", [False, True])
def test_with_outliers_rounded_blocks_are_closer_than_without_awq(clip: bool) -> None:
    """On text and channels that it was not calibrated on: the shipped model's outlier version."""
    model = tutorial.load(outliers=20)
    model.model.layers = model.model.layers[:2]
    tokens = text.encode(text.read("code", "calibration")[:20000], tutorial.tokenizer())
    calibration, other = tokens[:1024].reshape(8, -1), tokens[-512:].reshape(4, -1)
    errors = []

    def visit(_: str, block: nn.Module, calls: list[Call]) -> list[Tensor]:
        plain, scaled = copy.deepcopy(block), copy.deepcopy(block)
        outputs = scale_block(scaled, calls[:1], family_of(model).scalings, SPEC, clip=clip)
        round_weights(plain)
        round_weights(scaled)
        expected = run(block, calls)
        errors.append([float((run(each, calls[1:]) - expected[8:]).norm()) for each in (plain, scaled)])
        return [*outputs, expected[8:]]

    walk_blocks(model, [calibration, other], visit)
    assert len(errors) == 2
    assert all(scaled < 0.95 * plain for plain, scaled in errors)


def test_groups_are_searched_on_the_original_weights_so_their_order_makes_no_difference() -> None:
    block, calls, scalings = first_block("llama")
    other = copy.deepcopy(block)
    scale_block(block, calls, scalings, SPEC, clip=False)
    scale_block(other, calls, scalings[::-1], SPEC, clip=False)
    for name, parameter in other.named_parameters():
        torch.testing.assert_close(parameter, block.get_parameter(name), rtol=1e-12, atol=0)


def test_queries_and_keys_are_not_clipped_and_layers_in_no_scaling_are() -> None:
    block, calls, scalings = first_block("gpt_neox")
    scaled = copy.deepcopy(block)
    scale_block(scaled, calls, scalings, SPEC, clip=False)
    scale_block(block, calls, scalings, SPEC)
    clipped = {
        name for name, tensor in block.state_dict().items() if not torch.equal(tensor, scaled.state_dict()[name])
    }
    assert clipped == {f"{name}.weight" for name in ("attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")}


def test_a_layer_left_out_only_shares_its_groups_scale() -> None:
    block, calls, scalings = first_block("llama")
    expected, before = run(block, calls), copy.deepcopy(block.state_dict())
    left_out = ("self_attn.k_proj", "mlp.gate_proj", "mlp.up_proj")
    scale_block(block, calls, scalings, lambda name: None if name in left_out else SPEC, clip=False)
    torch.testing.assert_close(run(block, calls), expected, rtol=1e-4, atol=1e-4)
    scale = (block.self_attn.k_proj.weight / before["self_attn.k_proj.weight"]).detach()
    assert scale[0].std() > 0.1
    torch.testing.assert_close(scale, scale[:1].expand_as(scale))
    torch.testing.assert_close(block.input_layernorm.weight * scale[0], before["input_layernorm.weight"])
    # Both layers behind this norm are left out: it has no scale.
    assert torch.equal(block.post_attention_layernorm.weight, before["post_attention_layernorm.weight"])
    assert torch.equal(block.mlp.gate_proj.weight, before["mlp.gate_proj.weight"])


def test_a_layer_left_out_is_not_clipped() -> None:
    block, calls, _ = first_block("llama")
    before = copy.deepcopy(block.state_dict())
    scale_block(block, calls, [], lambda name: SPEC if name == "mlp.gate_proj" else None)
    changed = {name for name, tensor in block.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"mlp.gate_proj.weight"}


def test_every_layer_is_searched_with_its_own_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    block, calls, scalings = first_block("llama")
    bits = {"self_attn.q_proj": 2, "self_attn.k_proj": 3, "self_attn.v_proj": 8}
    seen, search = [], awq.search_scale

    def watched(
        weights: list[Tensor], inputs: list[Tensor], specs: list[QuantizationSpec], **options: object
    ) -> object:
        seen.append([spec.bits for spec in specs])
        return search(weights, inputs, specs, **options)

    monkeypatch.setattr(awq, "search_scale", watched)
    scale_block(block, calls, scalings, lambda name: QuantizationSpec(bits.get(name, 4), group_size=16))
    assert seen == [[2, 3, 8], [4], [4, 4], [4]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_blocks_keep_their_type_and_their_function(dtype: torch.dtype) -> None:
    block, calls, scalings = first_block("llama")
    expected = run(block, calls)

    def cast(value: object) -> object:
        if isinstance(value, tuple):
            return tuple(cast(item) for item in value)
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    block = block.to(dtype)
    calls = [(cast(args), {name: cast(value) for name, value in kwargs.items()}) for args, kwargs in calls]
    scale_block(block, calls, scalings, SPEC, clip=False)
    assert {parameter.dtype for parameter in block.parameters()} == {dtype}
    assert (run(block, calls).double() - expected).norm() < 0.02 * expected.norm()


WRONG = {
    "GELU between": (("opt", {"activation_function": "gelu"}), Scaling("fc1", ("fc2",), "fc2")),
    "fused grouped queries": (
        ("phi3, grouped queries", {}), Scaling("self_attn.qkv_proj", ("self_attn.o_proj",), "self_attn.o_proj"),
    ),
    "norm after the residual": (
        ("opt", {"do_layer_norm_before": False}), Scaling("self_attn_layer_norm", ("fc1",), "fc1"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_row_of_the_table_is_found_out(what: str) -> None:
    (kind, changes), scaling = WRONG[what]
    block, calls, _ = first_block(kind, **changes)
    with pytest.raises(ValueError, match=r"layers\.7: the scales changed what the block computes by \d"):
        scale_block(block, calls, [scaling], SPEC, name="layers.7")


def test_activations_that_overflow_are_refused_by_the_layers_name() -> None:
    block, calls, scalings = first_block("llama")
    block.input_layernorm.weight.data[3] = float("inf")
    with pytest.raises(ValueError, match=r"layers\.7\.self_attn\.q_proj.*NaN or infinite"):
        scale_block(block, calls, scalings, SPEC, name="layers.7")


def test_two_ranks_find_what_one_process_finds() -> None:
    block, calls, scalings = first_block("llama")
    ranks = [copy.deepcopy(block) for _ in calls]
    scale_block(block, calls, scalings, SPEC)
    barrier, parts, failed = threading.Barrier(2, timeout=60), [torch.empty(0)] * 2, []

    def total(rank: int) -> Callable[[Tensor], Tensor]:
        def add(part: Tensor) -> Tensor:
            parts[rank] = part
            barrier.wait()
            found = parts[0] + parts[1]
            barrier.wait()
            return found

        return add

    def work(rank: int) -> None:
        try:
            scale_block(ranks[rank], [calls[rank]], scalings, SPEC, total=total(rank))
        except Exception as error:
            failed.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    for name, parameter in block.named_parameters():
        assert torch.equal(ranks[0].get_parameter(name), ranks[1].get_parameter(name))
        torch.testing.assert_close(ranks[0].get_parameter(name), parameter, rtol=1e-5, atol=0)
