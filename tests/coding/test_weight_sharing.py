"""k-means on a line: against brute force, against distances computed one by one, and what a codebook promises."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reference.coding.weight_sharing import (
    CodebookTensor,
    assign,
    compression_rate,
    initial_centroids,
    kmeans,
    optimal_kmeans,
    share,
    squared_error,
)

some_values = st.lists(st.integers(-40, 40).map(lambda v: v / 8), min_size=1, max_size=40)


def slow_update(values: Tensor, centroids: Tensor) -> Tensor:
    """All distances, argmin (first on ties), means of what is there."""
    c = centroids.double().clone()
    nearest = (values.double()[:, None] - c[None]).abs().argmin(1)
    for j in range(len(c)):
        if bool((nearest == j).any()):
            c[j] = values.double()[nearest == j].mean()
    return c


@given(some_values, st.lists(st.integers(-40, 40).map(lambda v: v / 8), min_size=1, max_size=6))
@settings(max_examples=150, deadline=None)
def test_an_update_equals_all_distances(values: list[float], start: list[float]) -> None:
    """Eighths are exact in binary, so ties are ties in both; later updates are compared with scipy's (parity)."""
    x, centroids = torch.tensor(values), torch.tensor(start).sort().values
    found, index = kmeans(x, len(start), centroids, iterations=1)
    torch.testing.assert_close(found, slow_update(x, centroids), rtol=1e-12, atol=1e-12)
    assert torch.equal(index, assign(x, found))


@given(some_values, st.lists(st.integers(-40, 40).map(lambda v: v / 8), min_size=1, max_size=6))
def test_the_nearest_centroid_is_the_first_of_the_nearest(values: list[float], centroids: list[float]) -> None:
    x, c = torch.tensor(values), torch.tensor(centroids).sort().values
    assert torch.equal(assign(x, c), (x[:, None] - c[None]).abs().argmin(1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_types_are_taken_as_the_numbers_they_are(dtype: torch.dtype) -> None:
    x = torch.linspace(-1, 1, 101).to(dtype)
    centroids, index = kmeans(x, 5)
    exact, same = kmeans(x.double(), 5)
    assert torch.equal(centroids, exact)
    assert torch.equal(index, same)
    assert squared_error(x, centroids) == squared_error(x.double(), exact)


@given(st.lists(st.integers(-40, 40).map(lambda v: v / 8), min_size=1, max_size=9), st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_optimum_equals_all_divisions(values: list[float], k: int) -> None:
    """Every way to cut the sorted values into at most k intervals."""
    x = np.sort(np.array(values))
    best = min(
        sum(((part - part.mean()) ** 2).sum() for part in np.split(x, cuts))
        for count in range(min(k, len(x)))
        for cuts in itertools.combinations(range(1, len(x)), count)
    )
    found = optimal_kmeans(torch.tensor(values), k)[0]
    assert squared_error(torch.tensor(values), found) == pytest.approx(best, abs=1e-9)


@given(some_values, st.integers(1, 6), st.sampled_from(["linear", "density"]), st.sampled_from(["keep", "relocate"]))
@settings(max_examples=100, deadline=None)
def test_lloyd_is_never_better_than_the_optimum(values: list[float], k: int, init: str, empty: str) -> None:
    x = torch.tensor(values)
    found = squared_error(x, kmeans(x, k, init, empty=empty)[0])
    assert found >= squared_error(x, optimal_kmeans(x, k)[0]) - 1e-9


def test_an_iteration_never_raises_the_error() -> None:
    x = torch.randn(500, generator=torch.Generator().manual_seed(0))
    for empty in ("keep", "relocate"):
        errors = [squared_error(x, kmeans(x, 16, iterations=t, empty=empty)[0]) for t in range(12)]
        assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(errors))
        assert errors[-1] < errors[0]


def test_relocating_fills_the_hole_that_pruning_leaves() -> None:
    """Linear centroids fall into the gap around zero and stay there unless they are moved."""
    x = torch.randn(2000, generator=torch.Generator().manual_seed(0)) * 0.05
    x = x[x.abs() > 0.06]
    kept, index = kmeans(x, 32)
    moved, other = kmeans(x, 32, empty="relocate")
    assert len(index.unique()) < 32
    assert len(other.unique()) == 32
    assert squared_error(x, moved) < squared_error(x, kept)


def test_starts_by_hand() -> None:
    x = torch.tensor([0.0, 1.0, 2.0, 10.0])
    assert initial_centroids(x, 3).tolist() == [0.0, 5.0, 10.0]
    assert initial_centroids(x, 2, "density").tolist() == pytest.approx(np.quantile(x.numpy(), [0.25, 0.75]).tolist())
    assert initial_centroids(x, 1).tolist() == [3.25]
    drawn = initial_centroids(x, 4, "random", seed=3)
    assert drawn.tolist() == [0.0, 1.0, 2.0, 10.0]


def test_more_clusters_than_values() -> None:
    x = torch.tensor([1.0, 1.0, 4.0])
    for centroids, index in (kmeans(x, 7), optimal_kmeans(x, 7)):
        assert centroids.shape == (7,)
        assert torch.equal(centroids[index].float(), x)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("init", ["linear", "density", "random", "optimal"])
def test_shared_weights_keep_the_mask_and_take_few_values(bits: int, init: str) -> None:
    weight = torch.randn(40, 50, generator=torch.Generator().manual_seed(bits))
    mask = weight.abs() > 0.8
    shared = share(weight, mask, bits, init=init)
    dense = shared.to_dense()
    assert torch.equal(shared.mask, mask)
    assert torch.equal(dense != 0, mask)
    assert len(dense[mask].unique()) <= 2**bits - 1
    assert shared.codebook[0] == 0
    assert (dense[mask] - weight[mask]).square().mean() < weight[mask].var() * 2.0 ** (-2 * bits + 4)


def test_a_layer_with_nothing_kept() -> None:
    shared = share(torch.randn(3, 4), torch.zeros(3, 4, dtype=torch.bool), 4)
    assert not shared.to_dense().any()


def test_rate_of_the_papers_example() -> None:
    """Han et al. 2016, section 3.1: 16 weights of 32 bits in 4 clusters, 3.2 times."""
    assert compression_rate(16, 32, 4) == pytest.approx(16 * 32 / (16 * 2 + 4 * 32))
    assert compression_rate(16, 32, 4) == pytest.approx(3.2)


def test_wrong_arguments_are_named() -> None:
    x = torch.randn(5)
    with pytest.raises(ValueError, match="k is 0"):
        kmeans(x, 0)
    with pytest.raises(ValueError, match="init is 'best'"):
        kmeans(x, 2, "best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="init has shape"):
        kmeans(x, 2, torch.zeros(3))
    with pytest.raises(ValueError, match="only 5 values"):
        kmeans(x, 6, "random")
    with pytest.raises(ValueError, match="empty is 'drop'"):
        kmeans(x, 2, empty="drop")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="iterations is -1"):
        kmeans(x, 2, iterations=-1)
    with pytest.raises(ValueError, match="values is empty"):
        kmeans(x[:0], 2)
    with pytest.raises(ValueError, match="1 entries that are not finite"):
        optimal_kmeans(torch.tensor([1.0, float("nan")]), 1)
    with pytest.raises(ValueError, match="bits is 9"):
        share(x, x > 0, 9)
    with pytest.raises(ValueError, match="mask is"):
        share(x, torch.ones(4, dtype=torch.bool), 4)
    with pytest.raises(ValueError, match=r"codebook\[0\] is 1"):
        CodebookTensor(torch.ones(4), torch.zeros(3, dtype=torch.uint8), 2)
    with pytest.raises(ValueError, match="codes must be uint8 below 4"):
        CodebookTensor(torch.zeros(4), torch.full((3,), 4, dtype=torch.uint8), 2)
    with pytest.raises(ValueError, match="float32 of"):
        CodebookTensor(torch.zeros(5), torch.zeros(3, dtype=torch.uint8), 2)
    with pytest.raises(ValueError, match="bits is 9"):
        CodebookTensor(torch.zeros(512), torch.zeros(3, dtype=torch.uint8), 9)
    for numbers in [(0, 32, 4), (16, 0, 4), (16, 32, 1)]:
        with pytest.raises(ValueError, match="needed are"):
            compression_rate(*numbers)
