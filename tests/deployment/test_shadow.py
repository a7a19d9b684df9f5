"""Shadow comparison against closed forms, a slow loop, and the bound that merging outcomes gives."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from reference import evaluation
from reference.data import text
from reference.deployment.shadow import logprob_divergence, shadow
from reference.models import tutorial


class Fixed(nn.Module):
    """Predicts the same distribution at every position."""

    def __init__(self, *probabilities):
        super().__init__()
        self.logits = torch.tensor(probabilities).log()

    def forward(self, input_ids):
        return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, -1))


def test_closed_form():
    p, q = (0.5, 0.25, 0.25), (0.25, 0.25, 0.5)
    found = shadow(Fixed(*p), Fixed(*q), [torch.tensor([0, 2, 2, 0]), torch.tensor([1, 1])], [3, 2])
    kl = 0.5 * math.log(2) - 0.25 * math.log(2)
    assert found.kl.tolist() == pytest.approx([kl, kl], rel=1e-6)
    assert found.same.tolist() == [0.0, 0.0]
    # Two 2s gain a bit each, the 0 costs one: −1 bit on 3 bytes; a 1 costs nothing.
    assert found.extra.tolist() == pytest.approx([-1 / 3, 0], abs=1e-6)


def test_a_model_does_not_differ_from_itself():
    model = Fixed(0.7, 0.2, 0.1)
    found = shadow(model, model, [torch.tensor([0, 1, 2])], [3])
    assert torch.equal(torch.stack(found), torch.tensor([[0.0], [1.0], [0.0]], dtype=torch.float64))


def test_agrees_with_the_evaluation_of_a_whole_text():
    """Requests of equal length: their mean is what `agreement` and `bits_per_byte` say of the text."""
    model, other = tutorial.load(), tutorial.load()
    with torch.no_grad():
        other.lm_head.weight.mul_(1.1)
    ids = text.encode(text.read("code"), tutorial.tokenizer())[:256]
    found = shadow(model, other, list(ids.view(4, 64)), [100] * 4)
    whole = evaluation.agreement(other, model, ids, window=64)
    assert found.kl.mean().item() == pytest.approx(whole.kl, rel=1e-4)
    assert found.same.mean().item() == pytest.approx(whole.top1)
    nats = [evaluation.token_losses(m, ids, window=64, stride=64).double().sum() for m in (other, model)]
    assert found.extra.sum().item() * 100 * math.log(2) == pytest.approx(float(nats[0] - nats[1]), rel=1e-3)


def test_requests_that_go_together_get_the_numbers_that_each_gets_alone():
    model, other = tutorial.load(), tutorial.load(dtype=torch.bfloat16).float()
    with torch.no_grad():
        other.lm_head.weight.mul_(1.1)
    ids = text.encode(text.read("code"), tutorial.tokenizer())[:1996]
    requests = list(ids.split([64] * 11 + [40, 40, 500, 500, 64, 64, 84]))
    sizes, seen = list(range(100, 100 + len(requests))), []
    model.register_forward_pre_hook(lambda _, __, given: seen.append(tuple(given["input_ids"].shape)), with_kwargs=True)
    found = torch.stack(shadow(model, other, requests, sizes))
    assert seen == [(8, 64), (3, 64), (2, 40), (1, 500), (1, 500), (2, 64), (1, 84)]
    alone = [torch.stack(shadow(model, other, [ids], [size])) for ids, size in zip(requests, sizes, strict=True)]
    torch.testing.assert_close(found, torch.cat(alone, dim=1), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(
    ("requests", "sizes", "words"),
    [
        ([], [], "0 requests"),
        ([[1, 2]], [], "1 requests and 0 sizes"),
        ([[1]], [1], "fewer than 2 tokens"),
        ([[1, 2]], [0], "none that spells a byte"),
    ],
)
def test_what_cannot_be_compared_is_refused(requests, sizes, words):
    model = Fixed(0.5, 0.3, 0.2)
    with pytest.raises(ValueError, match=words):
        shadow(model, model, [torch.tensor(ids) for ids in requests], sizes)


distributions = st.lists(st.floats(0.01, 1), min_size=6, max_size=6).map(lambda w: [x / sum(w) for x in w])


@settings(max_examples=60, deadline=None)
@given(distributions, distributions, st.integers(1, 6))
def test_few_log_probabilities_give_a_lower_bound(p, q, kept):
    def top(probabilities):
        best = sorted(range(6), key=lambda i: -probabilities[i])[:kept]
        return {str(i): math.log(probabilities[i]) for i in best}

    exact = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    if set(top(p)) & set(top(q)):
        found = logprob_divergence([top(p)], [top(q)])
        assert -1e-9 <= found <= exact + 1e-9
        if kept == 6:
            assert found == pytest.approx(exact, abs=1e-9)


def test_positions_are_averaged_and_must_match():
    same, other = {"a": math.log(0.5), "b": math.log(0.5)}, {"a": math.log(0.25), "b": math.log(0.75)}
    one = logprob_divergence([same], [other])
    assert one == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert logprob_divergence([same, same], [other, same]) == pytest.approx(one / 2)
    with pytest.raises(ValueError, match="1 and 2 positions"):
        logprob_divergence([same], [same, same])
    with pytest.raises(ValueError, match="no common token"):
        logprob_divergence([{"a": 0.0}], [{"b": 0.0}])


def test_what_the_candidate_holds_impossible_is_infinite():
    half = {"a": math.log(0.5), "b": math.log(0.5)}
    assert logprob_divergence([half], [{"a": 0.0, "b": -math.inf}]) == math.inf
    # Of tokens that are not reported, float32 tells only that they are below a millionth together.
    assert logprob_divergence([{"a": math.log(0.5)}], [{"a": 0.0}]) == pytest.approx(0.5 * math.log(0.25e6))


def test_log_probabilities_rounded_to_float32_leave_no_rest():
    """A server's numbers add up to 1 only nearly, above it or below."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        p, q = torch.randn(2, 6, generator=generator).log_softmax(-1)
        reported = [[{str(i): float(value) for i, value in enumerate(side)}] for side in (p, q)]
        exact = float((p.double().exp() * (p.double() - q.double())).sum())
        assert logprob_divergence(*reported) == pytest.approx(exact, abs=1e-5)


def test_a_small_rest_that_the_candidate_rounds_away_is_not_infinite():
    """The candidate's report is as sure as float32 can say; what the current model leaves over is one part in 10,000."""
    current, candidate = {"a": math.log(0.9999)}, {"a": 0.0}
    assert 0 < logprob_divergence([current], [candidate]) <= 1e-4 * math.log(1e-4 / 1e-7)
