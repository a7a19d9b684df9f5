"""SparseGPT against a slow surgeon, least squares, GPTQ and the diagonal limit."""

import re
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference.pruning import magnitude, sparsegpt
from reference.quantization import CalibrationWarning, gptq
from reference.quantization.grid import QuantizationSpec
from reference.quantization.hessian import HessianAccumulator


def problem(seed: int, out: int = 12, columns: int = 64, tokens: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and the Hessian of correlated inputs of unequal size."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5 + torch.eye(columns)
    inputs = torch.randn(tokens, columns, generator=generator) @ mixing
    accumulator = HessianAccumulator(columns, torch.float64)
    accumulator.add(inputs * (torch.rand(columns, generator=generator) * 3 + 0.1))
    return torch.randn(out, columns, generator=generator), accumulator.hessian


def damped(hessian: torch.Tensor, damping: float = 0.01) -> torch.Tensor:
    filled = hessian + torch.diag((hessian.diagonal() == 0).to(hessian))
    return filled + damping * filled.diagonal().mean() * torch.eye(len(hessian)).to(hessian)


def half_trace(change: torch.Tensor, hessian: torch.Tensor) -> float:
    change = change.double()
    return torch.trace(change @ damped(hessian.double()) @ change.T).item() / 2


def surgeon(
    weight: torch.Tensor, hessian: torch.Tensor, block_size: int, sparsity: float | None, pattern: tuple | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Optimal Brain Surgeon from left to right: the inverse of the columns left is made anew for every column."""
    w, h = weight.double().clone(), damped(hessian.double())
    columns = w.shape[1]
    keep = torch.ones_like(w, dtype=torch.bool)
    settled = [1 / torch.linalg.inv(h[j:, j:])[0, 0] for j in range(columns)]  # 1 / [H_F^-1]_jj
    for i in range(columns):
        if sparsity is not None and i % block_size == 0:
            part = slice(i, min(i + block_size, columns))
            score = w[:, part].square() * torch.stack(settled[part])
            keep[:, part] = magnitude.mask(score, sparsity)
        if pattern is not None and i % pattern[1] == 0:
            part = slice(i, i + pattern[1])
            order = (w[:, part].square() * torch.stack(settled[part])).argsort(1, descending=True)
            keep[:, part] = torch.zeros_like(keep[:, part]).scatter(1, order[:, : pattern[0]], True)
        inverse = torch.linalg.inv(h[i:, i:])
        removed = torch.where(keep[:, i], 0, w[:, i])
        w[:, i:] -= (removed / inverse[0, 0])[:, None] * inverse[0]
    return w.masked_fill(~keep, 0), keep


SETTINGS = [
    pytest.param(0.5, None, 128, id="half"),
    pytest.param(0.8, None, 24, id="80 %, block not a multiple of 16"),
    pytest.param(0.3, None, 1, id="30 %, column by column"),
    pytest.param(None, (2, 4), 128, id="2:4"),
    pytest.param(None, (4, 8), 16, id="4:8"),
    pytest.param(None, (1, 32), 32, id="1:32, wider than the inner block"),
]


@pytest.mark.parametrize(("sparsity", "pattern", "block_size"), SETTINGS)
def test_the_sweep_is_the_surgeon_from_left_to_right(
    sparsity: float | None, pattern: tuple | None, block_size: int
) -> None:
    weight, hessian = problem(3)
    if sparsity is not None and block_size > 64:
        block_size = 64  # the surgeon's choice of the whole width
    found = sparsegpt.prune_layer(weight, hessian, sparsity, pattern=pattern, block_size=block_size)
    expected, keep = surgeon(weight, hessian, block_size, sparsity, pattern)
    assert torch.equal(found.mask, keep)
    torch.testing.assert_close(found.weight.double(), expected, rtol=0, atol=2e-5)
    assert found.loss == pytest.approx(half_trace(found.weight - weight, hessian), rel=1e-5)
    assert not found.weight[~keep].any()
    assert not torch.signbit(found.weight[~keep]).any()


def test_it_is_between_the_best_repair_and_none() -> None:
    """For the same mask: least squares over all weights of a row, not only those to the right, is the floor."""
    weight, hessian = problem(5)
    found = sparsegpt.prune_layer(weight, hessian, 0.5)
    h, best = damped(hessian), torch.zeros(weight.shape, dtype=torch.float64)
    for row, keep in enumerate(found.mask):
        # Minimise (v - w) H (v - w)' over v that is zero outside the mask.
        best[row, keep] = torch.linalg.solve(h[keep][:, keep], h[keep] @ weight[row].double())
    floor = half_trace(best - weight, hessian)
    without = half_trace(weight.masked_fill(~found.mask, 0) - weight, hessian)
    assert floor < found.loss < 0.85 * without
    assert found.loss < 1.5 * floor


def test_its_mask_beats_magnitude_and_its_repair_helps_any_mask() -> None:
    weight, hessian = problem(7)
    by_size = magnitude.mask(weight, 0.5)
    repaired = sparsegpt.prune_layer(weight, hessian, mask=by_size)
    assert torch.equal(repaired.mask, by_size)
    assert repaired.loss < half_trace(weight.masked_fill(~by_size, 0) - weight, hessian)
    assert sparsegpt.prune_layer(weight, hessian, 0.5).loss < repaired.loss
    # A given mask leaves nothing to choose, so blocks are only a way to compute.
    for size in (1, 20, 64):
        other = sparsegpt.prune_layer(weight, hessian, mask=by_size, block_size=size)
        torch.testing.assert_close(other.weight, repaired.weight, rtol=0, atol=1e-5)


def test_unrelated_inputs_leave_nothing_to_repair() -> None:
    """A diagonal Hessian: weights that stay do not move, and the score is Wanda's, squared."""
    weight, _ = problem(9)
    norms = torch.rand(64) + 0.1
    found = sparsegpt.prune_layer(weight, torch.diag(2 * norms.square()), 0.5, damping=0.0)
    assert torch.equal(found.mask, magnitude.mask(weight.abs() * norms, 0.5))
    torch.testing.assert_close(found.weight, weight.masked_fill(~found.mask, 0))


@pytest.mark.parametrize("spec", [QuantizationSpec(3), QuantizationSpec(4, True, group_size=16),
                                  QuantizationSpec(4, per_tensor=True)])  # fmt: skip
def test_removing_nothing_and_rounding_is_gptq(spec: QuantizationSpec) -> None:
    weight, hessian = problem(11)
    ours = sparsegpt.prune_layer(weight, hessian, 0.0, spec=spec)
    theirs = gptq.solve(weight, hessian, spec, static_groups=True)
    assert ours.quantized is not None
    assert torch.equal(ours.quantized.codes, theirs.codes)
    assert torch.equal(ours.quantized.scale, theirs.scale)
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-6)


@pytest.mark.parametrize("spec", [QuantizationSpec(4), QuantizationSpec(3, True, group_size=16)])
def test_joint_with_rounding_removed_weights_have_the_code_of_zero(spec: QuantizationSpec) -> None:
    weight, hessian = problem(13)
    found = sparsegpt.prune_layer(weight, hessian, pattern=(2, 4), spec=spec)
    tensor = found.quantized
    assert tensor is not None
    zero = tensor.zero_point.repeat_interleave(64 // tensor.scale.shape[1], 1)
    assert torch.equal(tensor.codes.int()[~found.mask], zero[~found.mask])
    torch.testing.assert_close(tensor.dequantize(), found.weight)
    # One pass is better than two: rounding sees what pruning did, and repairs it.
    alone = sparsegpt.prune_layer(weight, hessian, pattern=(2, 4))
    twice = sparsegpt.prune_layer(weight, hessian, mask=found.mask)
    scale = tensor.scale.repeat_interleave(64 // tensor.scale.shape[1], 1)
    nearest = ((twice.weight / scale).round() + zero).clamp(0, spec.levels)
    two_steps = half_trace(((nearest - zero) * scale).masked_fill(~found.mask, 0) - weight, hessian)
    assert alone.loss < found.loss < two_steps


@given(
    seed=st.integers(0, 1000), sparsity=st.floats(0, 0.95), rows=st.integers(1, 7),
    columns=st.integers(1, 70), block_size=st.integers(1, 80),
)  # fmt: skip
def test_each_block_loses_its_part_exactly(
    seed: int, sparsity: float, rows: int, columns: int, block_size: int
) -> None:
    weight, hessian = problem(seed, rows, columns, 2 * columns)
    keep = sparsegpt.prune_layer(weight, hessian, sparsity, block_size=block_size).mask
    for block in keep.split(block_size, 1):
        assert int((~block).sum()) == round(sparsity * block.numel())


def test_inputs_that_never_come_lose_their_weights() -> None:
    weight, hessian = problem(15)
    hessian[[3, 40]], hessian[:, [3, 40]] = 0, 0
    found = sparsegpt.prune_layer(weight, hessian, 0.5)
    assert not found.weight[:, [3, 40]].any()
    rest = [j for j in range(64) if j not in (3, 40)]
    dropped = weight.clone()
    dropped[:, [3, 40]] = 0
    assert found.loss == pytest.approx(half_trace(found.weight - dropped, hessian), rel=1e-5)
    assert 0.45 < float(found.mask[:, rest].double().mean()) < 0.55


def test_rows_meet_only_in_the_choice_of_the_mask() -> None:
    weight, hessian = problem(17)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    whole, turned = (sparsegpt.prune_layer(w, hessian, 0.6) for w in (weight, weight[order]))
    assert torch.equal(whole.mask[order], turned.mask)
    torch.testing.assert_close(whole.weight[order], turned.weight)
    one = sparsegpt.prune_layer(weight[:1], hessian, pattern=(2, 4))
    assert torch.equal(one.mask[0], sparsegpt.prune_layer(weight, hessian, pattern=(2, 4)).mask[0])


def test_a_singular_hessian_is_damped_with_a_warning() -> None:
    weight, hessian = problem(19, tokens=20)
    with pytest.warns(CalibrationWarning, match="here: the Hessian could not be factorised with damping 0"):
        found = sparsegpt.prune_layer(weight, hessian.float(), 0.5, damping=0.0, name="here")
    assert found.damping > 0
    assert found.weight.isfinite().all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sparsegpt.prune_layer(weight, hessian, 0.5).damping == 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of sparsity, pattern and mask may be given, not none"),
        ({"sparsity": 0.5, "pattern": (2, 4)}, "not sparsity and pattern"),
        ({"sparsity": 1.0}, "sparsity is 1.0; it may be 0 or more and below 1"),
        ({"pattern": (5, 4)}, "pattern is (5, 4); it may be (n, m) with 1 <= n <= m"),
        ({"pattern": (2, 5)}, "5 must divide the 64 inputs of weight and block_size 128"),
        ({"pattern": (4, 8), "block_size": 12}, "8 must divide the 64 inputs of weight and block_size 12"),
        ({"mask": torch.ones(12, 64)}, "mask is torch.float32 (12, 64); it must be bool (12, 64)"),
        ({"mask": torch.ones(12, 63, dtype=torch.bool)}, "mask is torch.bool (12, 63)"),
        ({"sparsity": 0.5, "block_size": 0}, "block_size is 0; it may be 1 or more"),
        ({"sparsity": 0.5, "damping": -1.0}, "damping is -1.0"),
        ({"sparsity": 0.5, "count_rule": "up"}, "count_rule is 'up'"),
        ({"sparsity": 0.5, "spec": QuantizationSpec(4, zero_in_range=False)}, "zero must be on the grid"),
        ({"sparsity": 0.5, "spec": QuantizationSpec(4, group_size=48)}, "group_size 48 does not divide the 64 inputs"),
    ],
)
def test_what_cannot_be_is_refused_by_name(options: dict, message: str) -> None:
    weight, hessian = problem(0)
    with pytest.raises(ValueError, match=re.escape(message)):
        sparsegpt.prune_layer(weight, hessian, **options)


def test_bad_tensors_are_refused_by_the_layers_name() -> None:
    weight, hessian = problem(0)
    with pytest.raises(ValueError, match=r"hessian of q has shape \(63, 63\); the weight needs \(64, 64\)"):
        sparsegpt.prune_layer(weight, hessian[1:, 1:], 0.5, name="q")
    with pytest.raises(ValueError, match="q holds 1 NaN"):
        sparsegpt.prune_layer(weight.index_fill(1, torch.tensor(0), torch.nan)[:1], hessian, 0.5, name="q")
    with pytest.raises(TypeError, match="q must be a floating-point tensor"):
        sparsegpt.prune_layer(weight.int(), hessian, 0.5, name="q")
