"""The distillation loss against the formula written out, and the property that gives it its factor."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from reference.distillation.losses import attention_loss, hidden_loss, logits_loss

LOGITS = arrays.arrays(np.float64, (3, 5), elements=st.floats(-20, 20))
TEMPERATURES = st.floats(0.5, 20)


def written_out(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """T² Σ p ln(p/π), averaged over rows, in float64."""

    def softmax(x: np.ndarray) -> np.ndarray:
        e = np.exp(x - x.max(axis=-1, keepdims=True))
        return e / e.sum(axis=-1, keepdims=True)

    p, pi = softmax(teacher / temperature), softmax(student / temperature)
    return float(temperature**2 * (p * (np.log(p) - np.log(pi))).sum(-1).mean())


@given(LOGITS, LOGITS, TEMPERATURES)
def test_equals_the_formula(student: np.ndarray, teacher: np.ndarray, temperature: float) -> None:
    ours = logits_loss(torch.from_numpy(student), torch.from_numpy(teacher), temperature).item()
    # Logits of 20 cancel to about 1e-6 in float32, times T².
    expected = written_out(student, teacher, temperature)
    assert ours == pytest.approx(expected, rel=1e-4, abs=1e-5 * temperature**2)


@given(LOGITS, LOGITS, TEMPERATURES)
def test_is_never_negative(student: np.ndarray, teacher: np.ndarray, temperature: float) -> None:
    assert logits_loss(torch.from_numpy(student), torch.from_numpy(teacher), temperature) > -1e-5 * temperature**2


def test_two_outcomes_by_hand() -> None:
    """p = (3/4, 1/4), π = (1/2, 1/2): KL = 3/4 ln 3/2 + 1/4 ln 1/2."""
    teacher, student = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert logits_loss(student, teacher).item() == pytest.approx(expected, rel=1e-6)


def test_direction_is_teacher_first() -> None:
    """KL is not symmetric: a student that misses what the teacher finds likely pays more."""
    wide, narrow = torch.zeros(1, 2), torch.tensor([[8.0, 0.0]])
    assert logits_loss(student=narrow, teacher=wide) > 4 * logits_loss(student=wide, teacher=narrow)


def test_equal_distributions_cost_nothing_whatever_the_offset() -> None:
    logits = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    assert logits_loss(logits + 3.0, logits).item() == pytest.approx(0.0, abs=1e-6)


def test_mean_is_over_all_positions() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 3, 7, generator=generator) for _ in range(2))
    whole = logits_loss(student, teacher, 2.0)
    parts = torch.stack([logits_loss(student[i, j], teacher[i, j], 2.0) for i in range(2) for j in range(3)])
    torch.testing.assert_close(whole, parts.mean())


def gradient(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    student = student.clone().requires_grad_(True)
    logits_loss(student, teacher, temperature).backward()
    return student.grad


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_gradient_is_t_times_the_difference_of_probabilities(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, 9, generator=generator) for _ in range(2))
    p, pi = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    torch.testing.assert_close(gradient(student, teacher, temperature), temperature * (pi - p) / 4)


def test_gradient_tends_to_centred_logits_over_vocabulary() -> None:
    """Why the factor is T²: at a high temperature the gradient no longer depends on it."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(1, 9, generator=generator) for _ in range(2))
    limit = ((student - student.mean()) - (teacher - teacher.mean())) / 9
    off = [float((gradient(student, teacher, t) - limit).norm() / limit.norm()) for t in (4.0, 16.0, 64.0)]
    assert off[0] > 3 * off[1] > 9 * off[2]
    assert off[2] < 0.05


def test_no_gradient_reaches_a_detached_teacher_and_half_precision_is_computed_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 9, generator=generator).bfloat16() for _ in range(2))
    loss = logits_loss(student, teacher)
    assert loss.dtype == torch.float32
    assert not loss.requires_grad


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        logits_loss(torch.zeros(1, 2), torch.zeros(1, 2), temperature)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="shape"):
        logits_loss(torch.zeros(1, 2), torch.zeros(1, 3))


def test_no_position_is_refused_with_and_without_a_mask() -> None:
    nothing = torch.zeros(0, 4)
    for loss in (logits_loss, hidden_loss):
        with pytest.raises(ValueError, match="no position"):
            loss(nothing, nothing)
    with pytest.raises(ValueError, match="no position"):
        attention_loss(torch.zeros(0, 2, 3, 3), torch.zeros(0, 2, 3, 3))
