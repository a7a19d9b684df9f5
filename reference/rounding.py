"""Round a model block by block: statistics of the inputs, the solver, what is in memory and what a job keeps."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reference.job import Job
from reference.layers import Int8Linear, QuantizedLinear
from reference.models.families import replace_module
from reference.models.streaming import StreamedModel, give_back
from reference.quantization import gptq, round_to_nearest
from reference.quantization.activations import AbsmaxAccumulator, ActivationSpec
from reference.quantization.grid import QuantizationSpec
from reference.ranks import Ranks
from reference.tensors import QuantizedTensor, storage_dtype

#: Rows of a layer that its output error is measured on, evenly spaced.
ERROR_ROWS = 256
_PARTS = ("packed", "scale", "packed_zero_point", "group_index")


class Options(NamedTuple):
    """What a solver needs to know beside the grids; see :func:`reference.workflow.quantize`.

    Chapter: none (plumbing)
    """

    solver: str
    activations: ActivationSpec | None
    damping: float
    act_order: bool
    static_groups: bool
    scale_dtype: torch.dtype | None

    @property
    def static(self) -> bool:
        """Whether the layers' inputs get a step of their own from the calibration."""
        return self.activations is not None and self.activations.granularity == "static"


class LayerError(NamedTuple):
    """How far a rounded layer is from the one it was solved from.

    ``of`` is ``"output"`` (the norm of the change of the layer's outputs on the calibration inputs,
    over the norm of the outputs) or, where no Hessian was at hand, ``"weight"``.

    Chapter: none (a report)
    """

    relative: float
    of: str


class Rounding:
    """Rounds the layers in ``grids``, a group of layers and then a block at a time.

    The four methods are what :func:`reference.calibration.walk` calls. A block that ``job`` holds is
    not solved again: the batches only run through it.

    Args:
        model: its blocks are changed.
        grids: by full name of the layer.
        options: for the solver.
        job: keeps each finished block.
        streamed: brings each block's weights when it is entered. Quantised tensors then go to the
            job's files and are only mapped into memory.
        ranks: statistics are summed over them.
        prepare: called after a block's weights are there, before its first layer.

    Attributes:
        errors: :class:`LayerError` of each finished layer, by name.

    Chapter: none (plumbing: joins the walk, the solvers and the job)
    """

    def __init__(
        self,
        model: nn.Module,
        grids: dict[str, QuantizationSpec],
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
        self._hessians: dict[str, gptq.HessianAccumulator] = {}
        self._ranges: dict[str, AbsmaxAccumulator] = {}
        self._solved: dict[str, QuantizedTensor] = {}
        self._input_scale: dict[str, Tensor] = {}

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
        if self.options.solver == "gptq":
            if names[0] not in self._hessians:
                self._hessians[names[0]] = gptq.HessianAccumulator(inputs.shape[-1], device=inputs.device)
            self._hessians[names[0]].add(inputs, names[0])
        if self.options.static:
            self._ranges.setdefault(names[0], AbsmaxAccumulator(inputs.shape[-1])).add(inputs, names[0])

    def solve(self, names: tuple[str, ...]) -> dict[str, Tensor]:
        """Round the layers ``names``; their dequantised weights by name."""
        hessian, options = self._hessian(names[0]), self.options
        if names[0] in self._ranges:
            self._ranges[names[0]].absmax = self.ranks.largest(self._ranges[names[0]].absmax)
        found = {name: self._solved[name].dequantize() for name in names if name in self._solved}
        for name in self._open(names):
            weight = self.model.get_submodule(name).get_parameter("weight").detach()
            if hessian is not None:
                self._solved[name] = gptq.quantize_layer(
                    weight, hessian, self.grids[name], damping=options.damping, act_order=options.act_order,
                    static_groups=options.act_order and options.static_groups,
                    scale_dtype=options.scale_dtype or storage_dtype(weight), name=name,
                )  # fmt: skip
            else:
                self._solved[name] = round_to_nearest.quantize_layer(
                    weight, self.grids[name], scale_dtype=options.scale_dtype, name=name
                )
            found[name] = self._solved[name].dequantize()
            self.errors[name] = _error(weight, found[name], hessian)
            if options.activations and options.static:
                self._input_scale[name] = self._ranges[names[0]].static_scale(options.activations)
        self._ranges.pop(names[0], None)
        if self.streamed:
            give_back()
        return found

    def finish(self, block: str) -> None:
        """Put quantised layers into the block, and what they hold into the job."""
        names = [name for name in self._solved if name.startswith(f"{block}.")]
        step = f"{self.options.solver}.{block}"
        if self.job and self.ranks.rank == 0 and not self.job.path(step).is_file():
            found = {f"{name}.{part}": getattr(self._solved[name], part) for name in names for part in _PARTS}
            found |= {f"{name}.input_scale": self._input_scale[name] for name in names if self.options.static}
            held = {key: tensor for key, tensor in found.items() if tensor is not None}
            self.job.put(step, held, {name: self.errors[name] for name in names})
        if self.job and self.streamed:
            self.ranks.wait()
            self._restore(block, copy=False)
        for name in names:
            linear, weight = self.model.get_submodule(name), self._solved.pop(name)
            assert isinstance(linear, nn.Linear)
            input_scale = self._input_scale.pop(name, None)
            if self.options.activations is None:
                layer: nn.Module = QuantizedLinear.from_linear(linear, weight)
            else:
                layer = Int8Linear.from_linear(linear, weight, self.options.activations, input_scale=input_scale)
            replace_module(self.model, name, layer)

    def _open(self, names: tuple[str, ...]) -> list[str]:
        return [name for name in names if name in self.grids and name not in self._solved]

    def _hessian(self, name: str) -> Tensor | None:
        accumulator = self._hessians.pop(name, None)
        if accumulator is None:
            return None
        accumulator.sum = self.ranks.total(accumulator.sum)
        accumulator.sequences = int(self.ranks.total(torch.tensor(accumulator.sequences)))
        return accumulator.hessian

    def _restore(self, block: str, *, copy: bool = True) -> None:
        """Take the block's layers from the job, if it holds them."""
        tensors, errors = (self.job.get(f"{self.options.solver}.{block}", copy=copy) if self.job else None) or ({}, {})
        for name, grid in self.grids.items():
            if name.startswith(f"{block}.") and f"{name}.packed" in tensors:
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


def _error(weight: Tensor, rounded: Tensor, hessian: Tensor | None) -> LayerError:
    if hessian is None:
        exact, change = weight.float(), rounded.float() - weight.float()
        return LayerError(float(change.norm() / exact.norm().clamp(min=1e-30)), "weight")
    step = -(-len(weight) // ERROR_ROWS)
    exact = weight[::step].float()
    change = rounded[::step].float() - exact
    energy, lost = ((rows @ hessian.float() * rows).sum().clamp(min=0) for rows in (exact, change))
    return LayerError(float((lost / energy.clamp(min=1e-30)).sqrt()), "output")
