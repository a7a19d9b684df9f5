"""GPTQ against closed forms, LDLQ, Babai and round to nearest."""

import pytest
import torch

from reference.quantization import gptq, grid, round_to_nearest
from reference.quantization.grid import QuantizationSpec


def problem(seed: int, out: int = 12, columns: int = 64, tokens: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and the Hessian of correlated inputs of unequal size."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5 + torch.eye(columns)
    size = torch.rand(columns, generator=generator) * 3 + 0.1
    inputs = torch.randn(tokens, columns, generator=generator) @ mixing * size
    accumulator = gptq.HessianAccumulator(columns, torch.float64)
    accumulator.add(inputs)
    return torch.randn(out, columns, generator=generator), accumulator.hessian


def dequantize(solution: gptq.Solution, spec: QuantizationSpec) -> torch.Tensor:
    if solution.group_index is None:
        return grid.dequantize(solution.codes, solution.scale, solution.zero_point, spec)
    columns = solution.group_index.long()
    return solution.scale[:, columns] * (solution.codes.float() - solution.zero_point[:, columns])


def objective(weight: torch.Tensor, quantised: torch.Tensor, hessian: torch.Tensor) -> float:
    error = (quantised - weight).double()
    return torch.trace(error @ hessian.double() @ error.T).item()


def with_dead_columns(hessian: torch.Tensor) -> torch.Tensor:
    hessian = hessian.clone()
    hessian[[3, 40]] = 0
    hessian[:, [3, 40]] = 0
    return hessian


SETTINGS = [
    pytest.param(spec, options, id=name)
    for name, spec, options in [
        *((f"{bits} bits", QuantizationSpec(bits), {}) for bits in (2, 3, 4, 8)),
        ("symmetric", QuantizationSpec(3, symmetric=True), {}),
        ("per tensor", QuantizationSpec(4, per_tensor=True), {"act_order": True}),
        ("groups", QuantizationSpec(3, group_size=16), {}),
        ("block not a multiple of the group", QuantizationSpec(3, group_size=16), {"block_size": 24}),
        ("group larger than the block", QuantizationSpec(3, group_size=32), {"block_size": 20}),
        ("act-order", QuantizationSpec(3, group_size=16), {"act_order": True}),
        ("static", QuantizationSpec(2, group_size=16), {"static_groups": True}),
        ("act-order, static", QuantizationSpec(4, group_size=16), {"act_order": True, "static_groups": True}),
        ("search, act-order, static", QuantizationSpec(2, group_size=32, clip_search=True),
         {"act_order": True, "static_groups": True}),
        ("search, symmetric groups", QuantizationSpec(3, True, group_size=32, clip_search=True), {"block_size": 32}),
    ]
]  # fmt: skip


@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize(("spec", "options"), SETTINGS)
def test_reported_loss_is_half_the_damped_trace(spec: QuantizationSpec, options: dict, dead: bool) -> None:
    weight, hessian = problem(spec.bits)
    if dead:
        hessian = with_dead_columns(hessian)
    solution = gptq.solve(weight, hessian, spec, **options)
    dropped = hessian.diagonal() == 0
    weight, filled = weight.masked_fill(dropped, 0), hessian + torch.diag(dropped.double())
    damped = filled + 0.01 * filled.diagonal().mean() * torch.eye(len(hessian))
    assert solution.loss == pytest.approx(objective(weight, dequantize(solution, spec), damped) / 2, rel=1e-5)


def surgeon(
    weight: torch.Tensor, hessian: torch.Tensor, spec: QuantizationSpec, act_order: bool = False,
    static_groups: bool = False, block_size: int = 128,
) -> torch.Tensor:  # fmt: skip
    """Optimal Brain Surgeon in one order: after each column, the inverse Hessian of the columns left, in float64."""
    columns = weight.shape[1]
    size = spec.group_size or columns
    whole, diagonal = weight, hessian.diagonal().clone()
    dead = diagonal == 0
    diagonal[dead] = 1
    damped = hessian + torch.diag(diagonal - hessian.diagonal() + 0.01 * diagonal.mean())
    weight = weight.masked_fill(dead, 0).double()
    fixed = grid.fit(weight.float() if static_groups else whole, spec)
    order = sorted(range(columns), key=lambda j: (-diagonal[j].item(), j)) if act_order else list(range(columns))
    codes = torch.zeros(weight.shape, dtype=torch.uint8)
    for place, column in enumerate(order):
        left = order[place:]
        if place % block_size == 0:
            seen = weight.clone()  # what the grids of this block are fitted to
        if spec.group_size is None:
            scale, zero = fixed[0][:, 0], fixed[1][:, 0]
        elif static_groups:
            scale, zero = fixed[0][:, column // size], fixed[1][:, column // size]
        elif place % size == 0:
            scale, zero = (t[:, 0] for t in grid.fit(seen[:, left[:size]].float(), spec))
        code = ((weight[:, column].float() / scale).round() + zero).clamp(0, spec.levels)
        codes[:, column] = code
        inverse = torch.linalg.inv(damped[left][:, left])
        error = (weight[:, column] - scale.double() * (code - zero)) / inverse[0, 0]
        weight[:, left] -= error[:, None] * inverse[0]
    return codes


@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize(("spec", "options"), SETTINGS)
def test_is_optimal_brain_surgeon_in_one_order(spec: QuantizationSpec, options: dict, dead: bool) -> None:
    weight, hessian = problem(30 + spec.bits)
    if dead:
        hessian = with_dead_columns(hessian)
    codes = gptq.solve(weight, hessian, spec, **options).codes
    assert (codes == surgeon(weight, hessian, spec, **options)).float().mean() > 0.99


@pytest.mark.parametrize(
    "spec", [QuantizationSpec(3), QuantizationSpec(4, symmetric=True), QuantizationSpec(4, group_size=32)]
)
def test_uncorrelated_inputs_give_round_to_nearest(spec: QuantizationSpec) -> None:
    weight, _ = problem(1)
    hessian = torch.diag(torch.rand(64, generator=torch.Generator().manual_seed(2)) + 0.1)
    ours = gptq.quantize_layer(weight, hessian, spec)
    expected = round_to_nearest.quantize_layer(weight, spec, scale_dtype=torch.float32)
    assert torch.equal(ours.codes, expected.codes)


def ldlq(
    weight: torch.Tensor, hessian: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, levels: int
) -> torch.Tensor:
    """LDLQ in float64: feedback from the factor of the flipped Hessian, no inverse anywhere."""
    flipped = torch.linalg.cholesky(hessian.flip(0, 1)).flip(0, 1)  # upper triangular R with H = R Rᵀ
    feedback = flipped / flipped.diagonal()  # unit upper triangular
    weight, codes = weight.double(), torch.zeros(weight.shape, dtype=torch.uint8)
    quantised = weight.clone()
    for k in range(weight.shape[1]):
        target = weight[:, k] + (weight[:, :k] - quantised[:, :k]) @ feedback[:k, k]
        code = ((target.float() / scale[:, 0]).round() + zero[:, 0]).clamp(0, levels)
        codes[:, k] = code.to(torch.uint8)
        quantised[:, k] = scale[:, 0].double() * (code - zero[:, 0])
    return codes


@pytest.mark.parametrize("seed", range(3))
def test_ldlq_gives_the_same_codes(seed: int) -> None:
    weight, hessian = problem(seed)
    spec = QuantizationSpec(3)
    solution = gptq.solve(weight, hessian, spec)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian))
    expected = ldlq(weight, damped, solution.scale, solution.zero_point, spec.levels)
    assert (solution.codes == expected).float().mean() > 0.999


@pytest.mark.parametrize("options", [{}, {"act_order": True}, {"act_order": True, "static_groups": True}])
def test_beats_round_to_nearest_on_average(options: dict) -> None:
    spec, ratios = QuantizationSpec(3, group_size=32), []
    for seed in range(30):
        weight, hessian = problem(seed)
        ours = gptq.quantize_layer(weight, hessian, spec, **options)
        plain = round_to_nearest.quantize_layer(weight, spec, scale_dtype=torch.float32)
        ratios.append(objective(weight, ours.dequantize(), hessian) / objective(weight, plain.dequantize(), hessian))
    assert sum(ratios) / len(ratios) < 0.7


@pytest.mark.parametrize("block_size", [1, 16, 50, 64, 1000])
def test_block_size_does_not_matter_for_whole_rows(block_size: int) -> None:
    weight, hessian = problem(5)
    spec = QuantizationSpec(4)
    expected = gptq.solve(weight, hessian, spec, block_size=64)
    found = gptq.solve(weight, hessian, spec, block_size=block_size)
    assert (found.codes == expected.codes).float().mean() > 0.995
    assert found.loss == pytest.approx(expected.loss, rel=0.005)


def test_dead_columns_become_zero_and_change_nothing_else() -> None:
    weight, hessian = problem(6)
    weight[:, [3, 40]] *= 0.01  # so that they are no end of a row's range
    spec = QuantizationSpec(4)
    solution = gptq.solve(weight, with_dead_columns(hessian), spec, damping=0.0)
    assert (dequantize(solution, spec)[:, [3, 40]] == 0).all()
    kept = [j for j in range(64) if j not in (3, 40)]
    without = gptq.solve(weight[:, kept], hessian[kept][:, kept], spec, damping=0.0)
    assert torch.equal(solution.scale, without.scale)
    assert (solution.codes[:, kept] == without.codes).float().mean() > 0.99


@pytest.mark.parametrize("spec", [QuantizationSpec(4), QuantizationSpec(4, symmetric=True, per_tensor=True)])
@pytest.mark.parametrize("act_order", [False, True])
def test_static_groups_mean_nothing_without_groups(spec: QuantizationSpec, act_order: bool) -> None:
    """The authors' loop over static groups is empty then: the grid of a row still counts a dead column's weight."""
    weight, hessian = problem(12)
    weight[:, [3, 40]] *= 6
    plain = gptq.solve(weight, with_dead_columns(hessian), spec, act_order=act_order)
    static = gptq.solve(weight, with_dead_columns(hessian), spec, act_order=act_order, static_groups=True)
    assert torch.equal(plain.scale, grid.fit(weight, spec)[0])
    assert torch.equal(static.scale, plain.scale)
    assert torch.equal(static.codes, plain.codes)


def test_columns_of_equal_size_are_taken_in_their_order() -> None:
    """Columns of unit Hessian do not touch each other: the groups of act-order are then those of the plain order."""
    weight, _ = problem(10)
    spec = QuantizationSpec(3, group_size=16)
    ordered = gptq.quantize_layer(weight, torch.eye(64), spec, act_order=True)
    plain = gptq.quantize_layer(weight, torch.eye(64), spec)
    assert plain.group_index is None
    assert ordered.group_index is not None
    assert ordered.group_index.tolist() == [column // 16 for column in range(64)]
    assert torch.equal(ordered.dequantize(), plain.dequantize())


def test_the_gradient_of_a_parameter_does_not_enter() -> None:
    weight, hessian = problem(11)
    solution = gptq.solve(torch.nn.Parameter(weight), hessian, QuantizationSpec(3, group_size=16))
    assert not solution.scale.requires_grad
    assert torch.equal(solution.codes, gptq.solve(weight, hessian, QuantizationSpec(3, group_size=16)).codes)


def test_group_index_rebuilds_the_weight() -> None:
    weight, hessian = problem(7)
    spec = QuantizationSpec(8, group_size=16)
    tensor = gptq.quantize_layer(weight, hessian, spec, act_order=True)
    assert tensor.group_index is not None
    assert torch.bincount(tensor.group_index).tolist() == [16] * 4
    assert (tensor.dequantize() - weight).abs().max() < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_accumulator_is_a_mean_over_sequences_and_merges(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    width = 300  # more than one mirrored block
    shapes = [(3, 5), (1, 9), (7,), (2, 3, 4)]
    batches = [torch.randn(*shape, width, generator=generator) for shape in shapes]
    whole, first, second = (gptq.HessianAccumulator(width, dtype) for _ in range(3))
    for batch in batches:
        whole.add(batch)
        assert torch.equal(whole.hessian, whole.hessian.T)  # read in between, and go on
    first.add(batches[0])
    for batch in batches[1:]:
        second.add(batch)
    first.merge(second)
    rows = torch.cat([batch.reshape(-1, width) for batch in batches]).double()
    expected = (2 / 7 * rows.T @ rows).to(dtype)
    assert whole.sequences == first.sequences == 7
    torch.testing.assert_close(whole.hessian, expected)
    torch.testing.assert_close(first.hessian, expected)
    assert torch.equal(second.hessian, second.hessian.T)


def test_accumulator_takes_what_a_model_gives() -> None:
    halves = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = halves.double().reshape(-1, 8).T @ halves.double().reshape(-1, 8)
    for inputs in (halves, halves.float().requires_grad_(), halves.transpose(0, 1).contiguous().transpose(0, 1)):
        total = gptq.HessianAccumulator(8)
        total.add(inputs)
        total.add(torch.empty(3, 0, 8))
        assert total.sequences == 2
        torch.testing.assert_close(total.hessian.double(), expected, rtol=1e-5, atol=1e-5)
    empty = gptq.HessianAccumulator(8)
    empty.merge(gptq.HessianAccumulator(8))
    assert empty.sequences == 0
    assert not empty.hessian.any()
    empty.merge(total)
    assert torch.equal(empty.hessian, total.hessian)


def test_float64_hessian_is_factorised_in_float64() -> None:
    weight, _ = problem(14)
    generator = torch.Generator().manual_seed(14)
    basis, _ = torch.linalg.qr(torch.randn(64, 64, generator=generator, dtype=torch.float64))
    hessian = basis * torch.logspace(0, -12, 64, dtype=torch.float64) @ basis.T
    spec = QuantizationSpec(4)
    exact = gptq.solve(weight, hessian, spec, damping=0.0)
    assert exact.damping == 0
    assert (exact.codes == well_conditioned(weight, hessian, spec)).float().mean() > 0.99
    with pytest.warns(UserWarning, match="could not be factorised"):
        gptq.solve(weight, hessian.float(), spec, damping=0.0)


def well_conditioned(weight: torch.Tensor, hessian: torch.Tensor, spec: QuantizationSpec) -> torch.Tensor:
    """LDLQ, which needs no inverse."""
    scale, zero = grid.fit(weight, spec)
    return ldlq(weight, hessian, scale, zero, spec.levels)


def test_inputs_of_very_unequal_size() -> None:
    weight, hessian = problem(15)
    size = torch.logspace(-6, 6, 64, dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        wide = (hessian * size * size[:, None]).to(dtype)
        solution = gptq.solve(weight, wide, QuantizationSpec(3, group_size=16), act_order=True)
        assert torch.isfinite(solution.scale).all()
        assert solution.loss >= 0
    for beyond in (1e-90, 1e90):  # the inverse factor leaves float32 at either end
        with pytest.raises(ValueError, match="cannot be factorised"):
            gptq.solve(weight, hessian * beyond, QuantizationSpec(3))


def test_singular_hessian_raises_damping_and_names_the_layer() -> None:
    weight, _ = problem(8)
    row = torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match=r"layers\.3\.mlp.*damping"):
        solution = gptq.solve(weight, row.T @ row, QuantizationSpec(4), damping=0.0, name="layers.3.mlp")
    assert solution.damping > 0


def test_bad_input_is_refused_by_name() -> None:
    weight, hessian = problem(9)
    spec = QuantizationSpec(4)
    with pytest.raises(ValueError, match="NaN or infinite activations"):
        gptq.HessianAccumulator(64).add(torch.full((2, 3, 64), float("nan")))
    with pytest.raises(ValueError, match="last axis must be 64"):
        gptq.HessianAccumulator(64).add(torch.zeros(2, 3, 65))
    with pytest.raises(ValueError, match=r"hessian of q_proj has shape"):
        gptq.quantize_layer(weight, hessian[:10, :10], spec, name="q_proj")
    with pytest.raises(ValueError, match="hessian of weight holds NaN"):
        gptq.quantize_layer(weight, hessian * float("nan"), spec)
    with pytest.raises(ValueError, match="hessian of fc2 is zero"):
        gptq.quantize_layer(weight, torch.zeros(64, 64), spec, name="fc2")
    with pytest.raises(ValueError, match="negative diagonal"):
        gptq.quantize_layer(weight, -hessian, spec)
    with pytest.raises(ValueError, match="cannot be factorised"):
        gptq.quantize_layer(weight, torch.eye(64) + 1e6 * (1 - torch.eye(64)) * torch.randn(64, 64).sign(), spec)
    with pytest.raises(ValueError, match="other has 8 columns"):
        gptq.HessianAccumulator(64).merge(gptq.HessianAccumulator(8))
    with pytest.raises(ValueError, match="float32 or float64"):
        gptq.HessianAccumulator(64, torch.bfloat16)
    with pytest.raises(ValueError, match="damping"):
        gptq.quantize_layer(weight, hessian, spec, damping=-1)
    with pytest.raises(ValueError, match="block_size"):
        gptq.quantize_layer(weight, hessian, spec, block_size=0)
