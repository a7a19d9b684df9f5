"""Estimators by their closed forms, finite differences where they hold, and where they fail."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference.quantization.activations import ActivationSpec, dequantize, quantize_activations
from reference.quantization.quantization_aware import (
    fake_activations,
    fake_quantize,
    gradient_factor,
    initial_step,
    lsq,
    pact,
    scale_gradient,
    straight_through,
)


def closed_form(x: torch.Tensor, s: torch.Tensor, low: int, high: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Derivatives of each output by its input and by the step, as the paper prints them."""
    v = x / s
    by_x = ((v >= low) & (v <= high)).float()
    by_s = torch.where(v < low, float(low), torch.where(v > high, float(high), v.round() - v))
    return by_x, by_s


@pytest.mark.parametrize(("low", "high"), [(-2, 1), (-4, 3), (-8, 7), (0, 15)])
@pytest.mark.parametrize("shape", [(1, 1), (6, 1)], ids=["tensor", "channel"])
def test_gradients_are_the_closed_forms(low: int, high: int, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x = (2 * torch.randn(6, 40)).requires_grad_()
    step = (0.2 + 0.3 * torch.rand(shape)).requires_grad_()
    up = torch.randn(6, 40)
    lsq(x, step, low, high, factor=0.25).backward(up)
    by_x, by_s = closed_form(x.detach(), step.detach(), low, high)
    assert x.grad is not None
    assert step.grad is not None
    assert torch.allclose(x.grad, up * by_x, atol=1e-6)
    assert torch.allclose(step.grad, 0.25 * (up * by_s).sum_to_size(shape), atol=1e-5)


def test_finite_differences_see_a_staircase() -> None:
    """By x they are 0 or enormous; by s they lack the term −v that the estimator adds."""
    x, step = torch.tensor([0.33]), torch.tensor([0.1])
    small, large = (fake_quantize(x + h, step, -8, 7) - fake_quantize(x - h, step, -8, 7) for h in (1e-3, 0.02))
    assert small == 0
    assert large / 0.04 == pytest.approx(2.5)
    slope = (fake_quantize(x, step + 1e-4, -8, 7) - fake_quantize(x, step - 1e-4, -8, 7)) / 2e-4
    s = step.clone().requires_grad_()
    fake_quantize(x, s, -8, 7).backward()
    assert slope == pytest.approx(3.0, rel=1e-3)  # the code
    assert s.grad == pytest.approx(3.0 - 3.3, rel=1e-4)  # the code less v


def test_finite_differences_hold_for_the_step_where_everything_is_clipped() -> None:
    x = torch.tensor([3.0, -5.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda s: fake_quantize(x, s, -2, 1), torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    )


def test_learned_zero_point_moves_only_what_is_clipped() -> None:
    """∂x̂/∂z is −s beyond the grid and 0 inside it."""
    x = torch.tensor([-3.0, 0.1, 9.0])
    zero = torch.tensor(1.0, requires_grad=True)
    rows = []
    for k in range(3):
        (gradient,) = torch.autograd.grad(fake_quantize(x, torch.tensor(0.5), -zero, 3 - zero)[k], zero)
        rows.append(float(gradient))
    assert rows == [-0.5, 0.0, -0.5]


def test_one_end_of_the_grid_may_be_a_tensor() -> None:
    x, step = torch.tensor([-3.0, 0.4, 9.0]), torch.tensor(0.5)
    expected = fake_quantize(x, step, 0, 3)
    for ends in [(0, torch.tensor(3)), (torch.tensor(0.0), 3), (torch.tensor(0), torch.tensor(3.0))]:
        assert torch.equal(fake_quantize(x, step, *ends), expected)


@given(st.floats(-20, 20), st.floats(0.01, 5), st.sampled_from([(-2, 1), (-8, 7), (0, 255)]))
def test_masks_give_equal_values_on_the_grid(value: float, step: float, limits: tuple[int, int]) -> None:
    x, s = torch.tensor([value]), torch.tensor([step])
    one, other = (fake_quantize(x, s, *limits, mask=mask) for mask in ("unrounded", "rounded"))
    assert torch.equal(one, other)
    code = float((one / s).round())
    assert limits[0] <= code <= limits[1]
    assert float(one) == pytest.approx(code * float(s), abs=1e-5)


def test_straight_through_is_exact_where_the_sum_would_round() -> None:
    x = torch.tensor([1e8], requires_grad=True)
    y = straight_through(torch.tensor([0.1]), x)
    assert y.item() == pytest.approx(0.1, rel=1e-7)
    y.backward()
    assert x.grad == 1


def test_scaled_gradient_leaves_the_value() -> None:
    x = torch.tensor([0.1234567], requires_grad=True)
    y = scale_gradient(x, 0.01)
    y.backward()
    assert y.item() == pytest.approx(x.item(), rel=1e-6)
    assert x.grad == pytest.approx(0.01)


def test_gradient_factor_balances_relative_updates() -> None:
    """Without it a step's gradient, relative to the step, outgrows the weights' by about √(N Q)."""
    torch.manual_seed(0)
    x = torch.randn(256, 256).requires_grad_()
    step = initial_step(x.detach(), 7).requires_grad_()
    lsq(x, step, -8, 7, factor=1).backward(torch.randn(256, 256))
    assert x.grad is not None
    assert step.grad is not None
    ratio = (step.grad.abs() / step) / (x.grad.norm() / x.norm())
    assert ratio.item() > 1
    assert ratio.item() * gradient_factor(x.numel(), 7) < 3


def test_pact_by_hand() -> None:
    x = torch.tensor([-1.0, 0.4, 0.9, 2.0, 5.0], requires_grad=True)
    alpha = torch.tensor([2.0], requires_grad=True)
    y = pact(x, alpha, 2)
    assert torch.allclose(y, torch.tensor([0, 2 / 3, 2 / 3, 2, 2]))
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 0, 0]
    assert alpha.grad == 2


@pytest.mark.parametrize("granularity", ["per_token", "per_tensor"])
def test_dynamic_activations_are_those_of_the_integer_layer(granularity: str) -> None:
    spec = ActivationSpec(granularity, bits=4)
    x = torch.randn(3, 5, 16, requires_grad=True)
    y = fake_activations(x, spec)
    assert torch.equal(y, dequantize(*quantize_activations(x.detach(), spec)))
    assert fake_activations(x.bfloat16(), spec).dtype == torch.bfloat16
    y.backward(torch.full_like(y, 2.0))
    assert x.grad is not None
    assert (x.grad == 2).all()


def test_wrong_arguments_are_named() -> None:
    one = torch.ones(1)
    with pytest.raises(ValueError, match="mask is 'soft'; it may be unrounded or rounded"):
        fake_quantize(one, one, 0, 1, mask="soft")
    with pytest.raises(ValueError, match="factor is None"):
        lsq(one, one, one, one)
    with pytest.raises(ValueError, match="count is 0"):
        gradient_factor(0, 1)
    with pytest.raises(ValueError, match="bits is 1; it may be 2 to 8"):
        pact(one, one, 1)
    with pytest.raises(ValueError, match="bits is 9; it may be 2 to 8"):
        pact(one, one, 9)
    with pytest.raises(ValueError, match="spec is static"):
        fake_activations(one, ActivationSpec("static"))
