"""Where the static steps of a block's inputs clip: one more run of the block, with a histogram before each layer."""

from torch import Tensor, nn

from reference.calibration import Call, capture
from reference.quantization import activation_range
from reference.quantization.activations import ActivationSpec


def thresholds(
    block: nn.Module, calls: list[Call], scales: dict[str, Tensor | None], rule: str, spec: ActivationSpec, name: str
) -> dict[str, float]:
    """Where to clip the inputs of some layers, divided by their scales, in one more run of the block."""
    seen = {path: activation_range.MagnitudeHistogram() for path in scales}
    handles = []
    for path, scale in scales.items():

        def add(_: nn.Module, args: tuple, path: str = path, scale: Tensor | None = scale) -> None:
            seen[path].add(args[0] if scale is None else args[0] / scale, f"{name}.{path}")

        handles.append(block.get_submodule(path).register_forward_pre_hook(add))
    try:
        capture(block, calls, ())
    finally:
        for handle in handles:
            handle.remove()
    return {path: activation_range.threshold(histogram, rule, spec) for path, histogram in seen.items()}
