"""Smoothing whole blocks and models: the function stays, the outliers go, integers get closer."""

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, BertConfig, GemmaConfig, LlamaConfig, OPTConfig

from reference import workflow
from reference.calibration import walk_blocks
from reference.layers import Int8Linear
from reference.models import tutorial
from reference.models.families import block_linears, blocks, family_of
from reference.quantization.activations import ActivationSpec, dequantize, quantize_activations
from reference.quantization.grid import QuantizationSpec
from reference.quantization.round_to_nearest import quantize_layer
from reference.transforms import smoothquant
from reference.transforms.smoothquant import (
    group_factors,
    input_absmax,
    largest_inputs,
    quantize_integer,
    search_alpha,
    smooth_block,
)  # fmt: skip

SIZE = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
CONFIGS = {
    "llama": LlamaConfig(**SIZE, intermediate_size=48, num_key_value_heads=2),
    "gemma": GemmaConfig(**SIZE, intermediate_size=48, num_key_value_heads=2, head_dim=8),
    "opt": OPTConfig(**SIZE, ffn_dim=48, word_embed_proj_dim=32),
    "bert": BertConfig(**SIZE, intermediate_size=48),
}
BATCHES = [torch.randint(0, 96, (3, 20), generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


def model_of(kind: str) -> nn.Module:
    """Random, with norms (and biases) away from their start, and two large channels that the layers read little of."""
    torch.manual_seed(0)
    model = (AutoModel if kind == "bert" else AutoModelForCausalLM).from_config(CONFIGS[kind]).eval()
    channels = [5, 17]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn(parameter.shape)
            if "norm" in name.lower() and parameter.shape == (32,):
                parameter[channels] *= 40
        for name, linear in block_linears(model):
            if not any(part in name for part in ("o_proj", "out_proj", "output.dense", "down_proj", "fc2")):
                linear.weight[:, channels] /= 40
    return model


def smoothed(model: nn.Module, alpha: float) -> nn.Module:
    twin = copy.deepcopy(model)
    scalings = family_of(model).scalings
    walk_blocks(twin, BATCHES, lambda path, block, calls: smooth_block(block, calls, scalings, alpha=alpha, name=path))
    return twin


@torch.no_grad()
def outputs(model: nn.Module) -> Tensor:
    found = model(input_ids=torch.cat(BATCHES))
    return found.logits if hasattr(found, "logits") else found.last_hidden_state


def error(model: nn.Module, floats: nn.Module) -> float:
    expected = outputs(floats)
    return float((outputs(model) - expected).norm() / expected.norm())


@pytest.mark.parametrize(("kind", "alpha"), list(itertools.product(("llama", "gemma", "opt"), (0, 0.5, 0.85, 1))))
def test_the_model_computes_what_it_did(kind: str, alpha: float) -> None:
    model = model_of(kind)
    changed = smoothed(model, alpha)
    assert (outputs(changed) - outputs(model)).abs().max() < 1e-4
    names = [
        name
        for name, linear in block_linears(model)
        if not torch.equal(linear.weight, changed.get_submodule(name).weight)
    ]
    behind_norms = [f"{family_of(model).blocks}.{i}.{linear}" for i in range(3) for scaling in family_of(model).scalings
                    if "norm" in scaling.previous for linear in scaling.linears]  # fmt: skip
    assert sorted(names) == sorted(behind_norms), "only what a norm feeds"


def test_an_opt_with_its_norms_behind_the_residual_keeps_its_function() -> None:
    # As OPT-350M: the residual reads the norms' output too, so no factor can go through them.
    config = OPTConfig(**SIZE, ffn_dim=48, word_embed_proj_dim=32, do_layer_norm_before=False)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert torch.equal(outputs(smoothed(model, 0.5)), outputs(model))
    with pytest.raises(ValueError, match="the residual reads it too"):
        workflow.quantize(copy.deepcopy(model), smoothquant.W8, method="smoothquant", calibration=BATCHES)
    found = quantize_integer(copy.deepcopy(model), BATCHES, alpha=0.5)
    assert all(layer.channel_scale is not None for _, layer in block_linears(found))  # the layers divide
    assert error(found, model) < 0.05


@pytest.mark.parametrize("outliers", [None, 60.0])
def test_the_shipped_model_computes_what_it_did(outliers: float | None) -> None:
    model, twin = tutorial.load(outliers), tutorial.load(outliers)
    ids = torch.randint(0, 4096, (2, 64), generator=torch.Generator().manual_seed(0))
    scalings = family_of(model).scalings
    walk_blocks(twin, [ids], lambda path, block, calls: smooth_block(block, calls, scalings, name=path))
    with torch.no_grad():
        assert (twin(ids).logits - model(ids).logits).abs().max() < 1e-4


def first_inputs(model: nn.Module) -> dict[str, Tensor]:
    """Maxima of the first block's inputs, by running the model with plain hooks."""
    seen: dict[str, Tensor] = {}
    block = blocks(model)[0]

    def watch(name: str) -> None:
        def hook(_: nn.Module, args: tuple, __: object) -> None:
            seen[name] = args[0].detach().abs().flatten(0, -2).amax(0)

        block.get_submodule(name).register_forward_hook(hook)

    for group in family_of(model).sublayers:
        watch(group[0])
    outputs(model)
    return seen


@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_maxima_are_shared_as_alpha_says(kind: str) -> None:
    model = model_of(kind)
    scaling = family_of(model).scalings[0]
    first = scaling.linears[0]
    before = first_inputs(copy.deepcopy(model))[first]
    columns = torch.stack([blocks(model)[0].get_submodule(n).weight.abs().amax(0) for n in scaling.linears]).amax(0)
    for alpha in (0.0, 0.3, 0.5, 1.0):
        changed = smoothed(model, alpha)
        after = first_inputs(changed)[first]
        torch.testing.assert_close(after, (before * columns).pow(1 - alpha), rtol=1e-4, atol=1e-6)


def test_the_largest_inputs_are_those_of_plain_hooks() -> None:
    model = model_of("llama")
    expected, found = first_inputs(copy.deepcopy(model)), {}

    def visit(path: str, block: nn.Module, calls: list) -> list[Tensor]:
        result, absmax = input_absmax(block, calls, list(expected))
        found[path] = absmax
        return result

    walk_blocks(model, BATCHES, visit)
    for name, maxima in expected.items():
        torch.testing.assert_close(found["model.layers.0"][name], maxima, rtol=1e-5, atol=1e-6)


def test_ranks_that_share_their_maxima_get_one_model() -> None:
    """Two ranks, simulated: each sees half of the batches and the maximum of both."""
    block, scalings = blocks(model_of("llama"))[0], family_of(model_of("llama")).scalings
    calls = []
    walk_blocks(model_of("llama"), BATCHES[:2], lambda _, __, found: calls.append(found) or [c[0][0] for c in found])
    alone = copy.deepcopy(block)
    smooth_block(alone, calls[0], scalings)
    seen = [
        input_absmax(copy.deepcopy(block), [call], [s.linears[0] for s in scalings if "norm" in s.previous])[1]
        for call in calls[0]
    ]
    for rank in range(2):
        other, twin = list(seen[1 - rank].values()), copy.deepcopy(block)
        smooth_block(
            twin, [calls[0][rank]], scalings, largest=lambda part, other=other: torch.maximum(part, other.pop(0))
        )
        for ours, theirs in zip(twin.parameters(), alone.parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_a_channel_that_is_never_active_keeps_its_scale_so_float16_holds() -> None:
    model = model_of("opt").half()
    with torch.no_grad():
        norm = blocks(model)[0].self_attn_layer_norm
        norm.weight[7] = norm.bias[7] = 0
    changed = smoothed(model, 0.5)
    kept, weight = (m.model.decoder.layers[0].self_attn.q_proj.weight[:, 7] for m in (model, changed))
    assert torch.equal(kept, weight)
    assert all(torch.isfinite(p).all() for p in changed.parameters())
    assert group_factors([nn.Linear(2, 3)], torch.tensor([0.0, 1.0]), 0.5)[0] == 1


def test_nan_activations_are_refused_by_name_and_nothing_is_changed() -> None:
    model = model_of("llama")
    block = blocks(model)[1]
    before = copy.deepcopy(block.state_dict())
    calls: list = []
    walk_blocks(model, BATCHES, lambda _, b, found: calls.append(found) or [c[0][0] for c in found])
    calls[1][0][0][0][0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"layers.1.self_attn.q_proj holds NaN or infinite activations"):
        smooth_block(block, calls[1], family_of(model).scalings, name="layers.1")
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())
    handles = [h for module in block.modules() for h in module._forward_pre_hooks.values()]
    assert handles == []


# --- integers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(CONFIGS))
@pytest.mark.parametrize("granularity", ["per_token", "per_tensor", "static"])
def test_smoothing_brings_integers_closer_on_every_family(kind: str, granularity: str) -> None:
    model, spec = model_of(kind), ActivationSpec(granularity=granularity)
    naive, smooth = (quantize_integer(copy.deepcopy(model), BATCHES, alpha=a, activations=spec) for a in (None, 0.5))
    assert all(isinstance(linear, Int8Linear) for _, linear in block_linears(smooth))
    scaled = [linear.channel_scale is not None for _, linear in block_linears(smooth)]
    assert set(scaled) == {kind == "bert"}
    assert error(smooth, model) < 0.5 * error(naive, model)


def test_a_block_of_integers_is_the_fake_quantised_block() -> None:
    """Slow second implementation: smooth, then quantise and dequantise weights and inputs in float."""
    model = model_of("llama")
    found = quantize_integer(copy.deepcopy(model), BATCHES, alpha=0.5)
    fake = smoothed(model, 0.5).double()
    for _, linear in block_linears(fake):
        stored = quantize_layer(linear.weight.detach().float(), QuantizationSpec(8, symmetric=True))
        linear.weight.data = stored.dequantize(torch.float64)
        linear.register_forward_pre_hook(
            lambda _, args: (dequantize(*quantize_activations(args[0], ActivationSpec())).double(),)
        )
    damage = error(found, model)
    # A last bit moves now and then an activation to the next code, hence not closer.
    assert error(found, fake) < 0.35 * damage


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize(("granularity", "alpha"), [("static", 0.7), ("per_token", None)])
def test_the_largest_inputs_serve_as_the_text_does(kind: str, granularity: str, alpha: float | None) -> None:
    model, how = model_of(kind), {"alpha": alpha, "activations": ActivationSpec(granularity)}
    found = largest_inputs(model, BATCHES)
    for _ in range(2):  # the first use leaves them as they are
        ours = quantize_integer(copy.deepcopy(model), found, **how).state_dict()
        theirs = quantize_integer(copy.deepcopy(model), BATCHES, **how).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_largest_inputs_that_do_not_fit_are_refused_and_nothing_is_changed() -> None:
    model = model_of("llama")
    found = largest_inputs(model, BATCHES)
    last = "model.layers.2.mlp.down_proj"
    for wrong in ({k: v for k, v in found.items() if k != last}, found | {last: torch.ones(3)}):
        with pytest.raises(ValueError, match=rf"inputs has no largest magnitudes \[48\] of {last}"):
            quantize_integer(model, wrong)
    with pytest.raises(ValueError, match="static_rule 'mse' needs inputs as token batches"):
        quantize_integer(model, found, activations=ActivationSpec("static"), static_rule="mse")
    assert all(isinstance(linear, nn.Linear) for _, linear in block_linears(model))


def test_static_scales_are_those_of_the_smoothed_inputs() -> None:
    model, spec = model_of("opt"), ActivationSpec(granularity="static")
    found = quantize_integer(copy.deepcopy(model), BATCHES, alpha=0.5, activations=spec)
    for name, largest in first_inputs(smoothed(model, 0.5)).items():
        scale = blocks(found)[0].get_submodule(name).input_scale
        assert scale.shape == (1,)
        torch.testing.assert_close(scale[0], largest.max() / 127.5, rtol=1e-4, atol=0)


def test_weights_of_four_bits_are_kept_as_such() -> None:
    model = quantize_integer(model_of("llama"), BATCHES, weights=QuantizationSpec(4, symmetric=True))
    codes = torch.cat([linear.weight.flatten() for _, linear in block_linears(model)])
    assert {linear.spec.bits for _, linear in block_linears(model)} == {4}
    assert set(codes.tolist()) <= set(range(-8, 8))
    assert len(set(codes.tolist())) >= 15


@pytest.mark.parametrize("granularity", ["per_token", "per_tensor"])
def test_the_workflow_ends_in_the_same_layers(granularity: str) -> None:
    spec = ActivationSpec(granularity=granularity)
    ours = quantize_integer(model_of("opt"), BATCHES, alpha=0.7, activations=spec)
    theirs = workflow.quantize(
        model_of("opt"), smoothquant.W8, method="smoothquant", activations=spec, calibration=BATCHES, alpha=0.7
    )
    for (name, layer), (_, other) in zip(block_linears(ours), block_linears(theirs), strict=True):
        for key, tensor in layer.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[key]), f"{name}.{key}"


def test_layers_without_a_grid_stay_in_float_and_smoothed() -> None:
    model = model_of("llama")
    found = quantize_integer(
        copy.deepcopy(model), BATCHES, weights=lambda name: None if "layers.1" in name else smoothquant.W8
    )
    floats = [name for name, linear in block_linears(found) if isinstance(linear, nn.Linear)]
    assert len(floats) == 7
    assert all("layers.1" in name for name in floats)
    assert 0 < error(found, model) < 0.1


# --- the search for alpha -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_the_search_is_the_exhaustive_one_and_changes_nothing(kind: str) -> None:
    model = model_of(kind)
    before = copy.deepcopy(model.state_dict())
    search = search_alpha(model, BATCHES, alphas=(0.0, 0.5, 1.0))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert search == search_alpha(model, BATCHES, alphas=(0.0, 0.5, 1.0))
    assert search.alpha == min(search.losses, key=search.losses.get)
    expected = []
    found = {a: quantize_integer(copy.deepcopy(model), BATCHES, alpha=a) for a in search.losses}

    def visit(path: str, block: nn.Module, calls: list) -> list[Tensor]:
        def run(b: nn.Module) -> list[Tensor]:
            results = [b(*args, **kwargs) for args, kwargs in calls]
            return [r[0] if isinstance(r, tuple) else r for r in results]

        floats = run(block)
        added = sum((y - call[0][0]).double().square().sum() for y, call in zip(floats, calls, strict=True))
        expected.append([
            sum((q - y).double().square().sum() for q, y in zip(run(m.get_submodule(path)), floats, strict=True)) / added
            for m in found.values()
        ])  # fmt: skip
        return floats

    with torch.no_grad():
        walk_blocks(model, BATCHES, visit)
    means = torch.tensor(expected).mean(0)
    torch.testing.assert_close(torch.tensor(list(search.losses.values())), means, rtol=1e-4, atol=0, check_dtype=False)


def test_of_equal_losses_the_first_alpha_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoothquant, "_squares", lambda x: 1.0)
    assert search_alpha(model_of("llama"), BATCHES[:1], alphas=(0.4, 0.9, 0.1)).alpha == 0.4
    with pytest.raises(ValueError, match="alphas is empty"):
        search_alpha(model_of("llama"), BATCHES[:1], alphas=())


@pytest.mark.parametrize("alpha", [None, 0.5])
@pytest.mark.parametrize("rule", ["percentile", "mse", "entropy"])
def test_static_rules_set_each_layers_step(alpha, rule) -> None:
    """The step is the rule's threshold of what the float layer is really given, after smoothing."""
    from reference.quantization.activation_range import MagnitudeHistogram, threshold
    from reference.quantization.activations import ActivationSpec, scale_of

    spec = ActivationSpec("static", bits=4)
    ids = [torch.randint(0, 4096, (2, 32), generator=torch.Generator().manual_seed(7))]
    plain, model = tutorial.load(), tutorial.load()
    quantize_integer(model, ids, alpha=alpha, activations=spec, static_rule=rule)
    histogram = MagnitudeHistogram()
    layer = model.model.layers[1].mlp.down_proj  # never smoothed
    handle = plain.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda _, args: histogram.add(args[0]))
    with torch.no_grad():
        plain(ids[0])
    handle.remove()
    expected = scale_of(torch.tensor([threshold(histogram, rule, spec)]), spec)
    assert torch.allclose(layer.input_scale, expected, rtol=2e-3)
    assert layer.input_scale < scale_of(torch.tensor([histogram.largest]), spec)


def test_unknown_static_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="static_rule is 'kl'"):
        quantize_integer(tutorial.load(), [], static_rule="kl")
