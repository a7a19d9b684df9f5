"""HQQ against the authors' recorded codes and zero points, and against its two halves solved by search."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference.quantization import hqq
from reference.quantization.grid import QuantizationSpec

VECTORS = Path(__file__).parents[1] / "parity" / "hqq.npz"
CASES = json.loads(VECTORS.with_suffix(".json").read_text())
SOLVERS = {"legacy": {}, "v2_100": {"growth": 1.01, "iterations": 100, "until_worse": False}}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["key"])
def test_codes_and_zero_points_are_the_authors(case):
    recorded = np.load(VECTORS)
    weight = torch.from_numpy(recorded[f"{case['key'][:2]}_W"]).float()
    expected = {part: torch.from_numpy(recorded[f"{case['key']}_{part}"]) for part in ("codes", "scale", "zero")}
    # Their groups are the rows, or with axis 0 the columns, of the weight cut into lengths of a group.
    groups = weight.reshape(-1, case["group_size"]) if case["axis"] else weight.reshape(case["group_size"], -1).T
    if not case["axis"]:
        expected = {part: values.T for part, values in expected.items()}
    found = hqq.quantize_layer(groups, QuantizationSpec(case["bits"]), **SOLVERS[case["solver"]])
    assert (found.codes == expected["codes"]).float().mean() > 0.999
    torch.testing.assert_close(found.scale, expected["scale"], rtol=1e-6, atol=0)
    torch.testing.assert_close(found.zero_point, expected["zero"], rtol=1e-5, atol=1e-4)
    error = float((found.dequantize() - groups).abs().mean())
    assert error == pytest.approx(case["mean_abs_error_after"], rel=1e-4)
    assert error < 0.98 * case["mean_abs_error_before"]


def test_groups_of_a_row_are_solved_as_rows_of_their_own():
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    together = hqq.quantize_layer(weight, QuantizationSpec(3, group_size=16), until_worse=False)
    rows = hqq.quantize_layer(weight.reshape(24, 16), QuantizationSpec(3), until_worse=False)
    assert torch.equal(together.codes, rows.codes.reshape(6, 64))
    assert torch.equal(together.dequantize(), rows.dequantize().reshape(6, 64))


def test_with_exponent_one_the_first_half_is_solved_exactly():
    """Soft thresholding minimises |r| + β/2 (r − e)²; a fine search finds the same r."""
    candidates = torch.linspace(-4, 4, 800_001, dtype=torch.float64)
    for beta, error in [(3.0, -1.7), (3.0, -0.2), (3.0, 0.0), (3.0, 0.3), (3.0, 0.9), (0.5, -3.5), (0.5, 1.0)]:
        cost = candidates.abs() + beta / 2 * (candidates - error) ** 2
        found = hqq.shrink(torch.tensor(error, dtype=torch.float64), beta, 1.0)
        assert float(found) == pytest.approx(float(candidates[cost.argmin()]), abs=1e-4)


def test_the_mean_solves_the_second_half():
    """With codes and believed errors fixed, no other zero point has a smaller square."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(1, 32, generator=generator)
    step, believed = 0.2, 0.1 * torch.randn(1, 32, generator=generator)
    codes = (weight / step + 7).round().clamp(0, 15)
    best = (codes - (weight - believed) / step).mean()
    costs = [((believed - (weight - step * (codes - z))) ** 2).sum() for z in (best, best + 0.01, best - 0.01)]
    assert costs[0] < min(costs[1:])


@given(st.integers(2, 8), st.sampled_from([8, 16, None]), st.floats(-3, 3), st.floats(0.01, 10))
def test_the_error_stays_near_half_a_step(bits, group_size, shift, size):
    weight = size * torch.randn(4, 32, generator=torch.Generator().manual_seed(bits)) + shift
    found = hqq.quantize_layer(weight, QuantizationSpec(bits, group_size=group_size))
    assert found.codes.dtype == torch.uint8
    assert int(found.codes.max()) < 2**bits
    steps = (found.dequantize() - weight).abs().reshape(*found.scale.shape, -1) / found.scale[..., None]
    assert float(steps.median()) < 0.51
    assert float(steps.max()) < 2.5  # the zero point may leave an end of the range, by little


def slow(rows, levels, exponent, penalty, iterations):
    """Weight by weight in Python's floats; stops where the mean error of all rows stops falling."""
    steps = [(max(row) - min(row)) / levels for row in rows]
    zeros, seen = [-min(row) / step for row, step in zip(rows, steps, strict=True)], []

    def codes():
        return [[round(w / s + z) for w in row] for row, s, z in zip(rows, steps, zeros, strict=True)]

    for _ in range(iterations):
        errors, moved = [], []
        for row, found, step, zero in zip(rows, codes(), steps, zeros, strict=True):
            left = [w - step * (code - zero) for w, code in zip(row, found, strict=True)]
            errors += [abs(e) for e in left]
            believed = [e and math.copysign(max(0.0, abs(e) - abs(e) ** (exponent - 1) / penalty), e) for e in left]
            centres = [code - (w - r) / step for w, code, r in zip(row, found, believed, strict=True)]
            moved.append(sum(centres) / len(centres))
        zeros = moved
        seen.append(sum(errors) / len(errors))
        if len(seen) > 1 and seen[-1] >= min(seen[:-1]):
            break
    return codes(), zeros, seen


@pytest.mark.parametrize("seed", [0, 1, 2, 4, 5])  # with 3 the error falls to the end
def test_it_stops_where_the_error_of_the_whole_layer_rises(seed):
    """And keeps the last zero points, not the best."""
    weight = torch.randn(3, 16, generator=torch.Generator().manual_seed(seed))
    codes, zeros, errors = slow(weight.double().tolist(), 7, 0.7, 10.0, 20)
    assert 2 <= len(errors) < 20
    found = hqq.quantize_layer(weight, QuantizationSpec(3))
    assert found.codes.tolist() == codes
    torch.testing.assert_close(found.zero_point.flatten(), torch.tensor(zeros), rtol=1e-4, atol=1e-4)


def test_steps_of_groups_that_hardly_vary():
    """A range of at most 1e-4 keeps a step of 1; no step is finer than 1/20000."""
    weight = torch.tensor([[0.0, 0.5e-4], [0.0, 2e-4], [0.0, 1.5]]) - 0.3
    scale = hqq.quantize_layer(weight, QuantizationSpec(8)).scale.flatten().tolist()
    assert scale == pytest.approx([1.0, 1 / 20000, 1.5 / 255], rel=1e-5)


def test_half_precision_weights_are_solved_in_float32():
    weight = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    found, expected = (hqq.quantize_layer(w, QuantizationSpec(4)) for w in (weight, weight.float()))
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert found.scale.dtype == torch.float32


def test_a_weight_without_a_grid_is_refused_by_name():
    with pytest.raises(ValueError, match="fc1 holds 1 NaN"):
        hqq.quantize_layer(torch.tensor([[1.0, float("nan")]]), QuantizationSpec(4), name="fc1")


def test_a_flat_group_is_exact():
    weight = torch.full((1, 8), 0.3)
    found = hqq.quantize_layer(weight, QuantizationSpec(4))
    torch.testing.assert_close(found.dequantize(), weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"penalty": 0.0}, "penalty is 0.0"),
        ({"exponent": 1.5}, "exponent is 1.5"),
        ({"exponent": 0.0}, "exponent is 0.0"),
    ],
)
def test_wrong_settings_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        hqq.quantize_layer(torch.randn(2, 8), QuantizationSpec(4), **settings)


@pytest.mark.parametrize(
    "spec",
    [QuantizationSpec(4, symmetric=True), QuantizationSpec(4, per_tensor=True), QuantizationSpec(4, clip_search=True)],
)
def test_other_grids_are_refused(spec):
    with pytest.raises(ValueError, match="HQQ moves the zero points"):
        hqq.quantize_layer(torch.randn(2, 8), spec)
