"""Masks over all layers, over rows, over groups of m, and by threshold, against slow obvious versions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from reference.pruning import magnitude

# Few values, so that ties are common.
TENSORS = arrays.arrays(
    np.float32, arrays.array_shapes(min_dims=2, max_dims=4, max_side=4), elements=st.integers(-3, 3)
)
SPARSITIES = st.floats(0, 1, exclude_max=True)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def slow_global(weights: dict[str, np.ndarray], removed: int, min_keep: int) -> dict[str, np.ndarray]:
    """Remove one weight at a time: the smallest, the first of equals, where the layer can spare one."""
    keep = {name: np.ones(value.size, bool) for name, value in weights.items()}
    for _ in range(removed):
        best = None
        for name, value in weights.items():
            for i, w in enumerate(np.abs(value).ravel()):
                if keep[name][i] and keep[name].sum() > min_keep and (best is None or w < best[0]):
                    best = (w, name, i)
        if best is None:
            break
        keep[best[1]][best[2]] = False
    return {name: keep[name].reshape(value.shape) for name, value in weights.items()}


@given(st.lists(TENSORS, min_size=1, max_size=3), SPARSITIES, st.integers(0, 2))
def test_global_masks_equal_removing_one_at_a_time(values: list, sparsity: float, min_keep: int) -> None:
    weights = {f"layer{i}": value for i, value in enumerate(values)}
    removed = round(sparsity * sum(value.size for value in values))
    expected = slow_global(weights, removed, min_keep)
    found = magnitude.global_masks({k: torch.from_numpy(v) for k, v in weights.items()}, sparsity, min_keep=min_keep)
    assert list(found) == list(weights)
    for name in weights:
        np.testing.assert_array_equal(found[name].numpy(), expected[name])


def test_one_layer_alone_is_mask() -> None:
    weight = normal(13, 7)
    assert torch.equal(magnitude.global_masks({"w": weight}, 0.6)["w"], magnitude.mask(weight, 0.6))


def test_a_layer_small_by_scale_keeps_one_weight_and_the_count_stays() -> None:
    weights = {"large": normal(20, 20), "tiny": normal(5, 5, seed=1) * 1e-6}
    masks = magnitude.global_masks(weights, 0.5)
    assert int(masks["tiny"].sum()) == 1
    assert masks["tiny"].flatten()[weights["tiny"].abs().argmax()]
    assert sum(int((~m).sum()) for m in masks.values()) == round(0.5 * 425)
    assert int(magnitude.global_masks(weights, 0.5, min_keep=0)["tiny"].sum()) == 0
    assert int(magnitude.global_masks(weights, 0.5, min_keep=7)["tiny"].sum()) == 7


def test_a_permutation_of_the_weights_permutes_the_mask() -> None:
    weight = normal(9, 8)
    order = torch.randperm(72, generator=torch.Generator().manual_seed(1))
    moved = weight.flatten()[order].view(9, 8)
    assert torch.equal(magnitude.mask(moved, 0.4).flatten(), magnitude.mask(weight, 0.4).flatten()[order])


@given(TENSORS, SPARSITIES, SPARSITIES)
def test_masks_of_rising_sparsity_are_nested(values: np.ndarray, first: float, second: float) -> None:
    weight = torch.from_numpy(values)
    low, high = sorted([first, second])
    assert not (magnitude.mask(weight, high) & ~magnitude.mask(weight, low)).any()


def test_what_is_dead_stays_dead_and_is_not_counted() -> None:
    weight = normal(10, 10)
    alive = magnitude.mask(weight, 0.2)
    weight = torch.where(alive, weight, 100.0)  # what stands under a zero of the mask must not matter
    again = magnitude.mask(weight, 0.2, alive=alive)
    assert not (again & ~alive).any()
    assert int(again.sum()) == 80 - 16
    masks = {"w": torch.ones(10, 10, dtype=torch.bool)}
    for kept in [80, 64, 51, 41, 33]:
        masks = magnitude.global_masks({"w": weight}, 0.2, alive=masks)
        assert int(masks["w"].sum()) == kept


def test_dense_layers_are_counted_and_kept() -> None:
    weights = {"a": normal(10, 10), "head": normal(10, 10, seed=1)}
    masks = magnitude.global_masks(weights, 0.25, dense=["head"])
    assert masks["head"].all()
    assert int((~masks["a"]).sum()) == 50


@pytest.mark.parametrize(
    ("rule", "removed"), [("first", [0, 1, 3]), ("last", [0, 3, 4]), ("all", [0, 1, 3, 4])], ids=str
)
def test_ties(rule: str, removed: list[int]) -> None:
    weight = torch.tensor([0.0, 2.0, 3.0, -2.0, 2.0, -5.0])
    keep = magnitude.mask(weight, 0.5, tie_rule=rule)
    assert (~keep).nonzero().flatten().tolist() == removed


@pytest.mark.parametrize(
    ("rule", "count"),
    [("round", 2), ("floor", 2), ("ceil", 3), ("round_plus_one", 3), ("floor_plus_one", 3), ("ceil_plus_one", 4)],
)
def test_count_rules_differ_by_one(rule: str, count: int) -> None:
    weight = torch.tensor([1.0, -2, 3, -4, 5])
    assert magnitude.removed_count(0.5, 5, rule) == count  # 2.5, and halves go to even
    assert int((~magnitude.mask(weight, 0.5, count_rule=rule)).sum()) == count


def test_plus_one_never_removes_more_than_there_is() -> None:
    assert not magnitude.mask(torch.ones(5), 0.95, count_rule="round_plus_one", tie_rule="all").any()
    assert int(magnitude.mask(torch.ones(5), 0.95, count_rule="round_plus_one", tie_rule="all", min_keep=1).sum()) == 1


@given(TENSORS, SPARSITIES, st.sampled_from(["first", "last"]))
def test_rows_are_masked_one_by_one(values: np.ndarray, sparsity: float, tie_rule: str) -> None:
    weight = torch.from_numpy(values)
    rows = torch.stack([magnitude.mask(row, sparsity, tie_rule=tie_rule) for row in weight])
    assert torch.equal(magnitude.row_mask(weight, sparsity, tie_rule=tie_rule), rows)


def test_rows_keep_at_least_min_keep() -> None:
    weight = normal(6, 10)
    assert (magnitude.row_mask(weight, 0.96, min_keep=0).sum(1) == 0).all()
    keep = magnitude.row_mask(weight, 0.96, min_keep=2)
    assert (keep.sum(1) == 2).all()
    assert torch.equal(keep, magnitude.row_mask(weight, 0.8))


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (4, 4)])
def test_n_of_m_keeps_the_n_largest_of_each_group(n: int, m: int) -> None:
    weight = normal(6, 16)
    keep = magnitude.n_of_m(weight, n, m)
    for row, bits in zip(weight.abs().tolist(), keep.tolist(), strict=True):
        for start in range(0, 16, m):
            group, kept = row[start : start + m], bits[start : start + m]
            assert [w in sorted(group)[m - n :] for w in group] == kept


def test_n_of_m_of_a_convolution_runs_along_the_input_channels() -> None:
    weight = normal(5, 8, 3, 2)
    keep = magnitude.n_of_m(weight, 2, 4)
    assert keep.is_contiguous()
    assert keep.shape == weight.shape
    for y in range(3):
        for x in range(2):
            assert torch.equal(keep[:, :, y, x], magnitude.n_of_m(weight[:, :, y, x], 2, 4))


def test_threshold_is_standard_deviations_of_the_layer() -> None:
    values = normal(40, 50).numpy() * 0.03 + 0.01
    expected = np.abs(values) >= 1.2 * np.sqrt(np.mean((values - values.mean()) ** 2))
    assert (magnitude.threshold_mask(torch.from_numpy(values), 1.2).numpy() == expected).mean() > 0.9995
    assert torch.equal(
        magnitude.threshold_mask(torch.from_numpy(values), 1.2),
        magnitude.threshold_mask(torch.from_numpy(values * 64), 1.2),
    )


@pytest.mark.parametrize("quality", [0.0, 0.5, 1.0, 2.0])
def test_of_a_normal_distribution_the_complementary_error_function_stays(quality: float) -> None:
    density = float(magnitude.threshold_mask(normal(1000, 1000), quality).double().mean())
    assert density == pytest.approx(math.erfc(quality / math.sqrt(2)), abs=2e-3)


def test_a_threshold_beyond_all_weights_leaves_the_largest() -> None:
    weight = normal(5, 5)
    assert magnitude.threshold_mask(weight, 50.0).flatten().nonzero().item() == weight.abs().argmax()
    assert not magnitude.threshold_mask(weight, 50.0, min_keep=0).any()


@given(st.integers(0, 1000), st.floats(0, 0.98), st.sampled_from([torch.float32, torch.float64]))
def test_quality_of_gives_the_mask_of_a_sparsity(seed: int, sparsity: float, dtype: torch.dtype) -> None:
    weight = normal(7, 9, seed=seed, dtype=dtype)
    quality = magnitude.quality_of(weight, sparsity)
    assert torch.equal(magnitude.threshold_mask(weight, quality), magnitude.mask(weight, sparsity))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("seed", range(8))
def test_a_threshold_between_two_neighbours_of_a_short_type_divides_them(dtype: torch.dtype, seed: int) -> None:
    """Half-way between two bfloat16 numbers is none: rounded to one, the threshold would let the smaller stay."""
    weight = (1 + torch.arange(100) * torch.finfo(dtype).eps).to(dtype) * 2.0**-seed
    weight = weight[torch.randperm(100, generator=torch.Generator().manual_seed(seed))]
    for sparsity in (0.25, 0.5, 0.51):
        keep = magnitude.threshold_mask(weight, magnitude.quality_of(weight, sparsity))
        assert torch.equal(keep, magnitude.mask(weight, sparsity))


def test_equal_weights_cannot_be_divided_by_a_threshold() -> None:
    weight = torch.tensor([1.0, -2, 2, -2, 2, 9])
    keep = magnitude.threshold_mask(weight, magnitude.quality_of(weight, 0.5))
    assert keep.tolist() == [False, True, True, True, True, True]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: magnitude.mask(w, 0.5, count_rule="most"), "count_rule is 'most'"),
        (lambda w: magnitude.mask(w, 0.5, tie_rule="none"), "tie_rule is 'none'"),
        (lambda w: magnitude.mask(w, 0.5, min_keep=-1), "min_keep is -1"),
        (lambda w: magnitude.mask(w, 0.5, alive=torch.ones(3)), "alive"),
        (lambda w: magnitude.global_masks({"w": w}, 0.5, dense=["v"]), "dense"),
        (lambda w: magnitude.global_masks({"w": w * torch.nan}, 0.5), "w holds 24 NaN"),
        (lambda w: magnitude.row_mask(w[0], 0.5), "1 dimension"),
        (lambda w: magnitude.row_mask(w, 1.0), "sparsity is 1.0"),
        (lambda w: magnitude.n_of_m(w, 3, 2), "n is 3 and m is 2"),
        (lambda w: magnitude.n_of_m(w, 2, 5), "m is 5"),
        (lambda w: magnitude.n_of_m(w[0], 2, 4), "1 dimension"),
        (lambda w: magnitude.threshold_mask(w, -1), "quality is -1"),
        (lambda w: magnitude.quality_of(w, 0.999), "none of 24"),
        (lambda w: magnitude.quality_of(w * 0, 0.5), "equal values"),
    ],
)
def test_wrong_arguments_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(normal(3, 8))


def test_integers_are_refused() -> None:
    with pytest.raises(TypeError, match="floating point"):
        magnitude.mask(torch.ones(3, dtype=torch.int8), 0.5)
