"""From a model and a specification to a compressed model, layer by layer."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from reference.calibration import Call, capture, walk_blocks, warn_of_few_tokens
from reference.job import Job
from reference.models.families import block_linears, blocks, family_of
from reference.models.streaming import StreamedModel
from reference.quantization.activations import ActivationSpec
from reference.quantization.grid import QuantizationSpec, check_weight
from reference.quantization.hessian import check_damping
from reference.quantization.smoothquant import check_alpha
from reference.ranks import ALONE, Ranks
from reference.rounding import LayerError, Options, Rounding
from reference.transforms.awq import scale_block
from reference.transforms.smoothquant import behind_norms, search_alpha, smooth_block

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
    alpha: float | None = 0.5,
    scale_dtype: torch.dtype | None = None,
    progress: Callable[[list], Iterable] = iter,
    job: Job | None = None,
    streamed: StreamedModel | None = None,
    ranks: Ranks = ALONE,
    errors: dict[str, LayerError] | None = None,
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
        alpha: for SmoothQuant, as :func:`reference.quantization.smoothquant.smoothing_factors`; None searches
            it (:func:`reference.transforms.smoothquant.search_alpha`), which needs ``activations``.
        scale_dtype: type of the stored scales; that of :func:`reference.tensors.storage_dtype` if None.
        progress: wraps the list of blocks, for a progress bar.
        job: keeps each finished block, so that a run that was killed goes on with the next one.
        streamed: of which ``model`` is the model: only the block that is worked on is in memory. Needs
            a job, whose folder the result stays mapped from until it is saved.
        ranks: processes that share the calibration batches out; all are given all batches.
        errors: filled with the :class:`~reference.rounding.LayerError` of each layer, by name.

    Returns:
        ``model``.

    Raises:
        ValueError: unknown architecture or method, or a layer that ``spec`` does not fit, named.

    Warns:
        CalibrationWarning: as :func:`check`.

    Example:
        >>> from reference.models import tutorial
        >>> model = tutorial.load()
        >>> def grid(name):
        ...     bits = 8 if name.endswith("down_proj") else 4
        ...     return QuantizationSpec(bits, group_size=128) if name.startswith("model.layers.0.") else None
        >>> mlp = quantize(model, grid).model.layers[0].mlp
        >>> mlp.up_proj.spec.bits, mlp.down_proj.spec.bits, type(model.model.layers[1].mlp.up_proj).__name__
        (4, 8, 'Linear')

    Chapter: overview, quantization/post_training
    """
    grids = check(
        model, spec, method=method, activations=activations, calibration=calibration, damping=damping, alpha=alpha,
    )  # fmt: skip
    if streamed and job is None:
        raise ValueError("job is None; a streamed model needs one, to put finished blocks into")
    transform, _, solver = method.rpartition("+")
    if method in ("awq", "smoothquant"):
        transform, solver = method, "round_to_nearest"
    mine = ranks.share(calibration) if calibration else []

    def prepare(path: str) -> None:
        """What a streamed block gets from its files is not yet rescaled."""
        rescaled = job.get(f"{transform}.{path}") if job and streamed and transform else None
        if rescaled:
            model.get_submodule(path).load_state_dict(rescaled[0])

    if transform == "smoothquant" and alpha is None:
        alpha = _search_alpha(model, grids, mine, activations, progress, job, streamed, ranks)
    if transform:
        _rescale(model, transform, grids, mine, alpha, progress, job, streamed, ranks)
    options = Options(solver, activations, damping, act_order, static_groups, scale_dtype)
    rounding = Rounding(model, grids, options, job=job, streamed=streamed, ranks=ranks, prepare=prepare)
    rounding.run(mine, progress)
    if errors is not None:
        errors.update(rounding.errors)
    return model


def check(
    model: nn.Module,
    spec: QuantizationSpec | Callable[[str], QuantizationSpec | None],
    *,
    method: str = "round_to_nearest",
    activations: ActivationSpec | None = None,
    calibration: list[Tensor] | None = None,
    damping: float = 0.01,
    alpha: float | None = 0.5,
) -> dict[str, QuantizationSpec]:
    """What :func:`quantize` refuses, refused before a long run; weights may be on the meta device.

    Args:
        model, spec, method, activations, calibration, damping, alpha: as :func:`quantize`.

    Returns:
        The grid of each layer that will be quantised, by full name.

    Raises:
        ValueError: as :func:`quantize`.

    Warns:
        CalibrationWarning: fewer calibration tokens than a layer has inputs.

    Example:
        >>> from reference.models import tutorial
        >>> grids = check(tutorial.load(), QuantizationSpec(4, group_size=128))
        >>> len(grids), grids["model.layers.0.mlp.up_proj"].bits  # seven layers in each of six blocks
        (42, 4)

    Chapter: none (checks)
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; it may be {', '.join(METHODS)}")
    transform = method.partition("+")[0]
    scalings = family_of(model).scalings
    usable = behind_norms(blocks(model)[0], scalings) if transform == "smoothquant" else scalings
    if transform in ("awq", "smoothquant") and not usable:
        raise ValueError(
            f"{type(model).__name__} has no norm that {transform!r} could fold a scale into: it has no weights, or the residual reads it too"
        )
    if transform == "smoothquant" and alpha is None and activations is None:
        raise ValueError("alpha is None; a search compares integer blocks and needs quantised activations")
    if transform == "smoothquant" and alpha is not None:
        check_alpha(alpha)
    if method.endswith("gptq"):
        check_damping(damping)
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
    static = activations is not None and activations.granularity == "static"
    if (method != "round_to_nearest" or static) and not calibration:
        needs = f"method {method!r}" if method != "round_to_nearest" else "static activations"
        raise ValueError(f"calibration is empty; {needs} needs token batches to calibrate on")
    grids = {name: grid for name, _, grid in chosen if grid is not None}
    if not grids:
        raise ValueError(f"spec leaves all {len(chosen)} linear layers in float; there is nothing to do")
    if method.endswith("gptq"):
        warn_of_few_tokens(calibration, {name: linear for name, linear, _ in chosen})
    return grids


def _search_alpha(
    model: nn.Module,
    grids: dict[str, QuantizationSpec],
    calibration: list[Tensor],
    activations: ActivationSpec | None,
    progress: Callable[[list], Iterable],
    job: Job | None,
    streamed: StreamedModel | None,
    ranks: Ranks,
) -> float:
    assert activations is not None
    finished = job.get("alpha") if job else None
    if finished:
        return finished[1]["alpha"]
    hooks: dict[str, Any] = {} if streamed is None else {"enter": streamed.enter, "leave": streamed.leave}
    found = search_alpha(
        model, calibration, weights=grids.get, activations=activations, total=ranks.total,
        largest=ranks.largest, progress=progress, **hooks,
    )  # fmt: skip
    if job and ranks.rank == 0:
        job.put("alpha", {}, found._asdict())
    return found.alpha


def _rescale(
    model: nn.Module,
    transform: str,
    grids: dict[str, QuantizationSpec],
    calibration: list[Tensor],
    alpha: float | None,
    progress: Callable[[list], Iterable],
    job: Job | None,
    streamed: StreamedModel | None,
    ranks: Ranks,
) -> None:
    """AWQ's or SmoothQuant's change of every block; each sees what the float blocks before it compute."""
    scalings = family_of(model).scalings

    def visit(path: str, block: nn.Module, calls: list[Call]) -> list[Tensor]:
        finished = job.get(f"{transform}.{path}") if job else None
        if finished:
            outputs, _ = capture(block, calls, ())
            block.load_state_dict(finished[0])
            return outputs
        if transform == "awq":
            outputs = scale_block(
                block, calls, scalings, lambda name: grids.get(f"{path}.{name}"), total=ranks.total, name=path
            )
        else:
            assert alpha is not None
            outputs = smooth_block(block, calls, scalings, alpha=alpha, largest=ranks.largest, name=path)
        if job and ranks.rank == 0:
            job.put(f"{transform}.{path}", dict(block.state_dict()), {})
        return outputs

    if streamed is None:
        walk_blocks(model, calibration, visit, progress=progress)
        return
    walk_blocks(model, calibration, visit, enter=streamed.enter, leave=streamed.leave, progress=progress)
    ranks.wait()  # until the first has put the last block
