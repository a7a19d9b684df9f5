"""SmoothQuant on a whole block: one pass for the largest inputs, then the factors go into the norms.

Only what a norm feeds is smoothed, as the authors do: there outliers live, and a norm carries the division for
nothing. The inputs of the output and down projections stay as they are.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from reference.calibration import Call
from reference.models.families import Scaling
from reference.quantization import smoothquant
from reference.quantization.channel_scale import fold


@torch.no_grad()
def smooth_block(
    block: nn.Module,
    calls: list[Call],
    scalings: Sequence[Scaling],
    *,
    alpha: float = 0.5,
    largest: Callable[[Tensor], Tensor] = lambda part: part,
    name: str = "block",
) -> list[Tensor]:
    """Smooth the inputs of a block's layers in place; the block computes what it did.

    Args:
        block: a transformer block in floating point.
        calls: ``(args, kwargs)`` of the block, one for each calibration batch.
        scalings: the block's row of :mod:`reference.models.families`; those behind a linear layer are
            passed over.
        alpha: as :func:`reference.quantization.smoothquant.smoothing_factors`.
        largest: maximum over ranks, each with other calls.
        name: what to call the block in an error.

    Returns:
        The outputs of the float block, one for each call: what to call the next block with.

    Raises:
        ValueError: NaN or infinite activations, or as :func:`~reference.quantization.channel_scale.fold`, by name.

    Source: Xiao et al. 2023, section 4, and the authors' ``smooth_lm``.

    Chapter: none (the smoothquant chapter is to come)
    """
    chosen = [scaling for scaling in scalings if not isinstance(block.get_submodule(scaling.previous), nn.Linear)]
    absmax: dict[str, Tensor] = {}

    def watch(path: str) -> Callable:
        def hook(_: nn.Module, args: tuple) -> None:
            found = args[0].detach().abs().flatten(0, -2).amax(0).float()
            absmax[path] = torch.maximum(absmax[path], found) if path in absmax else found

        return hook

    firsts = {scaling: scaling.linears[0] for scaling in chosen}
    handles = [block.get_submodule(path).register_forward_pre_hook(watch(path)) for path in firsts.values()]
    try:
        outputs = [
            result[0] if isinstance(result := block(*args, **kwargs), tuple) else result for args, kwargs in calls
        ]
    finally:
        for handle in handles:
            handle.remove()
    for scaling, path in firsts.items():
        activations = largest(absmax[path])
        if not torch.isfinite(activations).all():
            raise ValueError(f"{name}.{path} holds NaN or infinite activations; the model overflows before this layer")
        behind = [block.get_submodule(linear) for linear in scaling.linears]
        weights = smoothquant.columns_absmax([linear.get_parameter("weight").detach().float() for linear in behind])
        factors = smoothquant.smoothing_factors(activations, weights, alpha)
        fold(block.get_submodule(scaling.previous), behind, factors, name=f"{name}: smoothing factors of {path}")
    return outputs
