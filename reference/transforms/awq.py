r"""AWQ on a whole block: every scale searched, all of them folded, then weights clipped.

The order and the flow of data are those of the authors' code:

1. The float block runs once on every batch; the calls of its layers are kept.
2. Every group of layers is searched on the *original* weights: the effect that one group's scale has on another's
   best scale is ignored.
3. All scales are folded into the layers before (:mod:`reference.quantization.channel_scale`).
4. The clipping search of every layer sees scaled weights and scaled inputs. Queries and keys are not clipped: their
   product goes through a softmax, whose error the layer's own output does not tell.
5. The next block is given what the float block computed, so errors do not add up in the calibration (GPTQ does the
   opposite).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reference.calibration import Call, capture
from reference.models.families import Scaling
from reference.quantization import awq
from reference.quantization.channel_scale import fold, foldable
from reference.quantization.grid import QuantizationSpec

Specs = QuantizationSpec | Callable[[str], QuantizationSpec | None]
#: Parts of the names of query and key projections, fused ones too.
UNCLIPPED = ("q_proj", "k_proj", "query", "key", "qkv", "c_attn")


@torch.no_grad()
def scale_block(
    block: nn.Module,
    calls: list[Call],
    scalings: Sequence[Scaling],
    spec: Specs,
    *,
    grid: int = 20,
    clip: bool = True,
    total: Callable[[Tensor], Tensor] = lambda part: part,
    name: str = "block",
) -> list[Tensor]:
    """Scale and clip the weights of a block in place, ready to be rounded.

    Args:
        block: a transformer block in floating point.
        calls: ``(args, kwargs)`` of the block, one for each calibration batch.
        scalings: the block's row of :mod:`reference.models.families`. One whose shapes do not allow it is passed
            over: with grouped-query attention there is no scale between values and output projection.
        spec: how the layers will be rounded; or a function of the layer's name in the block. A layer for which it
            returns None stays as it is but for a scale that its group shares.
        grid: ratios tried, see :func:`reference.quantization.awq.search_scale`.
        clip: whether to clip. Layers in no row of ``scalings`` are clipped too.
        total: sum over ranks, each with other calls.
        name: what to call the block in an error.

    Returns:
        The outputs of the float block, one for each call, which are what to call the next block with.

    Raises:
        ValueError: as the two searches and :func:`~reference.quantization.channel_scale.fold`; or the block with all
            scales folded does not compute what it did, so a row of ``scalings`` does not hold for it.

    Source: Lin et al. 2024, section 3.2, and the authors' ``auto_scale_block`` and ``auto_clip_block``.

    Example:
        >>> torch.manual_seed(0) and None
        >>> block = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8))
        >>> block[0].weight.data[0] = 50.0  # one loud channel
        >>> x = torch.randn(64, 8)
        >>> before = block(x)
        >>> _ = scale_block(block, [((x,), {})], [Scaling("0", ("1",), "1")], QuantizationSpec(3), clip=False)
        >>> bool(block[0].weight[0] < 50), torch.allclose(block(x), before, rtol=1e-3, atol=1e-3)  # the same function
        (True, True)

    Chapter: quantization/awq
    """
    spec_of = spec if callable(spec) else lambda _: spec
    linears = {path: found for path, module in block.named_modules() if isinstance(module, nn.Linear)
               and (found := spec_of(path)) is not None}  # fmt: skip
    possible = [
        scaling
        for scaling in scalings
        if foldable(block.get_submodule(scaling.previous), [block.get_submodule(path) for path in scaling.linears])
        and any(path in linears for path in scaling.linears)
    ]
    outputs, seen = capture(block, calls, {*linears, *(scaling.inspected for scaling in possible)})

    scales = {}
    for scaling in possible:
        chosen = [path for path in scaling.linears if path in linears]
        scales[scaling] = awq.search_scale(
            [block.get_submodule(path).get_parameter("weight").detach() for path in chosen],
            [args[0] for args, _ in seen[chosen[0]]],
            [linears[path] for path in chosen],
            grid=grid,
            output=None if scaling.inspected in chosen else _output(block, scaling.inspected, chosen, seen),
            name=f"{name}.{chosen[0]}",
            total=total,
        ).scale
    samples = _sample(seen, linears, total) if clip else {}
    del seen
    for scaling, scale in scales.items():
        behind = [block.get_submodule(path) for path in scaling.linears]
        fold(block.get_submodule(scaling.previous), behind, scale, name=f"{name}: scale of {scaling.linears[0]}")
        for path in set(scaling.linears) & set(samples):
            samples[path] = samples[path] / scale
    _check_same(block, calls[0], outputs[0], name)
    for path, inputs in samples.items():
        weight = block.get_submodule(path).get_parameter("weight")
        limit = awq.search_clip(
            weight, inputs, linears[path], grid=grid, samples=None, name=f"{name}.{path}", total=total
        )
        weight.copy_(awq.clip(weight, limit))
    return outputs


def _output(
    block: nn.Module, inspected: str, paths: list[str], seen: dict[str, list[Call]]
) -> Callable[[list[Tensor]], Iterator[Tensor]]:
    """What the inspected module computes, call by call, with other weights in the layers at ``paths``."""
    module = block.get_submodule(inspected)
    names = [f"{path.removeprefix(inspected).removeprefix('.')}.weight" for path in paths]

    def run(weights: list[Tensor]) -> Iterator[Tensor]:
        dtype = module.get_parameter(names[0]).dtype
        candidates = {key: weight.to(dtype) for key, weight in zip(names, weights, strict=True)}
        for args, kwargs in seen[inspected]:
            yield _first(torch.func.functional_call(module, candidates, args, kwargs))

    return run


def _sample(
    seen: dict[str, list[Call]],
    linears: dict[str, QuantizationSpec],
    total: Callable[[Tensor], Tensor],
    size: int = 512,
) -> dict[str, Tensor]:
    """About ``size`` evenly spaced tokens of the inputs of each layer that is clipped.

    The stride starts anew with each call, so how calls are shared out over ranks makes no difference.
    """
    samples = {}
    for path in linears:
        if not any(part in path for part in UNCLIPPED):
            inputs = [args[0].reshape(-1, args[0].shape[-1]) for args, _ in seen[path]]
            tokens = total(torch.tensor(float(sum(len(part) for part in inputs)), dtype=torch.float64))
            samples[path] = torch.cat([part[:: max(1, int(tokens) // size)] for part in inputs]).float()
    return samples


def _check_same(block: nn.Module, call: Call, before: Tensor, name: str) -> None:
    """Refuse a block whose function the scales have changed by more than its type explains."""
    args, kwargs = call
    after, epsilon = _first(block(*args, **kwargs)), torch.finfo(before.dtype).eps
    added = (before.float() - args[0].float()).norm()  # what the block adds to the residual stream
    change = (after.float() - before.float()).norm()
    share = 1e-3 if epsilon < 1e-6 else 0.1
    if change > share * added + 4 * epsilon * before.float().norm():
        raise ValueError(
            f"{name}: the scales changed what the block computes by {float(change / added):.1%}. A row of its family's "
            "scalings does not hold for this model (another activation, norms behind the residual, fused projections)"
        )


def _first(result: Any) -> Tensor:
    return result[0] if isinstance(result, tuple) else result
