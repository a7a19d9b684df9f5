"""Figures that a reader moves: a range that is clipped, bits against bytes, GPTQ a column at a time.

Each function computes what the page shows; the page only chooses among it.
"""

from collections.abc import Mapping, Sequence

import torch
from IPython.display import HTML
from torch import Tensor

from reference.figures.widget import widget
from reference.quantization import grid
from reference.quantization.grid import QuantizationSpec


def clipping_data(
    weight: Tensor, kept: Sequence[float], *, bits: Sequence[int] = (8, 4, 3, 2), group_size: int = 128, bins: int = 81
) -> dict:
    """The error of a layer when only a part of each group's range is kept, and the histogram behind it.

    Args:
        weight: ``[out, in]``.
        kept: parts of the range, each above 0 and at most 1.
        bits: of an affine grid.
        group_size: weights that share a range.
        bins: of the histogram, over weights divided by the end of their group's range on their side of zero.

    Returns:
        ``error[bits]`` has ``total`` and ``outside``, relative to the squared weights, one number for each of ``kept``:
        the squared error of all weights and of those beyond the kept range. ``share`` is the fraction of weights beyond it.
    """
    groups = grid.split_groups(weight.float(), QuantizationSpec(bits[0], group_size=group_size))
    low, high = grid.min_max_range(groups, QuantizationSpec(bits[0], group_size=group_size))
    end = torch.where(groups < 0, -low[..., None], high[..., None])
    relative = groups / end
    squares = float(groups.double().square().sum())
    error: dict[str, dict[str, list[float]]] = {}
    for b in bits:
        spec = QuantizationSpec(b, group_size=group_size)
        error[str(b)] = {"total": [], "outside": []}
        for part in kept:
            scale, zero = grid.scale_and_zero_point(part * low, part * high, spec)
            codes = grid.quantize(weight.float(), scale, zero, spec)
            wrong = grid.split_groups(grid.dequantize(codes, scale, zero, spec) - weight, spec).double().square()
            error[str(b)]["total"].append(float(wrong.sum()) / squares)
            error[str(b)]["outside"].append(float(wrong[relative.abs() > part].sum()) / squares)
    counts = torch.histc(relative, bins=bins, min=-1, max=1).int().tolist()
    share = [float((relative.abs() > part).double().mean()) for part in kept]
    return {
        "kept": list(kept),
        "counts": counts,
        "error": error,
        "share": share,
        "start": {"bits": str(bits[-1]), "place": 0},
    }


def clipping(data: Mapping) -> HTML:
    """A slider over the kept range: histogram, grid, error. ``data`` is of :func:`clipping_data`."""
    best = {b: min(zip(e["total"], data["kept"], strict=True)) for b, e in data["error"].items()}
    words = "; ".join(
        f"{b} bits: {100 * error:.2f} % with {100 * part:.0f} % of the range kept" for b, (error, part) in best.items()
    )
    return widget("clipping", data, label="Clip the range of real weights", without=f"Least squared error. {words}.")


def budget_data(study: Mapping, weights: int) -> dict:
    """What the page needs of ``recorded.read("bits_and_groups")``; ``weights`` is their number in the quantised layers."""
    return {
        "grids": study["grids"],
        "float": study["float"],
        "weights": weights,
        "start": {"bits": "4", "group": "128", "text": "code"},
    }


def budget(data: Mapping) -> HTML:
    """Choose bits and group size, read bytes and measured loss. ``data`` is of :func:`budget_data`."""
    row, start = data["grids"]["4"]["128"], data["float"]
    words = (
        f"4 bits in groups of 128: files of {row['bytes_total'] / 1e6:.2f} MB instead of {start['bytes_total'] / 1e6:.2f} MB, "
        f"{row['bits_per_byte']['code'] - start['bits_per_byte']['code']:+.4f} bits per byte of code."
    )
    return widget("budget", data, label="Choose bits and group size", without=words)


def stepper_data(weight: Tensor, hessian: Tensor, spec: QuantizationSpec) -> dict:
    """GPTQ on a small layer, one state a column.

    Args:
        weight: ``[out, in]``, small.
        hessian: ``[in, in]``, positive definite.
        spec: a symmetric grid, one scale a row.

    Returns:
        ``states``, one more than columns: ``weights`` so far, in steps of each row's grid, what ``moved`` in the step, and
        ``loss``, Σ e H eᵀ of the weights as they stand, divided by that of rounding to nearest. ``gptq`` is the last of them.
    """
    hessian, start = hessian.double(), weight.double()
    scale, zero = grid.fit(weight.float(), spec)
    step, row = scale.double(), QuantizationSpec(spec.bits, symmetric=spec.symmetric)

    def rounded(column: Tensor) -> Tensor:
        # In float32, as the solvers do: the largest weight of a symmetric row lies on a tie.
        codes = grid.quantize(column.float()[:, None], scale, zero, row).double() - zero
        return (step * codes)[:, 0]

    def loss(now: Tensor) -> float:
        error = now - start
        return float(((error @ hessian) * error).sum())

    def state(now: Tensor, before: Tensor) -> dict:
        return {
            "weights": (now / step).tolist(),
            "moved": ((now - before) / step).tolist(),
            "loss": loss(now) / nearest,
        }

    nearest = loss(torch.stack([rounded(column) for column in start.T], dim=1))
    upper = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    now, states = start.clone(), [state(start, start)]
    for j in range(weight.shape[1]):
        before = now.clone()
        error = (rounded(now[:, j]) - now[:, j]) / upper[j, j]
        now[:, j] = rounded(now[:, j])
        now[:, j + 1 :] += error[:, None] * upper[j, j + 1 :]
        states.append(state(now, before))
    return {"states": states, "gptq": states[-1]["loss"]}


def stepper(data: Mapping) -> HTML:
    """Buttons that go through GPTQ's columns. ``data`` is of :func:`stepper_data`."""
    words = f"After GPTQ the loss is {data['gptq']:.3f} of that of rounding to nearest."
    return widget("stepper", data, label="GPTQ on a small layer, a column at a time", without=words)
