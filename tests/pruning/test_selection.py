"""The k-th smallest of a row, against sorting."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference.pruning.selection import kth_smallest

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@given(st.integers(1, 5), st.integers(1, 40), st.sampled_from(DTYPES), st.randoms(use_true_random=False), st.data())
def test_it_is_what_sorting_puts_there(rows: int, n: int, dtype: torch.dtype, random, data: st.DataObject) -> None:
    special = [float("inf"), -float("inf"), 0.0, -0.0, 1.0, float("nan")]  # and ties
    flat = [random.choice(special) if random.random() < 0.5 else random.gauss(0, 1) for _ in range(rows * n)]
    values = torch.tensor(flat).to(dtype).view(rows, n)
    k = data.draw(st.integers(1, n))
    before = values.clone()
    found = kth_smallest(values, k)
    expected = values.sort(dim=1).values[:, k - 1 : k]
    assert found.dtype == dtype
    assert found.shape == (rows, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(values, before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gradient_and_strides_do_not_matter(dtype: torch.dtype) -> None:
    values = torch.randn(30, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = kth_smallest(values.T.contiguous(), 9)
    assert torch.equal(kth_smallest(values.clone().requires_grad_().T, 9), expected)
    assert torch.equal(expected, values.sort(dim=0).values[8][:, None])
