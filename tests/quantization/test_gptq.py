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
    return grid.dequantize(solution.codes, solution.scale, solution.zero_point, spec)


def objective(weight: torch.Tensor, quantised: torch.Tensor, hessian: torch.Tensor) -> float:
    error = (quantised - weight).double()
    return torch.trace(error @ hessian.double() @ error.T).item()


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_reported_loss_is_half_the_damped_trace(bits: int, act_order: bool) -> None:
    weight, hessian = problem(bits)
    spec = QuantizationSpec(bits)
    solution = gptq.solve(weight, hessian, spec, act_order=act_order)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian))
    assert solution.loss == pytest.approx(objective(weight, dequantize(solution, spec), damped) / 2, rel=1e-5)


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
    hessian[[3, 40]] = 0
    hessian[:, [3, 40]] = 0
    spec = QuantizationSpec(4)
    quantised = dequantize(gptq.solve(weight, hessian, spec), spec)
    assert (quantised[:, [3, 40]] == 0).all()
    assert (quantised[:, 4:40] != 0).any()


def test_group_index_rebuilds_the_weight() -> None:
    weight, hessian = problem(7)
    spec = QuantizationSpec(8, group_size=16)
    tensor = gptq.quantize_layer(weight, hessian, spec, act_order=True)
    assert tensor.group_index is not None
    assert torch.bincount(tensor.group_index).tolist() == [16] * 4
    assert (tensor.dequantize() - weight).abs().max() < 0.1


def test_accumulator_is_a_mean_over_sequences_and_merges() -> None:
    batches = [torch.randn(3, 5, 8), torch.randn(1, 9, 8), torch.randn(7, 8)]
    whole, first, second = (gptq.HessianAccumulator(8, torch.float64) for _ in range(3))
    for batch in batches:
        whole.add(batch)
    first.add(batches[0])
    second.add(batches[1])
    second.add(batches[2])
    first.merge(second)
    rows = torch.cat([batch.reshape(-1, 8) for batch in batches]).double()
    assert whole.sequences == first.sequences == 5
    torch.testing.assert_close(whole.hessian, 2 / 5 * rows.T @ rows)
    torch.testing.assert_close(first.hessian, whole.hessian)


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
    with pytest.raises(ValueError, match="damping"):
        gptq.quantize_layer(weight, hessian, spec, damping=-1)
    with pytest.raises(ValueError, match="block_size"):
        gptq.quantize_layer(weight, hessian, spec, block_size=0)
