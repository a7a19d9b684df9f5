"""The router against scikit-learn and against leaving out for real; its curve against its definition; rows that run."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from reference.dynamic import routing


def data(count: int = 60, width: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, width, generator=generator) * torch.tensor([1.0, 10.0, 0.1, 1.0, 1.0]) + 3
    large = torch.rand(count, generator=generator)
    small = large + 0.5 + x[:, 1] * 0.05 + 0.2 * torch.randn(count, generator=generator)
    return x, small, large


def test_one_token_does_not_repeat() -> None:
    found = routing.features(torch.tensor([[1.0], [3.0]]), torch.tensor([[1], [0]]))
    assert found.tolist() == [[3.0, 0.0], [1.0, 0.0]]


@pytest.mark.parametrize("penalty", [0.1, 10.0])
def test_is_ridge_regression_on_standardised_features(penalty: float) -> None:
    x, small, large = data()
    router = routing.fit(x, small, large, penalties=(penalty,))
    z = ((x - x.mean(0)) / x.std(0)).numpy()
    peer = Ridge(alpha=penalty).fit(z, (small - large).numpy())
    np.testing.assert_allclose(router(x).numpy(), peer.predict(z), rtol=1e-3, atol=1e-4)
    assert router.penalty == penalty


def test_the_penalty_is_that_of_the_least_left_out_error() -> None:
    """With few rows, whose leverage is large, and many penalties, of which one is the best by little."""
    penalties, chosen = tuple(10 ** (k / 4) for k in range(-8, 17)), []
    for rows in range(8, 20):
        x, small, large = (part[:rows] for part in data())
        z = ((x - x.mean(0)) / x.std(0)).double().numpy()
        gain, errors = (small - large).double().numpy(), []
        for penalty in penalties:
            left = []
            for i in range(rows):
                others, wanted = np.delete(z, i, 0), np.delete(gain, i)
                centred = others - others.mean(0)
                normal = centred.T @ centred + penalty * np.eye(z.shape[1])
                slope = np.linalg.solve(normal, centred.T @ (wanted - wanted.mean()))
                left.append(gain[i] - wanted.mean() - (z[i] - others.mean(0)) @ slope)
            errors.append(np.mean(np.square(left)))
        chosen.append(penalties[int(np.argmin(errors))])
        assert routing.fit(x, small, large, penalties).penalty == chosen[-1]
    assert len(set(chosen)) > 3


def test_the_curve_runs_from_one_model_to_the_other() -> None:
    small, large = torch.tensor([3.0, 2.0, 2.0]), torch.tensor([1.0, 1.5, 2.5])
    oracle = routing.curve(small - large, small, large, 1.0, 4.0, 0.5)
    assert oracle.loss.tolist() == pytest.approx([7 / 3, 5 / 3, 4.5 / 3, 5 / 3])
    assert oracle.cost.tolist() == pytest.approx([1.5, 2.5, 3.5, 4.5])
    worst = routing.curve(large - small, small, large, 1.0, 4.0)
    assert worst.loss.tolist() == pytest.approx([7 / 3, 7.5 / 3, 7 / 3, 5 / 3])


def test_a_router_is_as_good_as_what_it_knows() -> None:
    _, small, large = data(400)
    generator = torch.Generator().manual_seed(1)
    gain = small - large
    oracle = routing.advantage(gain, small, large)
    noisy = routing.advantage(gain + torch.randn(400, generator=generator), small, large)
    blind = np.mean([routing.advantage(torch.rand(400, generator=generator), small, large) for _ in range(200)])
    assert oracle > noisy > 5 * abs(blind)
    assert routing.advantage(-gain, small, large) == pytest.approx(-oracle, rel=0.05)


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for trial in range(60):
        values = torch.randn(50, generator=generator)
        low, high = routing.bootstrap(lambda rows, v=values: float(v[rows].mean()), 50, seed=trial, level=0.8)
        hits += low < 0 < high
    assert 38 <= hits <= 57  # 80 % of 60 is 48


def test_features_are_the_mean_embedding_and_the_repeats() -> None:
    embedding = torch.arange(12.0).view(6, 2)
    found = routing.features(embedding, torch.tensor([[0, 1, 5], [4, 4, 4]]))
    torch.testing.assert_close(found, torch.tensor([[4.0, 5.0, 0.0], [8.0, 9.0, 1.0]]))


def model(layers: int) -> LlamaForCausalLM:
    torch.manual_seed(layers)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=layers, num_attention_heads=2
        )
    ).eval()


@torch.no_grad()
def test_each_request_runs_through_one_model() -> None:
    ids = torch.randint(40, (7, 12), generator=torch.Generator().manual_seed(0))
    small, large = model(1), model(2)
    x = routing.features(large.get_input_embeddings().weight, ids[:, :6])
    router = routing.fit(x, torch.randn(7), torch.zeros(7), penalties=(1.0,))
    routed = routing.RoutedModels(small, large, router, float(router(x).median()), 6)
    rows: dict[str, list[int]] = {"small": [], "large": []}
    for name, one in (("small", small), ("large", large)):
        one.model.layers[0].register_forward_pre_hook(lambda _, args, name=name: rows[name].append(len(args[0])))
    logits = routed(ids)
    assert rows == {"small": [4], "large": [3]}
    to_large = routed.decide(ids)
    torch.testing.assert_close(logits[to_large], large(input_ids=ids[to_large]).logits)
    torch.testing.assert_close(logits[~to_large], small(input_ids=ids[~to_large]).logits)


@torch.no_grad()
@pytest.mark.parametrize("threshold", [float("inf"), float("-inf")])
def test_the_ends_are_the_single_models_bit_for_bit(threshold: float) -> None:
    ids = torch.randint(40, (4, 9), generator=torch.Generator().manual_seed(0))
    small, large = model(1), model(2)
    x = routing.features(large.get_input_embeddings().weight, ids[:, :6])
    router = routing.fit(x, torch.randn(4), torch.zeros(4))
    routed = routing.RoutedModels(small, large, router, threshold, 6)
    expected = small if threshold > 0 else large
    assert torch.equal(routed(ids), expected(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: routing.fit(torch.zeros(2, 1), torch.zeros(2), torch.zeros(2)), "3 or more"),
        (lambda: routing.curve(torch.zeros(2), torch.zeros(3), torch.zeros(3), 1, 2), "equally many"),
        (lambda: routing.bootstrap(lambda rows: 0.0, 3, level=1.0), "level is 1.0"),
        (lambda: routing.features(torch.zeros(2, 1), torch.zeros(3).long()), "\\[requests, length\\]"),
    ],
)
def test_wrong_arguments_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_small_is_not_called_in_vain() -> None:
    class Forbidden(nn.Module):
        def forward(self, input_ids: Tensor) -> Tensor:
            raise AssertionError("ran")

    large = model(2)
    ids = torch.randint(40, (3, 9))
    x = routing.features(large.get_input_embeddings().weight, ids[:, :6])
    router = routing.fit(x, torch.randn(3), torch.zeros(3))
    routing.RoutedModels(Forbidden(), large, router, float("-inf"), 6)(ids)
