"""The one-pass walk against the ordinary one, which runs a block again for every group."""

import copy
import warnings

import pytest
import torch
from tiny_models import llama
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from reference import workflow
from reference.calibration import batches, capture, walk, walk_blocks, warn_of_few_tokens
from reference.data import text
from reference.evaluation import token_losses
from reference.layers import QuantizedLinear
from reference.models import tutorial
from reference.models.families import block_linears, blocks, family_of
from reference.quantization import CalibrationWarning, gptq, grid
from reference.quantization.grid import QuantizationSpec

SPEC = QuantizationSpec(3, group_size=16)


def opt() -> OPTForCausalLM:
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=64, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32
    )
    return OPTForCausalLM(config).eval()


def solve_layer(weight: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    return gptq.quantize_layer(weight, hessian, SPEC).dequantize()


def one_pass(model: torch.nn.Module, inputs: list[torch.Tensor]) -> None:
    sums: dict[str, gptq.HessianAccumulator] = {}

    def observe(names: tuple[str, ...], activations: torch.Tensor) -> None:
        sums.setdefault(names[0], gptq.HessianAccumulator(activations.shape[-1])).add(activations)

    def solve(names: tuple[str, ...]) -> dict[str, torch.Tensor]:
        hessian = sums.pop(names[0]).hessian
        return {name: solve_layer(model.get_submodule(name).weight, hessian) for name in names}

    walk(model, inputs, observe=observe, solve=solve)


@torch.no_grad()
def ordinary(model: torch.nn.Module, inputs: list[torch.Tensor]) -> None:
    """True-sequential calibration the slow way: the whole model again for each group."""
    family = family_of(model)
    for block in model.get_submodule(family.blocks):
        for group in family.sublayers:
            accumulator = gptq.HessianAccumulator(block.get_submodule(group[0]).in_features)
            handle = block.get_submodule(group[0]).register_forward_pre_hook(
                lambda _, args, a=accumulator: a.add(args[0])
            )
            for ids in inputs:
                model(input_ids=ids, use_cache=False)
            handle.remove()
            for name in group:
                linear = block.get_submodule(name)
                linear.weight.data = solve_layer(linear.weight, accumulator.hessian)


@pytest.mark.parametrize("make", [llama, opt])
def test_one_pass_equals_the_ordinary_sequential_walk(make) -> None:
    first = make()
    second = copy.deepcopy(first)
    inputs = batches(torch.randint(0, 64, (400,)), sequences=12, length=16, batch=4)
    one_pass(first, inputs)
    ordinary(second, inputs)
    for (name, ours), expected in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, expected), name


@torch.no_grad()
def test_how_sequences_are_batched_does_not_matter_where_the_model_joins_them() -> None:
    """OPT flattens its batch in front of fc1. With units that are always dead the scale of a Hessian is not free."""
    model = opt()
    fc1 = model.model.decoder.layers[0].fc1
    fc1.weight *= 0.02
    fc1.bias[: len(fc1.bias) // 2] = -50
    ids = torch.randint(0, model.config.vocab_size, (16, 24), generator=torch.Generator().manual_seed(0))
    counted, codes = [], []
    for size in (1, 8):
        seen: dict[str, gptq.HessianAccumulator] = {}

        def observe(names: tuple[str, ...], activations: torch.Tensor, seen: dict = seen) -> None:
            seen.setdefault(names[0], gptq.HessianAccumulator(activations.shape[-1])).add(activations)

        walk(model, list(ids.split(size)), observe=observe, solve=lambda names: {})
        counted.append({name: total.sequences for name, total in seen.items()})
        solved = workflow.quantize(
            copy.deepcopy(model), QuantizationSpec(3, symmetric=True), method="gptq", calibration=list(ids.split(size)),
        )  # fmt: skip
        codes.append(solved.model.decoder.layers[0].fc2.tensor.codes)
    assert counted[0] == counted[1] == dict.fromkeys(counted[0], 16)
    assert (codes[0] == codes[1]).float().mean() > 0.995


def test_each_block_runs_once_a_batch_and_blocks_finish_in_order() -> None:
    model, runs, finished = llama(), [], []
    for index, block in enumerate(model.model.layers):
        block.mlp.register_forward_hook(lambda *_, index=index: runs.append(index))
    inputs = batches(torch.randint(0, 64, (400,)), sequences=8, length=16, batch=2)
    walk(model, inputs, observe=lambda *_: None, solve=lambda _: {}, finish=finished.append)
    assert runs == [0] * 4 + [1] * 4 + [2] * 4
    assert finished == [f"model.layers.{i}" for i in range(3)]


def sliding() -> Gemma2ForCausalLM:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, sliding_window=4, attn_implementation="eager", initializer_range=0.2,
    )  # fmt: skip
    return Gemma2ForCausalLM(config).eval()


@pytest.mark.parametrize("make", [llama, opt, sliding])
def test_every_block_is_called_as_the_model_calls_it(make) -> None:
    # Gemma 2 is the case: its blocks take turns between a window of four tokens and all tokens.
    model, ids = make(), torch.randint(0, 64, (2, 16))
    expected = model(ids, output_hidden_states=True).hidden_states
    found = []

    def visit(_: str, block: torch.nn.Module, calls: list) -> list[torch.Tensor]:
        assert torch.equal(calls[0][0][0], expected[len(found)])
        found.append(capture(block, calls, ())[0])
        return found[-1]

    walk_blocks(model, [ids], visit)
    assert len(found) == model.config.num_hidden_layers
    assert not any("forward" in vars(block) for block in blocks(model))


def test_calibration_runs_in_evaluation_mode_and_leaves_the_mode_alone() -> None:
    model, inputs = opt(), [torch.randint(0, 64, (2, 16))]
    seen: dict[bool, list[torch.Tensor]] = {False: [], True: []}
    for training in seen:  # with dropout of a tenth, and layers dropped
        model.train(training)
        model.model.decoder.layerdrop = 0.5
        state = torch.get_rng_state()
        walk(model, inputs, observe=lambda _, x, to=seen[training]: to.append(x), solve=lambda _: {})
        assert torch.equal(torch.get_rng_state(), state)
        assert all(module.training is training for module in model.modules())
    assert all(torch.equal(ours, other) for ours, other in zip(*seen.values(), strict=True))


def test_no_graph_is_kept_and_a_block_keeps_a_forward_of_its_own() -> None:
    """A graph would hold every activation of the walk; a forward of its own is what accelerate's hooks put on a module."""
    model, called, found = llama(), [], []
    block = blocks(model)[1]
    before = block.forward

    def own(*args: object, **kwargs: object) -> torch.Tensor:
        called.append(torch.is_grad_enabled())
        return before(*args, **kwargs)

    block.forward = own

    def visit(_: str, block: torch.nn.Module, calls: list) -> list[torch.Tensor]:
        found.append(block(*calls[0][0], **calls[0][1]))
        return found[-1:]

    inputs = [torch.zeros(1, 4, dtype=torch.int64)]
    walk_blocks(model, inputs, visit)
    outputs, given = capture(
        block, [((found[0],), {"position_embeddings": model.model.rotary_emb(found[0], inputs[0])})], ["mlp"]
    )
    assert called == [False, False]
    assert not any(x.requires_grad for x in (*found, *outputs, given["mlp"][0][0][0]))
    assert block.forward is own


def test_hooks_are_gone_and_weights_untouched_after_an_error() -> None:
    model = llama()
    before = copy.deepcopy(model.state_dict())

    def fail(_: tuple[str, ...]) -> dict:
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        walk(model, [torch.zeros(1, 4, dtype=torch.int64)], observe=lambda *_: None, solve=fail)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_batches_are_windows_of_the_text_drawn_once_each() -> None:
    tokens = torch.arange(100)
    drawn = batches(tokens, sequences=50, length=10, batch=8, seed=3)
    rows = torch.cat(drawn)
    assert [len(batch) for batch in drawn] == [8] * 6 + [2]
    assert (rows.diff(dim=1) == 1).all()
    assert rows[:, 0].unique().numel() == 50
    assert torch.equal(rows, torch.cat(batches(tokens, sequences=50, length=10, batch=8, seed=3)))
    with pytest.raises(ValueError, match="length 101 does not fit"):
        batches(tokens, sequences=1, length=101)


def test_every_place_of_the_text_can_be_drawn_and_only_overlaps_are_said() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert batches(torch.arange(12), sequences=1, length=12)[0].tolist() == [list(range(12))]
        batches(torch.arange(12), sequences=3, length=4)
    with pytest.warns(CalibrationWarning, match="12 tokens and 3 sequences of 10"):
        (rows,) = batches(torch.arange(12), sequences=3, length=10)
    assert sorted(row[0] for row in rows.tolist()) == [0, 1, 2]
    for length, said in ((11, "it has 2 only, which overlap, so"), (12, "it has 1 only, so")):
        with pytest.warns(CalibrationWarning, match=f"12 tokens and 3 sequences of {length} are asked for: {said}"):
            assert sum(len(ids) for ids in batches(torch.arange(12), sequences=3, length=length)) == 13 - length
    layers = {"down": torch.nn.Linear(4, 8), "up": torch.nn.Linear(8, 4)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_few_tokens([torch.zeros(2, 4)], layers)
    for few in ([torch.zeros(1, 7)], None):
        with pytest.warns(CalibrationWarning, match="fewer than the 8 inputs of up"):
            warn_of_few_tokens(few, layers)


def test_grid_of_a_solved_layer_is_reproduced_by_its_codes() -> None:
    model = llama()
    inputs = batches(torch.randint(0, 64, (400,)), sequences=4, length=16)
    one_pass(model, inputs)
    weight = model.model.layers[0].mlp.down_proj.weight
    groups = grid.split_groups(weight, SPEC)
    assert max(len(torch.unique(row)) for row in groups.reshape(-1, 16)) <= 2**SPEC.bits


def test_workflow_packs_what_the_walk_solved() -> None:
    """In the model that comes out, each layer holds the codes that the ordinary walk finds."""
    model, slow = llama(), llama()
    inputs = batches(torch.randint(0, 64, (400,)), sequences=12, length=16, batch=4)
    workflow.quantize(model, SPEC, method="gptq", calibration=inputs)
    ordinary(slow, inputs)
    first = model.model.layers[0].self_attn.q_proj
    assert all(isinstance(layer, QuantizedLinear) for _, layer in block_linears(model))
    # Scales are stored in 16 bits here and in 32 there, so codes may differ at ties.
    expected = slow.model.layers[0].self_attn.q_proj.weight
    assert (
        (first.tensor.dequantize(torch.float32) - expected).abs() < 0.6 * first.scale.float().max()
    ).float().mean() > 0.97


def test_gptq_beats_round_to_nearest_on_the_shipped_model() -> None:
    tokenizer = tutorial.tokenizer()
    inputs = batches(text.encode(text.read("code", "calibration"), tokenizer), sequences=16, length=256, batch=8)
    tokens = text.encode(text.read("code"), tokenizer)[:4096]
    spec, losses = QuantizationSpec(3, symmetric=True, group_size=128), {}
    for method in ("round_to_nearest", "gptq"):
        model = workflow.quantize(tutorial.load(), spec, method=method, calibration=inputs)
        losses[method] = token_losses(model, tokens, window=256, stride=256).mean().item()
    assert losses["gptq"] < losses["round_to_nearest"] - 0.05


def test_gptq_without_calibration_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match="calibration is empty"):
        workflow.quantize(llama(), SPEC, method="gptq")
