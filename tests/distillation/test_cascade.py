"""A cascade against a loop over rows; thresholds against a search over all, the blind router against a linear program."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor

from reference.distillation.cascade import Cascade, choose_thresholds, mixture, replay
from reference.distillation.confidence import confidence


def rows_of_models(rows: int = 200, models: int = 3, classes: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(models, rows, classes, generator=generator) * torch.tensor([1.0, 2.0, 3.0]).view(-1, 1, 1)
    return logits, torch.randint(classes, (rows,), generator=generator)


class Table:
    """A model that looks its rows up, and counts what it was asked."""

    def __init__(self, logits: Tensor) -> None:
        self.logits, self.asked = logits, []

    def __call__(self, batch: Tensor) -> Tensor:
        self.asked += batch.tolist()
        return self.logits[batch]


THRESHOLDS, TEMPERATURES = (0.45, 0.6), (1.5, 2.0, 1.0)


def by_loop(logits: Tensor, row: int) -> tuple[Tensor, int]:
    for level in range(3):
        answer = logits[level, row] / TEMPERATURES[level]
        if level == 2 or answer.softmax(-1).max() >= THRESHOLDS[level]:
            return answer, level
    raise AssertionError


def test_every_row_gets_the_answer_of_the_first_model_that_is_sure() -> None:
    logits, _ = rows_of_models()
    answer = Cascade([Table(part) for part in logits], THRESHOLDS, TEMPERATURES)(torch.arange(200))
    for row in range(200):
        expected, level = by_loop(logits, row)
        torch.testing.assert_close(answer.logits[row], expected)
        assert answer.level[row] == level
    assert set(answer.level.tolist()) == {0, 1, 2}


def test_a_model_is_asked_for_no_row_that_was_answered() -> None:
    logits, _ = rows_of_models()
    models = [Table(part) for part in logits]
    level = Cascade(models, THRESHOLDS, TEMPERATURES)(torch.arange(200)).level
    for number, model in enumerate(models):
        assert model.asked == [row for row in range(200) if level[row] >= number]


def test_thresholds_at_the_ends_are_the_single_models_and_spare_the_others() -> None:
    logits, _ = rows_of_models()
    models = [Table(part) for part in logits]
    first = Cascade(models, (0.0, 0.0))(torch.arange(200))
    assert torch.equal(first.logits, logits[0])
    assert not models[1].asked + models[2].asked
    last = Cascade(models, (2.0, 2.0))(torch.arange(200))
    assert torch.equal(last.logits, logits[2])
    assert torch.equal(last.level, torch.full((200,), 2))


def test_replay_says_what_the_cascade_does() -> None:
    logits, labels = rows_of_models()
    sure = [confidence(part, t) for part, t in zip(logits, TEMPERATURES, strict=True)]
    right = [part.argmax(-1) == labels for part in logits]
    outcome = replay(sure, right, [1.0, 3.0, 10.0], THRESHOLDS)
    answer = Cascade([Table(part) for part in logits], THRESHOLDS, TEMPERATURES)(torch.arange(200))
    assert torch.equal(outcome.level, answer.level)
    assert torch.equal(outcome.quality, (answer.logits.argmax(-1) == labels).double())
    assert torch.equal(outcome.cost, torch.tensor([1.0, 4.0, 14.0]).double()[answer.level])


def test_chosen_thresholds_are_the_best_of_all_within_the_budget() -> None:
    logits, labels = rows_of_models(60)
    labels = torch.where(torch.rand(60, generator=torch.Generator().manual_seed(3)) < 0.7, logits[2].argmax(-1), labels)
    sure, right = [confidence(p) for p in logits], [(p.argmax(-1) == labels).double() for p in logits]
    costs, budget = [1.0, 2.0, 6.0], 4.0
    chosen = choose_thresholds(sure, right, costs, budget, steps=60)
    best = -1.0
    for thresholds in itertools.product([0.0, *sure[0].tolist(), 2.0], [0.0, *sure[1].tolist(), 2.0]):
        outcome = replay(sure, right, costs, thresholds)
        if outcome.cost.mean() <= budget:
            best = max(best, float(outcome.quality.mean()))
    found = replay(sure, right, costs, chosen)
    assert float(found.cost.mean()) <= budget
    assert float(found.quality.mean()) == pytest.approx(best, abs=0.02)
    assert best > float(right[0].mean())


def test_a_budget_of_the_first_model_asks_no_other() -> None:
    logits, labels = rows_of_models()
    sure, right = [confidence(p) for p in logits], [p.argmax(-1) == labels for p in logits]
    chosen = choose_thresholds(sure, right, [1.0, 2.0, 3.0], 1.0, steps=5)
    assert not replay(sure, right, [1.0, 2.0, 3.0], chosen).level.any()


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(1, 9)), min_size=1, max_size=5),
    st.floats(0, 10),
)
def test_mixture_solves_the_linear_program(models: list[tuple[float, float]], extra: float) -> None:
    quality, costs = [q for q, _ in models], [c for _, c in models]
    budget = min(costs) + extra
    shares = mixture(quality, costs, budget)
    assert sum(shares) == pytest.approx(1)
    assert min(shares) >= 0
    assert float(np.dot(shares, costs)) <= budget * (1 + 1e-9)
    best = linprog([-q for q in quality], A_ub=[costs], b_ub=[budget], A_eq=[[1.0] * len(costs)], b_eq=[1.0])
    assert float(np.dot(shares, quality)) == pytest.approx(-best.fun, abs=1e-6)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="models is empty"):
        Cascade([], [])
    with pytest.raises(ValueError, match="thresholds has 2"):
        Cascade([Table(torch.zeros(1, 1))], [0.1, 0.2])
    with pytest.raises(ValueError, match="temperatures is"):
        Cascade([Table(torch.zeros(1, 1))], [], [0.0])
    with pytest.raises(ValueError, match="costs of 1"):
        replay([torch.zeros(2)], [torch.zeros(2)] * 2, [1.0], [0.5])
    with pytest.raises(ValueError, match="budget is 0.5"):
        choose_thresholds([torch.zeros(2)], [torch.zeros(2)] * 2, [1.0, 2.0], 0.5)
    with pytest.raises(ValueError, match="steps is 0"):
        choose_thresholds([torch.zeros(2)], [torch.zeros(2)] * 2, [1.0, 2.0], 1.5, steps=0)
    with pytest.raises(ValueError, match="budget is 0.5"):
        mixture([0.1], [1.0], 0.5)
    with pytest.raises(ValueError, match="must agree"):
        mixture([0.1], [1.0, 2.0], 1.5)


@pytest.mark.parametrize(("cost", "rows"), [(0.1, 3), (0.7, 7), (0.3, 11)])
def test_a_budget_of_exactly_the_first_model_is_enough_however_the_mean_is_rounded(cost: float, rows: int) -> None:
    """Three times 0.1, divided by three, is 0.10000000000000002."""
    sure, right = [torch.linspace(0.4, 0.9, rows)], [torch.zeros(rows), torch.ones(rows)]
    chosen = choose_thresholds(sure, right, [cost, 10 * cost], cost)
    assert len(chosen) == 1
    assert not replay(sure, right, [cost, 10 * cost], chosen).level.any()
