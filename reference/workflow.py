"""From a model and a specification to a compressed model, layer by layer."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reference.calibration import Call, capture, walk, walk_blocks
from reference.job import Job
from reference.layers import Int8Linear, QuantizedLinear
from reference.models.families import block_linears, family_of, replace_module
from reference.quantization import gptq, round_to_nearest
from reference.quantization.activations import AbsmaxAccumulator, ActivationSpec
from reference.quantization.grid import QuantizationSpec, check_weight
from reference.tensors import QuantizedTensor, storage_dtype
from reference.transforms.awq import scale_block
from reference.transforms.smoothquant import smooth_block

#: A change of the weights that keeps the function, if any, and the solver that rounds them.
METHODS = ("round_to_nearest", "gptq", "awq", "awq+gptq", "smoothquant", "smoothquant+gptq")


def quantize(
    model: nn.Module,
    spec: QuantizationSpec | Callable[[str], QuantizationSpec | None],
    *,
    method: str = "round_to_nearest",
    activations: ActivationSpec | None = None,
    calibration: list[Tensor] | None = None,
    damping: float = 0.01,
    act_order: bool = False,
    static_groups: bool = True,
    alpha: float = 0.5,
    scale_dtype: torch.dtype | None = None,
    progress: Callable[[list], Iterable] = iter,
    job: Job | None = None,
) -> nn.Module:
    """Replace the linear layers of the blocks by quantised ones, in place.

    Every layer is checked before the first is changed, so a wrong argument leaves the model as it was.

    Args:
        model: an architecture of :mod:`reference.models.families`.
        spec: one grid for all layers, or a function from a layer's name to its grid, None for a
            layer to leave alone.
        method: one of :data:`METHODS`. ``"awq"`` and ``"smoothquant"`` rescale channels, and round to
            nearest then; with ``"+gptq"`` GPTQ rounds.
        activations: quantise the layers' inputs too and multiply integers. The grids must then be
            symmetric; one scale for each output channel is the fast case.
        calibration: token batches of :func:`reference.calibration.batches`; all methods but
            ``"round_to_nearest"``, and static activations, need them.
        damping, act_order: for GPTQ, as :func:`reference.quantization.gptq.quantize_layer`.
        static_groups: with act_order and groups. False moves groups with the columns; only the
            checkpoint format ``"gptq"`` holds the group index that this makes.
        alpha: for SmoothQuant, as :func:`reference.quantization.smoothquant.smoothing_factors`.
        scale_dtype: type of the stored scales; that of :func:`reference.tensors.storage_dtype` if None.
        progress: wraps the list of layers, or of blocks where there is calibration, for a progress bar.
        job: keeps each finished block, so that a run that was killed goes on with the next one.

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
            if activations and not grid.symmetric:
                raise ValueError(f"{name}: quantised activations need a symmetric grid, whose zero is code 0")
    grids = {name: grid for name, _, grid in chosen if grid is not None}
    static = activations is not None and activations.granularity == "static"
    if (method != "round_to_nearest" or static) and not calibration:
        needs = f"method {method!r}" if method != "round_to_nearest" else "static activations"
        raise ValueError(f"calibration is empty; {needs} needs token batches to calibrate on")

    transform, _, solver = method.rpartition("+")
    if method in ("awq", "smoothquant"):
        transform, solver = method, "round_to_nearest"
    if transform:
        _rescale(model, transform, grids, calibration or [], alpha, progress, job)
    options = _Options(solver or "round_to_nearest", activations, damping, act_order, static_groups, scale_dtype)
    if solver == "gptq" or static:
        _solve_by_walk(model, grids, calibration or [], options, progress, job)
        return model
    for name, linear, grid in progress(chosen):
        if grid is not None:
            weight = round_to_nearest.quantize_layer(linear.weight.detach(), grid, scale_dtype=scale_dtype)
            _exchange(model, name, weight, activations, None)
    return model


class _Options(NamedTuple):
    solver: str
    activations: ActivationSpec | None
    damping: float
    act_order: bool
    static_groups: bool
    scale_dtype: torch.dtype | None


def _exchange(
    model: nn.Module, name: str, weight: QuantizedTensor, activations: ActivationSpec | None, input_scale: Tensor | None
) -> None:
    linear = model.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    if activations is None:
        replace_module(model, name, QuantizedLinear.from_linear(linear, weight))
        return
    replace_module(model, name, Int8Linear.from_linear(linear, weight, activations, input_scale=input_scale))


def _rescale(
    model: nn.Module,
    transform: str,
    grids: dict[str, QuantizationSpec],
    calibration: list[Tensor],
    alpha: float,
    progress: Callable[[list], Iterable],
    job: Job | None,
) -> None:
    """AWQ's or SmoothQuant's change of every block; each sees what the float blocks before it compute."""
    scalings = family_of(model).scalings
    if not scalings:
        raise ValueError(
            f"{type(model).__name__} has no norm that {transform!r} could fold a scale into: the residual reads them too"
        )

    def visit(path: str, block: nn.Module, calls: list[Call]) -> list[Tensor]:
        finished = job.get(f"{transform}.{path}") if job else None
        if finished:
            outputs, _ = capture(block, calls, ())
            block.load_state_dict(finished[0])
            return outputs
        if transform == "awq":
            outputs = scale_block(block, calls, scalings, lambda name: grids.get(f"{path}.{name}"), name=path)
        else:
            outputs = smooth_block(block, calls, scalings, alpha=alpha, name=path)
        if job:
            job.put(f"{transform}.{path}", dict(block.state_dict()), {})
        return outputs

    walk_blocks(model, calibration, visit, progress=progress)


def _solve_by_walk(
    model: nn.Module,
    grids: dict[str, QuantizationSpec],
    calibration: list[Tensor],
    options: _Options,
    progress: Callable[[list], Iterable],
    job: Job | None,
) -> None:
    """Round the model block by block, each layer after it has seen its inputs; replace it when its block is done.

    What a job holds is not solved again: the batches only run through it, to the blocks still to do.
    """
    hessians: dict[str, gptq.HessianAccumulator] = {}
    ranges: dict[str, AbsmaxAccumulator] = {}
    solved: dict[str, QuantizedTensor] = {}
    input_scale: dict[str, Tensor] = {}
    static = options.activations is not None and options.activations.granularity == "static"

    def enter(block: str) -> None:
        tensors, _ = (job.get(f"{options.solver}.{block}") if job else None) or ({}, {})
        for name, grid in grids.items():
            if name.startswith(f"{block}.") and f"{name}.packed" in tensors:
                out_features, in_features = model.get_submodule(name).get_parameter("weight").shape
                zero_point, index = (tensors.get(f"{name}.{part}") for part in ("packed_zero_point", "group_index"))
                solved[name] = QuantizedTensor(
                    tensors[f"{name}.packed"], tensors[f"{name}.scale"], zero_point, (out_features, in_features), grid,
                    index,
                )  # fmt: skip
                if static:
                    input_scale[name] = tensors[f"{name}.input_scale"]

    def observe(names: tuple[str, ...], inputs: Tensor) -> None:
        if all(name in solved or name not in grids for name in names):
            return
        if options.solver == "gptq":
            if names[0] not in hessians:
                hessians[names[0]] = gptq.HessianAccumulator(inputs.shape[-1], device=inputs.device)
            hessians[names[0]].add(inputs, names[0])
        if static:
            ranges.setdefault(names[0], AbsmaxAccumulator(inputs.shape[-1])).add(inputs, names[0])

    def solve(names: tuple[str, ...]) -> dict[str, Tensor]:
        for name in (name for name in names if name in grids and name not in solved):
            weight = model.get_submodule(name).get_parameter("weight").detach()
            if options.solver == "gptq":
                solved[name] = gptq.quantize_layer(
                    weight, hessians[names[0]].hessian, grids[name], damping=options.damping,
                    act_order=options.act_order, static_groups=options.act_order and options.static_groups,
                    scale_dtype=options.scale_dtype or storage_dtype(weight), name=name,
                )  # fmt: skip
            else:
                solved[name] = round_to_nearest.quantize_layer(weight, grids[name], scale_dtype=options.scale_dtype)
            if static and options.activations:
                input_scale[name] = ranges[names[0]].static_scale(options.activations)
        hessians.pop(names[0], None)
        ranges.pop(names[0], None)
        return {name: solved[name].dequantize() for name in names if name in solved}

    def finish(block: str) -> None:
        names = [name for name in solved if name.startswith(f"{block}.")]
        if job and not job.path(f"{options.solver}.{block}").is_file():
            parts = ("packed", "scale", "packed_zero_point", "group_index")
            found = {f"{name}.{part}": getattr(solved[name], part) for name in names for part in parts}
            found |= {f"{name}.input_scale": input_scale[name] for name in names if static}
            held = {key: tensor for key, tensor in found.items() if tensor is not None}
            job.put(f"{options.solver}.{block}", held, {})
        for name in names:
            _exchange(model, name, solved.pop(name), options.activations, input_scale.pop(name, None))

    walk(model, calibration, observe=observe, solve=solve, enter=enter, finish=finish, progress=progress)
