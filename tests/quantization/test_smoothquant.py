"""Smoothing factors against what equation 4 promises."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference.quantization.smoothquant import columns_absmax, smoothing_factors

ALPHAS = st.floats(0, 1)


def maxima(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(32, generator=generator, dtype=torch.float64).exp() for _ in range(2))


@given(st.integers(0, 2**31), ALPHAS)
def test_the_new_maxima_share_the_old_product(seed: int, alpha: float) -> None:
    """max|X|/s · max|W|·s is unchanged, and alpha says how it is shared."""
    activation, weight = maxima(seed)
    factors = smoothing_factors(activation, weight, alpha)
    left, right = activation / factors, weight * factors
    torch.testing.assert_close(left, (activation * weight) ** (1 - alpha), rtol=1e-12, atol=0)
    torch.testing.assert_close(right, (activation * weight) ** alpha, rtol=1e-12, atol=0)


def test_the_ends_and_the_middle() -> None:
    activation, weight = maxima(0)
    torch.testing.assert_close(smoothing_factors(activation, weight, 1), activation)
    torch.testing.assert_close(smoothing_factors(activation, weight, 0), 1 / weight)
    half = smoothing_factors(activation, weight, 0.5)
    torch.testing.assert_close(activation / half, weight * half)


@given(st.integers(0, 2**31), ALPHAS, st.floats(0.01, 100))
def test_a_scale_already_moved_is_moved_back(seed: int, alpha: float, moved: float) -> None:
    """Smoothing knows no earlier smoothing: it ends at the same activations and weights."""
    activation, weight = maxima(seed)
    first = smoothing_factors(activation, weight, alpha)
    second = smoothing_factors(activation * moved, weight / moved, alpha)
    torch.testing.assert_close(activation * moved / second, activation / first)


def test_channels_that_are_dead_or_not_read_have_the_authors_factors() -> None:
    factors = smoothing_factors(torch.tensor([0.0, 4.0, 0.0]), torch.tensor([1.0, 0.0, 0.0]), 0.5)
    torch.testing.assert_close(factors, torch.tensor([1e-5, 2 / 1e-5**0.5, 1e-5]))


def test_half_precision_keeps_its_digits() -> None:
    activation, weight = (t.half() for t in maxima(1))
    found = smoothing_factors(activation, weight, 0.7)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, smoothing_factors(activation.float(), weight.float(), 0.7))
    assert smoothing_factors(*maxima(1), 0.7).dtype == torch.float64


def test_a_column_counts_in_all_layers_that_read_it() -> None:
    weights = [torch.tensor([[1.0, -3.0], [2.0, 0.0]]), torch.tensor([[-5.0, 1.0]])]
    assert columns_absmax(weights).tolist() == [5, 3]


@pytest.mark.parametrize(
    ("activation", "weight", "alpha", "message"),
    [
        (torch.ones(3), torch.ones(4), 0.5, r"shape \(3,\) and weight_absmax \(4,\)"),
        (torch.ones(2, 2), torch.ones(2, 2), 0.5, r"shape \(2, 2\)"),
        (torch.ones(3), torch.ones(3), 1.1, "alpha is 1.1; it may be 0"),
        (torch.ones(3), torch.ones(3), float("nan"), "alpha is nan"),
        (torch.tensor([-1.0]), torch.ones(1), 0.5, "activation_absmax holds negative"),
        (torch.ones(1), torch.tensor([torch.nan]), 0.5, "weight_absmax holds"),
        (torch.tensor([torch.inf]), torch.ones(1), 0.5, "activation_absmax holds"),
    ],
)
def test_what_makes_no_sense_is_refused(
    activation: torch.Tensor, weight: torch.Tensor, alpha: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        smoothing_factors(activation, weight, alpha)
