"""Magnitude pruning against counting and against every other mask."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from reference.pruning import magnitude

MATRICES = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=1, max_dims=3, max_side=7),
    elements=st.floats(-100, 100, width=32),
)
SPARSITIES = st.floats(0, 1, exclude_max=True)


@given(MATRICES, SPARSITIES)
def test_count_is_exact(values: np.ndarray, sparsity: float) -> None:
    keep = magnitude.mask(torch.from_numpy(values), sparsity)
    assert keep.dtype == torch.bool
    assert tuple(keep.shape) == values.shape
    assert int((~keep).sum()) == round(sparsity * values.size)


@given(MATRICES, SPARSITIES)
def test_no_removed_weight_is_larger_than_a_kept_one(values: np.ndarray, sparsity: float) -> None:
    keep = magnitude.mask(torch.from_numpy(values), sparsity).numpy()
    removed, kept = np.abs(values[~keep]), np.abs(values[keep])
    assert removed.size == 0 or kept.size == 0 or removed.max() <= kept.min()


@given(MATRICES, SPARSITIES)
def test_equals_a_stable_sort_in_numpy(values: np.ndarray, sparsity: float) -> None:
    order = np.argsort(np.abs(values).ravel(), kind="stable")
    expected = np.ones(values.size, dtype=bool)
    expected[order[: round(sparsity * values.size)]] = False
    keep = magnitude.mask(torch.from_numpy(values), sparsity).numpy()
    np.testing.assert_array_equal(keep, expected.reshape(values.shape))


@given(arrays.arrays(np.float64, (2, 4), elements=st.floats(-8, 8, width=16)), st.integers(0, 7))
def test_no_mask_of_the_same_count_has_a_smaller_squared_error(values: np.ndarray, removed: int) -> None:
    """The claim of the chapter, by trying every mask."""
    weight = torch.from_numpy(values)
    squares = values.ravel() ** 2
    best = min(squares[list(chosen)].sum() for chosen in itertools.combinations(range(8), removed))
    keep = magnitude.mask(weight, removed / 8)
    assert float((weight * keep - weight).square().sum()) == pytest.approx(best, rel=1e-12, abs=1e-12)


def test_among_equal_weights_the_first_go() -> None:
    weight = torch.tensor([[1.0, -1.0], [1.0, -1.0]])
    assert magnitude.mask(weight, 0.5).tolist() == [[False, False], [True, True]]


def test_sign_does_not_matter() -> None:
    weight = torch.tensor([0.1, -3.0, 2.0, -0.2])
    assert magnitude.mask(weight, 0.5).tolist() == [False, True, True, False]
    assert torch.equal(magnitude.mask(weight, 0.5), magnitude.mask(-weight, 0.5))


def test_zeros_go_before_all_others() -> None:
    weight = torch.tensor([0.5, 0.0, -0.5, 0.0, 1e-30])
    assert magnitude.mask(weight, 0.4).tolist() == [True, False, True, False, True]


def test_an_infinite_weight_is_kept() -> None:
    assert magnitude.mask(torch.tensor([1.0, -torch.inf]), 0.5).tolist() == [False, True]


def test_sparsity_zero_keeps_all() -> None:
    assert magnitude.mask(torch.zeros(3, 5), 0).all()


def test_the_weight_is_left_alone_and_takes_no_gradient() -> None:
    weight = torch.nn.Parameter(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))
    before = weight.detach().clone()
    keep = magnitude.mask(weight, 0.5)
    assert torch.equal(weight.detach(), before)
    assert not keep.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_half_of_a_matrix_in_any_float_type(dtype: torch.dtype) -> None:
    weight = torch.arange(-8, 8).to(dtype).view(4, 4) + 0.5
    keep = magnitude.mask(weight, 0.5)
    assert torch.equal(keep, weight.abs() > 4)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, float("nan")])
def test_sparsity_out_of_range_is_refused_by_name(sparsity: float) -> None:
    with pytest.raises(ValueError, match="sparsity"):
        magnitude.mask(torch.ones(2, 2), sparsity)


def test_nan_weights_are_refused_and_counted() -> None:
    with pytest.raises(ValueError, match="2 NaN"):
        magnitude.mask(torch.tensor([1.0, torch.nan, torch.nan]), 0.5)
