"""From a model and a specification to a compressed model, layer by layer."""

from collections.abc import Callable, Iterable

from torch import Tensor, nn

from reference.calibration import walk
from reference.layers import QuantizedLinear
from reference.models.families import block_linears, replace_module
from reference.quantization import gptq, round_to_nearest
from reference.quantization.grid import QuantizationSpec, check_weight
from reference.tensors import QuantizedTensor, storage_dtype

METHODS = ("round_to_nearest", "gptq")


def quantize(
    model: nn.Module,
    spec: QuantizationSpec | Callable[[str], QuantizationSpec | None],
    *,
    method: str = "round_to_nearest",
    calibration: list[Tensor] | None = None,
    damping: float = 0.01,
    act_order: bool = False,
    progress: Callable[[list], Iterable] = iter,
) -> nn.Module:
    """Replace the linear layers of the blocks by quantised ones, in place.

    Every layer is checked before the first is changed, so an error leaves the model as it was.

    Args:
        model: an architecture of :mod:`reference.models.families`.
        spec: one grid for all layers, or a function from a layer's name to its grid, None for a
            layer to leave alone.
        method: the solver, ``"round_to_nearest"`` or ``"gptq"``.
        calibration: token batches of :func:`reference.calibration.batches`, for ``"gptq"``.
        damping, act_order: as :func:`reference.quantization.gptq.quantize_layer`. With groups,
            act_order uses static groups, because checkpoints hold no group index.
        progress: wraps the list of layers, or of blocks for ``"gptq"``, for a progress bar.

    Returns:
        ``model``.

    Raises:
        ValueError: unknown architecture or method, or a layer that ``spec`` does not fit, named.

    Chapter: overview, quantization/post_training
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; it may be {', '.join(METHODS)}")
    chosen = [
        (name, linear, spec(name) if callable(spec) else spec)
        for name, linear in block_linears(model)
        if isinstance(linear, nn.Linear)
    ]
    if not chosen:
        raise ValueError("the model has no float linear layer to quantise; is it quantised already?")
    for name, linear, grid in chosen:
        if grid is not None:
            check_weight(linear.weight, grid, name)
    if method == "gptq":
        if not calibration:
            raise ValueError("calibration is empty; method 'gptq' needs token batches to calibrate on")
        _quantize_by_walk(
            model, {n: g for n, _, g in chosen if g is not None}, calibration, damping, act_order, progress
        )
        return model
    for name, linear, grid in progress(chosen):
        if grid is not None:
            weight = round_to_nearest.quantize_layer(linear.weight.detach(), grid)
            replace_module(model, name, QuantizedLinear.from_linear(linear, weight))
    return model


def _quantize_by_walk(
    model: nn.Module,
    grids: dict[str, QuantizationSpec],
    calibration: list[Tensor],
    damping: float,
    act_order: bool,
    progress: Callable[[list], Iterable],
) -> None:
    """GPTQ through the model, block by block; a layer is replaced when its block is done."""
    sums: dict[str, gptq.HessianAccumulator] = {}
    solved: dict[str, QuantizedTensor] = {}

    def observe(names: tuple[str, ...], inputs: Tensor) -> None:
        if any(name in grids for name in names):
            if names[0] not in sums:
                sums[names[0]] = gptq.HessianAccumulator(inputs.shape[-1], device=inputs.device)
            sums[names[0]].add(inputs, names[0])

    def solve(names: tuple[str, ...]) -> dict[str, Tensor]:
        for name in (name for name in names if name in grids):
            weight = model.get_submodule(name).get_parameter("weight").detach()
            solved[name] = gptq.quantize_layer(
                weight, sums[names[0]].hessian, grids[name], damping=damping, act_order=act_order,
                static_groups=act_order, scale_dtype=storage_dtype(weight), name=name,
            )  # fmt: skip
        sums.pop(names[0], None)
        return {name: solved[name].dequantize() for name in names if name in solved}

    def finish(block: str) -> None:
        for name in [name for name in solved if name.startswith(f"{block}.")]:
            linear = model.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            replace_module(model, name, QuantizedLinear.from_linear(linear, solved.pop(name)))

    walk(model, calibration, observe=observe, solve=solve, finish=finish, progress=progress)
