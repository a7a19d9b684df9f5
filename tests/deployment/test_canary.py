"""The gate's rate of errors by simulation, its interval against a slow second implementation, its verdicts."""

import math
import statistics

import pytest
import torch
from scipy import stats

from reference.deployment.canary import FIRST, confidence_sequence, gate

ERROR_RATE, RUNS, LENGTH = 0.05, 1000, 300


def slow(values, alpha, tuned_for):
    """One number after the other with the standard library; ρ² by search for the narrowest interval."""

    def half(n, rho2, deviation):
        return deviation * math.sqrt(2 * (n * rho2 + 1) / (n**2 * rho2) * math.log(math.sqrt(n * rho2 + 1) / alpha))

    grid = [10 ** (k / 20000) for k in range(-60000, 20000)]
    rho2 = min(grid, key=lambda r: half(tuned_for, r, 1.0))
    ends = []
    for n in range(2, len(values) + 1):
        mean = statistics.fmean(values[:n])
        width = half(n, rho2, statistics.stdev(values[:n]))
        ends.append((mean - width, mean + width))
    return ends


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_interval_equals_a_slow_second_implementation(alpha):
    values = (torch.randn(60, generator=torch.Generator().manual_seed(1)) + 1e4).double()
    low, high = confidence_sequence(values, alpha, tuned_for=40)
    assert (float(low[0]), float(high[0])) == (-math.inf, math.inf)
    expected = torch.tensor(slow(values.tolist(), alpha, 40), dtype=torch.float64)
    assert torch.allclose(torch.stack((low, high), 1)[1:], expected, rtol=0, atol=2e-4)


DRAWS = {
    "normal": lambda g: torch.randn(RUNS, LENGTH, generator=g),
    "skewed": lambda g: torch.empty(RUNS, LENGTH).exponential_(generator=g) - 1,
    "two values": lambda g: (torch.rand(RUNS, LENGTH, generator=g) < 0.2).float() - 0.2,
}


@pytest.mark.parametrize("kind", DRAWS)
def test_wrong_verdicts_are_as_rare_as_stated(kind):
    """Mean exactly at the limit: every verdict is wrong, and at most 5 % of the runs may have one, at any look."""
    draws = DRAWS[kind](torch.Generator().manual_seed(0))
    wrong = sum(gate(row, 0.0, error_rate=ERROR_RATE).verdict != "undecided" for row in draws) / RUNS
    assert wrong <= ERROR_RATE + 0.02  # three standard errors of the simulation
    # It is a test that can fail: Student's interval, looked at as often, is wrong several times as often.
    n = torch.arange(FIRST, LENGTH + 1)
    sums, squares = draws.double().cumsum(1), draws.double().square().cumsum(1)
    mean = sums[:, FIRST - 1 :] / n
    error = ((squares[:, FIRST - 1 :] / n - mean.square()) / (n - 1)).sqrt()
    quantile = torch.tensor(stats.t.ppf(1 - ERROR_RATE / 2, n - 1))
    peeked = float((mean.abs() > quantile * error).any(1).double().mean())
    assert peeked > 3 * ERROR_RATE


@pytest.mark.parametrize(("mean", "verdict"), [(-1.0, "promote"), (1.0, "stop")])
def test_clear_cases_are_decided_early_and_rightly(mean, verdict):
    draws = torch.randn(200, LENGTH, generator=torch.Generator().manual_seed(2)) + mean
    found = [gate(row, 0.0) for row in draws]
    assert {decision.verdict for decision in found} == {verdict}
    assert statistics.median(decision.requests for decision in found) < 60
    for decision in found[:20]:
        assert decision.low <= decision.mean <= decision.high
        assert (decision.high < 0) if verdict == "promote" else (decision.low > 0)


def test_later_requests_do_not_change_a_verdict():
    stream = torch.randn(LENGTH, generator=torch.Generator().manual_seed(3)) - 0.3
    found = gate(stream, 0.0)
    assert found.verdict == "promote"
    assert FIRST < found.requests < LENGTH
    assert found.mean == pytest.approx(statistics.fmean(stream[: found.requests].tolist()), rel=1e-12)
    assert gate(torch.cat((stream[: found.requests], stream + 100)), 0.0) == found
    assert gate(stream[: found.requests - 1], 0.0).verdict == "undecided"


def test_no_verdict_before_the_first_look():
    assert gate(torch.arange(30.0) / 1000 + 50, 0.0, first=25).requests == 25
    assert gate(torch.arange(10.0) / 1000 + 50, 0.0, first=25).verdict == "undecided"


def test_equal_models_are_promoted_below_a_positive_limit():
    assert gate(torch.zeros(60), 0.0).verdict == "undecided"  # at the limit, neither below nor above
    assert gate(torch.zeros(60), 0.01) == ("promote", FIRST, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "wrong", [{"differences": torch.zeros(2, 2)}, {"differences": torch.zeros(0)}, {"error_rate": 1.0},
              {"tuned_for": 0}, {"first": 1}]
)  # fmt: skip
def test_wrong_arguments_are_named(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}"):
        gate(**{"differences": torch.zeros(30), "limit": 0.0} | wrong)


def test_rare_failures_need_more_requests_before_the_first_decision():
    """What the docstring warns of: fifty requests without a failure have no spread, and look certain."""
    generator = torch.Generator().manual_seed(0)
    streams = [(torch.rand(2000, generator=generator) < 0.02).double() for _ in range(300)]
    promoted = [
        sum(gate(stream, limit=0.005, first=first).verdict == "promote" for stream in streams) / len(streams)
        for first in (50, 400)
    ]
    assert promoted[0] == pytest.approx(0.98**50, abs=0.08)
    assert promoted[1] < 0.05
