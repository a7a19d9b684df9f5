"""Structured pruning: the small model against the masked one, scores against gates, sizes against other counters."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from reference.evaluation import accuracy
from reference.models import tutorial
from reference.models.vision import LeNet5, LeNet300, SmallResNet
from reference.pruning import blocks, importance, structured
from reference.pruning.dependency import groups as find_groups


class Concat(nn.Module):
    """Two branches joined by concatenation, a third added to the joint, depthwise, flatten by a view."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(3, 16, 1)
        self.bn = nn.BatchNorm2d(24)
        self.c = nn.Conv2d(24, 24, 3, padding=1, bias=False)
        self.deep = nn.Conv2d(24, 48, 3, padding=1, groups=24)
        self.d = nn.Conv2d(72, 16, 1)
        self.fc1 = nn.Linear(16 * 16, 32)
        self.bn1 = nn.BatchNorm1d(32)
        self.fc2 = nn.Linear(32, 5)

    def forward(self, x):
        joint = functional.relu(self.bn(torch.cat([self.a(x), self.b(x)], 1)))
        joint = torch.cat([self.deep(joint + self.c(joint)), joint], dim=1)
        x = functional.max_pool2d(torch.sigmoid(self.d(joint)), 2)
        x = x.view(x.size(0), -1)
        return self.fc2(functional.gelu(self.bn1(self.fc1(x))))


def settle(model, seed=0):
    """Random weights, and norm statistics that are not their defaults."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias, 0, 0.3)
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


NETS = {
    "LeNet-300-100": (lambda: LeNet300(), (2, 1, 28, 28)),
    "LeNet-5, convolution to linear": (lambda: LeNet5(), (2, 1, 28, 28)),
    "projection and identity shortcuts": (lambda: SmallResNet(8), (2, 1, 28, 28)),
    "concatenation, depthwise, shared": (lambda: Concat(), (2, 3, 8, 8)),
}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(("ratio", "multiple"), [(0.5, 1), (0.3, 8), (0.75, 1)])
def test_the_small_model_equals_the_masked_one(net, ratio, multiple):
    make, shape = NETS[net]
    torch.manual_seed(1)
    model, x = settle(make()), torch.randn(shape)
    found = find_groups(model, x)
    generator = torch.Generator().manual_seed(2)
    keep = structured.keep_best(
        {g.name: torch.rand(g.size, generator=generator) for g in found if not g.fixed}, ratio, multiple=multiple
    )  # fmt: skip
    small, zeros = structured.shrink(model, found, keep), structured.masked(model, found, keep)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    torch.testing.assert_close(small(x), zeros(x), atol=2e-5, rtol=1e-4)
    assert not torch.allclose(small(x), model(x), atol=1e-3)
    small.train()(x).sum().backward()  # shapes agree backwards, too
    for name, module in small.named_modules():  # attributes say what the weights' shapes are
        if isinstance(module, nn.Conv2d):
            expected = (module.out_channels, module.in_channels // module.groups)
            assert module.weight.shape[:2] == expected, name
        elif isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features), name


def test_groups_of_the_residual_network():
    found = {g.name: g for g in find_groups(SmallResNet(8), torch.randn(1, 1, 28, 28))}
    made = {name: {s.layer for s in g.slices if s.side == "out"} for name, g in found.items()}
    assert made["conv"] == {  # one residual stream through the whole first stage
        "conv", "bn", "stages.0.0.conv2", "stages.0.0.bn2", "stages.0.1.conv2", "stages.0.1.bn2",
    }  # fmt: skip
    assert made["stages.1.0.conv1"] == {"stages.1.0.conv1", "stages.1.0.bn1"}  # alone
    assert found["fc"].fixed
    assert [name for name, g in found.items() if g.fixed] == ["fc"]
    stream = next(
        g for g in found.values() if "stages.1.0.shortcut.0" in {s.layer for s in g.slices if s.side == "out"}
    )
    assert {s.layer for s in stream.slices if s.side == "in"} == {
        "stages.1.1.conv1", "stages.2.0.conv1", "stages.2.0.shortcut.0",
    }  # fmt: skip


def test_coupling_found_by_perturbation():
    """Slow second way: a channel's readers are the columns whose input changes when its makers are changed."""
    model = settle(Concat())
    x = torch.randn(1, 3, 8, 8)
    group = next(g for g in find_groups(model, x) if g.name == "a")
    seen = {}
    for name in ("c", "d", "deep"):
        model.get_submodule(name).register_forward_pre_hook(lambda _, a, name=name: seen.update({name: a[0].clone()}))
    model(x)
    before = dict(seen)
    columns = {s.layer: s.unit for s in group.slices if s.side == "in"}
    with torch.no_grad():
        model.a.weight[3] += 1
    model(x)
    changed = ((seen["c"] - before["c"]).abs().amax((0, 2, 3)) > 0).nonzero().flatten().tolist()
    assert changed == np.flatnonzero(columns["c"] == 3).tolist() == [3]
    assert np.flatnonzero(columns["d"] == 3).tolist() == [6, 7, 48 + 3]  # two depthwise outputs, and itself
    assert group.size == 24  # a and b share c's addition


def test_flatten_maps_a_channel_to_its_columns():
    group = next(g for g in find_groups(LeNet5(), torch.randn(1, 1, 28, 28)) if g.name == "conv2")
    (fc,) = [s for s in group.slices if s.layer == "fc1"]
    assert np.flatnonzero(fc.unit == 7).tolist() == list(range(7 * 16, 8 * 16))


def test_in_a_concatenation_the_other_groups_channels_stay():
    class Side(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(2, 3, 1), nn.Conv2d(2, 4, 1), nn.Conv2d(7, 5, 1)

        def forward(self, x):
            return self.c(torch.cat([self.a(x), self.b(x)], 1))

    model, x = Side(), torch.randn(2, 2, 4, 4)
    found, expected = find_groups(model, x), copy.deepcopy(model)
    assert [g.name for g in found] == ["a", "b", "c"]
    with torch.no_grad():
        expected.c.weight[:, 1] = 0  # what reads the channel that goes
    for change in (structured.shrink, structured.masked):
        pruned = change(model, found, {"a": torch.tensor([True, False, True])})
        torch.testing.assert_close(pruned(x), expected(x))
    small = structured.shrink(model, found, {"a": torch.tensor([True, False, True])})
    assert (small.a.out_channels, small.b.out_channels, small.c.in_channels) == (2, 4, 6)


def test_a_layer_used_twice_is_one_group():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.c(self.b(torch.relu(self.b(self.a(x)))))

    model, x = Twice(), torch.randn(3, 4)
    found = find_groups(model, x)
    assert [(g.name, bool(g.fixed)) for g in found] == [("a", False), ("c", True)]
    keep = structured.keep_best(importance.norm_scores(model, found), 0.5)
    torch.testing.assert_close(structured.shrink(model, found, keep)(x), structured.masked(model, found, keep)(x))


@pytest.mark.parametrize(
    ("layer", "word"),
    [(nn.GroupNorm(2, 8), "GroupNorm"), (nn.Conv2d(8, 8, 1, groups=2), "Conv2d"), (nn.PixelShuffle(2), "PixelShuffle")],
)
def test_unknown_layers_are_named(layer, word):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), layer)
    with pytest.raises(ValueError, match=rf"layer '1'.*{word}"):
        find_groups(model, torch.randn(1, 3, 8, 8))


def test_unknown_functions_are_named():
    class Chunks(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x):
            return torch.roll(self.conv(x), 1, 1)

    with pytest.raises(ValueError, match=r"roll.*after layer conv"):
        find_groups(Chunks(), torch.randn(1, 3, 8, 8))


def test_a_reshape_that_mixes_examples_and_channels_is_refused():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x):
            return self.conv(x).flatten(0, 1)  # [2, 4, 4, 4] → [8, 4, 4]: the second axis has four rows now

    with pytest.raises(ValueError, match=r"change of shape from \(2, 4, 4, 4\) to \(8, 4, 4\)"):
        find_groups(Mixed(), torch.randn(2, 3, 4, 4))


class Written(nn.Module):
    """A convolution, and a linear layer behind a ``view`` whose sizes are given."""

    def __init__(self, *sizes, call=None):
        super().__init__()
        self.conv, self.fc, self.last = nn.Conv2d(1, 6, 3), nn.Linear(96, 4), nn.Linear(4, 2)
        self.call = call or (lambda x: x.view(*sizes))

    def forward(self, x):
        return self.last(self.fc(self.call(torch.relu(self.conv(x))).flatten(1)))


@pytest.mark.parametrize(
    ("make", "free"),
    [
        (lambda: Written(-1, 96), ["fc"]),
        (lambda: Written(2, 6, 16), ["fc"]),
        (lambda: Written(call=lambda x: x.reshape((x.shape[0], 6, -1))), ["fc"]),
        (lambda: Written(call=lambda x: torch.reshape(x, (-1, 96))), ["fc"]),
        (lambda: Written(2, -1), ["conv", "fc"]),
        (lambda: Written(call=lambda x: x.view(x.size(0), x.size(1) * 16)), ["conv", "fc"]),
    ],
)
def test_channels_whose_number_is_written_into_a_view_stay(make, free):
    """Cut, the model would fail at that view, which asks for 96 numbers where there are fewer."""
    model, x = make().eval(), torch.randn(2, 1, 6, 6)
    found = find_groups(model, x)
    assert [group.name for group in found if not group.fixed] == free
    assert all("written as" in group.fixed for group in found if group.name == "conv" and "conv" not in free)
    small, zeros = pruned_pair(model, [group for group in found if not group.fixed], 0.5)
    torch.testing.assert_close(small(x), zeros(x))


def test_two_layers_that_share_a_weight_are_refused():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2))
    model[3].weight = model[1].weight
    with pytest.raises(ValueError, match="layer '3'.*also that of layer '1'"):
        find_groups(model, torch.zeros(1, 3))


def test_norms_without_a_scale_share_nothing():
    """Their weight is None, the same None in all of them; it was taken for a weight that two layers share."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False), nn.ReLU(),
        nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6, affine=False), nn.Flatten(), nn.Linear(6 * 16, 2),
    ).eval()  # fmt: skip
    for norm in (model[1], model[4]):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    x = torch.randn(2, 3, 8, 8)
    free = [group for group in find_groups(model, x) if not group.fixed]
    assert [group.name for group in free] == ["0", "3"]
    small, zeros = pruned_pair(model, free, 0.5)
    assert small[4].num_features == len(small[4].running_mean) == 3
    torch.testing.assert_close(small(x), zeros(x))


def test_an_operand_with_fewer_axes_first_is_refused():
    """``[n, c]`` times ``[n, c, c, n]`` pairs the channels of one with positions of the other."""

    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.gate, self.fc = nn.Conv2d(2, 4, 1), nn.Linear(2, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.fc((self.gate(x.mean((2, 3))) * self.conv(x)).mean((2, 3)))

    with pytest.raises(ValueError, match="unequal channels"):
        find_groups(Gate(), torch.randn(4, 2, 4, 4))


def test_a_group_added_to_the_input_is_fixed():
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 2, 1)

        def forward(self, x):
            return self.fc(x + self.conv(x))

    found = {g.name: g for g in find_groups(Skip(), torch.randn(1, 3, 8, 8))}
    assert "inputs" in found["conv"].fixed
    assert "outputs" in found["fc"].fixed


@pytest.mark.parametrize("p", [1, 2])
def test_norm_scores_by_loops(p):
    model = settle(SmallResNet(8))
    found = find_groups(model, torch.randn(1, 1, 28, 28))
    scores = importance.norm_scores(model, found, p)
    layers = [model.conv, model.stages[0][0].conv2, model.stages[0][1].conv2]
    for channel in (0, 5):
        total = sum(abs(w.item()) ** p for layer in layers for w in layer.weight[channel].flatten())
        assert scores["conv"][channel].item() == pytest.approx(total ** (1 / p), rel=1e-5)


def test_taylor_is_the_squared_slope_of_a_gate():
    model = settle(SmallResNet(8)).double()
    x, y = torch.randn(4, 1, 28, 28, dtype=torch.float64), torch.tensor([1, 2, 3, 4])
    found = find_groups(model, x)

    def loss(m, batch):
        return functional.cross_entropy(m(batch[0]), batch[1])

    scores = importance.taylor_scores(model, found, loss, [(x, y)])
    group = next(g for g in found if g.name == "conv")
    for channel in (0, 3):
        values = []
        for gate in (1 + 1e-5, 1 - 1e-5):
            other = settle(SmallResNet(8)).double()
            other.load_state_dict(model.state_dict())
            for part in group.slices:
                if part.side == "in":
                    with torch.no_grad():
                        other.get_submodule(part.layer).weight[:, part.unit == channel] *= gate
            values.append(loss(other, (x, y)).item())
        slope = (values[0] - values[1]) / 2e-5
        assert scores["conv"][channel].item() == pytest.approx(slope**2, rel=1e-4)


def test_activation_scores_by_hand():
    model = settle(LeNet5())
    x = torch.randn(6, 1, 28, 28)
    found = find_groups(model, x)
    scores = importance.activation_scores(model, found, lambda m, b: m(b), [x[:2], x[2:]])
    y = functional.max_pool2d(model.conv1(x), 2)
    torch.testing.assert_close(scores["conv1"].float(), y.square().mean((0, 2, 3)).sqrt())
    hidden = functional.relu(model.fc1(functional.max_pool2d(model.conv2(y), 2).flatten(1)))
    torch.testing.assert_close(scores["fc1"].float(), hidden.square().mean(0).sqrt())


@pytest.mark.parametrize(
    ("size", "ratio", "multiple", "kept"),
    [
        (16, 0.5, 1, 8),
        (5, 0.5, 1, 3),
        (16, 0.9, 8, 8),
        (20, 0.4, 8, 16),
        (768, 0.3, 64, 512),
        (4, 0.5, 8, 4),
        (9, 0, 1, 9),
    ],
)
def test_sizes_are_rounded(size, ratio, multiple, kept):
    keep = structured.keep_best({"g": torch.arange(size).double()}, ratio, multiple=multiple)["g"]
    assert keep.sum() == kept
    assert keep[-kept:].all()


def test_ties_keep_the_first():
    assert structured.keep_best({"g": torch.ones(6)}, 0.5)["g"].tolist() == [True] * 3 + [False] * 3


def test_cost_agrees_with_torchs_counter():
    model, x = SmallResNet(8).eval(), torch.randn(3, 1, 28, 28)
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert structured.cost(model, x).products * 2 == counter.get_total_flops()
    assert structured.cost(nn.Conv2d(6, 6, 3, groups=6), torch.randn(1, 6, 5, 5)) == (60, 6 * 9 * 9)


def llama(**settings):
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=6,
                    num_key_value_heads=3, vocab_size=50, attention_bias=True, mlp_bias=True, **settings)
    ).eval()  # fmt: skip


def bert():
    torch.manual_seed(0)
    return BertModel(
        BertConfig(hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=6, vocab_size=50)
    ).eval()


def opt():
    torch.manual_seed(0)
    return OPTForCausalLM(
        OPTConfig(hidden_size=48, ffn_dim=64, num_hidden_layers=2, num_attention_heads=6, vocab_size=50,
                  word_embed_proj_dim=48, max_position_embeddings=32)
    ).eval()  # fmt: skip


def outputs(model, ids):
    with torch.no_grad():
        return model(input_ids=ids)[0]


def pruned_pair(model, found, ratio, multiple=1):
    generator = torch.Generator().manual_seed(1)
    scores = {g.name: torch.rand(g.size, generator=generator) for g in found}
    keep = structured.keep_best(scores, ratio, multiple=multiple)
    return structured.shrink(model, found, keep), structured.masked(model, found, keep)


@pytest.mark.parametrize("part", ["neurons", "heads", "both"])
@pytest.mark.parametrize("make", [llama, bert, tutorial.load])
def test_transformers_equal_their_masked_models(make, part):
    model = make()
    found = (blocks.neurons(model) if part != "heads" else []) + (blocks.heads(model) if part != "neurons" else [])
    if part == "both":  # a group's name is its writing layer, so the two do not meet
        assert len({g.name for g in found}) == len(found)
    small, zeros = pruned_pair(model, found, 0.4)
    ids = torch.randint(0, 50, (2, 9))
    torch.testing.assert_close(outputs(small, ids), outputs(zeros, ids), atol=2e-5, rtol=1e-4)
    assert not torch.allclose(outputs(small, ids), outputs(model, ids), atol=1e-4)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("make", [llama, bert])
def test_a_cut_model_can_be_cut_again(make):
    """BERT's configuration still counts the heads that are gone; its layers do not."""
    small, _ = pruned_pair(make(), blocks.heads(make()), 0.34)
    again = blocks.heads(small)
    assert {group.size for group in again} == {2 if make is llama else 4}
    smaller, zeros = pruned_pair(small, again, 0.5)
    ids = torch.randint(0, 50, (2, 9))
    torch.testing.assert_close(outputs(smaller, ids), outputs(zeros, ids), atol=2e-5, rtol=1e-4)


def test_opt_neurons_and_its_heads_are_refused(tmp_path):
    model = opt()
    small, zeros = pruned_pair(model, blocks.neurons(model), 0.5, 8)
    ids = torch.randint(0, 50, (2, 9))
    torch.testing.assert_close(outputs(small, ids), outputs(zeros, ids), atol=1e-5, rtol=1e-4)
    small.save_pretrained(tmp_path)
    torch.testing.assert_close(outputs(OPTForCausalLM.from_pretrained(tmp_path).eval(), ids), outputs(small, ids))
    with pytest.raises(ValueError, match="opt"):
        blocks.heads(model)


def test_grouped_heads_go_together_and_the_checkpoint_reloads(tmp_path):
    model = llama()
    found = blocks.heads(model) + blocks.neurons(model)
    small, _ = pruned_pair(model, found, 0.4, 1)
    config = small.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 2, 8)
    assert config.intermediate_size == 48
    assert model.config.num_attention_heads == 6
    small.save_pretrained(tmp_path)
    again = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.randint(0, 50, (2, 9))
    torch.testing.assert_close(outputs(again, ids), outputs(small, ids), atol=0, rtol=0)
    made = small.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)  # the cache knows the new count
    assert torch.equal(made, again.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0))


def test_taylor_of_a_head_is_its_gate():
    model = llama(initializer_range=0.3).double()
    ids = torch.randint(0, 50, (2, 9))
    found = blocks.heads(model)

    def loss(m, batch):
        return m(input_ids=batch, labels=batch).loss

    scores = importance.taylor_scores(model, found, loss, [ids])[found[1].name]
    projection = model.model.layers[1].self_attn.o_proj
    for unit in range(3):
        values = []
        for gate in (1 + 1e-2, 1 - 1e-2):

            def scaled(_, a, gate=gate, unit=unit):
                x = a[0].clone()
                x[..., 16 * unit : 16 * unit + 16] *= gate
                return (x,)

            handle = projection.register_forward_pre_hook(scaled)
            values.append(loss(model, ids).item())
            handle.remove()
        assert scores[unit].item() == pytest.approx(((values[0] - values[1]) / 2e-2) ** 2, rel=1e-2)


def test_a_look_at_a_model_leaves_it_as_it_was():
    """Modes of single layers, running statistics and hooks, also where the call fails."""
    model, x = Concat().train(), torch.randn(2, 3, 8, 8)
    model.bn.eval()  # frozen by hand
    modes, state = [m.training for m in model.modules()], {k: v.clone() for k, v in model.state_dict().items()}

    def fail(*_):
        raise RuntimeError("no")

    found = find_groups(model, x)
    for look in (
        lambda: importance.taylor_scores(model, found, lambda net, b: net(b).sum(), [x]),
        lambda: importance.activation_scores(model, found, lambda net, b: net(b), [x]),
        lambda: structured.cost(model, x),
        lambda: accuracy(model, x, torch.zeros(2, dtype=torch.long)),
    ):
        look()
        assert [m.training for m in model.modules()] == modes
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    for look in (
        lambda: importance.taylor_scores(model, found, fail, [x]),
        lambda: importance.activation_scores(model, found, fail, [x]),
        lambda: structured.cost(model, x[:, :2]),
    ):
        with pytest.raises(RuntimeError):
            look()
        assert [m.training for m in model.modules()] == modes
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_errors_name_what_is_wrong():
    model, x = LeNet5(), torch.randn(1, 1, 28, 28)
    found = find_groups(model, x)
    with pytest.raises(ValueError, match="no group"):
        structured.shrink(model, found, {"conv9": torch.ones(3, dtype=torch.bool)})
    with pytest.raises(ValueError, match="outputs"):
        structured.shrink(model, found, {"fc2": torch.ones(10, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"bool \[20\]"):
        structured.shrink(model, found, {"conv1": torch.ones(19, dtype=torch.bool)})
    with pytest.raises(ValueError, match="keeps nothing"):
        structured.shrink(model, found, {"conv1": torch.zeros(20, dtype=torch.bool)})
    for settings in ({"ratio": 1.0}, {"ratio": 0.5, "multiple": 0}):
        with pytest.raises(ValueError, match=list(settings)[-1]):
            structured.keep_best({"g": torch.ones(4)}, **settings)
    with pytest.raises(ValueError, match="p is 3"):
        importance.norm_scores(model, found, 3)
    with pytest.raises(ValueError, match="batches"):
        importance.taylor_scores(model, found, lambda m, b: m(b).sum(), [])
    with pytest.raises(ValueError, match="finite"):
        structured.keep_best({"g": torch.tensor([1.0, float("nan")])}, 0.5)
    model = llama()
    found = blocks.neurons(model)
    with pytest.raises(ValueError, match="block by block"):
        structured.shrink(model, found, {found[0].name: torch.arange(80) < 40})
    with pytest.raises(ValueError, match="neurons and heads are known for"):
        blocks.neurons(LeNet5())


def test_one_branch_of_a_concatenation_cannot_be_emptied():
    model, x = Concat().eval(), torch.randn(1, 3, 8, 8)
    found = find_groups(model, x)
    with pytest.raises(ValueError, match="'a' would keep none"):
        structured.shrink(model, found, {"a": torch.arange(24) >= 8})
