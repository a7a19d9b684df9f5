"""Confidence, its calibration and the error of it: closed forms, a loop, and scipy as oracles."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from torch.nn import functional

from reference.distillation.confidence import calibration_error, confidence, fit_temperature


def test_confidence_is_the_largest_probability() -> None:
    logits = torch.randn(3, 200, 5, generator=torch.Generator().manual_seed(0)) * 20
    torch.testing.assert_close(confidence(logits, 3.0), (logits / 3).softmax(-1).amax(-1))


@given(st.floats(0.2, 5.0), st.integers(0, 100))
def test_temperature_is_found_where_scipy_finds_it(scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    true = torch.randn(300, 6, generator=generator)
    labels = torch.multinomial(true.softmax(-1), 1, generator=generator)[:, 0]
    logits = scale * true
    found = minimize_scalar(
        lambda b: float(functional.cross_entropy(logits.double() * np.exp(b), labels)), bounds=(-4, 4), method="bounded"
    )
    assert fit_temperature(logits, labels) == pytest.approx(np.exp(-found.x), rel=1e-3)


def test_temperature_undoes_a_scale_and_ends_at_its_bounds() -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(20_000, 6, generator=generator)
    labels = torch.multinomial(true.softmax(-1), 1, generator=generator)[:, 0]
    assert fit_temperature(3 * true, labels) == pytest.approx(3, rel=0.05)
    assert fit_temperature(true, true.argmax(-1)) == pytest.approx(0.01, rel=0.01)
    assert fit_temperature(true, true.argmin(-1)) == pytest.approx(100, rel=0.01)


def test_calibration_error_by_hand_and_by_loop() -> None:
    sure, right = torch.tensor([0.95, 0.95, 0.55, 0.55]), torch.tensor([True, False, True, False])
    assert calibration_error(sure, right, bins=10) == pytest.approx((2 * 0.45 + 2 * 0.05) / 4)
    generator = torch.Generator().manual_seed(0)
    sure = torch.rand(500, generator=generator)
    right = torch.rand(500, generator=generator) < sure**2
    total = 0.0
    for number in range(15):
        inside = (sure.double() > number / 15) & (sure.double() <= (number + 1) / 15)
        if inside.any():
            total += float(inside.sum()) / 500 * abs(float(sure[inside].mean()) - float(right[inside].double().mean()))
    assert calibration_error(sure, right) == pytest.approx(total, rel=1e-5)


def test_neighbouring_bins_do_not_make_up_for_each_other_and_hold_their_upper_edge() -> None:
    sure, right = torch.tensor([0.25, 0.3, 0.75, 0.8]), torch.tensor([True, False, True, False])
    assert calibration_error(sure, right, bins=4) == pytest.approx((0.75 + 0.3 + 0.25 + 0.8) / 4)
    ends = torch.tensor([0.0, 1.0])
    assert calibration_error(ends, ends.bool(), bins=4) == 0
    assert calibration_error(ends, ~ends.bool(), bins=4) == 1


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="temperature is 0"):
        confidence(torch.zeros(1, 2), 0.0)
    with pytest.raises(ValueError, match="labels"):
        fit_temperature(torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"may be \[rows, classes\]"):
        fit_temperature(torch.zeros(3, 2, 2), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="both may be"):
        calibration_error(torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="both may be"):
        calibration_error(torch.zeros(2), torch.zeros(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="bins is 0"):
        calibration_error(torch.zeros(2), torch.zeros(2, dtype=torch.bool), bins=0)
