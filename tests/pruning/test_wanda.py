"""Wanda's score, masks and norms, against what they stand for."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference.pruning import wanda


def problem(seed: int, rows: int = 6, columns: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    size = torch.rand(columns, generator=generator) * 3 + 0.1
    inputs = torch.randn(4, 10, columns, generator=generator) * size
    return torch.randn(rows, columns, generator=generator), inputs


def norms_of(inputs: torch.Tensor) -> torch.Tensor:
    norms = wanda.InputNorms(inputs.shape[-1])
    norms.add(inputs)
    return norms.norms


def test_the_score_is_the_change_of_the_output_when_one_weight_goes() -> None:
    weight, inputs = problem(0)
    rows = inputs.flatten(0, 1)
    score = wanda.scores(weight, rows.norm(dim=0))
    for row, column in ((0, 0), (3, 17), (5, 31)):
        thin = weight.clone()
        thin[row, column] = 0
        assert score[row, column].item() == pytest.approx((rows @ (thin - weight).T).norm().item(), rel=1e-5)


def test_norms_are_those_of_all_tokens_up_to_a_factor_however_they_come() -> None:
    _, inputs = problem(1)
    at_once, in_parts = wanda.InputNorms(32), wanda.InputNorms(32)
    at_once.add(inputs)
    for part in inputs.split((1, 3)):
        in_parts.add(part)
    torch.testing.assert_close(in_parts.norms, at_once.norms)
    torch.testing.assert_close(at_once.norms, inputs.flatten(0, 1).norm(dim=0) / 2)  # of four sequences
    matrix = wanda.InputNorms(32)
    matrix.add(inputs.flatten(0, 1))
    assert matrix.sequences == 1
    assert in_parts.sequences == 4


@given(seed=st.integers(0, 1000), sparsity=st.floats(0, 0.99), factor=st.floats(1e-3, 1e3))
def test_every_row_keeps_the_same_number_and_the_scale_of_norms_does_not_matter(
    seed: int, sparsity: float, factor: float
) -> None:
    weight, inputs = problem(seed)
    norms = norms_of(inputs)
    keep = wanda.mask(weight, norms, sparsity)
    assert ((~keep).sum(1) == round(sparsity * 32)).all()
    score = wanda.scores(weight, norms)
    for row in range(len(weight)):
        if keep[row].any() and not keep[row].all():
            assert score[row][keep[row]].min() >= score[row][~keep[row]].max()
    assert (wanda.mask(weight, factor * norms, sparsity) == keep).double().mean() > 0.98  # but for near ties


def test_patterns_keep_n_of_each_m() -> None:
    weight, inputs = problem(2)
    keep = wanda.mask(weight, norms_of(inputs), pattern=(4, 8))
    assert (keep.view(6, -1, 8).sum(-1) == 4).all()


def test_equal_inputs_leave_magnitude_in_each_row() -> None:
    weight, _ = problem(3)
    keep = wanda.mask(weight, torch.ones(32), 0.5)
    expected = weight.abs() >= weight.abs().sort(1).values[:, 16:17]
    assert torch.equal(keep, expected)


def test_ties_lose_the_lower_column() -> None:
    keep = wanda.mask(torch.ones(2, 8), torch.ones(8), 0.5)
    assert keep.tolist() == [[False] * 4 + [True] * 4] * 2


@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.7])
def test_equal_mass_removes_the_same_part_of_each_rows_scores(sparsity: float) -> None:
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(20, 500, generator=generator) * torch.rand(20, 1, generator=generator)
    weight[:10] = weight[:10] ** 3  # rows whose weights differ more in size
    keep = wanda.mass_mask(weight, torch.ones(500), sparsity)
    removed = (~keep).double().mean(1)
    assert removed.mean().item() == pytest.approx(sparsity, abs=5e-3)
    assert removed[:10].min() > removed[10:].max()
    share = (weight.abs() * ~keep).sum(1) / weight.abs().sum(1)
    assert share.max() - share.min() < 0.01


def test_equal_mass_has_the_limits_of_the_authors_search() -> None:
    """Its part is 0.8 at most, and one of a thousandth takes more than a hundredth of normally distributed scores."""
    weight = torch.randn(100, 500, generator=torch.Generator().manual_seed(4))
    removed = [1 - wanda.mass_mask(weight, torch.ones(500), s).double().mean().item() for s in (0.0, 0.01, 0.97, 0.99)]
    assert removed == pytest.approx([0.021, 0.021, 0.926, 0.926], abs=0.005)


def test_what_cannot_be_is_refused_by_name() -> None:
    weight, inputs = problem(5)
    norms = norms_of(inputs)
    with pytest.raises(ValueError, match="exactly one of them"):
        wanda.mask(weight, norms)
    with pytest.raises(ValueError, match="exactly one of them"):
        wanda.mask(weight, norms, 0.5, pattern=(2, 4))
    with pytest.raises(ValueError, match=r"weight has shape \(6, 32\) and input_norm \(31,\)"):
        wanda.mask(weight, norms[1:], 0.5)
    with pytest.raises(ValueError, match="input_norm holds negative, infinite or NaN"):
        wanda.mask(weight, -norms, 0.5)
    with pytest.raises(ValueError, match="sparsity is 1.5"):
        wanda.mass_mask(weight, norms, 1.5)
    with pytest.raises(ValueError, match="tolerance is 0"):
        wanda.mass_mask(weight, norms, 0.3, tolerance=0.0)
    with pytest.raises(ValueError, match="m is 5; it must divide the 32 inputs"):
        wanda.mask(weight, norms, pattern=(2, 5))
    accumulator = wanda.InputNorms(32)
    with pytest.raises(ValueError, match=r"here has shape \(4, 10, 31\); its last axis must be 32"):
        accumulator.add(inputs[..., 1:], "here")
    with pytest.raises(ValueError, match="here holds NaN or infinite activations"):
        accumulator.add(inputs / 0, "here")
    assert accumulator.sequences == 0
