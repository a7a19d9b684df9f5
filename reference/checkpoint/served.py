"""What vLLM refuses, on every device, of the folders that we write.

Read in the source of vLLM 0.32.0, and executed with its build for CPUs. Not told here: what some of its devices have no
kernel for. Weights of 4 bits run on GPUs and on x86 CPUs with AVX-512, of 8 on GPUs, of 2, 3, 5, 6
and 7 with its Humming kernels only (NVIDIA).
"""

from collections.abc import Mapping

from torch import nn

from reference.models.families import input_groups
from reference.quantization.activations import ActivationSpec
from reference.quantization.grid import QuantizationSpec


def refused(
    model: nn.Module,
    grids: Mapping[str, QuantizationSpec],
    format: str = "compressed-tensors",
    *,
    activations: ActivationSpec | None = None,
    moved_groups: bool = False,
) -> str | None:
    """Why vLLM will not load what becomes of ``model``; None where it will, kernels permitting.

    Args:
        model: in float; weights may be on the meta device.
        grids: of each layer that will be quantised, by full name; one or more.
        format, activations, moved_groups: as :func:`reference.checkpoint.check`.

    Returns:
        One clause for a message.

    Example:
        >>> from reference.models import tutorial
        >>> grids = {f"model.layers.0.self_attn.{name}_proj": QuantizationSpec(4, symmetric=True) for name in "qk"}
        >>> refused(tutorial.load(), grids)  # v_proj is left out
        'model.layers.0.self_attn.q_proj has 4 bits and v_proj float, which it computes as one layer'

    Chapter: none (checks)
    """
    for name, spec in grids.items():
        reason = _gptq(spec, moved_groups) if format == "gptq" else _grid(spec, activations)
        if reason:
            return f"{name} has {reason}"
    for group in input_groups(model):
        first, *rest = group
        for name in rest:
            if _kind(grids.get(name)) != _kind(grids.get(first)):
                other = name.rpartition(".")[2]
                return f"{first} has {_kind(grids.get(first))} and {other} {_kind(grids.get(name))}, which it computes as one layer"
    return None


def _gptq(spec: QuantizationSpec, moved_groups: bool) -> str | None:
    if moved_groups and spec.group_size is not None:
        return "groups that moved with the columns; keep them static"
    if not spec.symmetric:
        return "an affine grid, which it takes in the formats awq and compressed-tensors only"
    if spec.bits not in (4, 8):
        return f"{spec.bits} bits; it takes 4 and 8 in the gptq format"
    return None


def _grid(spec: QuantizationSpec, activations: ActivationSpec | None) -> str | None:
    if activations is None:
        return "one scale for the whole weight, and inputs in float" if spec.per_tensor else None
    if activations.granularity == "per_tensor":
        return "inputs with one step for the tensor, found anew each time; per_token and static it takes"
    if spec.bits == 8 and spec.group_size is not None and not spec.per_tensor:
        return "integer inputs and weights of 8 bits in groups; one scale for a row it takes"
    if spec.bits < 8 and activations.granularity == "static":
        return f"static inputs and weights of {spec.bits} bits; per_token it takes"
    if spec.bits < 8 and spec.per_tensor:
        return f"one scale for the whole weight, and {spec.bits} bits; 8 it takes"
    return None


def _kind(spec: QuantizationSpec | None) -> str:
    """What the parts of a layer that is computed as one must have in common."""
    if spec is None:
        return "float"
    grouping = f" in groups of {spec.group_size}" if spec.group_size and not spec.per_tensor else ""
    return f"{spec.bits} bits{grouping}" + ("" if spec.symmetric else ", affine")
