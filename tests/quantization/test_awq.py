"""AWQ's two searches against slow second implementations in NumPy, and the bounds that they promise."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reference.quantization import awq, round_to_nearest
from reference.quantization.grid import QuantizationSpec

SPECS = [
    QuantizationSpec(4, group_size=16),
    QuantizationSpec(3, group_size=16, zero_in_range=False),
    QuantizationSpec(2),
    QuantizationSpec(8, symmetric=True),
    QuantizationSpec(3, symmetric=True, group_size=32),
    QuantizationSpec(4, per_tensor=True),
    QuantizationSpec(3, group_size=16, clip_search=True),
]
every_spec = pytest.mark.parametrize("spec", SPECS, ids=repr)
grouped = pytest.mark.parametrize("spec", [spec for spec in SPECS if not spec.per_tensor], ids=repr)


def problem(seed: int = 0, out: int = 10, columns: int = 32, tokens: int = 48) -> tuple[Tensor, Tensor]:
    """A weight, and correlated inputs whose channels differ much in size."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.exp(1.5 * torch.randn(columns, generator=generator))
    mixing = torch.eye(columns) + 0.3 * torch.randn(columns, columns, generator=generator)
    return torch.randn(out, columns, generator=generator), torch.randn(
        tokens, columns, generator=generator
    ) @ mixing * size


def rounded(weight: Tensor, spec: QuantizationSpec) -> Tensor:
    return round_to_nearest.quantize_layer(weight, spec, scale_dtype=torch.float32).dequantize()


def test_scale_is_the_centred_power_of_the_mean_input() -> None:
    size = np.array([0.0, 1e-9, 0.3, 2.0, 700.0])
    for ratio in (0.0, 0.35, 0.95):
        power = np.maximum(size**ratio, 1e-4)
        expected = power / np.sqrt(power.max() * power.min())
        np.testing.assert_allclose(awq.channel_scale(torch.from_numpy(size), ratio), expected, rtol=1e-5)


def losses_by_hand(weights: list[Tensor], inputs: Tensor, spec: QuantizationSpec, grid: int) -> list[float]:
    """Token by token in float64, but for the scales: their last digit decides ties of a symmetric grid."""
    x, found = inputs.double().numpy(), []
    size = (inputs.abs().sum(0).double() / len(inputs)).float()
    for i in range(grid):
        scale = awq.channel_scale(size, i / grid)
        errors = [
            x @ (rounded(weight * scale, spec).double() / scale.double() - weight.double()).numpy().T
            for weight in weights
        ]
        found.append(float((np.concatenate(errors, 1) ** 2).mean()))
    return found


@every_spec
@pytest.mark.parametrize("tokens", [20, 200], ids=["fewer tokens than columns", "more tokens than columns"])
def test_losses_are_those_of_the_formula(spec: QuantizationSpec, tokens: int) -> None:
    (first, inputs), (second, _) = problem(1, tokens=tokens), problem(2, out=5)
    found = awq.search_scale([first, second], inputs, spec, grid=10)
    expected = losses_by_hand([first, second], inputs, spec, 10)
    np.testing.assert_allclose(found.losses, expected, rtol=1e-4)
    assert found.ratio == int(np.argmin(expected)) / 10


@every_spec
@settings(max_examples=10)
@given(seed=st.integers(0, 2**16))
def test_never_worse_than_rounding_on_the_calibration_inputs(spec: QuantizationSpec, seed: int) -> None:
    weight, inputs = problem(seed)
    found = awq.search_scale(weight, inputs, spec)
    output = inputs @ weight.T
    plain = (inputs @ rounded(weight, spec).T - output).square().mean()
    scaled = ((inputs / found.scale) @ rounded(weight * found.scale, spec).T - output).square().mean()
    assert found.losses[0] == pytest.approx(float(plain), rel=1e-3)
    assert min(found.losses) == pytest.approx(float(scaled), rel=1e-3)
    assert scaled <= plain * (1 + 1e-3)


def test_salient_channels_gain_where_the_grid_is_coarse() -> None:
    weight, inputs = problem(3, out=64, columns=128, tokens=256)
    found = awq.search_scale(weight, inputs, QuantizationSpec(3, group_size=128))
    assert 0 < found.ratio < 1
    assert min(found.losses) < 0.7 * found.losses[0]
    order = inputs.abs().mean(0).argsort()
    assert (found.scale[order].diff() >= 0).all()  # larger inputs, larger scale


def test_inputs_may_come_in_batches_of_any_shape_and_a_function_may_compute_the_output() -> None:
    weight, inputs = problem(4)
    spec = QuantizationSpec(3, group_size=16)
    whole = awq.search_scale(weight, inputs, spec)
    parts = awq.search_scale([weight], [inputs[:40].reshape(4, 10, -1), inputs[40:]], spec)
    by_function = awq.search_scale(weight, inputs, spec, output=lambda weights: inputs @ weights[0].T)
    by_batches = awq.search_scale(
        weight, inputs, spec, output=lambda weights: (part @ weights[0].T for part in inputs.split(16))
    )
    for other in (parts, by_function, by_batches):
        assert other.ratio == whole.ratio
        np.testing.assert_allclose(other.losses, whole.losses, rtol=1e-5)


def test_every_layer_may_have_its_own_grid() -> None:
    (first, inputs), (second, _) = problem(5), problem(6)
    specs = [QuantizationSpec(2), QuantizationSpec(8)]
    mixed = awq.search_scale([first, second], inputs, specs)
    alone = [awq.search_scale(w, inputs, spec).losses for w, spec in zip((first, second), specs, strict=True)]
    np.testing.assert_allclose(mixed.losses, np.mean(alone, axis=0), rtol=1e-5)


def test_ranks_with_other_inputs_find_what_one_process_finds() -> None:
    """Two ranks that take turns: what the second one sends is recorded in a first pass with nothing received."""
    weight, inputs = problem(7, tokens=96)
    spec, halves = QuantizationSpec(3, group_size=16), inputs.split(48)

    def run(part: Tensor, other: list[Tensor]) -> tuple[awq.AwqScale, Tensor, list[Tensor]]:
        sent: list[Tensor] = []

        def total(mine: Tensor) -> Tensor:
            sent.append(mine.clone())
            return mine + other[len(sent) - 1] if len(sent) <= len(other) else mine

        scale = awq.search_scale(weight, part, spec, total=total)
        return scale, awq.search_clip(weight, part, spec, samples=None, total=total), sent

    # With more tokens than columns a rank sends token counts, sums and Gram matrices: all independent of the reply.
    _, _, sent = run(halves[1], [])
    scale, limit, _ = run(halves[0], sent)
    expected = awq.search_scale(weight, inputs, spec)
    assert scale.ratio == expected.ratio
    np.testing.assert_allclose(scale.losses, expected.losses, rtol=1e-5)
    assert torch.equal(limit, awq.search_clip(weight, inputs, spec, samples=None))


def test_zero_inputs_give_no_scale_and_dead_channels_a_finite_one() -> None:
    weight, inputs = problem(8)
    assert torch.equal(awq.search_scale(weight, 0 * inputs, QuantizationSpec(4)).scale, torch.ones(32))
    dead = inputs.clone()
    dead[:, ::3] = 0
    found = awq.search_scale(weight, dead, QuantizationSpec(3))
    assert torch.isfinite(found.scale).all()
    assert (found.scale > 0).all()


def test_a_loss_that_is_not_finite_is_passed_over() -> None:
    weight, inputs = problem(9)
    calls = iter(range(100))

    def overflows_at_first(weights: list[Tensor]) -> Tensor:
        output = inputs @ weights[0].T
        return output * float("nan") if next(calls) in (1, 2) else output  # call 0 is the float layer

    found = awq.search_scale(weight, inputs, QuantizationSpec(3), output=overflows_at_first)
    assert np.isnan(found.losses[:2]).all()
    assert found.losses[round(found.ratio * 20)] == np.nanmin(found.losses)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_are_refused_by_name(value: float) -> None:
    weight, inputs = problem(10)
    inputs[3, 5] = value
    with pytest.raises(ValueError, match="q_proj.*1 NaN or infinite"):
        awq.search_scale(weight, inputs, QuantizationSpec(3), name="q_proj")
    with pytest.raises(ValueError, match="o_proj.*NaN or infinite"):
        awq.search_clip(weight, inputs, QuantizationSpec(3), name="o_proj")


def limits_by_hand(weight: Tensor, inputs: Tensor, spec: QuantizationSpec, steps: int) -> tuple[Tensor, Tensor]:
    """Losses ``[steps, out, groups]`` in float64, and the limits tried; one group of one row at a time."""
    size = spec.group_size or weight.shape[1]
    losses = torch.zeros(steps, len(weight), weight.shape[1] // size, dtype=torch.float64)
    limits = torch.zeros_like(losses)
    for row in range(len(weight)):
        for group in range(losses.shape[2]):
            columns = slice(group * size, (group + 1) * size)
            w = weight[row : row + 1, columns]
            for i in range(steps):
                limit = w.abs().max() * (1 - i / 20)
                error = rounded(w.clamp(-limit, limit), spec) - w
                losses[i, row, group] = (inputs[:, columns].double() @ error[0].double()).square().mean()
                limits[i, row, group] = limit
    return losses, limits


@grouped
@pytest.mark.parametrize("tokens", [12, 100])
def test_clipping_limits_are_the_best_of_those_tried(spec: QuantizationSpec, tokens: int) -> None:
    weight, inputs = problem(11, out=7, tokens=tokens)
    found = awq.search_clip(weight, inputs, spec)
    losses, limits = limits_by_hand(weight, inputs, spec, 10)
    assert found.shape == (7, 32 // (spec.group_size or 32), 1)
    taken = (limits - found[..., 0]).abs().argmin(0, keepdim=True)
    assert torch.allclose(limits.gather(0, taken)[0], found[..., 0].double(), rtol=1e-6)
    assert (losses.gather(0, taken)[0] <= losses.amin(0) * (1 + 1e-4)).all()
    clipped = awq.clip(weight, found)
    assert ((clipped == weight) | (clipped.abs() < weight.abs())).all()
    assert torch.allclose(clipped.reshape(7, found.shape[1], -1).abs().amax(-1), found[..., 0])


@pytest.mark.parametrize("tokens", [1, 3, 511, 513, 1023, 1024, 5000])
def test_every_nth_token_is_looked_at_and_few_tokens_do(tokens: int) -> None:
    weight, inputs = problem(12, tokens=tokens)
    spec, stride = QuantizationSpec(3, group_size=16), max(1, tokens // 512)
    expected = awq.search_clip(weight, inputs[::stride], spec, samples=None)
    assert torch.equal(awq.search_clip(weight, inputs, spec), expected)
    assert torch.equal(awq.search_clip(weight, list(inputs.split(7)), spec), expected)


def test_rows_do_not_depend_on_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, inputs = problem(13, out=37)
    spec = QuantizationSpec(3, group_size=16)
    whole = awq.search_clip(weight, inputs, spec)
    scale = awq.search_scale(weight, inputs, spec)
    monkeypatch.setattr(awq, "CHUNK", 5 * 32)
    assert torch.equal(awq.search_clip(weight, inputs, spec), whole)
    np.testing.assert_allclose(awq.search_scale(weight, inputs, spec).losses, scale.losses, rtol=1e-6)


def test_no_shrinking_allowed_keeps_the_weight() -> None:
    weight, inputs = problem(14)
    limit = awq.search_clip(weight, inputs, QuantizationSpec(2), max_shrink=0)
    assert torch.equal(awq.clip(weight, limit), weight)


def test_16_bit_weights_and_inputs_are_searched_in_float32() -> None:
    weight, inputs = (tensor.half() for tensor in problem(15))
    spec = QuantizationSpec(3, group_size=16)
    found, wide = awq.search_scale(weight, inputs, spec), awq.search_scale(weight.float(), inputs.float(), spec)
    assert found.losses == wide.losses
    assert torch.equal(awq.search_clip(weight, inputs, spec), awq.search_clip(weight.float(), inputs.float(), spec))
    assert awq.clip(weight, awq.search_clip(weight, inputs, spec)).dtype == torch.float16


def test_neither_search_changes_what_it_is_given() -> None:
    weight, inputs = problem(16)
    kept = weight.clone(), inputs.clone()
    for spec in SPECS[:5]:
        awq.search_scale(weight, inputs, spec)
        awq.search_clip(weight, inputs, spec)
    assert torch.equal(weight, kept[0])
    assert torch.equal(inputs, kept[1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w, x: awq.search_scale(w, x[:, :-1], SPECS[0]), "do not share their last axis"),
        (lambda w, x: awq.search_scale([], x, SPECS[0]), "do not share"),
        (lambda w, x: awq.search_scale(w, x[:0], SPECS[0]), "or there are none"),
        (lambda w, x: awq.search_scale(w, x, SPECS[0], grid=0), "grid of 0"),
        (lambda w, x: awq.search_scale([w, w], x, SPECS[:1]), "2 weights, 1 specs"),
        (lambda w, x: awq.search_scale(w, x, QuantizationSpec(4, group_size=5)), "group_size 5 does not divide"),
        (lambda w, x: awq.search_clip(w, x, QuantizationSpec(4, per_tensor=True)), "per_tensor"),
        (lambda w, x: awq.search_clip(w, x, SPECS[0], max_shrink=1.0), "max_shrink 1.0"),
        (lambda w, x: awq.search_clip(w, x, SPECS[0], grid=0), "grid 0 may be 1 or more"),
        (lambda w, x: awq.search_clip(w, x, SPECS[0], samples=0), "samples 0"),
    ],
)
def test_wrong_arguments_are_refused_by_name(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(*problem())
