"""Round or prune a model block by block: statistics of the inputs, the solver, what is in memory and what a job keeps."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reference.calibration import walk
from reference.job import Job
from reference.layers import Int8Linear, QuantizedLinear
from reference.models.families import blocks, family_of, replace_module
from reference.models.streaming import StreamedModel, give_back
from reference.pruning import magnitude, sparsegpt, wanda
from reference.quantization import gptq, round_to_nearest
from reference.quantization.activations import AbsmaxAccumulator, ActivationSpec
from reference.quantization.grid import QuantizationSpec
from reference.quantization.hessian import HessianAccumulator
from reference.ranks import Ranks
from reference.tensors import QuantizedTensor, storage_dtype

#: Rows of a layer that its output error is measured on, evenly spaced.
ERROR_ROWS = 256
_PARTS = ("packed", "scale", "packed_zero_point", "group_index")
#: Solvers that need the Hessian of the inputs.
HESSIAN_SOLVERS = ("gptq", "sparsegpt")
#: Solvers that need to see the inputs.
OBSERVERS = (*HESSIAN_SOLVERS, "wanda")


class Options(NamedTuple):
    """What a solver needs to know beside the grids; see :func:`reference.workflow.quantize`, and
    :func:`reference.pruning.one_shot.prune` for the last two.

    Args:
        solver: ``"round_to_nearest"``, ``"gptq"``, or a pruner: ``"magnitude"``, ``"wanda"``, ``"sparsegpt"``.
        activations: how inputs are quantised; None for weights only.
        damping, act_order, static_groups, scale_dtype: as of :func:`reference.workflow.quantize`.
        sparsity, pattern: as of :func:`reference.pruning.one_shot.prune`.

    Example:
        >>> Options("gptq").damping, Options("gptq").static
        (0.01, False)
        >>> Options("gptq", ActivationSpec("static")).static
        True

    Chapter: none (plumbing)
    """

    solver: str
    activations: ActivationSpec | None = None
    damping: float = 0.01
    act_order: bool = False
    static_groups: bool = True
    scale_dtype: torch.dtype | None = None
    sparsity: float | None = None
    pattern: tuple[int, int] | None = None

    @property
    def static(self) -> bool:
        """Whether the layers' inputs get a step of their own from the calibration."""
        return self.activations is not None and self.activations.granularity == "static"


class LayerError(NamedTuple):
    """How far a rounded or pruned layer is from the one it was solved from.

    ``of`` is ``"output"`` (the norm of the change of the layer's outputs on the calibration inputs,
    over the norm of the outputs) or, where no Hessian was at hand, ``"weight"``. ``removed`` is the fraction of the
    weights that a mask took.

    Example:
        >>> from reference import workflow
        >>> from reference.models import tutorial
        >>> model, errors, name = tutorial.load(), {}, "model.layers.0.mlp.up_proj"
        >>> _ = workflow.quantize(model, lambda layer: QuantizationSpec(8) if layer == name else None, errors=errors)
        >>> list(errors) == [name], errors[name].of, errors[name].relative < 0.02
        (True, 'weight', True)

    Chapter: none (a report)
    """

    relative: float
    of: str
    removed: float = 0.0


class Rounding:
    """Rounds or prunes the layers in ``grids``, a group of layers and then a block at a time.

    :meth:`run` does all blocks; the four methods after it are what :func:`reference.calibration.walk` calls. A block that ``job`` holds is
    not solved again: the batches only run through it.

    Args:
        model: its blocks are changed.
        grids: by full name of the layer; None for one that is pruned and stays in float.
        options: for the solver.
        job: keeps each finished block.
        streamed: brings each block's weights when it is entered. Quantised tensors then go to the
            job's files and are only mapped into memory.
        ranks: statistics are summed over them.
        prepare: called after a block's weights are there, before its first layer.

    Attributes:
        errors: :class:`LayerError` of each finished layer, by name.

    Example:
        >>> from reference.models import tutorial
        >>> from reference.ranks import ALONE
        >>> model, name = tutorial.load(), "model.layers.0.mlp.up_proj"
        >>> rounding = Rounding(
        ...     model, {name: QuantizationSpec(4)}, Options("round_to_nearest"),
        ...     job=None, streamed=None, ranks=ALONE, prepare=lambda block: None)
        >>> rounding.run([])
        >>> model.get_submodule(name).spec.bits, list(rounding.errors)
        (4, ['model.layers.0.mlp.up_proj'])

    Chapter: none (plumbing: joins the walk, the solvers and the job)
    """

    def __init__(
        self,
        model: nn.Module,
        grids: Mapping[str, QuantizationSpec | None],
        options: Options,
        *,
        job: Job | None,
        streamed: StreamedModel | None,
        ranks: Ranks,
        prepare: Callable[[str], None],
    ) -> None:
        self.model, self.grids, self.options = model, grids, options
        self.job, self.streamed, self.ranks, self.prepare = job, streamed, ranks, prepare
        self.errors: dict[str, LayerError] = {}
        self._inputs: dict[str, HessianAccumulator | wanda.InputNorms] = {}
        self._ranges: dict[str, AbsmaxAccumulator] = {}
        self._solved: dict[str, QuantizedTensor | Tensor] = {}
        self._input_scale: dict[str, Tensor] = {}

    def run(self, calibration: list[Tensor], progress: Callable[[list], Iterable] = iter) -> None:
        """All blocks, by a walk where the solver needs to see the inputs.

        Args:
            calibration: this rank's token batches.
            progress: wraps the list of blocks.
        """
        if self.options.solver in OBSERVERS or self.options.static:
            walk(
                self.model, calibration, observe=self.observe, solve=self.solve, enter=self.enter,
                finish=self.finish, progress=progress,
            )  # fmt: skip
            return
        family = family_of(self.model)
        for index in progress(list(range(len(blocks(self.model))))):
            path = f"{family.blocks}.{index}"
            self.enter(path)
            self.solve(tuple(f"{path}.{name}" for group in family.sublayers for name in group))
            self.finish(path)

    def enter(self, block: str) -> None:
        """Bring the block's weights, or what the job holds of it."""
        if self.streamed:
            self.streamed.enter(block)
        self.prepare(block)
        self._restore(block)

    def observe(self, names: tuple[str, ...], inputs: Tensor) -> None:
        """Take in one batch of the input that the layers ``names`` share."""
        if not self._open(names):
            return
        if self.options.solver in OBSERVERS:
            if names[0] not in self._inputs:
                kind = HessianAccumulator if self.options.solver in HESSIAN_SOLVERS else wanda.InputNorms
                self._inputs[names[0]] = kind(inputs.shape[-1], device=inputs.device)
            self._inputs[names[0]].add(inputs, names[0])
        if self.options.static:
            self._ranges.setdefault(names[0], AbsmaxAccumulator(inputs.shape[-1])).add(inputs, names[0])

    def solve(self, names: tuple[str, ...]) -> dict[str, Tensor]:
        """Round or prune the layers ``names``; the weights to compute with, by name."""
        seen, options = self._total(names[0]), self.options
        hessian = seen.hessian if isinstance(seen, HessianAccumulator) else None
        norms = seen.norms if isinstance(seen, wanda.InputNorms) else None
        if names[0] in self._ranges:
            self._ranges[names[0]].absmax = self.ranks.largest(self._ranges[names[0]].absmax)
        found = {name: _dense(self._solved[name]) for name in names if name in self._solved}
        for name in self._open(names):
            weight = self.model.get_submodule(name).get_parameter("weight").detach()
            self._solved[name], removed = self._layer(name, weight, hessian, norms)
            found[name] = _dense(self._solved[name])
            self.errors[name] = _error(weight, found[name], hessian)._replace(removed=removed)
            if options.activations and options.static:
                self._input_scale[name] = self._ranges[names[0]].static_scale(options.activations)
        self._ranges.pop(names[0], None)
        if self.streamed:
            give_back()
        return found

    def _layer(
        self, name: str, weight: Tensor, hessian: Tensor | None, norms: Tensor | None
    ) -> tuple[QuantizedTensor | Tensor, float]:
        """The layer as the solver leaves it, and the fraction that its mask removed."""
        grid, options = self.grids[name], self.options
        dtype = options.scale_dtype or storage_dtype(weight)
        if options.solver == "sparsegpt":
            assert hessian is not None
            pruned = sparsegpt.prune_layer(
                weight, hessian, options.sparsity, pattern=options.pattern, damping=options.damping, spec=grid,
                scale_dtype=dtype, name=name,
            )  # fmt: skip
            thin = pruned.weight.to(weight.dtype)
            return thin if pruned.quantized is None else pruned.quantized, _removed(pruned.mask)
        if options.sparsity is not None or options.pattern is not None:
            if norms is not None:
                mask = wanda.mask(weight, norms, options.sparsity, pattern=options.pattern)
            elif options.pattern is not None:
                mask = magnitude.n_of_m(weight, *options.pattern)
            else:
                assert options.sparsity is not None
                mask = magnitude.mask(weight, options.sparsity)
            thin = weight.masked_fill(~mask, 0)
            if grid is None:
                return thin, _removed(mask)
            return round_to_nearest.quantize_layer(thin, grid, scale_dtype=dtype, name=name), _removed(mask)
        assert grid is not None
        if hessian is None:
            return round_to_nearest.quantize_layer(weight, grid, scale_dtype=options.scale_dtype, name=name), 0.0
        solved = gptq.quantize_layer(
            weight, hessian, grid, damping=options.damping, act_order=options.act_order,
            static_groups=options.act_order and options.static_groups, scale_dtype=dtype, name=name,
        )  # fmt: skip
        return solved, 0.0

    def finish(self, block: str) -> None:
        """Put quantised layers and pruned weights into the block, and what they hold into the job."""
        names = [name for name in self._solved if name.startswith(f"{block}.")]
        step = f"{self.options.solver}.{block}"
        if self.job and self.ranks.rank == 0 and not self.job.path(step).is_file():
            found = {key: tensor for name in names for key, tensor in _stored(name, self._solved[name]).items()}
            found |= {f"{name}.input_scale": self._input_scale[name] for name in names if self.options.static}
            self.job.put(step, found, {name: self.errors[name] for name in names})
        if self.job and self.streamed:
            self.ranks.wait()
            self._restore(block, copy=False)
        for name in names:
            linear, weight = self.model.get_submodule(name), self._solved.pop(name)
            assert isinstance(linear, nn.Linear)
            input_scale = self._input_scale.pop(name, None)
            if isinstance(weight, Tensor):
                linear.weight = nn.Parameter(weight, requires_grad=linear.weight.requires_grad)
                continue
            if self.options.activations is None:
                layer: nn.Module = QuantizedLinear.from_linear(linear, weight)
            else:
                layer = Int8Linear.from_linear(linear, weight, self.options.activations, input_scale=input_scale)
            replace_module(self.model, name, layer)

    def _open(self, names: tuple[str, ...]) -> list[str]:
        return [name for name in names if name in self.grids and name not in self._solved]

    def _total(self, name: str) -> HessianAccumulator | wanda.InputNorms | None:
        """What all ranks have seen of a group's input."""
        accumulator = self._inputs.pop(name, None)
        if accumulator is not None:
            accumulator.sum = self.ranks.total(accumulator.sum)
            accumulator.sequences = int(self.ranks.total(torch.tensor(accumulator.sequences)))
        return accumulator

    def _restore(self, block: str, *, copy: bool = True) -> None:
        """Take the block's layers from the job, if it holds them."""
        tensors, errors = (self.job.get(f"{self.options.solver}.{block}", copy=copy) if self.job else None) or ({}, {})
        for name, grid in self.grids.items():
            key = "weight" if grid is None else "packed"
            if not name.startswith(f"{block}.") or f"{name}.{key}" not in tensors:
                continue
            if grid is None:
                self._solved[name] = tensors[f"{name}.weight"]
            else:
                out_features, in_features = self.model.get_submodule(name).get_parameter("weight").shape
                packed, scale, zero_point, index = (tensors.get(f"{name}.{part}") for part in _PARTS)
                assert packed is not None
                assert scale is not None
                self._solved[name] = QuantizedTensor(
                    packed, scale, zero_point, (out_features, in_features), grid, index
                )
            self.errors[name] = LayerError(*errors[name])
            if self.options.static:
                self._input_scale[name] = tensors[f"{name}.input_scale"]


def _dense(solved: QuantizedTensor | Tensor) -> Tensor:
    return solved if isinstance(solved, Tensor) else solved.dequantize()


def _stored(name: str, solved: QuantizedTensor | Tensor) -> dict[str, Tensor]:
    """What a job keeps of a layer."""
    if isinstance(solved, Tensor):
        return {f"{name}.weight": solved}
    return {f"{name}.{part}": held for part in _PARTS if (held := getattr(solved, part)) is not None}


def _removed(mask: Tensor) -> float:
    return 1 - float(mask.double().mean())


def _error(weight: Tensor, rounded: Tensor, hessian: Tensor | None) -> LayerError:
    if hessian is None:
        exact, change = weight.float(), rounded.float() - weight.float()
        return LayerError(float(change.norm() / exact.norm().clamp(min=1e-30)), "weight")
    step = -(-len(weight) // ERROR_ROWS)
    exact = weight[::step].float()
    change = rounded[::step].float() - exact
    energy, lost = ((rows @ hessian.float() * rows).sum().clamp(min=0) for rows in (exact, change))
    return LayerError(float((lost / energy.clamp(min=1e-30)).sqrt()), "output")
