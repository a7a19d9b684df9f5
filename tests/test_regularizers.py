"""Penalties against distributions whose moments are known, a slow second implementation, and what they do when they are minimised."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference.regularizers import hoyer_penalty, kurtosis, kurtosis_penalty

MANY = 400_000


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        (lambda: torch.rand(MANY, generator=draw(), dtype=torch.float64) - 0.5, 1.8),
        (lambda: torch.randn(MANY, generator=draw(), dtype=torch.float64), 3.0),
        (lambda: torch.tensor([-1.0, 1.0] * 8), 1.0),
        # Laplace: a difference of two exponentials
        (lambda: torch.rand(2, MANY, generator=draw(), dtype=torch.float64).log().diff(dim=0), 6.0),
    ],
    ids=["uniform", "normal", "two values", "laplace"],
)
def test_kurtosis_of_known_distributions(sample, expected) -> None:
    assert float(kurtosis(sample())) == pytest.approx(expected, rel=0.02)


def test_kurtosis_by_hand() -> None:
    """0, 0, 0, 4: mean 1, variance 3, fourth moment (3 + 81) / 4 = 21."""
    assert float(kurtosis(torch.tensor([[0.0, 0.0], [0.0, 4.0]]))) == pytest.approx(21 / 9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("spread", [1e-3, 0.02, 1.0])
def test_short_types_have_room_for_fourth_powers_and_sums(dtype, spread) -> None:
    weight = (torch.randn(600, 600, generator=draw(5)) * spread).to(dtype)
    for found, exact in (
        (kurtosis(weight), kurtosis(weight.double())),
        (hoyer_penalty([weight]), hoyer_penalty([weight.double()])),
    ):
        assert found.dtype == dtype
        assert float(found) == pytest.approx(float(exact), rel=torch.finfo(dtype).eps)


def test_penalties_are_means_over_tensors() -> None:
    one, two = torch.randn(40, 30, generator=draw(1)), torch.rand(17, generator=draw(2))

    def slow(values: list[float]) -> float:
        mean = math.fsum(values) / len(values)
        moments = [math.fsum((v - mean) ** power for v in values) / len(values) for power in (2, 4)]
        return moments[1] / moments[0] ** 2

    expected = sum((slow(t.flatten().tolist()) - 1.8) ** 2 for t in (one, two)) / 2
    assert float(kurtosis_penalty([one, two])) == pytest.approx(expected, rel=1e-5)
    ratio = [math.fsum(abs(v) for v in t.flatten().tolist()) ** 2
             / (t.numel() * math.fsum(v * v for v in t.flatten().tolist())) for t in (one, two)]  # fmt: skip
    assert float(hoyer_penalty([one, two])) == pytest.approx(sum(ratio) / 2, rel=1e-5)


@given(kept=st.integers(1, 50), scale=st.floats(0.01, 100))
def test_hoyer_is_the_density_of_equal_weights_whatever_their_size(kept, scale) -> None:
    weight = torch.zeros(50)
    weight[:kept] = scale
    weight[: kept // 2] *= -1
    assert float(hoyer_penalty([weight])) == pytest.approx(kept / 50, rel=1e-5)


@pytest.mark.parametrize("penalty", [kurtosis_penalty, hoyer_penalty])
def test_the_scale_of_a_tensor_does_not_matter_so_the_gradient_is_orthogonal_to_it(penalty) -> None:
    weight = torch.randn(64, 32, generator=draw(), dtype=torch.float64, requires_grad=True)
    penalty([weight]).backward()
    fixed = weight.detach()
    assert float(penalty([fixed * 7.0])) == pytest.approx(float(penalty([fixed])), rel=1e-9)
    assert abs(float((weight.grad * fixed).sum())) < 1e-12 * float(weight.grad.norm() * fixed.norm()) * 1e3
    assert float(weight.grad.norm()) > 0


@pytest.mark.parametrize("penalty", [kurtosis_penalty, hoyer_penalty])
def test_gradients_are_right(penalty) -> None:
    weight = torch.randn(5, 3, generator=draw(3), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: penalty([w, w[:2]]), (weight,))


def test_minimised_they_flatten_and_thin_out() -> None:
    def minimise(penalty) -> torch.Tensor:
        weight = torch.randn(512, generator=draw(4), requires_grad=True)
        optimizer = torch.optim.Adam([weight], lr=0.02)
        for _ in range(300):
            optimizer.zero_grad()
            penalty([weight]).backward()
            optimizer.step()
        return weight.detach()

    before = torch.randn(512, generator=draw(4))
    flat, thin = minimise(kurtosis_penalty), minimise(hoyer_penalty)
    assert float(kurtosis(flat)) == pytest.approx(1.8, abs=0.02)
    # The step of a grid follows the largest weight: fewer standard deviations, less error.
    assert float(flat.abs().max() / flat.std()) < 0.8 * float(before.abs().max() / before.std())
    smallest = thin.abs().sort().values[:256]
    assert float(smallest.square().sum() / thin.square().sum()) < 0.02
    assert float(before.abs().sort().values[:256].square().sum() / before.square().sum()) > 0.05


def test_what_has_no_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="6 entries that are all equal"):
        kurtosis(torch.ones(2, 3))
    with pytest.raises(ValueError, match="0 entries"):
        kurtosis(torch.ones(0))
    with pytest.raises(ValueError, match=r"target is 0\.5"):
        kurtosis_penalty([torch.randn(4)], target=0.5)
    with pytest.raises(ValueError, match="weights is empty"):
        hoyer_penalty([])
    with pytest.raises(ValueError, match=r"shape \(2, 2\) with only zeros"):
        hoyer_penalty([torch.ones(2), torch.zeros(2, 2)])
