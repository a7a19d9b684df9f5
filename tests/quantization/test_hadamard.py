"""Hadamard transforms: against scipy, the authors' matrices and plain multiplication."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import hadamard as scipy_hadamard

from reference.quantization import hadamard

ORDERS = [1, 2, 4, 12, 20, 24, 28, 36, 40, 44, 60, 72, 76, 96, 108, 140, 164, 256, 384, 768]


@pytest.mark.parametrize("n", ORDERS)
def test_matrices_are_orthogonal_and_flat(n) -> None:
    h = hadamard.matrix(n)
    assert torch.allclose(h @ h.T, torch.eye(n).double(), atol=1e-12)
    assert torch.allclose(h.abs(), torch.full_like(h, n**-0.5), atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 8, 64, 512])
def test_powers_of_two_equal_scipy(n) -> None:
    expected = torch.from_numpy(scipy_hadamard(n)).double() / n**0.5
    assert torch.allclose(hadamard.matrix(n), expected, atol=1e-12)


def test_powers_of_two_equal_the_authors() -> None:
    vectors = np.load(Path(__file__).parents[1] / "parity" / "hadamard.npz")
    for n in (16, 64, 128):
        assert torch.allclose(hadamard.matrix(n) * n**0.5, torch.from_numpy(vectors[f"had{n}"]).double(), atol=1e-10)


def test_other_orders_are_as_good_as_the_authors() -> None:
    """Their tables and ours are different matrices; both turn a single spike into equal sizes."""
    vectors = np.load(Path(__file__).parents[1] / "parity" / "hadamard.npz")
    for n in (12, 20, 28, 36, 40, 60):
        theirs = torch.from_numpy(vectors[f"had{n}"]).double() / n**0.5
        for h in (theirs, hadamard.matrix(n)):
            assert torch.allclose(h @ h.T, torch.eye(n).double(), atol=1e-12)


@given(st.sampled_from(ORDERS[:-2]), st.integers(0, 2**31))
def test_transform_is_the_product_and_keeps_lengths(n, seed) -> None:
    x = torch.randn(3, 2, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    y = hadamard.transform(x)
    assert torch.allclose(y, x @ hadamard.matrix(n), atol=1e-10)
    assert torch.allclose(y.norm(dim=-1), x.norm(dim=-1), atol=1e-10)


def test_signs_turn_rows_and_types_are_kept() -> None:
    signed, plain = hadamard.matrix(64, seed=3), hadamard.matrix(64)
    ratio = signed / plain
    assert torch.equal(ratio, ratio[:, :1].expand(64, 64))
    assert set(ratio[:, 0].tolist()) == {-1.0, 1.0}
    assert torch.equal(signed, hadamard.matrix(64, seed=3))
    x = torch.randn(5, 96, generator=torch.Generator().manual_seed(0))
    assert hadamard.transform(x.bfloat16()).dtype == torch.bfloat16
    assert torch.allclose(hadamard.transform(x.bfloat16()).float(), hadamard.transform(x), atol=0.05)


@pytest.mark.parametrize("n", [0, 3, 6, 14, 100])
def test_impossible_orders_are_refused(n) -> None:
    with pytest.raises(ValueError, match=f"n is {n}"):
        hadamard.transform(torch.ones(2, n))
