"""Token skipping: off is the dense model; on computes the picked rows, causally, and says the same with a cache."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from tiny_models import llama
from torch import nn
from torch.nn import functional
from transformers import LlamaForCausalLM, OPTConfig, OPTForCausalLM

from reference.dynamic.skipping import TokenSkippingMLP, cut_at, fit_routers, set_thresholds, skip_tokens

IDS = torch.randint(64, (3, 20), generator=torch.Generator().manual_seed(0))


def skipping(capacity: float = 0.5) -> LlamaForCausalLM:
    model = skip_tokens(llama(), capacity)
    for layer in model.modules():
        if isinstance(layer, TokenSkippingMLP):
            nn.init.normal_(layer.router.weight)
    return model


def layers(model: nn.Module) -> list[TokenSkippingMLP]:
    return [layer for layer in model.modules() if isinstance(layer, TokenSkippingMLP)]


@torch.no_grad()
def test_off_is_the_dense_model_bit_for_bit() -> None:
    dense = llama()(input_ids=IDS).logits
    model = skipping()
    assert len(layers(model)) == 2
    assert torch.equal(model(input_ids=IDS).logits, dense)
    set_thresholds(model, [IDS], 0.5)
    assert not torch.equal(model(input_ids=IDS).logits, dense)
    set_thresholds(model, [IDS], 1.0)
    assert torch.equal(model(input_ids=IDS).logits, dense)


@torch.no_grad()
def test_rows_that_are_not_picked_are_not_multiplied() -> None:
    model = skipping()
    shares = set_thresholds(model, [IDS], 0.3)
    assert all(share == pytest.approx(0.3) for share in shares.values())
    rows = []
    for layer in layers(model):
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[0]))
    model(input_ids=IDS)
    assert rows == [18, 18]


@torch.no_grad()
def test_equals_multiplying_all_and_masking() -> None:
    model = skipping()
    set_thresholds(model, [IDS], 0.4)

    class Masked(nn.Module):
        def __init__(self, layer: TokenSkippingMLP) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            kept = self.layer.router(hidden) >= self.layer.threshold
            return torch.where(kept, self.layer.mlp(hidden), torch.zeros_like(hidden))

    slow = copy.deepcopy(model)
    for block in slow.model.layers[1:]:
        block.mlp = Masked(block.mlp)
    torch.testing.assert_close(model(input_ids=IDS).logits, slow(input_ids=IDS).logits, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_later_tokens_change_nothing_and_the_cache_says_the_same() -> None:
    model = skipping()
    set_thresholds(model, [IDS], 0.5)
    whole = model(input_ids=IDS).logits
    torch.testing.assert_close(model(input_ids=IDS[:, :11]).logits, whole[:, :11], rtol=1e-5, atol=1e-6)
    first = model(input_ids=IDS[:, :11], use_cache=True)
    rest = model(input_ids=IDS[:, 11:], past_key_values=first.past_key_values).logits
    torch.testing.assert_close(rest, whole[:, 11:], rtol=1e-5, atol=1e-6)


def test_no_token_picked_is_the_residual_alone() -> None:
    layer = TokenSkippingMLP(nn.Linear(4, 4), nn.Linear(4, 1), 0.5).eval()
    layer.threshold.fill_(float("inf"))
    assert torch.equal(layer(torch.randn(2, 3, 4)), torch.zeros(2, 3, 4))


def test_training_picks_its_share_and_passes_the_gate_s_gradient() -> None:
    torch.manual_seed(1)
    layer = TokenSkippingMLP(nn.Linear(4, 4), nn.Linear(4, 1), 0.25).train()
    x = torch.randn(2, 8, 4)
    out = layer(x)
    assert int((out.abs().sum(-1) > 0).sum()) == 4
    score = layer.router(x).detach().squeeze(-1)
    assert torch.equal(out.abs().sum(-1) > 0, score >= score.flatten().topk(4).values.min())
    direction = torch.randn(2, 8, 4)
    (out * direction).sum().backward()
    p = score.sigmoid()
    slope = p * (1 - p) * (layer.mlp(x).detach() * direction).sum(-1)
    torch.testing.assert_close(layer.router.weight.grad[0], (slope[..., None] * x).sum((0, 1)))
    assert layer.threshold == pytest.approx(float(score.flatten().sort(descending=True).values[3:5].mean()))


@torch.no_grad()
def test_fitted_routers_are_ridge_regression_of_what_the_part_adds() -> None:
    model, rows = llama(), torch.randint(64, (8, 20), generator=torch.Generator().manual_seed(4))
    routers = fit_routers(model, [rows[:5], rows[5:]], penalty=0.01)
    assert len(routers) == 2
    seen: dict[str, torch.Tensor] = {}
    block = model.model.layers[2]
    block.mlp.register_forward_hook(lambda _, args, out: seen.update(x=args[0].flatten(0, 1), y=out.flatten(0, 1)))
    block.register_forward_hook(
        lambda _, args, out: seen.update(h=(out[0] if isinstance(out, tuple) else out).flatten(0, 1))
    )
    model(input_ids=rows)
    x, target = seen["x"].numpy(), (seen["y"].norm(dim=1) / seen["h"].norm(dim=1)).numpy()
    peer = Ridge(alpha=0.01 * len(x) * x.var(0).mean()).fit(x, target)
    torch.testing.assert_close(routers[1].weight[0], torch.tensor(peer.coef_).float(), rtol=1e-3, atol=1e-5)
    assert float(routers[1].bias) == pytest.approx(float(peer.intercept_), abs=1e-5)
    skipped = skip_tokens(llama(), 0.5, routers=routers)
    set_thresholds(skipped, [rows], 0.5)
    kept = layers(skipped)[0]
    assert 0.4 < float((kept.router(kept_input(skipped, rows)) >= kept.threshold).float().mean()) < 0.6


def kept_input(model: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    found: list[torch.Tensor] = []
    handle = layers(model)[0].register_forward_pre_hook(lambda _, args: found.append(args[0]))
    model(input_ids=rows)
    handle.remove()
    return found[0]


def test_a_router_learns_which_tokens_need_the_layer() -> None:
    """The output is wanted only where the first feature is positive; the router finds that."""
    torch.manual_seed(0)
    layer = TokenSkippingMLP(nn.Linear(6, 6), nn.Linear(6, 1), 0.5).train()
    target = nn.Linear(6, 6)
    optimizer = torch.optim.Adam(layer.parameters(), 0.02)
    for _ in range(300):
        x = torch.randn(64, 6)
        wanted = target(x) * (x[:, :1] > 0)
        loss = functional.mse_loss(layer(x), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x = torch.randn(500, 6)
    picked = layer.router(x).squeeze(1) >= layer.threshold
    assert float((picked == (x[:, 0] > 0)).float().mean()) > 0.85


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30, unique=True), st.floats(0.01, 1))
def test_the_cut_lets_the_share_pass(scores: list[float], capacity: float) -> None:
    score = torch.tensor(scores, dtype=torch.float64)
    picked = int((score >= cut_at(score, capacity)).sum())
    assert picked >= capacity * len(scores) - 1e-9
    assert picked - 1 < capacity * len(scores)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: skip_tokens(llama(), 0.0), "capacity is 0.0"),
        (lambda: skip_tokens(llama(), 0.5, first=3), "first is 3"),
        (lambda: fit_routers(llama(), [IDS], penalty=0), "penalty is 0"),
        (lambda: set_thresholds(llama(), [IDS], 0.5), "no TokenSkippingMLP"),
        (lambda: set_thresholds(skipping(), [IDS], 1.5), "capacity is 1.5"),
        (
            lambda: skip_tokens(
                OPTForCausalLM(OPTConfig(vocab_size=64, hidden_size=16, ffn_dim=16, num_hidden_layers=1,
                                         num_attention_heads=2, word_embed_proj_dim=16)), 0.5, first=0),
            "no module 'mlp'",
        ),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_16_bit_model_picks_the_tokens_that_reach_the_threshold() -> None:
    """A threshold between two neighbouring numbers of bfloat16 is none of them: comparing in bfloat16 rounds it down."""
    router = nn.Linear(1, 1).bfloat16()
    router.weight.data.fill_(1.0)
    router.bias.data.fill_(0.0)
    layer = TokenSkippingMLP(nn.Identity(), router, capacity=0.5).eval()
    scores = torch.tensor([1.0, 1.0078125], dtype=torch.bfloat16)
    layer.threshold.copy_(cut_at(scores.float(), 0.5))
    assert (layer(scores.view(1, 2, 1)) != 0).flatten().tolist() == [False, True]
