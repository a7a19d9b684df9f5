"""From a float model to layers that train under quantisation, and on to packed ones.

float model --prepare--> trained layers --train--> trained layers --convert--> packed layers
"""

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from reference.layers import QuantizedLinear
from reference.models.families import block_linears, replace_module
from reference.quantization import grid, round_to_nearest
from reference.quantization.activations import ActivationSpec, scale_of
from reference.quantization.grid import QuantizationSpec
from reference.quantization.quantization_aware import initial_step
from reference.quantization.trained import DEPTH, TrainedLinear
from reference.tensors import QuantizedTensor, storage_dtype

STARTS = ("round_to_nearest", "lsq")


@runtime_checkable
class Convertible(Protocol):
    """A layer that trains and can say what serves in its place.

    Example:
        >>> class Doubling(nn.Module):
        ...     def converted(self) -> nn.Module:
        ...         return nn.Identity()
        >>> isinstance(Doubling(), Convertible), isinstance(nn.Linear(1, 1), Convertible)
        (True, False)

    Chapter: none (an interface)
    """

    def converted(self) -> nn.Module:
        """The layer to serve."""


def first_grid(weight: Tensor, spec: QuantizationSpec, start: str = "round_to_nearest") -> QuantizedTensor:
    """The grid of a layer before training, without calibration.

    Args:
        weight: ``[out, in]``.
        spec: the grid.
        start: ``"round_to_nearest"`` for the range of the weights, ``"lsq"`` for
            :func:`reference.quantization.quantization_aware.initial_step` (symmetric grids).

    Raises:
        ValueError: no such start, or an affine grid for ``"lsq"``.

    Example:
        >>> weight, spec = torch.tensor([[-3.0, -1.0, 1.0, 1.0]]), QuantizationSpec(2, symmetric=True)
        >>> first_grid(weight, spec).scale.item()  # 2 · 3 / 3: the largest magnitude over the steps
        2.0
        >>> first_grid(weight, spec, "lsq").scale.item()  # twice the mean magnitude
        3.0

    Chapter: quantization/quantization_aware
    """
    if start not in STARTS:
        raise ValueError(f"start is {start!r}; it may be {', '.join(STARTS)}, or a tensor for each layer by name")
    if start == "round_to_nearest":
        return round_to_nearest.quantize_layer(weight, spec)
    if not spec.symmetric:
        raise ValueError("start 'lsq' is for symmetric grids; an affine one starts from round_to_nearest")
    grid.check_weight(weight, spec)
    dtype = storage_dtype(weight)
    scale = initial_step(grid.split_groups(weight.float(), spec), spec.levels // 2, axis=-1).squeeze(-1)
    scale = grid.round_up(scale.clamp(min=torch.finfo(dtype).tiny), dtype)
    zero_point = torch.full_like(scale, spec.middle, dtype=torch.int32)
    return QuantizedTensor.from_codes(grid.quantize(weight, scale, zero_point, spec), scale, zero_point, spec)


def prepare(
    model: nn.Module,
    spec: QuantizationSpec | Callable[[str], QuantizationSpec | None],
    *,
    start: str | Mapping[str, QuantizedTensor] = "round_to_nearest",
    activations: ActivationSpec | None = None,
    absmax: Mapping[str, Tensor] | None = None,
    scaled: bool = True,
    mask: str = "unrounded",
    depth: float = DEPTH,
) -> nn.Module:
    """Replace the linear layers of the blocks by :class:`TrainedLinear`, in place.

    Args:
        model: an architecture of :mod:`reference.models.families`, in float.
        spec: one grid for all layers, or a function from a layer's name to its grid, None for a layer to leave alone.
        start: one of :data:`STARTS`, or what a solver found, by layer (:func:`solved`).
        activations: how inputs are quantised; None for weights only.
        absmax: largest absolute input of each layer, ``[1]``, which static activations start from.
        scaled, mask, depth: see :class:`TrainedLinear`.

    Returns:
        ``model``.

    Raises:
        ValueError: a layer that the grid does not fit, named; a start whose grid is another than ``spec``'s.

    Example:
        >>> from reference.models import tutorial
        >>> spec = QuantizationSpec(4, group_size=128)
        >>> model = prepare(tutorial.load(), lambda name: spec if name.endswith("0.mlp.up_proj") else None)
        >>> [name for name, layer in model.named_modules() if isinstance(layer, TrainedLinear)]
        ['model.layers.0.mlp.up_proj']

    Chapter: quantization/quantization_aware
    """
    static = activations is not None and activations.granularity == "static"
    layers: dict[str, nn.Module] = {}
    for name, linear in list(block_linears(model)):
        wanted = spec(name) if callable(spec) else spec
        if wanted is None or not isinstance(linear, nn.Linear):
            continue
        grid.check_weight(linear.weight, wanted, name)
        found = first_grid(linear.weight.detach(), wanted, start) if isinstance(start, str) else start[name]
        if found.spec != wanted:
            raise ValueError(f"{name}: start has the grid {found.spec}, spec asks for {wanted}")
        if static and (absmax is None or name not in absmax):
            raise ValueError(f"{name}: static activations need absmax, the largest input that calibration saw")
        scale = scale_of(absmax[name].reshape(1), activations) if static and absmax and activations else None
        layers[name] = TrainedLinear(
            linear, found, activations=activations, input_scale=scale, scaled=scaled, mask=mask, depth=depth
        )
    if not layers:
        raise ValueError("spec leaves no float linear layer to train; is the model quantised already?")
    for name, layer in layers.items():
        replace_module(model, name, layer.to(next(model.parameters()).device))
    return model


def solved(model: nn.Module) -> dict[str, QuantizedTensor]:
    """The tensors of a quantised model's layers by name, as a start for :func:`prepare`.

    Args:
        model: quantised, for example by :func:`reference.workflow.quantize`.

    Example:
        >>> from reference import workflow
        >>> from reference.models import tutorial
        >>> spec = QuantizationSpec(4, group_size=128)
        >>> model = workflow.quantize(tutorial.load(), lambda name: spec if name.endswith("0.mlp.up_proj") else None)
        >>> {name: tensor.nbytes for name, tensor in solved(model).items()}
        {'model.layers.0.mlp.up_proj': 102144}

    Chapter: quantization/quantization_aware
    """
    return {name: layer.tensor for name, layer in block_linears(model) if isinstance(layer, QuantizedLinear)}


def convert(model: nn.Module) -> nn.Module:
    """Replace trained layers by packed ones, in place.

    :class:`TrainedLinear` becomes a :class:`QuantizedLinear` (equal weights, bit for bit) or an
    :class:`Int8Linear` (equal up to the order of a sum). Layers of :mod:`reference.quantization.low_cost`
    are converted as they say.

    Args:
        model: of :func:`prepare`, or with the layers of :mod:`reference.quantization.low_cost`.

    Returns:
        ``model``, in evaluation mode.

    Raises:
        ValueError: there is no trained layer.

    Example:
        >>> from reference.models import tutorial
        >>> spec = QuantizationSpec(4, group_size=128)
        >>> model = prepare(tutorial.load(), lambda name: spec if name.endswith("0.mlp.up_proj") else None)
        >>> trained = model.model.layers[0].mlp.up_proj.quantized_weight
        >>> packed = convert(model).model.layers[0].mlp.up_proj
        >>> torch.equal(packed.tensor.dequantize(torch.float32), trained)
        True

    Chapter: quantization/quantization_aware
    """
    found = [(name, layer) for name, layer in block_linears(model) if isinstance(layer, Convertible)]
    if not found:
        raise ValueError("model has no trained layer to convert; prepare() makes them")
    for name, layer in found:
        replace_module(model, name, layer.converted())
    return model.eval()
