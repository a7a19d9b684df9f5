"""The uniform grid against closed forms, numpy and brute force."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from reference.quantization import grid
from reference.quantization.grid import QuantizationSpec
from reference.quantization.round_to_nearest import quantize_layer
from reference.tensors import storage_dtype

BITS = st.integers(2, 8)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@st.composite
def weights(draw: st.DrawFn, *, rows: int = 5, largest: float = 1e3) -> Tensor:
    """Matrices of ordinary magnitude, with ties, repeated values and zeros more often than chance."""
    shape = (draw(st.integers(1, rows)), draw(st.sampled_from([1, 2, 3, 8, 32])))
    value = st.one_of(
        st.floats(-largest, largest, width=32, allow_subnormal=False),
        st.sampled_from([0.0, 1.0, -1.0, 0.5, 7.5, -7.5]),
    )
    flat = draw(st.lists(value, min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
    return torch.tensor(flat, dtype=torch.float32).reshape(shape)


@st.composite
def specs(draw: st.DrawFn, columns: int) -> QuantizationSpec:
    kind = draw(st.sampled_from(["channel", "tensor", "group"]))
    sizes = [size for size in (1, 2, 4, 8, 16, 32) if columns % size == 0]
    return QuantizationSpec(
        draw(BITS),
        symmetric=draw(st.booleans()),
        group_size=draw(st.sampled_from(sizes)) if kind == "group" else None,
        per_tensor=kind == "tensor",
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, QuantizationSpec]:
    weight = draw(weights())
    return weight, draw(specs(weight.shape[1]))


def expand(values: Tensor, weight: Tensor) -> Tensor:
    """Scale or zero point of each weight, independently of ``split_groups``, in float64."""
    rows, columns = weight.shape
    values = values.double().expand(rows, values.shape[1])
    return values[:, [column * values.shape[1] // columns for column in range(columns)]]


# --- what every grid promises -------------------------------------------------------------------


@given(cases(), st.sampled_from(DTYPES))
def test_error_is_at_most_half_a_step_inside_the_grid(case: tuple, scale_dtype: torch.dtype) -> None:
    weight, spec = case
    scale, zero_point = grid.fit(weight, spec, scale_dtype=scale_dtype)
    codes = grid.quantize(weight, scale, zero_point, spec)
    step, zero = expand(scale, weight), expand(zero_point, weight)
    back = step * (codes.double() - zero)
    low, high = -step * zero, step * (2**spec.bits - 1 - zero)
    inside = (weight >= low) & (weight <= high)
    error = (weight.double() - back).abs()
    # float32 division may move a weight across a tie: allow its rounding, 2^-23 of the quotient.
    assert (error[inside] <= (step / 2 + weight.double().abs() * 2.0**-22)[inside]).all()


@given(cases())
def test_an_affine_grid_covers_the_range_of_its_weights(case: tuple) -> None:
    weight, spec = case
    spec = QuantizationSpec(spec.bits, group_size=spec.group_size, per_tensor=spec.per_tensor)
    codes_of = quantize_layer(weight, spec)
    step = expand(codes_of.scale, weight)
    error = (weight.double() - codes_of.dequantize(torch.float64)).abs()
    assert (error <= step / 2 * (1 + 1e-5) + weight.double().abs() * 2.0**-22).all()


@given(cases(), st.sampled_from(DTYPES))
def test_quantising_a_dequantised_weight_gives_the_same_codes(case: tuple, scale_dtype: torch.dtype) -> None:
    weight, spec = case
    scale, zero_point = grid.fit(weight, spec, scale_dtype=scale_dtype)
    codes = grid.quantize(weight, scale, zero_point, spec)
    again = grid.quantize(grid.dequantize(codes, scale.float(), zero_point, spec), scale, zero_point, spec)
    assert torch.equal(again, codes)


@given(cases())
def test_zero_is_exact(case: tuple) -> None:
    weight, spec = case
    weight[0, 0] = 0.0
    assert quantize_layer(weight, spec).dequantize()[0, 0] == 0


@given(cases())
def test_larger_weights_get_no_smaller_codes(case: tuple) -> None:
    weight, spec = case
    codes = quantize_layer(weight, spec).codes.long()
    groups = grid.split_groups(weight, spec)
    order = groups.argsort(-1)
    sorted_codes = grid.split_groups(codes, spec).gather(-1, order)
    assert (sorted_codes.diff(dim=-1) >= 0).all()
    assert codes.min() >= 0
    assert codes.max() < 2**spec.bits


@given(cases())
def test_negating_the_weight_mirrors_an_affine_grid(case: tuple) -> None:
    weight, spec = case
    spec = QuantizationSpec(spec.bits, group_size=spec.group_size, per_tensor=spec.per_tensor)
    scale, zero_point = grid.fit(weight, spec)
    mirrored_scale, mirrored_zero = grid.fit(-weight, spec)
    assert torch.equal(scale, mirrored_scale)
    # Both zero points are rounded, so the mirror image is exact up to one code. (A step at the
    # smallest number of its type is coarser than asked for, and leaves codes unused.)
    unused = scale <= torch.finfo(torch.float32).tiny
    assert ((zero_point + mirrored_zero - spec.levels).abs() <= unused.int() * 255 + 1).all()


@given(cases())
@example((torch.tensor([[torch.finfo(torch.float32).tiny]]), QuantizationSpec(2)))
@example((torch.tensor([[torch.finfo(torch.float32).tiny]]), QuantizationSpec(3, symmetric=True)))
def test_matches_numpy_in_float64_up_to_ties(case: tuple) -> None:
    """Textbook formula, row by row and group by group, with no code shared."""
    weight, spec = case
    result = quantize_layer(weight, spec, scale_dtype=torch.float32)
    ours = result.codes.numpy().astype(np.int64)
    array, levels = weight.double().numpy(), 2**spec.bits - 1
    size = array.size if spec.per_tensor else spec.group_size or array.shape[1]
    flat = array.reshape(-1, size)
    low, high = np.minimum(flat.min(1), 0), np.maximum(flat.max(1), 0)
    low, high = np.where((low == 0) & (high == 0), -1, low), np.where((low == 0) & (high == 0), 1, high)
    if spec.symmetric:
        high = np.maximum(-low, high)
        low = -high
    step = np.maximum((high - low) / levels, torch.finfo(torch.float32).tiny)  # no step is subnormal
    zero = np.full_like(step, 2 ** (spec.bits - 1)) if spec.symmetric else np.rint(-low / step)
    position = flat / step[:, None]
    expected = np.clip(np.rint(position) + zero[:, None], 0, levels).reshape(ours.shape)
    tie = np.abs(np.abs(position) % 1 - 0.5).reshape(ours.shape) < 1e-4
    zero_tie = np.abs((-low / step) % 1 - 0.5) < 1e-4
    tie |= (np.broadcast_to(zero_tie[:, None], flat.shape) & (not spec.symmetric)).reshape(ours.shape)
    assert (np.abs(ours - expected)[~tie] == 0).all()
    assert (np.abs(ours - expected)[tie] <= 1).all()


def test_agrees_with_torch_fake_quantize() -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    for bits in (2, 3, 4, 8):
        spec = QuantizationSpec(bits)
        scale, zero_point = grid.fit(weight, spec)
        ours = grid.dequantize(grid.quantize(weight, scale, zero_point, spec), scale, zero_point, spec)
        theirs = torch.fake_quantize_per_channel_affine(
            weight, scale[:, 0], zero_point[:, 0], 0, 0, 2**bits - 1
        )  # it multiplies by 1/scale, so a tie may fall the other way
        differ = (ours != theirs).sum().item()
        assert differ <= 1, f"{bits} bits: {differ} weights differ"


# --- shapes of weight that break careless grids ---------------------------------------------------


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("value", [0.3, -0.3, 1e-30, 5.0])
def test_constant_rows_keep_their_value(value: float, symmetric: bool) -> None:
    weight = torch.full((2, 8), value)
    result = quantize_layer(weight, QuantizationSpec(4, symmetric=symmetric), scale_dtype=torch.float32)
    largest_error = 1e-6 if not symmetric else 0.5 / 7.5  # +absmax lies at 7.5 steps of a symmetric grid
    assert torch.allclose(result.dequantize(), weight, rtol=largest_error + 1e-6, atol=0)


@pytest.mark.parametrize("value", [-2.5, 2.5])
def test_one_element(value: float) -> None:
    affine = quantize_layer(torch.tensor([[value]]), QuantizationSpec(2))
    assert affine.shape == (1, 1)
    assert affine.codes.tolist() == [[0 if value < 0 else 3]]
    assert affine.dequantize().item() == pytest.approx(value, rel=1e-3)
    symmetric = quantize_layer(torch.tensor([[value]]), QuantizationSpec(2, symmetric=True))
    assert abs(symmetric.dequantize().item() - value) == pytest.approx(2.5 / 3, rel=2e-3)  # half a step


@pytest.mark.parametrize("symmetric", [False, True])
def test_an_all_zero_row_stays_zero_with_the_authors_scale(symmetric: bool) -> None:
    weight = torch.stack((torch.zeros(8), torch.linspace(-1, 1, 8)))
    scale, zero_point = grid.fit(weight, QuantizationSpec(4, symmetric=symmetric))
    assert scale[0].item() == pytest.approx(2 / 15)  # range (-1, 1), as GPTQ's Quantizer has it
    assert zero_point[0].item() in ({8} if symmetric else {7, 8})  # round(7.5), a tie
    assert quantize_layer(weight, QuantizationSpec(4, symmetric=symmetric)).dequantize()[0].abs().max() == 0


@pytest.mark.parametrize(("sign", "zero_point"), [(1, 0), (-1, 15)])
def test_rows_of_one_sign_put_zero_at_the_end_of_the_grid(sign: int, zero_point: int) -> None:
    weight = sign * torch.tensor([[0.3125, 0.4375, 0.75, 1.875]])  # 2.5, 3.5, 6 and 15 steps of 1/8
    result = quantize_layer(weight, QuantizationSpec(4))
    assert result.scale.item() == 0.125
    assert result.zero_point.item() == zero_point
    assert result.codes.tolist() == [[2, 4, 6, 15] if sign > 0 else [13, 11, 9, 0]]  # half to even


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_symmetric_grid_clips_plus_absmax_by_half_a_step_and_not_minus_absmax(bits: int) -> None:
    step = 2.0**-3
    absmax = step * (2**bits - 1) / 2
    weight = torch.tensor([[absmax, -absmax, 0.0]])
    result = quantize_layer(weight, QuantizationSpec(bits, symmetric=True), scale_dtype=torch.float32)
    assert result.scale.item() == step
    assert result.dequantize()[0, 0] == absmax - step / 2
    assert (result.dequantize()[0, 1] + absmax).abs() == step / 2
    assert result.zero_point.item() == 2 ** (bits - 1)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_symmetric_grid_of_a_row_of_one_sign_reaches_its_largest_weight(sign: int) -> None:
    """The authors' quantiser keeps the least weight at 0 where none is negative, and ends at 7/15 of the largest."""
    weight = sign * torch.rand(3, 64, generator=torch.Generator().manual_seed(0))
    spec = QuantizationSpec(4, symmetric=True)
    result = quantize_layer(weight, spec, scale_dtype=torch.float32).dequantize()
    step = 2 * weight.abs().amax(1) / 15
    assert ((result - weight).abs().amax(1) <= step / 2 * 1.0001).all()


def test_without_zero_in_range_a_group_far_from_zero_collapses() -> None:
    """The quirk of AWQ's grid: [0.50, 0.99] has its zero point clamped to 0."""
    weight = torch.linspace(0.50, 0.99, 16).reshape(1, 16)
    collapsed = quantize_layer(weight, QuantizationSpec(4, zero_in_range=False)).dequantize()
    assert collapsed.unique().numel() == 1
    assert collapsed[0, 0] == pytest.approx(0.49, rel=1e-3)
    assert quantize_layer(weight, QuantizationSpec(4)).dequantize().unique().numel() > 4


def test_per_tensor_is_one_channel_spread_over_the_matrix() -> None:
    weight = torch.randn(6, 10, generator=torch.Generator().manual_seed(1))
    for symmetric in (False, True):
        whole = quantize_layer(weight, QuantizationSpec(4, symmetric=symmetric, per_tensor=True))
        row = quantize_layer(weight.reshape(1, -1), QuantizationSpec(4, symmetric=symmetric))
        assert whole.scale.shape == (1, 1)
        assert torch.equal(whole.codes.reshape(1, -1), row.codes)
        assert torch.equal(whole.dequantize().reshape(1, -1), row.dequantize())


def test_groups_are_rows_of_their_own() -> None:
    weight = torch.randn(6, 12, generator=torch.Generator().manual_seed(2))
    grouped = quantize_layer(weight, QuantizationSpec(3, group_size=4))
    rows = quantize_layer(weight.reshape(18, 4), QuantizationSpec(3))
    assert grouped.scale.shape == (6, 3)
    assert torch.equal(grouped.codes.reshape(18, 4), rows.codes)
    assert torch.equal(grouped.scale.reshape(18, 1), rows.scale)


# --- magnitudes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_largest_numbers_of_a_type_stay_finite_or_are_refused(
    dtype: torch.dtype, bits: int, symmetric: bool
) -> None:
    largest = torch.finfo(dtype).max
    for weight in (torch.tensor([[largest, -largest, 0.0]]), torch.tensor([[-largest, 0.0, largest / 2]])):
        try:
            result = quantize_layer(weight.to(dtype), QuantizationSpec(bits, symmetric=symmetric))
        except ValueError as error:
            assert "does not fit" in str(error)  # noqa: PT017 (either outcome is right)
        else:
            assert result.dequantize().isfinite().all()
            assert result.dequantize(torch.float32).isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("symmetric", [False, True])
def test_subnormal_weights_have_a_finite_positive_scale(dtype: torch.dtype, symmetric: bool) -> None:
    tiny = torch.finfo(dtype).smallest_normal / 4
    weight = torch.tensor([[tiny, -tiny, 0.0, tiny / 2]], dtype=dtype)
    result = quantize_layer(weight, QuantizationSpec(4, symmetric=symmetric))
    assert (result.scale > 0).all()
    assert (result.dequantize().float() - weight.float()).abs().max() <= result.scale.float().max() / 2 * 1.01


def test_small_float16_weights_keep_their_resolution_at_8_bits() -> None:
    """Their step is subnormal in float16, and clamping it to the smallest normal number would coarsen it."""
    weight = torch.linspace(-1e-3, 1e-3, 256, dtype=torch.float16).reshape(1, -1)
    result = quantize_layer(weight, QuantizationSpec(8))
    ideal = 2e-3 / 255
    assert result.scale.item() == pytest.approx(ideal, rel=0.01)
    assert (result.dequantize(torch.float32) - weight.float()).abs().max() <= 0.51 * ideal


@given(st.floats(2.0**-13, 60000, width=32), st.sampled_from([torch.float16, torch.bfloat16]))
def test_scales_are_rounded_up_to_the_nearest_number_of_their_type(value: float, dtype: torch.dtype) -> None:
    rounded = grid.round_up(torch.tensor([value]), dtype)
    assert rounded.dtype == dtype
    assert rounded.double().item() >= value
    below = torch.nextafter(rounded, torch.zeros_like(rounded))
    assert below.double().item() < value, "a smaller number of the type would do"


@given(weights(largest=1.0), BITS)
def test_a_16_bit_scale_never_clips_what_a_float32_scale_holds(weight: Tensor, bits: int) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        scale, _ = grid.fit(weight, QuantizationSpec(bits), scale_dtype=dtype)
        exact, _ = grid.fit(weight, QuantizationSpec(bits), scale_dtype=torch.float32)
        assert (scale.double() >= exact.double()).all()
        ordinary = exact >= torch.finfo(dtype).tiny
        assert (scale.double() <= exact.double() * (1 + 2.0**-7))[ordinary].all()


def test_scales_are_stored_in_the_weights_own_16_bit_type() -> None:
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    assert storage_dtype(weight.half()) == torch.float16
    assert storage_dtype(weight.bfloat16()) == torch.bfloat16
    assert storage_dtype(weight) == torch.float16
    assert storage_dtype(torch.zeros(4, 8)) == torch.float16
    assert storage_dtype(weight * 1e6) == torch.bfloat16
    assert storage_dtype(weight * 1e-6) == torch.bfloat16
    for row in (1e-6, 1e6):  # one row decides; rows of zeros do not
        factors = torch.ones(len(weight), 1)
        factors[0] = row
        assert storage_dtype(weight * factors) == torch.bfloat16
    assert storage_dtype(torch.cat((torch.zeros(1, weight.shape[1]), weight))) == torch.float16
    assert quantize_layer(weight, QuantizationSpec(4)).scale.dtype == torch.float16
    assert quantize_layer(weight * 1e6, QuantizationSpec(4)).scale.dtype == torch.bfloat16


def test_a_step_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"does not fit into torch\.float16; use bfloat16"):
        grid.fit(torch.tensor([[1e6, -1e6]]), QuantizationSpec(4), scale_dtype=torch.float16)


# --- clipping -------------------------------------------------------------------------------------


def brute_force_error(row: np.ndarray, bits: int, symmetric: bool, exponent: float) -> tuple[float, float]:
    """Least error over the 80 shrunken ranges, and that of the full one: plain loops in float64."""
    low, high = min(row.min(), 0.0), max(row.max(), 0.0)
    if low == high == 0:
        low, high = -1.0, 1.0
    levels, errors = 2**bits - 1, []
    for i in range(80):
        bottom, top = low * (1 - i / 100), high * (1 - i / 100)
        if symmetric:
            top = max(-bottom, top)
            bottom = -top
        step = (top - bottom) / levels
        zero = 2 ** (bits - 1) if symmetric else min(max(round(-bottom / step), 0), levels)
        total = 0.0
        for value in row:
            code = min(max(round(value / step) + zero, 0), levels)
            total += abs(step * (code - zero) - value) ** exponent
        errors.append(total)
    return min(errors), errors[0]


def error_of(weight: Tensor, low: Tensor, high: Tensor, spec: QuantizationSpec, exponent: float) -> Tensor:
    """The metric of the search, per row, in float64, from the public pieces of the grid."""
    scale, zero_point = grid.scale_and_zero_point(low, high, spec)
    codes = grid.quantize(weight, scale.unsqueeze(-1), zero_point.unsqueeze(-1), spec)
    back = scale.double().unsqueeze(-1) * (codes.double() - zero_point.unsqueeze(-1))
    return (back - weight.double()).abs().pow(exponent).sum(-1)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("exponent", [2.0, 2.4])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_clip_search_finds_what_a_brute_force_loop_finds(bits: int, exponent: float, symmetric: bool) -> None:
    generator = torch.Generator().manual_seed(bits)
    weight = torch.randn(24, 16, generator=generator) * (1 + 5 * (torch.rand(24, 16, generator=generator) > 0.95))
    spec = QuantizationSpec(bits, symmetric=symmetric)
    low, high = grid.search_range(weight, spec, exponent=exponent)
    found = error_of(weight, low, high, spec, exponent).numpy()
    full = error_of(weight, *grid.min_max_range(weight, spec), spec, exponent).numpy()
    best, unclipped = np.transpose([brute_force_error(row, bits, symmetric, exponent) for row in weight.numpy()])
    assert (found <= full * (1 + 1e-6)).all(), "worse than min-max in its own metric"
    assert np.allclose(full, unclipped, rtol=1e-3)
    # Ties that float32 breaks otherwise change a code, and so the error of a row, by little.
    assert (np.abs(found - best) <= 0.01 * best + 1e-9).all()
    assert (found < 0.97 * full).sum() > 6, "the search never clipped: the test has no teeth"


@given(weights(largest=10.0), BITS, st.booleans())
def test_clip_search_is_never_worse_than_min_max(weight: Tensor, bits: int, symmetric: bool) -> None:
    spec = QuantizationSpec(bits, symmetric=symmetric)
    found = error_of(weight, *grid.search_range(weight, spec), spec, 2.4)
    full = error_of(weight, *grid.min_max_range(weight, spec), spec, 2.4)
    assert (found <= full * (1 + 1e-4) + 1e-9).all()


def test_clip_search_keeps_zero_exact_and_its_flag_is_what_fit_reads() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)) ** 3
    weight[:, 0] = 0
    plain, searched = (quantize_layer(weight, QuantizationSpec(3, clip_search=flag)) for flag in (False, True))
    assert (searched.scale < plain.scale).any()
    assert (searched.dequantize()[:, 0] == 0).all()
    error = [(result.dequantize(torch.float32) - weight).square().mean() for result in (plain, searched)]
    assert error[1] < 0.95 * error[0]


@given(weights(), st.floats(50.5, 100))
def test_percentile_range_is_numpys_percentile_with_zero_inside(weight: Tensor, percentile: float) -> None:
    low, high = grid.percentile_range(weight, QuantizationSpec(4), percentile)
    array = weight.double().numpy()
    expected_low = np.minimum(np.percentile(array, 100 - percentile, axis=1), 0)
    expected_high = np.maximum(np.percentile(array, percentile, axis=1), 0)
    empty = (low.numpy() == -1) & (high.numpy() == 1)  # an all-zero range becomes (−1, 1)
    scale = np.abs(array).max() + 1e-30
    assert (np.abs(low.numpy() - expected_low)[~empty] <= 1e-5 * scale).all()
    assert (np.abs(high.numpy() - expected_high)[~empty] <= 1e-5 * scale).all()


def test_percentile_100_is_min_max_and_99_drops_the_outlier() -> None:
    row = torch.cat((torch.linspace(-1, 1, 999), torch.tensor([50.0]))).reshape(1, -1)
    spec = QuantizationSpec(4)
    assert grid.percentile_range(row, spec, 100) == grid.min_max_range(row, spec)
    assert grid.percentile_range(row, spec, 99)[1].item() < 1


@pytest.mark.parametrize("percentile", [50, 0, 100.5, math.nan])
def test_percentile_out_of_range_is_refused(percentile: float) -> None:
    with pytest.raises(ValueError, match="percentile is .*; it may be above 50 and at most 100"):
        grid.percentile_range(torch.ones(1, 4), QuantizationSpec(4), percentile)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        (torch.tensor([[1.0, math.nan]]), ValueError, "fc1 holds 1 NaN and 0 infinite values"),
        (torch.tensor([[math.inf, -math.inf]]), ValueError, "fc1 holds 0 NaN and 2 infinite values"),
        (torch.ones(4), ValueError, r"fc1 must be a non-empty matrix .* got shape \(4,\)"),
        (torch.ones(0, 4), ValueError, r"fc1 must be a non-empty matrix"),
        (torch.ones(2, 2, dtype=torch.int32), TypeError, r"fc1 must be a floating-point tensor, got torch\.int32"),
        ([[1.0]], TypeError, "fc1 must be a floating-point tensor, got <class 'list'>"),
    ],
)
def test_what_has_no_grid_is_refused_by_name(weight: Tensor, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        grid.check_weight(weight, QuantizationSpec(4), "fc1")


@pytest.mark.parametrize(("dtype", "value"), [(torch.float32, 3e38), (torch.float16, 6e4)])
def test_finite_weights_whose_sum_overflows_are_accepted(dtype: torch.dtype, value: float) -> None:
    weight = torch.full((8, 8), value, dtype=dtype)
    assert not weight.sum().isfinite()
    grid.check_weight(weight, QuantizationSpec(4))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_fit_and_quantize_layer_refuse_not_finite_weights(bad: float) -> None:
    weight = torch.tensor([[1.0, bad]])
    with pytest.raises(ValueError, match="NaN and"):
        grid.fit(weight, QuantizationSpec(4))
    with pytest.raises(ValueError, match="NaN and"):
        quantize_layer(weight, QuantizationSpec(4))


def test_a_short_last_group_is_refused_with_advice() -> None:
    with pytest.raises(ValueError, match="group_size 128 does not divide the 96 inputs of q_proj; 32 would divide it"):
        grid.check_weight(torch.ones(2, 96), QuantizationSpec(4, group_size=128), "q_proj")
    with pytest.raises(ValueError, match="no usual group size divides it, and None .* always fits"):
        grid.check_weight(torch.ones(2, 90), QuantizationSpec(4, group_size=32))


@pytest.mark.parametrize("bits", [1, 9, 0, -4, 4.0, "4", True, None])
def test_bits_out_of_range_are_refused(bits: object) -> None:
    with pytest.raises(ValueError, match="bits is .*; it may be an integer from 2 to 8"):
        QuantizationSpec(bits)


@pytest.mark.parametrize("size", [0, -1, 2.0, True, "32"])
def test_group_sizes_that_are_no_positive_integer_are_refused(size: object) -> None:
    with pytest.raises(ValueError, match="group_size is .*; it may be a positive integer, or None"):
        QuantizationSpec(4, group_size=size)


def test_fields_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="per_tensor and group_size exclude each other"):
        QuantizationSpec(4, group_size=32, per_tensor=True)
    with pytest.raises(ValueError, match="zero_in_range=False has no meaning for a symmetric grid"):
        QuantizationSpec(4, symmetric=True, zero_in_range=False)


def test_a_spec_is_a_frozen_value() -> None:
    assert QuantizationSpec(4, group_size=32) == QuantizationSpec(4, False, 32)
    assert len({QuantizationSpec(4), QuantizationSpec(4), QuantizationSpec(3)}) == 2
    with pytest.raises(AttributeError):
        QuantizationSpec(4).bits = 3


# --- what it costs --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "columns", "bits"),
    [
        (QuantizationSpec(4, group_size=128), 512, 4 + (16 + 4) / 128),  # 4.156
        (QuantizationSpec(4, symmetric=True, group_size=128), 512, 4.125),
        (QuantizationSpec(4, group_size=64), 512, 4.3125),
        (QuantizationSpec(4, symmetric=True, group_size=32), 512, 4.5),
        (QuantizationSpec(3), 100, 3.19),
        (QuantizationSpec(8, per_tensor=True), 100, 8.0),
    ],
)
def test_bits_per_weight_is_the_closed_form(spec: QuantizationSpec, columns: int, bits: float) -> None:
    assert spec.bits_per_weight(columns) == pytest.approx(bits)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [False, True])
def test_bits_per_weight_is_what_a_packed_tensor_takes(bits: int, symmetric: bool) -> None:
    spec = QuantizationSpec(bits, symmetric=symmetric, group_size=32)
    result = quantize_layer(torch.randn(64, 128, generator=torch.Generator().manual_seed(0)), spec)
    assert 8 * result.nbytes / (64 * 128) == pytest.approx(spec.bits_per_weight(128))
