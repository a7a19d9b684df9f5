"""Activation grids: against float64 arithmetic, the recorded fake quantisation and compressed-tensors' rule."""

from pathlib import Path

import numpy as np
import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import calculate_qparams
from hypothesis import given
from hypothesis import strategies as st

from reference.quantization.activations import (
    AbsmaxAccumulator,
    ActivationSpec,
    dequantize,
    quantize_activations,
    scale_of,
)

RECORDED = Path(__file__).parents[1] / "parity" / "smoothquant.npz"
SPECS = [ActivationSpec(bits=bits, restricted=restricted) for bits in range(2, 9) for restricted in (False, True)]


def tokens(seed: int = 0) -> torch.Tensor:
    """Two sequences of seven tokens of very different size, the first all zero."""
    x = torch.randn(2, 7, 48, generator=torch.Generator().manual_seed(seed)) * torch.logspace(-4, 4, 7)[:, None]
    x[0, 0] = 0
    return x


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("granularity", ["per_token", "per_tensor"])
def test_values_equal_the_authors(granularity: str, bits: int) -> None:
    with np.load(RECORDED, allow_pickle=False) as file:
        x, expected = (torch.from_numpy(file[key]) for key in ("fq_x", f"fq_x_{granularity}_{bits}"))
    found = dequantize(*quantize_activations(x, ActivationSpec(granularity, bits, restricted=True)))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_codes_and_scales_equal_the_recorded_integers() -> None:
    with np.load(RECORDED, allow_pickle=False) as file:
        x, expected, scale = (torch.from_numpy(file[key]) for key in ("fq_x", "int8_x", "int8_xscale"))
    codes, found = quantize_activations(x, ActivationSpec(restricted=True))
    assert torch.equal(codes, expected)
    torch.testing.assert_close(found, scale, rtol=1e-6, atol=0)
    assert float(found[0, 0]) == pytest.approx(1e-5 / 127)


@pytest.mark.parametrize("bits", [8, 4])
def test_values_equal_those_of_compressed_tensors(bits: int) -> None:
    x = tokens()[:, 1:]
    arguments = QuantizationArgs(num_bits=bits, symmetric=True, strategy="token", dynamic=True)
    scale, zero = calculate_qparams(x.amin(-1, keepdim=True), x.amax(-1, keepdim=True), arguments)
    expected = fake_quantize(x, scale, zero, arguments)
    assert torch.equal(dequantize(*quantize_activations(x, ActivationSpec(bits=bits))), expected)


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_levels(spec: ActivationSpec) -> None:
    codes, scale = quantize_activations(tokens(), spec)
    assert (spec.lowest, spec.highest) == (-(2 ** (spec.bits - 1)) + spec.restricted, 2 ** (spec.bits - 1) - 1)
    assert codes.dtype == torch.int8
    assert codes.min() == spec.lowest
    assert codes.max() == spec.highest
    # 2^b − 1 steps from −absmax to absmax, or an even number where −2^(b−1) is left out.
    assert 2 * tokens().abs().amax() / scale.amax() == pytest.approx(2**spec.bits - 1 - spec.restricted)


@given(st.integers(0, 2**31), st.sampled_from(SPECS))
def test_each_value_is_within_half_a_step_or_clipped_at_the_end(seed: int, spec: ActivationSpec) -> None:
    x = tokens(seed)
    codes, scale = quantize_activations(x, spec)
    error = (codes.double() * scale.double() - x.double()).abs() / scale.double()
    assert error.max() <= 0.5 + 1e-4
    if spec.restricted:  # the ends of the range are exact
        peak = x.abs().argmax(-1, keepdim=True)
        assert error.gather(-1, peak).max() < 1e-4 * spec.steps


def test_scales_have_the_shape_of_what_shares_them() -> None:
    x = tokens()
    assert quantize_activations(x, ActivationSpec())[1].shape == (2, 7, 1)
    assert quantize_activations(x, ActivationSpec(granularity="per_tensor"))[1].shape == (1,)
    _, scale = quantize_activations(x, ActivationSpec(granularity="static"), torch.tensor([0.5]))
    assert torch.equal(scale, torch.tensor([0.5]))
    for token in (x[0, 3], x[1, 6]):
        codes, scale = quantize_activations(token, ActivationSpec())
        assert scale.shape == (1,)
        assert torch.equal(codes, quantize_activations(x, ActivationSpec())[0][(x == token).all(-1)][0])


@pytest.mark.parametrize("granularity", ["per_token", "per_tensor"])
@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (0,)])
def test_nothing_has_no_codes(granularity: str, shape: tuple[int, ...]) -> None:
    codes, _ = quantize_activations(torch.zeros(shape), ActivationSpec(granularity=granularity))
    assert codes.shape == shape


def test_a_static_scale_clips_what_calibration_did_not_see() -> None:
    x, spec = tokens(), ActivationSpec(granularity="static")
    seen = AbsmaxAccumulator(48)
    seen.add(x)
    codes, scale = quantize_activations(3 * x, spec, seen.static_scale(spec))
    assert float(scale) == pytest.approx(float(x.abs().max()) / 127.5)
    assert (codes.min(), codes.max()) == (-128, 127)
    assert torch.equal(
        quantize_activations(x, spec, scale)[0], quantize_activations(x, ActivationSpec(granularity="per_tensor"))[0]
    )
    assert quantize_activations(torch.tensor([torch.inf, -torch.inf]), spec, scale)[0].tolist() == [127, -128]


def test_half_precision_is_computed_in_float32() -> None:
    x = tokens().clamp(-6e4, 6e4).half()
    for granularity in ("per_token", "per_tensor"):
        found, expected = (quantize_activations(t, ActivationSpec(granularity=granularity)) for t in (x, x.float()))
        assert found[1].dtype == torch.float32
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@given(st.integers(0, 2**31), st.integers(1, 5))
def test_the_maximum_does_not_depend_on_batches_or_ranks(seed: int, pieces: int) -> None:
    x = torch.randn(12, 3, 8, generator=torch.Generator().manual_seed(seed))
    whole, first, second = (AbsmaxAccumulator(8) for _ in range(3))
    whole.add(x)
    for number, part in enumerate(x.chunk(pieces)):
        (first, second)[number % 2].add(part)
    first.merge(second)
    assert torch.equal(whole.absmax, torch.from_numpy(np.abs(x.numpy()).max((0, 1))))
    assert torch.equal(first.absmax, whole.absmax)


def test_scale_of_zeros_is_that_of_the_least_maximum() -> None:
    assert torch.equal(scale_of(torch.zeros(2), ActivationSpec()), torch.full((2,), 1e-5 / 127.5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ActivationSpec(bits=1), "bits is 1; it may be an integer from 2 to 8"),
        (lambda: ActivationSpec(bits=9), "bits is 9"),
        (lambda: ActivationSpec(bits=True), "bits is True"),
        (lambda: ActivationSpec(granularity="per_channel"), "granularity is 'per_channel'; it may be per_token"),
        (
            lambda: quantize_activations(tokens(), ActivationSpec(granularity="static")),
            "scale is missing.*static activations need",
        ),
        (lambda: quantize_activations(tokens(), ActivationSpec(), torch.ones(1)), "scale is given.*'per_token'"),
        (lambda: AbsmaxAccumulator(4).add(torch.zeros(2, 5)), r"inputs has shape \(2, 5\); its last axis must be 4"),
        (lambda: AbsmaxAccumulator(1).add(torch.tensor([torch.nan]), "layer"), "layer holds NaN or infinite"),
        (lambda: AbsmaxAccumulator(1).add(torch.tensor([-torch.inf]), "layer"), "layer holds NaN or infinite"),
        (lambda: AbsmaxAccumulator(4).merge(AbsmaxAccumulator(5)), "other has 5 channels, not 4"),
    ],
)
def test_what_makes_no_sense_is_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_refused_batch_leaves_the_maximum_alone() -> None:
    seen = AbsmaxAccumulator(2)
    seen.add(torch.tensor([[1.0, -2.0]]))
    with pytest.raises(ValueError, match="NaN"):
        seen.add(torch.tensor([[5.0, torch.nan]]))
    assert seen.absmax.tolist() == [1, 2]
