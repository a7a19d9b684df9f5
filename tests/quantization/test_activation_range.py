"""Clipping thresholds: against direct searches on the values themselves, and a plain-Python entropy rule."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.quantization.activation_range import BINS, RULES, MagnitudeHistogram, threshold
from reference.quantization.activations import ActivationSpec, quantize_activations, scale_of


def filled(*batches: torch.Tensor) -> MagnitudeHistogram:
    histogram = MagnitudeHistogram()
    for batch in batches:
        histogram.add(batch)
    return histogram


def heavy_tail(n: int = 20_000, seed: int = 0) -> torch.Tensor:
    x = torch.randn(n, generator=torch.Generator().manual_seed(seed))
    x[:5] = torch.tensor([30.0, -25, 28, 22, -27])
    return x


@settings(max_examples=50)
@given(st.lists(st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=20), min_size=1, max_size=6))
def test_counts_are_those_of_one_pass(batches) -> None:
    histogram = filled(*(torch.tensor(batch) for batch in batches))
    values = torch.tensor([v for batch in batches for v in batch]).abs()
    assert histogram.counts.sum() == len(values)
    assert math.isclose(histogram.largest, values.max().item())
    if histogram.limit:
        assert histogram.largest < histogram.limit
        bins = (values.double() * (BINS / histogram.limit)).long()
        assert torch.equal(histogram.counts, torch.bincount(bins, minlength=BINS))


def test_percentile_is_the_quantile_to_a_bin() -> None:
    x = heavy_tail()
    histogram = filled(*x.split(1000))
    for percentile in (50, 90, 99, 99.9, 100):
        expected = x.abs().quantile(percentile / 100).item()
        found = threshold(histogram, "percentile", ActivationSpec(), percentile=percentile)
        assert abs(found - expected) <= 1.01 * histogram.limit / BINS


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_mse_is_the_best_of_a_direct_search(bits) -> None:
    x = heavy_tail()
    spec = ActivationSpec("static", bits=bits)

    def error(limit: float) -> float:
        codes, scale = quantize_activations(x, spec, scale_of(torch.tensor([limit]), spec))
        return (codes * scale - x).square().sum().item()

    found = error(threshold(filled(x), "mse", spec))
    grid = [error(x.abs().max().item() * i / 300) for i in range(3, 301)]
    assert found <= min(grid) * 1.02
    if bits < 8:
        assert found < 0.8 * grid[-1]


def divergences_by_hand(counts: list[int], levels: int) -> dict[int, float]:
    """The rule as NVIDIA's slides give it, in plain Python: number of bins kept → divergence, where it is finite."""
    found = {}
    for i in range(levels, len(counts) + 1):
        p = [float(c) for c in counts[:i]]
        p[-1] += sum(counts[i:])
        q = [0.0] * i
        for level in range(levels):
            members = [j for j in range(i) if j * levels // i == level]
            some = [j for j in members if counts[j]]
            for j in some:
                q[j] = sum(counts[j] for j in members) / len(some)
        if not sum(q) or any(a and not b for a, b in zip(p, q, strict=True)):
            continue
        total_p, total_q = sum(p), sum(q)
        found[i] = sum(a / total_p * math.log(a / total_p / (b / total_q)) for a, b in zip(p, q, strict=True) if a)
    return found


def test_entropy_is_the_rule_by_hand(monkeypatch) -> None:
    import reference.quantization.activation_range as module

    monkeypatch.setattr(module, "BINS", 64)
    for seed in range(5):
        histogram = MagnitudeHistogram()
        histogram.add(heavy_tail(3000, seed))
        spec = ActivationSpec("static", bits=4)
        divergences = divergences_by_hand(histogram.counts.tolist(), 8)
        kept = min(divergences, key=lambda i: divergences[i])
        found = threshold(histogram, "entropy", spec)
        assert math.isclose(found, min(kept * histogram.limit / 64, histogram.largest))


@settings(max_examples=60)
@given(st.lists(st.sampled_from([0, 0, 0, 1, 2, 5, 40]), min_size=16, max_size=16).filter(any))
def test_entropy_finds_the_least_divergence_of_any_counts(counts) -> None:
    """Bins may be empty anywhere: before the tail, where the divergence is infinite, and at the end."""
    import reference.quantization.activation_range as module

    histogram = MagnitudeHistogram()
    histogram.counts, histogram.limit, histogram.largest = torch.tensor(counts), 16.0, 16.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BINS", 16)
        kept = threshold(histogram, "entropy", ActivationSpec("static", bits=3))
    divergences = divergences_by_hand(counts, 4)
    if divergences:
        assert divergences[round(kept)] <= min(divergences.values()) + 1e-12
    else:
        assert kept == 16


def test_a_percentile_that_a_value_reaches_exactly_is_that_value() -> None:
    histogram = filled(torch.arange(1.0, 101.0))
    for percentile in (1, 7, 29, 50, 90, 100):
        found = threshold(histogram, "percentile", ActivationSpec(), percentile=percentile)
        assert percentile <= found < percentile + 0.1


@pytest.mark.parametrize("values", [[0.7], [-1.0, 1.0, 3.1], [0.0, 0.0, -5.0]])
def test_no_rule_clips_above_the_largest_value(values) -> None:
    histogram = filled(*torch.tensor(values).split(1))
    for rule in RULES:
        assert 0 < threshold(histogram, rule, ActivationSpec(), percentile=100) <= histogram.largest
    assert threshold(histogram, "percentile", ActivationSpec(), percentile=100) == histogram.largest


def test_outliers_are_given_up_where_bits_are_few() -> None:
    histogram = filled(heavy_tail())
    limits = {rule: threshold(histogram, rule, ActivationSpec("static", bits=4)) for rule in RULES}
    assert limits["max"] == 30
    assert 2 < limits["mse"] < 8
    assert 2 < limits["percentile"] < 30
    assert limits["entropy"] < 30


def test_zeros_have_a_threshold_and_wrong_input_a_name() -> None:
    zeros = filled(torch.zeros(5))
    assert {threshold(zeros, rule, ActivationSpec()) for rule in RULES} == {0.0}
    zeros.add(torch.tensor([1.0]))
    assert zeros.counts.sum() == 6
    zeros.add(torch.zeros(0))
    assert zeros.counts.sum() == 6
    with pytest.raises(ValueError, match="layer7 holds NaN"):
        zeros.add(torch.tensor([math.nan]), "layer7")
    with pytest.raises(ValueError, match="rule is 'kl'"):
        threshold(zeros, "kl", ActivationSpec())
    with pytest.raises(ValueError, match="percentile is 0"):
        threshold(zeros, "percentile", ActivationSpec(), percentile=0)
