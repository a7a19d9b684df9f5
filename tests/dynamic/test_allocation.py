"""The knapsack against brute force and against an integer programme; its bytes against packed tensors."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from reference.dynamic.allocation import bits_within, frontier, greedy, stored_bytes, stored_total, within
from reference.quantization.grid import QuantizationSpec
from reference.quantization.round_to_nearest import quantize_layer


@st.composite
def problems(draw, most_layers: int = 6):
    layers = draw(st.integers(1, most_layers))
    options = draw(st.integers(1, 3))
    costs = draw(
        st.lists(st.lists(st.integers(-5, 40), min_size=options, max_size=options), min_size=layers, max_size=layers)
    )
    sizes = draw(
        st.lists(st.lists(st.integers(0, 30), min_size=options, max_size=options), min_size=layers, max_size=layers)
    )
    return costs, sizes


def brute_force(costs, sizes, budget) -> float:
    best = float("inf")
    for choice in itertools.product(*(range(len(row)) for row in costs)):
        if sum(row[i] for row, i in zip(sizes, choice, strict=True)) <= budget:
            best = min(best, sum(row[i] for row, i in zip(costs, choice, strict=True)))
    return best


@given(problems(), st.integers(0, 150))
def test_equals_brute_force_for_every_budget(problem, budget: int) -> None:
    costs, sizes = problem
    expected = brute_force(costs, sizes, budget)
    if expected == float("inf"):
        with pytest.raises(ValueError, match="smallest choice"):
            within(frontier(costs, sizes), budget)
        return
    point = within(frontier(costs, sizes), budget)
    assert point.cost == expected
    assert point.size == sum(row[i] for row, i in zip(sizes, point.choices, strict=True)) <= budget
    assert point.cost == sum(row[i] for row, i in zip(costs, point.choices, strict=True))


def test_equals_brute_force_for_eight_layers_of_three_widths() -> None:
    generator = np.random.default_rng(0)
    costs = np.sort(generator.exponential(size=(8, 3)))[:, ::-1].tolist()
    sizes = (generator.integers(1, 9, (8, 1)) * [2, 3, 4]).tolist()
    for budget in range(sum(row[0] for row in sizes), sum(row[2] for row in sizes) + 1, 3):
        assert within(frontier(costs, sizes), budget).cost == pytest.approx(
            brute_force(costs, sizes, budget), rel=1e-12
        )


def test_equals_an_integer_programme_where_brute_force_cannot_go() -> None:
    generator = np.random.default_rng(1)
    layers, options = 42, 4
    costs = (
        generator.exponential(size=(layers, 1))
        * [1.0, 0.25, 0.06, 0.002]
        * generator.uniform(0.5, 2, (layers, options))
    )
    sizes = generator.choice([8192, 16384, 24576], (layers, 1)) * np.array([2, 3, 4, 8])
    points = frontier(costs.tolist(), sizes.tolist())
    one_each = np.kron(np.eye(layers), np.ones(options))
    for budget in np.linspace(sizes[:, 0].sum(), sizes[:, -1].sum(), 7):
        exact = milp(
            costs.ravel(), integrality=np.ones(costs.size), bounds=Bounds(0, 1),
            constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(sizes.reshape(1, -1), -np.inf, budget)],
            options={"mip_rel_gap": 0},
        )  # fmt: skip
        assert within(points, budget).cost == pytest.approx(exact.fun, rel=1e-9)


@given(problems())
def test_more_bytes_never_cost_more_and_the_ends_are_the_extremes(problem) -> None:
    costs, sizes = problem
    points = frontier(costs, sizes)
    assert all(a.size < b.size and a.cost > b.cost for a, b in itertools.pairwise(points))
    assert points[0].size == sum(min(row) for row in sizes)
    assert points[-1].cost == sum(min(row) for row in costs)


@given(problems(), st.integers(0, 150))
def test_greedy_is_feasible_and_never_better(problem, budget: int) -> None:
    costs, sizes = problem
    if budget < sum(min(row) for row in sizes):
        with pytest.raises(ValueError, match="smallest choice"):
            greedy(costs, sizes, budget)
        return
    point = greedy(costs, sizes, budget)
    assert point.size <= budget
    assert point.cost >= within(frontier(costs, sizes), budget).cost
    assert point.size == sum(row[i] for row, i in zip(sizes, point.choices, strict=True))


@given(problems())
def test_greedy_is_optimal_where_the_budget_is_a_corner_of_the_hull(problem) -> None:
    points = frontier(*problem)
    for i, corner in enumerate(points):
        before = [(corner.cost - p.cost) / (corner.size - p.size) for p in points[:i]]
        after = [(p.cost - corner.cost) / (p.size - corner.size) for p in points[i + 1 :]]
        if not before or not after or max(before) < min(after) * (1 + 1e-9):
            assert greedy(*problem, corner.size).cost == pytest.approx(corner.cost)


def test_greedy_that_ends_on_a_corner_with_bytes_left_can_miss_the_optimum() -> None:
    costs, sizes = [[10.0, 0.0], [12.0, 0.0]], [[0, 3], [0, 4]]
    assert greedy(costs, sizes, 4)[:2] == (3, 12.0)  # a corner of the hull
    assert within(frontier(costs, sizes), 4)[:2] == (4, 10.0)


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 30)), min_size=2, max_size=6), st.integers(0, 6))
def test_greedy_is_optimal_on_the_corners_of_the_hull(layers: list[tuple[int, int]], count: int) -> None:
    """One step a layer: the corners take those of most gain a byte, and a budget of exactly them is best spent so."""
    costs, sizes = [[gain, 0] for gain, _ in layers], [[5, 5 + step] for _, step in layers]
    taken = sorted(layers, key=lambda pair: -pair[0] / pair[1])[:count]
    point = greedy(costs, sizes, 5 * len(layers) + sum(step for _, step in taken))
    assert point.cost == sum(gain for gain, _ in layers) - sum(gain for gain, _ in taken)
    assert point.cost == within(frontier(costs, sizes), point.size).cost


def test_greedy_can_miss_the_optimum() -> None:
    costs, sizes = [[10, 0], [6, 0], [6, 0]], [[0, 6], [0, 5], [0, 5]]
    assert greedy(costs, sizes, 10).cost == 12
    assert within(frontier(costs, sizes), 10).cost == 10


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [None, 16, 32])
@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_bytes_are_those_of_the_packed_tensor(bits: int, group_size: int | None, symmetric: bool) -> None:
    spec = QuantizationSpec(bits, symmetric=symmetric, group_size=group_size)
    weight = torch.randn(20, 96, generator=torch.Generator().manual_seed(0))
    assert stored_bytes((20, 96), spec) == quantize_layer(weight, spec).nbytes


def test_bytes_of_one_scale_for_all() -> None:
    spec = QuantizationSpec(4, per_tensor=True)
    assert stored_bytes((20, 96), spec) == quantize_layer(torch.randn(20, 96), spec).nbytes


def test_bits_go_where_they_are_worth_most() -> None:
    spec = QuantizationSpec(4, symmetric=True, group_size=32)
    shapes = {"fragile": (32, 64), "robust": (32, 64)}
    table = {"fragile": {2: 9.0, 4: 1.0, 8: 0.0}, "robust": {2: 0.3, 4: 0.1, 8: 0.0}}

    def grid(bits: int) -> QuantizationSpec:
        return replace(spec, bits=bits)

    uniform = stored_total({"fragile": 4, "robust": 4}, shapes, grid)
    assert bits_within(table, shapes, spec, uniform) == {"fragile": 4, "robust": 4}
    more = stored_total({"fragile": 8, "robust": 2}, shapes, grid)
    assert bits_within(table, shapes, spec, more) == {"fragile": 8, "robust": 2}
    assert bits_within(table, shapes, spec, 1e9) == {"fragile": 8, "robust": 8}


@pytest.mark.parametrize("seed", range(5))
def test_layers_together_get_the_best_of_the_choices_that_they_can_share(seed: int) -> None:
    """The oracle tries every choice; groups lie crosswise and name a layer that is not there."""
    generator = np.random.default_rng(seed)
    spec = QuantizationSpec(4, symmetric=True, group_size=32)
    shapes = {name: (int(generator.integers(1, 9)), 64) for name in "abcde"}
    table = {name: dict(zip((2, 4, 8), generator.uniform(size=3), strict=True)) for name in shapes}
    del table["c"][8]  # so that its group has 2 and 4 only
    together = [("d", "a"), ("c", "absent", "e")]  # b is alone

    def grid(bits: int) -> QuantizationSpec:
        return replace(spec, bits=bits)

    tried = [
        {"a": first, "b": second, "c": third, "d": first, "e": third}
        for first, second, third in itertools.product((2, 4, 8), (2, 4, 8), (2, 4))
    ]
    for budget in sorted({stored_total(bits, shapes, grid) for bits in tried}):
        found = bits_within(table, shapes, spec, budget, together=together)
        fitting = [bits for bits in tried if stored_total(bits, shapes, grid) <= budget]
        assert found == min(fitting, key=lambda bits: sum(table[name][value] for name, value in bits.items()))
        assert list(found) == list(table)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frontier([], []), "costs has 0 layers"),
        (lambda: frontier([[1.0]], [[1, 2]]), "layer 0 has 1 costs and 2 sizes"),
        (lambda: frontier([[float("nan")]], [[1]]), "finite"),
        (lambda: frontier([[1.0]], [[-1]]), "0 or more"),
        (lambda: stored_bytes((4, 10), QuantizationSpec(4, group_size=4)), "does not divide"),
        (lambda: bits_within({"a": {4: 0.0}}, {"b": (1, 1)}, QuantizationSpec(4), 1), "sensitivity is of"),
        (
            lambda: bits_within(
                {"a": {4: 0.0}, "b": {3: 0.0}}, dict.fromkeys("ab", (1, 1)), QuantizationSpec(4), 99, together=["ab"]
            ),
            "together names \\['a', 'b'\\], whose sensitivities have no number of bits in common",
        ),
    ],
)
def test_wrong_arguments_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
