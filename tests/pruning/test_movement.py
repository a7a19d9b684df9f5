"""Movement pruning: slow counts, closed-form gradients, the traps of public codes, and what is left when it is done."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification, BertModel

from reference.coding import container, deep_compression
from reference.coding.weight_sharing import share
from reference.pruning import blocks, movement, score_masks, structured
from reference.pruning.masked_linear import MaskedLinear

HARD = ("movement", "magnitude", "random")


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5))


def encoder(seed: int = 0) -> BertModel:
    torch.manual_seed(seed)
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
                        max_position_embeddings=20, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)  # fmt: skip
    model = BertModel(config, add_pooling_layer=False)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, 0, 0.3)  # zero biases would hide a unit that is cut too early
    return model.eval()


def linears(model: nn.Module) -> list[str]:
    return [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]


def constant(final: float, penalty: float = 0.0) -> movement.Schedule:
    """``final`` from step 2 on."""
    return movement.Schedule(total=3, final=final, cooldown=2, penalty=penalty)


def attach(model, method="movement", final=0.3, **options):
    pruner = movement.attach(model, linears(model), method=method, schedule=constant(final), **options)
    pruner.step(2)
    return pruner


# ---- masks


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.integers(-3, 3), min_size=1, max_size=40),
    keep=st.floats(0, 1),
    columns=st.integers(1, 4),
)
def test_topk_counts_and_ties_as_a_sorted_list_does(values, keep, columns):
    scores = torch.tensor(values * columns, dtype=torch.float32).view(-1, columns)
    order = sorted(range(scores.numel()), key=lambda i: (-scores.flatten()[i].item(), i))
    expected = np.zeros(scores.numel())
    expected[order[: int(keep * scores.numel())]] = 1
    np.testing.assert_array_equal(score_masks.topk_mask(scores, keep).flatten().numpy(), expected)


@pytest.mark.parametrize(
    "make", [lambda s: score_masks.topk_mask(s, 0.5), lambda s: score_masks.threshold_mask(s, 0.5)]
)
def test_a_transposed_view_has_the_mask_of_its_copy(make):
    scores = torch.randn(6, 9, generator=torch.Generator().manual_seed(0)).t()
    assert not scores.is_contiguous()
    mask = make(scores)
    assert torch.equal(mask, make(scores.contiguous()))
    assert set(mask.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("size", [1, 7, 200, 1000])
def test_the_floor_holds_when_all_scores_are_equal(size):
    mask = score_masks.threshold_mask(torch.zeros(size), 0.9)
    count = int(0.005 * size) + 1
    assert mask.tolist() == [1.0] * count + [0.0] * (size - count)
    assert score_masks.threshold_mask(torch.zeros(size), 0.9, floor=0).sum() == 0


def test_the_floor_adds_nothing_above_it():
    scores = torch.linspace(-4, 4, 1000)
    assert torch.equal(score_masks.threshold_mask(scores, 0.5), (scores > 0).float())
    saturated = torch.full((1000,), 40.0)  # sigmoid is 1 in float32
    assert score_masks.threshold_mask(saturated, 0.999).sum() == 1000


def test_one_weight_keeps_itself_unless_asked_for_nothing():
    one = torch.tensor([[-3.0]])
    assert score_masks.topk_mask(one, 1.0).item() == 1 == score_masks.threshold_mask(one, 0.9).item()
    assert score_masks.topk_mask(one, 0.9).item() == 0


def test_global_masks_are_the_mask_of_the_concatenation():
    generator = torch.Generator().manual_seed(1)
    tensors = [torch.randn(5, 8, generator=generator), 30 + torch.randn(30, generator=generator)]
    together = score_masks.topk_mask(torch.cat([t.flatten() for t in tensors]), 0.4)
    first, second = score_masks.global_topk_masks(tensors, 0.4, min_keep=0)
    assert torch.equal(torch.cat([first.flatten(), second]), together)
    assert first.sum() == 0 < second.sum() == int(0.4 * 70)  # the large scores took all
    first, second = score_masks.global_topk_masks(tensors, 0.4)
    assert first.flatten().argmax() == tensors[0].flatten().argmax()
    assert first.sum() == 1
    assert second.sum() == int(0.4 * 70) - 1


def test_straight_through_gradients_reach_every_score():
    scores = torch.randn(4, 6, requires_grad=True)
    upstream = torch.randn(4, 6)
    for make in (lambda s: score_masks.topk_mask(s, 0.2), lambda s: score_masks.threshold_mask(s, 0.6),
                 lambda s: score_masks.global_topk_masks([s], 0.2)[0]):  # fmt: skip
        (gradient,) = torch.autograd.grad(make(scores), scores, upstream)
        assert torch.equal(gradient, upstream)
    assert not score_masks.magnitude_mask(scores, 0.5).requires_grad


def test_l0_gates_have_the_stated_probability_of_zero():
    scores = torch.linspace(-3, 3, 7)
    noise = torch.rand(40_000, 7, generator=torch.Generator().manual_seed(0))
    open_share = (score_masks.l0_mask(scores, noise) > 0).double().mean(0)
    for share_open, score in zip(open_share, scores, strict=True):
        assert abs(share_open - score_masks.l0_penalty([score[None]])) < 0.01
    gate = score_masks.l0_mask(torch.tensor([-9.0, 0.0, 9.0]))
    assert gate[0] == 0
    assert gate[1] == pytest.approx(0.5)
    assert gate[2] == 1
    free = scores.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: score_masks.l0_mask(s, noise[:3].double()), free.double())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: score_masks.topk_mask(torch.zeros(3), 1.1), "keep is 1.1"),
        (lambda: score_masks.threshold_mask(torch.zeros(3), 0.1, floor=-1.0), "floor is -1.0"),
        (lambda: score_masks.global_topk_masks([], 0.5), "scores is empty"),
        (lambda: score_masks.global_topk_masks([torch.zeros(2)], 0.5, min_keep=-1), "min_keep is -1"),
        (lambda: score_masks.straight_through(torch.zeros(2), torch.ones(3).bool()), "keep has shape"),
        (lambda: movement.Schedule(100, 0.1, warmup=60, cooldown=40), "leave no ramp"),
        (lambda: movement.Schedule(100, 1.1), "final is 1.1"),
        (lambda: movement.Schedule(100, 0.1, penalty=-1.0), "penalty is -1.0"),
        (lambda: attach(net(), "taylor"), "method is 'taylor'"),
        (lambda: attach(net(), block=(5, 1)), "block is .5, 1."),
        (lambda: attach(net(), scope="all"), "scope is 'all'"),
        (lambda: attach(net(), "soft", scope="global"), "sets no density"),
        (lambda: movement.attach(net(), ["1"], method="soft", schedule=constant(0.1)), "'1', which is ReLU"),
        (lambda: movement.attach(net(), ["9"], method="soft", schedule=constant(0.1)), "'9', which is NoneType"),
        (lambda: movement.attach(net(), [], method="soft", schedule=constant(0.1)), "names is"),
        (lambda: movement.attach(net(), ["0", "0"], method="soft", schedule=constant(0.1)), "names is"),
        (lambda: movement.task_loss(torch.zeros(1, 2), torch.zeros(1).long(), alpha=2.0), "alpha is 2.0"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_all_weights_are_there_before_the_first_step():
    for scope in ("layer", "global"):
        model = net()
        pruner = movement.attach(model, linears(model), method="magnitude", scope=scope,
                                 schedule=movement.Schedule(total=2, final=0.1))  # fmt: skip
        assert pruner.density() == 1
        pruner.step(1)
        assert pruner.density() < 0.3


def test_frozen_parameters_are_in_no_group():
    model = net()
    pruner = attach(model)
    model[2].bias.requires_grad_(False)
    weights, scores = pruner.parameter_groups(weight_lr=0.1, score_lr=0.5)
    assert {id(p) for p in weights["params"]} == {id(p) for p in (model[0].weight, model[0].bias, model[2].weight)}
    assert {id(p) for p in scores["params"]} == {id(model[0].scores), id(model[2].scores)}


def test_a_tensor_smaller_than_the_minimum_is_kept_whole():
    first, second = score_masks.global_topk_masks([torch.zeros(2), torch.arange(1.0, 9.0)], 0.3, min_keep=4)
    assert first.tolist() == [1, 1]
    assert second.tolist() == [0] * 4 + [1] * 4


def test_a_refused_block_leaves_the_model_as_it_was():
    model = net()  # 16 rows fit, 5 do not
    with pytest.raises(ValueError, match="block"):
        attach(model, block=(4, 1))
    assert not any(isinstance(m, MaskedLinear) for m in model.modules())


# ---- layers and gradients


def test_gradients_in_closed_form():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 4))
    pruner = attach(model, final=0.4)
    layer = pruner.layers["0"]
    layer.scores.data.normal_()
    x, target = torch.randn(9, 6), torch.randn(9, 4)
    mask = layer.mask().detach()
    residual = x @ (layer.weight * mask).t() + layer.bias - target
    (0.5 * functional.mse_loss(model(x), target, reduction="sum")).backward()
    effective = (residual.t() @ x).detach()  # gradient of the weight that computes
    torch.testing.assert_close(layer.scores.grad, effective * layer.weight.detach())
    torch.testing.assert_close(layer.weight.grad, effective * mask)
    assert 0 < mask.sum() < mask.numel()


def test_magnitude_and_movement_disagree_on_two_weights():
    """L = ½(w₁ − 0.6)² + ½(w₂ − 0.5)² from (1, 0.1): the large weight shrinks, the small one grows."""
    best = torch.tensor([[0.6, 0.5]])
    chosen = {}
    for method in ("movement", "magnitude"):
        model = nn.Sequential(nn.Linear(2, 1, bias=False))
        model[0].weight.data = torch.tensor([[1.0, 0.1]])
        pruner = movement.attach(model, ["0"], method=method, schedule=movement.Schedule(50, 0.5, 40, 1))
        optimizer = torch.optim.SGD(pruner.parameter_groups(weight_lr=0.05, score_lr=0.05))
        for step in range(8):
            pruner.step(step)
            effective = model(torch.eye(2)).t()  # the two masked weights
            loss = 0.5 * (effective - best).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        pruner.step(50)
        chosen[method] = pruner.layers["0"].mask().detach().tolist()
    assert chosen == {"movement": [[0.0, 1.0]], "magnitude": [[1.0, 0.0]]}


def test_scores_accumulate_minus_gradient_times_weight():
    torch.manual_seed(0)
    model = net()
    schedule = movement.Schedule(20, 0.3, warmup=15, cooldown=1)
    pruner = movement.attach(model, ["0"], method="movement", schedule=schedule)
    optimizer = torch.optim.SGD(pruner.parameter_groups(weight_lr=0.1, score_lr=0.5))
    x, labels = torch.randn(64, 12), torch.randint(0, 5, (64,))
    layer, total, moved = pruner.layers["0"], 0.0, 0.0
    for step in range(10):  # warm-up: nothing is masked, and the identity is exact
        pruner.step(step)
        optimizer.zero_grad()
        functional.cross_entropy(model(x), labels).backward()
        before = layer.weight.detach().clone()
        total = total - 0.5 * layer.weight.grad * before
        optimizer.step()
        moved = moved + (layer.weight.detach() - before) * before
    torch.testing.assert_close(layer.scores.detach(), total, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(layer.scores.detach(), moved * (0.5 / 0.1), atol=1e-6, rtol=1e-4)
    away = moved > 0
    assert torch.equal(layer.scores > 0, away)


@pytest.mark.parametrize("method", ["movement", "soft", "l0", "magnitude", "random"])
def test_every_method_trains_under_autocast_and_finalises(method):
    model = net()
    schedule = movement.Schedule(30, 0.2 if method in HARD else 0.6, warmup=3, cooldown=5, penalty=3.0)
    pruner = movement.attach(model, ["0", "2"], method=method, schedule=schedule)
    groups = pruner.parameter_groups(weight_lr=1e-2, score_lr=0.3 if method == "l0" else 0.1, weight_decay=0.1)
    assert len(groups) == (2 if method in ("movement", "soft", "l0") else 1)
    assert sum(p.numel() for g in groups for p in g["params"]) == sum(p.numel() for p in model.parameters())
    assert groups[-1]["weight_decay"] == (0.0 if len(groups) == 2 else 0.1)
    optimizer = torch.optim.AdamW(groups)
    torch.manual_seed(1)
    x, labels = torch.randn(64, 12), torch.randint(0, 5, (64,))
    densities = []
    for step in range(30):
        pruner.step(step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = functional.cross_entropy(model(x).float(), labels)
        assert pruner.penalty().item() > 0 or method in HARD or step <= 3
        optimizer.zero_grad()
        (loss + pruner.penalty()).backward()
        optimizer.step()
        densities.append(pruner.density())
    assert model[0].weight.grad.dtype == torch.float32
    assert densities[0] > 0.99
    plain = movement.finalize(model)
    assert type(plain[0]) is nn.Linear
    zeros = {n: float((getattr(plain, n).weight != 0).double().mean()) for n in ("0", "2")}
    assert zeros == pytest.approx(pruner.densities())
    if method in HARD:
        assert zeros == {"0": int(0.2 * 192) / 192, "2": 16 / 80}
    assert densities[-1] == pruner.density() < 0.7
    torch.testing.assert_close(plain(x), model.eval()(x))
    assert not torch.signbit(plain[0].weight[plain[0].weight == 0]).any()


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("method", ["movement", "soft", "l0", "magnitude", "random"])
@pytest.mark.parametrize("where", ["cpu", "meta"])  # meta takes the way of a GPU
def test_no_step_waits_for_a_value(method, scope, where):
    """Tensors without values raise where code asks for one, as ``.item()`` or an ``if`` does."""
    if scope == "global" and method in ("soft", "l0"):
        scope = "layer"
    with FakeTensorMode(), torch.device(where):
        model = net()
        pruner = movement.attach(
            model, linears(model), method=method, schedule=movement.Schedule(10, 0.3, 2, 2, penalty=1.0), scope=scope
        )
        pruner.step(5)
        (model(torch.randn(4, 12)).square().mean() + pruner.penalty()).backward()
        assert model[0].weight.grad.shape == (16, 12)
        with pytest.raises((DataDependentOutputException, RuntimeError, NotImplementedError)):
            pruner.density()  # the one that says it waits


def test_random_scores_give_nested_masks_and_another_seed_others():
    masks = []
    for final, seed in ((0.5, 0), (0.2, 0), (0.2, 7)):
        pruner = attach(net(), "random", final, seed=seed)
        masks.append(pruner.layers["0"].mask())
    assert (masks[0] >= masks[1]).all()
    assert not torch.equal(masks[1], masks[2])
    layers = attach(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), "random", 0.5).layers
    assert not torch.equal(layers["0"].mask(), layers["1"].mask())


def test_masked_weights_freeze_and_their_scores_do_not():
    model = net()
    pruner = attach(model, final=0.5)
    layer = pruner.layers["0"]
    layer.scores.data.normal_()
    functional.cross_entropy(model(torch.randn(8, 12)), torch.arange(8) % 5).backward()
    out = layer.mask().detach() == 0
    alive = layer.scores.grad[out].abs() > 0
    assert (layer.weight.grad[out] == 0).all()
    assert alive.double().mean() > 0.5


def test_global_scope_shares_one_density():
    model = net()
    pruner = attach(model, "magnitude", 0.25, scope="global")
    sizes = torch.cat([layer.weight.detach().abs().flatten() for layer in pruner.layers.values()])
    cut = sizes.sort(descending=True).values[int(0.25 * len(sizes)) - 1]
    for layer in pruner.layers.values():
        assert torch.equal(layer.mask() > 0, layer.weight.abs() >= cut)
    assert pruner.density() == int(0.25 * len(sizes)) / len(sizes)
    assert len(set(pruner.densities().values())) == 2
    pruner = attach(net(), "movement", 0.25, scope="global")
    pruner.layers["2"].scores.data.fill_(1.0)
    pruner.step(2)
    assert pruner.densities()["2"] > pruner.densities()["0"]
    functional.mse_loss(pruner.model(torch.randn(3, 12)), torch.zeros(3, 5)).backward()
    assert pruner.layers["0"].scores.grad.abs().sum() > 0


def test_penalty_weights_divide_by_no_zero():
    zero = movement.Schedule(10, 0.0, penalty=4.0)
    assert [zero.penalty_weight(s, "soft") for s in (0, 10)] == [4.0, 4.0]
    ramp = movement.Schedule(10, 0.1, penalty=4.0)
    assert ramp.penalty_weight(0, "soft") == 0
    assert ramp.penalty_weight(10, "soft") == 4
    assert ramp.penalty_weight(0, "l0") == 4


def test_distillation_is_the_mean_of_two_losses():
    torch.manual_seed(0)
    logits, teacher, labels = torch.randn(6, 3), torch.randn(6, 3, requires_grad=True), torch.arange(6) % 3
    soft = functional.kl_div((logits / 2).log_softmax(1), (teacher / 2).softmax(1), reduction="batchmean") * 4
    expected = 0.75 * functional.cross_entropy(logits, labels) + 0.25 * soft
    torch.testing.assert_close(movement.task_loss(logits, labels, teacher, alpha=0.25), expected)
    assert movement.task_loss(logits, labels) == functional.cross_entropy(logits, labels)
    assert not movement.task_loss(logits, labels, teacher).requires_grad


# ---- structure


def column_pruned(model: BertModel, keep: float = 0.5) -> nn.Module:
    """Neurons and heads pruned by scores on whole columns of the layers that read them."""
    head = model.config.hidden_size // model.config.num_attention_heads
    names = linears(model)
    for ending, width in (("attention.output.dense", head), ("output.dense", 1)):
        chosen = [n for n in names if n.endswith(ending) and ("attention" in n) == ("attention" in ending)]
        pruner = movement.attach(model, chosen, method="movement", schedule=constant(keep), block=(None, width))
        for layer in pruner.layers.values():
            layer.scores.data.normal_()
        pruner.step(2)
    return movement.finalize(model)


def test_pruned_columns_make_a_smaller_dense_model_of_equal_outputs():
    model = encoder()
    ids = torch.arange(30).view(2, 15)
    zeros = column_pruned(model)
    torch.testing.assert_close(zeros(input_ids=ids).last_hidden_state, model(input_ids=ids).last_hidden_state)
    groups = blocks.neurons(zeros) + blocks.heads(zeros)
    keep = movement.used_units(zeros, groups)
    assert {int(k.sum()) for k in keep.values()} == {12, 2}
    small = structured.shrink(zeros, groups, keep)
    torch.testing.assert_close(small(input_ids=ids).last_hidden_state, zeros(input_ids=ids).last_hidden_state)
    full = encoder()
    assert structured.cost(small, input_ids=ids).products == structured.cost(full, input_ids=ids).products / 2


def test_rows_of_zero_weight_are_still_read():
    """Zeroing the rows that make a neuron leaves its bias: the neuron is a constant, and cutting it would show."""
    model = encoder()
    model.encoder.layer[0].intermediate.dense.weight.data[:4] = 0
    groups = blocks.neurons(model)
    assert all(k.all() for k in movement.used_units(model, groups).values())
    for layer in model.encoder.layer:
        layer.output.dense.weight.data[:] = 0
    assert [int(k.sum()) for k in movement.used_units(model, groups).values()] == [1, 1]


def test_magnitude_of_a_block_is_the_sum_of_its_sizes():
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].weight.data = torch.full((4, 4), 0.1)
    model[0].weight.data[:2, 2:] = torch.tensor([[0.5, 0.0], [0.0, 0.0]])  # 0.5 in all
    model[0].weight.data[2:, :2] = 0.2  # 0.8 in all
    layer = attach(model, "magnitude", 0.25, block=(2, 2)).layers["0"]
    assert layer.mask().tolist() == [[0, 0, 0, 0]] * 2 + [[1, 1, 0, 0]] * 2


# ---- checkpoints


def test_a_finalised_model_is_saved_and_loaded_by_transformers(tmp_path):
    torch.manual_seed(0)
    config = encoder().config
    model = BertForSequenceClassification(config).eval()
    names = [n for n in linears(model) if "encoder" in n]
    pruner = movement.attach(model, names, method="magnitude", schedule=constant(0.1))
    pruner.step(2)
    ids = torch.arange(20).view(2, 10)
    plain = movement.finalize(model)
    plain.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "bert"
    again, report = BertForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert torch.equal(again.eval()(input_ids=ids).logits, plain(input_ids=ids).logits)
    weight = again.get_submodule(names[0]).weight
    assert (weight != 0).sum() == int(0.1 * weight.numel())


@pytest.mark.parametrize("method", ["movement", "soft", "l0", "magnitude"])
def test_a_diverged_run_is_refused_in_place_of_a_layer_of_zeros(method):
    """AdamW in float16 does it: the squares of small gradients are 0, and so is its epsilon."""
    model = net().half()
    attach(model, method)
    layer = model[2]
    with torch.no_grad():
        (layer.weight if method == "magnitude" else layer.scores)[0] = torch.nan
    with pytest.raises(ValueError, match="layer '2' has NaN scores"):
        movement.finalize(model)


def test_plain_torch_loads_it_and_the_coded_file_is_smaller(tmp_path):
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128))
    attach(dense, "magnitude", 0.05)
    plain = movement.finalize(dense)
    save_file(plain.state_dict(), tmp_path / "plain.safetensors")
    fresh = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128))
    fresh.load_state_dict(load_file(tmp_path / "plain.safetensors"))
    x = torch.randn(3, 128)
    assert torch.equal(fresh(x), plain(x))
    tensors = {
        n: share(t, t != 0, 5) if t.ndim == 2 else t for n, t in plain.state_dict().items()
    }  # fmt: skip
    container.save(tmp_path / "coded.dcz", tensors)
    coded = deep_compression.restore(fresh, container.load(tmp_path / "coded.dcz"))
    for name, tensor in plain.state_dict().items():
        assert torch.equal(coded.state_dict()[name] != 0, tensor != 0) or tensor.ndim == 1
    sizes = {n: (tmp_path / n).stat().st_size for n in ("plain.safetensors", "coded.dcz")}
    kept = int(0.05 * 128 * 128) * 2
    assert sizes["coded.dcz"] < sizes["plain.safetensors"] / 20
    assert sizes["coded.dcz"] * 8 > kept * (5 + 1)  # a code and a gap of each cannot take less
