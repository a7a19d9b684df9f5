"""What the widgets of the chapters show: each number against a second way to compute it."""

from itertools import pairwise

import torch

from reference.figures import teaching
from reference.quantization import gptq, grid, round_to_nearest
from reference.quantization.grid import QuantizationSpec


def layer(rows=8, columns=256, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def test_clipping_at_the_full_range_is_rounding_to_nearest():
    weight = layer()
    data = teaching.clipping_data(weight, [1.0, 0.6])
    for bits in (8, 4, 3, 2):
        spec = QuantizationSpec(bits, group_size=128)
        error = (
            (round_to_nearest.quantize_layer(weight, spec, scale_dtype=torch.float32).dequantize() - weight)
            .square()
            .sum()
        )
        assert abs(data["error"][str(bits)]["total"][0] / float(error / weight.square().sum()) - 1) < 1e-5
        assert data["error"][str(bits)]["outside"][0] == 0
    assert data["share"][0] == 0
    assert sum(data["counts"]) == weight.numel()


def test_the_clipped_part_is_what_lies_beyond_the_kept_range():
    """A loop over groups and weights in plain Python gives the same shares."""
    weight, part = layer(rows=2), 0.5
    data = teaching.clipping_data(weight, [part], bits=(3,))
    outside = wrong = 0.0
    for row in weight:
        for group in row.split(128):
            low, high = min(float(group.min()), 0.0), max(float(group.max()), 0.0)
            step = (part * high - part * low) / 7
            zero = round(-part * low / step)
            for value in group.tolist():
                code = min(max(round(value / step) + zero, 0), 7)
                error = (step * (code - zero) - value) ** 2
                wrong += error
                outside += error * (value > part * high or value < part * low)
    squares = float(weight.square().sum())
    assert abs(data["error"]["3"]["total"][0] * squares / wrong - 1) < 1e-3
    assert abs(data["error"]["3"]["outside"][0] * squares / outside - 1) < 1e-3
    assert 0 < outside < wrong


def test_the_steps_end_where_the_package_does():
    weight, mixing = layer(4, 4), torch.eye(4) + 0.7 * torch.rand(4, 4, generator=torch.Generator().manual_seed(1))
    hessian = mixing @ mixing.T
    spec = QuantizationSpec(3, symmetric=True)
    data = teaching.stepper_data(weight, hessian, spec)
    assert len(data["states"]) == 5
    solved = gptq.quantize_layer(weight, hessian, spec, damping=0.0, scale_dtype=torch.float32).dequantize()
    scale, _ = grid.fit(weight, spec)
    torch.testing.assert_close(torch.tensor(data["states"][-1]["weights"]), solved / scale, atol=1e-4, rtol=0)
    nearest = round_to_nearest.quantize_layer(weight, spec, scale_dtype=torch.float32).dequantize()
    losses = [(((w - weight) @ hessian) * (w - weight)).sum() for w in (solved, nearest)]
    assert abs(data["gptq"] / float(losses[0] / losses[1]) - 1) < 1e-4
    assert [state["loss"] for state in data["states"]] == sorted(state["loss"] for state in data["states"])


def test_a_rounded_column_stays_and_a_move_is_the_difference():
    data = teaching.stepper_data(layer(4, 4), torch.eye(4) + 0.5, QuantizationSpec(3, symmetric=True))
    states = [{key: torch.tensor(value) for key, value in state.items()} for state in data["states"]]
    for j, (before, after) in enumerate(pairwise(states)):
        torch.testing.assert_close(after["weights"] - before["weights"], after["moved"], atol=1e-6, rtol=0)
        assert torch.equal(after["weights"][:, :j], before["weights"][:, :j])
        torch.testing.assert_close(after["weights"][:, j], after["weights"][:, j].round(), atol=1e-5, rtol=0)
