r"""Move a scale of the channels across two layers without changing what they compute.

A layer reads :math:`x` through columns :math:`W_{:j}`. Dividing the channel :math:`x_j` by
:math:`s_j > 0` and multiplying the column by it changes nothing:

.. math:: (x \oslash s)\,(W\,\mathrm{diag}(s))^\top = x\,W^\top .

The division costs nothing where the module before, a norm or a linear layer, can carry it in its own
parameters. It may only be done if nobody else reads that module's output.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def foldable(previous: nn.Module, linears: Sequence[nn.Module]) -> bool:
    """Whether the shapes allow :func:`fold`.

    A norm must have one weight a column. A linear layer must have one output a column, or a whole
    multiple (queries, keys and values in one matrix; gate and up projection in one), whose last rows are
    taken. With grouped-query attention the values have fewer channels than the output projection reads:
    several heads share a channel, so no scale of the columns can be moved there.

    Args:
        previous: a norm or a linear layer.
        linears: the layers that read its output.

    Example:
        >>> foldable(nn.LayerNorm(4), [nn.Linear(4, 3), nn.Linear(4, 8)])
        True
        >>> foldable(nn.Linear(4, 2), [nn.Linear(4, 4)])  # two value channels, four columns that read them
        False

    Chapter: quantization/awq
    """
    weight = getattr(previous, "weight", None)
    widths = {linear.get_parameter("weight").shape[1] for linear in linears}
    if not isinstance(weight, Tensor) or len(widths) != 1:
        return False
    (width,) = widths
    return len(weight) == width or (weight.ndim == 2 and len(weight) % width == 0)


@torch.no_grad()
def fold(previous: nn.Module, linears: Sequence[nn.Module], scale: Tensor, *, name: str = "scale") -> None:
    """Divide the output of ``previous`` by ``scale`` and multiply the columns of ``linears`` by it, in place.

    Args:
        previous: LayerNorm or RMSNorm (also Gemma's, which multiplies by 1 + weight), or a linear
            layer; of one with more outputs than ``scale`` has entries, the last are divided (fused
            queries, keys and values).
        linears: the layers that read it, and nobody else may.
        scale: ``[in_features]`` of ``linears``, positive.
        name: what to call the scale in an error.

    The products are computed in float32, or float64 where a weight or the scale is, and rounded once
    to the type of the parameter.

    Raises:
        ValueError: shapes do not match (:func:`foldable`), the scale is not positive and finite, or a
            result does not fit into the parameter's type. Nothing is changed then.

    Example:
        >>> norm, linear = nn.LayerNorm(2), nn.Linear(2, 1)
        >>> nn.init.constant_(linear.weight, 3.0).tolist()
        [[3.0, 3.0]]
        >>> fold(norm, [linear], torch.tensor([4.0, 1.0]))
        >>> norm.weight.tolist(), linear.weight.tolist()
        ([0.25, 1.0], [[12.0, 3.0]])

    Chapter: quantization/awq
    """
    if scale.ndim != 1 or not torch.isfinite(scale).all() or not (scale > 0).all():
        bad = int((~(torch.isfinite(scale) & (scale > 0))).sum())
        raise ValueError(f"{name} must be a vector of positive numbers; of shape {tuple(scale.shape)}, {bad} are not")
    columns = [linear.get_parameter("weight").detach() for linear in linears]
    if not foldable(previous, linears) or columns[0].shape[1] != len(scale):
        before = getattr(previous, "weight", None)
        raise ValueError(
            f"{name} has {len(scale)} entries, {type(previous).__name__} in front a weight of shape "
            f"{tuple(before.shape) if isinstance(before, Tensor) else None}, the layers behind it of shapes "
            f"{[tuple(weight.shape) for weight in columns]}; they must match (with grouped-query attention the values "
            "cannot carry a scale of the output projection)"
        )
    weight, bias = previous.get_parameter("weight").detach(), getattr(previous, "bias", None)
    one = _offset(previous) if weight.ndim == 1 else 0.0
    last = slice(-len(scale), None)
    divided = [weight[last], *([bias.detach()[last]] if isinstance(bias, Tensor) else [])]

    def multiply(column: Tensor) -> Tensor:
        return (_wide(column, scale) * scale).to(column.dtype)

    def divide(row: Tensor) -> Tensor:
        offset = one if row is divided[0] else 0.0
        by = scale if row.ndim == 1 else scale.unsqueeze(1)
        return ((_wide(row, scale) + offset) / by - offset).to(row.dtype)

    changes = [(multiply, column) for column in columns] + [(divide, row) for row in divided]
    if not all(torch.isfinite(change(parameter)).all() for change, parameter in changes):
        raise ValueError(
            f"{name} from {scale.min():.3g} to {scale.max():.3g} takes a weight beyond {weight.dtype}; "
            "convert the model to bfloat16 or float32 first"
        )
    for change, parameter in changes:
        parameter.copy_(change(parameter))


def _wide(weight: Tensor, scale: Tensor) -> Tensor:
    """``weight`` in float32 or better."""
    return weight.to(torch.promote_types(torch.promote_types(weight.dtype, scale.dtype), torch.float32))


def _offset(norm: nn.Module) -> float:
    """1 for a norm that multiplies by 1 + weight, else 0; found by asking it, not by its name."""
    weight = norm.get_parameter("weight")
    probe = torch.linspace(-1, 1, len(weight), dtype=weight.dtype, device=weight.device)
    nothing = {name: torch.zeros_like(parameter) for name, parameter in norm.named_parameters()}
    return float(torch.func.functional_call(norm, nothing, (probe.unsqueeze(0),)).abs().amax() > 0)
