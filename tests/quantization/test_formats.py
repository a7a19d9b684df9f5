"""Number formats: tables against their specifications, rounding against an exhaustive search, bytes as stored."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from reference.quantization import formats
from reference.quantization.formats import FORMATS, BlockFormat

ELEMENTS = [formats.E4M3, formats.E5M2, formats.E3M2, formats.E2M3, formats.E2M1, formats.INT8, formats.NF4]


def test_tables_are_those_of_the_specifications() -> None:
    assert formats.E2M1.magnitudes == (0, 0.5, 1, 1.5, 2, 3, 4, 6)
    # Largest, least normal and least subnormal number, from the tables of the OCP specifications.
    for element, largest, normal, subnormal in [
        (formats.E4M3, 448, 2**-6, 2**-9),
        (formats.E5M2, 57344, 2**-14, 2**-16),
        (formats.E3M2, 28, 2**-2, 2**-4),
        (formats.E2M3, 7.5, 1, 2**-3),
        (formats.INT8, 127 / 64, 2**-6, 2**-6),
    ]:
        assert (element.largest, element.magnitudes[1]) == (largest, subnormal)
        assert normal in element.magnitudes


def test_nf4_levels_are_normal_quantiles() -> None:
    """Built as the authors build it, with scipy's quantiles: eight levels above zero, seven below."""
    offset = 0.9677083
    high = [norm.ppf(offset + (0.5 - offset) * i / 8) for i in range(8)]
    low = [-norm.ppf(offset + (0.5 - offset) * i / 7) for i in range(7)]
    expected = sorted([*high, 0.0, *low])
    for level, other in zip(formats.NF4.magnitudes, expected, strict=True):
        assert math.isclose(level, other / max(expected), abs_tol=1e-6)


@given(st.sampled_from(ELEMENTS), st.lists(st.floats(-500, 500, width=32), min_size=1, max_size=50))
def test_codes_are_the_nearest_values(element, numbers) -> None:
    x = torch.tensor(numbers)
    finite = element.table[element.table.isfinite()].double()
    nearest = (x.double()[:, None] - finite).abs().amin(1)
    found = (x.double() - element.decode(element.encode(x)).double()).abs()
    assert torch.equal(found, nearest)


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda element: element.name)
def test_what_lies_beyond_the_table_takes_its_end(element) -> None:
    x = torch.tensor([1e30, torch.inf, -1e30, -torch.inf])
    largest = element.magnitudes[-1]
    assert element.decode(element.encode(x)).tolist() == [largest, largest, -largest, -largest]


@given(st.sampled_from(ELEMENTS[:-1]))
def test_ties_go_to_the_even_code(element) -> None:
    values = torch.tensor(element.magnitudes, dtype=torch.float64)
    codes = element.encode((values[1:] + values[:-1]) / 2)
    assert (codes % 2 == 0).all()


@given(st.sampled_from(ELEMENTS))
def test_every_value_keeps_its_code(element) -> None:
    finite = element.table.isfinite()
    codes = torch.arange(len(element.table))[finite].to(torch.uint8)
    assert torch.equal(element.encode(element.table[finite]), codes)


@given(st.floats(1e-30, 1e30))
def test_mx_scale_is_the_power_of_two_below(absmax) -> None:
    scale = formats.decode_e8m0(formats.encode_e8m0(torch.tensor([absmax]), formats.E2M1)).item()
    steps = torch.tensor(absmax).item() / scale
    assert math.log2(scale) == int(math.log2(scale))
    assert 4 <= steps < 8  # the exponent of 6, the largest value of E2M1, is 2


def test_mx_scales_end_at_the_ends_of_float32() -> None:
    """2^127 is the largest exponent, 2^-127 the least scale, and 255 is no number."""
    largest = torch.tensor([torch.finfo(torch.float32).max, 2.0**127, 2.0**-126, 2.0**-149, 0.0])
    assert formats.encode_e8m0(largest, formats.INT8).tolist() == [254, 254, 1, 0, 0]
    assert formats.encode_e8m0(largest, formats.E4M3).tolist() == [246, 246, 0, 0, 0]
    ends = formats.decode_e8m0(torch.tensor([0, 1, 254, 255], dtype=torch.uint8))
    assert ends[:3].tolist() == [2.0**-127, 2.0**-126, 2.0**127]
    assert ends[3].isnan()


@pytest.mark.parametrize("name", FORMATS)
def test_16_bit_values_are_rounded_as_their_float32(name) -> None:
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(5)).bfloat16()
    found, expected = (formats.quantize(t, FORMATS[name]) for t in (x, x.float()))
    assert torch.equal(found.packed, expected.packed)
    assert torch.equal(found.scale, expected.scale)
    assert found.scale.dtype == expected.scale.dtype


def test_mx_saturates_what_lies_between_six_and_eight_steps() -> None:
    x = torch.zeros(1, 32)
    x[0, :3] = torch.tensor([7.9, 4.0, -7.0])
    assert formats.quantize(x, FORMATS["mxfp4"]).dequantize()[0, :3].tolist() == [6, 4, -6]


@pytest.mark.parametrize("name", FORMATS)
def test_stored_bytes_are_the_bits_promised(name) -> None:
    form = FORMATS[name]
    quantized = formats.quantize(torch.randn(64, 512, generator=torch.Generator().manual_seed(0)), form)
    extra = 0 if quantized.tensor_scale is None else 4
    assert quantized.nbytes - extra == form.bits_per_value(512) * 64 * 512 / 8


@pytest.mark.parametrize("name", FORMATS)
def test_error_is_within_half_a_gap(name) -> None:
    """Each value's error is at most half the gap round it, times the block's scale, unless the table ends."""
    form = FORMATS[name]
    x = torch.randn(16, 256, generator=torch.Generator().manual_seed(1))
    quantized = formats.quantize(x, form)
    scale = quantized.block_scale.repeat_interleave(256 // quantized.scale.shape[1], dim=1)
    finite = form.element.table[form.element.table.isfinite()].sort().values
    gap = (finite[1:] - finite[:-1]).amax()
    inside = x.abs() <= scale * form.element.largest
    assert inside.float().mean() > 0.95
    assert ((x - quantized.dequantize()).abs() <= scale * gap / 2 * (1 + 1e-5))[inside].all()


@pytest.mark.parametrize("name", FORMATS)
def test_zeros_and_the_scale_of_the_input(name) -> None:
    form = FORMATS[name]
    assert torch.equal(formats.quantize(torch.zeros(2, 64), form).dequantize(), torch.zeros(2, 64))
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(2))
    doubled = formats.quantize(2 * x, form).dequantize()
    assert torch.equal(doubled, 2 * formats.quantize(x, form).dequantize())


def test_blocks_do_not_see_each_other() -> None:
    x = torch.randn(1, 64, generator=torch.Generator().manual_seed(3))
    changed = x.clone()
    changed[:, 32:] *= 1000
    for name in ("mxfp4", "mxfp8", "mxint8"):
        pair = (formats.quantize(t, FORMATS[name]).dequantize()[:, :32] for t in (x, changed))
        assert torch.equal(*pair)


def test_nvfp4_scales_are_e4m3_of_a_tensor_scale() -> None:
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(4))
    quantized = formats.quantize(x, FORMATS["nvfp4"])
    assert math.isclose(quantized.tensor_scale.item(), x.abs().max().item() / (448 * 6), rel_tol=1e-6)
    assert quantized.scale.max() == formats.E4M3.encode(torch.tensor([448.0]))  # the block of the largest value
    exact = x.abs().reshape(8, 4, 16).amax(-1) / 6
    assert torch.allclose(quantized.block_scale, exact, rtol=2**-4 * 1.001)


def test_wrong_input_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="block of 32 does not divide the 40 columns"):
        formats.quantize(torch.ones(2, 40), FORMATS["mxfp4"])
    with pytest.raises(ValueError, match="holds 1 values that are NaN or infinite"):
        formats.quantize(torch.tensor([[1.0, float("inf")]]), FORMATS["fp8"])
    with pytest.raises(ValueError, match=r"floating-point matrix, got torch.int64"):
        formats.quantize(torch.ones(2, 32, dtype=torch.int64), FORMATS["mxfp4"])
    with pytest.raises(ValueError, match="floating-point matrix"):
        formats.quantize(torch.ones(3), FORMATS["fp8"])
    with pytest.raises(ValueError, match="holds NaN"):
        formats.E2M1.encode(torch.tensor([1.0, math.nan]))
    with pytest.raises(ValueError, match="holds NaN"):
        formats.NF4.encode(torch.tensor([1.0, math.nan]))
    with pytest.raises(ValueError, match="no scale can represent"):
        formats.encode_e8m0(torch.tensor([1.0, math.inf]), formats.E2M1)
    with pytest.raises(ValueError, match="scale is 'fp8'"):
        BlockFormat(formats.E2M1, 16, "fp8")
    with pytest.raises(ValueError, match="block is 0"):
        BlockFormat(formats.E2M1, 0, "E4M3")
