"""How the movement study chooses its penalties and rates, and which passages a run sees."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

STUDIES = Path(__file__).resolve().parents[2] / "studies"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(STUDIES))
    return importlib.import_module("movement")


def test_penalties_are_interpolated_and_never_extrapolated(study: ModuleType) -> None:
    points = [(0.02, 1000.0), (0.2, 100.0), (0.8, 10.0)]
    assert study.penalty_for(points, 0.2) == pytest.approx(100)
    assert study.penalty_for(points, 0.04**0.5 * 0.1**0.5) == pytest.approx(1000 ** (1 - 0.5) * 100**0.5)
    assert study.penalty_for(points, 0.001) == 1000
    assert study.penalty_for(points, 0.95) == 10


def test_rates_are_chosen_by_mean_validation_accuracy_only(study: ModuleType) -> None:
    rows = [
        {"rate": rate, "score_rate": 0.0, "validation": validation, "test": test}
        for rate, validation, test in ((1, 0.5, 0.9), (1, 0.3, 0.9), (2, 0.41, 0.1), (2, 0.41, 0.1))
    ]
    assert study.best(rows, "rate") == 2
    assert study.rate_of({"rates_dense": rows}, "dense") == 2
    grid = [
        {"density": d, "penalty": p, "score_rate": rate, "validation": v + (rate == study.SOFT_RATES[1]) * 0.1}
        for rate in study.SOFT_RATES
        for d, p, v in ((0.02, 1000, 0.4), (0.2, 100, 0.5), (0.8, 10, 0.6))
    ]
    rate, points = study.soft_choice({"soft_grid": grid})
    assert rate == study.SOFT_RATES[1]
    assert points == [(0.02, 1000), (0.2, 100), (0.8, 10)]


def test_a_seed_sees_the_same_batches_in_every_stack_and_each_passage_at_most_once_an_epoch(study: ModuleType) -> None:
    lengths = torch.randint(20, 97, (203,), generator=torch.Generator().manual_seed(0))
    parts = dict.fromkeys(("train", "validation", "test"), lengths)
    tensors = {f"{s}.lengths": value for s, value in parts.items()}
    tensors |= {f"{s}.{what}": torch.zeros(203, 96) for s in parts for what in ("ids", "labels")}
    data = study.Data(tensors, "cpu", None)
    together = list(data.order([0, 1], epochs=2, batch=8))
    alone = list(data.order([1], epochs=2, batch=8))
    assert len(together) == len(alone) == 2 * sum(int((data.bucket == b).sum()) // 8 for b in range(4))
    for (width, rows), (width_alone, rows_alone) in zip(together, alone, strict=True):
        assert width == width_alone
        assert torch.equal(rows[1], rows_alone[0])
        assert not torch.equal(rows[0], rows[1])
        assert bool((lengths[rows] <= width).all())
    seen = torch.cat([rows[0] for _, rows in together[: len(together) // 2]])
    assert len(seen.unique()) == len(seen) > 203 - 4 * 8


def test_the_order_of_jobs_never_waits_for_a_later_one(study: ModuleType) -> None:
    names = [job.name for job in study.JOBS]
    assert len(set(names)) == len(names)
    for place, job in enumerate(study.JOBS):
        assert all(names.index(before) < place for before in job.after)
