"""SmoothQuant on blocks and models: one float pass for the largest inputs, then the factors go into the norms.

Only what a norm feeds is smoothed, as the authors do: there outliers live, and a norm carries the division for
nothing. The inputs of the output and down projections stay as they are. Where no norm can carry it, because the
residual reads the norm's output too (BERT), the layers divide their input themselves.
"""

import copy
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reference.calibration import Call, capture, walk_blocks
from reference.int8 import Int8Linear
from reference.models.families import Family, Scaling, blocks, family_of, replace_module
from reference.quantization import activation_range, hadamard, round_to_nearest, smoothquant
from reference.quantization.activations import AbsmaxAccumulator, ActivationSpec, scale_of
from reference.quantization.channel_scale import fold
from reference.quantization.grid import QuantizationSpec
from reference.transforms._clipping import thresholds

#: 8 bits, symmetric, one scale an output channel.
W8 = QuantizationSpec(8, symmetric=True)
#: What :func:`search_alpha` tries.
ALPHAS = tuple(i / 10 for i in range(11))
#: The grid of each layer by its full name; None for a layer to leave in float.
Grids = Callable[[str], QuantizationSpec | None]


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
        The outputs of the float block, one for each call, which are what to call the next block with.

    Raises:
        ValueError: NaN or infinite activations, or as :func:`~reference.quantization.channel_scale.fold`, by name.

    Source: Xiao et al. 2023, section 4, and the authors' ``smooth_lm``.

    Example:
        >>> block = nn.Sequential(nn.LayerNorm(2, eps=0.0), nn.Linear(2, 1))
        >>> block[0].weight.data, block[1].weight.data = torch.tensor([16.0, 1.0]), torch.ones(1, 2)
        >>> x = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
        >>> _ = smooth_block(block, [((x,), {})], [Scaling("0", ("1",), "1")], alpha=0.5)
        >>> block[0].weight.tolist(), block[1].weight.tolist()  # the root of 16 has moved over
        ([4.0, 1.0], [[4.0, 1.0]])

    Chapter: quantization/smoothquant
    """
    chosen = behind_norms(block, scalings)
    outputs, absmax = input_absmax(block, calls, [scaling.linears[0] for scaling in chosen], largest=largest, name=name)
    _smooth(block, chosen, absmax, alpha, name)
    return outputs


@torch.no_grad()
def input_absmax(
    block: nn.Module,
    calls: list[Call],
    names: Iterable[str],
    *,
    largest: Callable[[Tensor], Tensor] = lambda part: part,
    name: str = "block",
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Run a block on every batch, and keep the largest magnitude in each input channel of some layers.

    Args:
        block, calls, largest, name: as :func:`smooth_block`.
        names: of linear layers below the block.

    Returns:
        ``(outputs, absmax)``: the block's outputs, one for each call, and float32 ``[in_features]`` by name.

    Raises:
        ValueError: NaN or infinite activations, by name.

    Example:
        >>> block, batches = nn.Linear(2, 1), [torch.tensor([16.0, -1.0]), torch.tensor([-20.0, 3.0])]
        >>> input_absmax(block, [((batch,), {}) for batch in batches], [""])[1]
        {'': tensor([20.,  3.])}

    Chapter: quantization/smoothquant
    """
    seen: dict[str, AbsmaxAccumulator] = {}
    handles = []
    for path in names:
        linear = block.get_submodule(path)
        weight = linear.get_parameter("weight")
        seen[path] = AbsmaxAccumulator(weight.shape[1], weight.device)
        handles.append(
            linear.register_forward_pre_hook(lambda _, args, path=path: seen[path].add(args[0], f"{name}.{path}"))
        )
    try:
        outputs, _ = capture(block, calls, ())
    finally:
        for handle in handles:
            handle.remove()
    return outputs, {path: largest(accumulator.absmax) for path, accumulator in seen.items()}


def largest_inputs(
    model: nn.Module, inputs: list[Tensor], *, progress: Callable[[list], Iterable] = iter
) -> dict[str, Tensor]:
    """What :func:`quantize_integer` has to know of a calibration text; found once, it serves every setting.

    Args:
        model: an architecture of :mod:`reference.models.families`, in floating point; it is not changed.
        inputs, progress: as :func:`quantize_integer`.

    Returns:
        The largest magnitude of each input channel, float32 ``[in_features]``, by the full name of the first of
        the layers that share the input.

    Raises:
        ValueError: as :func:`input_absmax`.

    Example:
        >>> from reference.models import tutorial
        >>> model, text = tutorial.load(), [torch.arange(16)[None]]
        >>> found = largest_inputs(model, text)
        >>> len(found), found["model.layers.0.mlp.gate_proj"].shape  # four groups of layers a block
        (24, torch.Size([256]))
        >>> layer = quantize_integer(model, found).model.layers[0].mlp.up_proj  # no further pass of the text

    Chapter: quantization/smoothquant
    """
    firsts, found = [group[0] for group in family_of(model).sublayers], {}

    def visit(path: str, block: nn.Module, calls: list[Call]) -> list[Tensor]:
        outputs, absmax = input_absmax(block, calls, firsts, name=path)
        found.update({f"{path}.{first}": largest for first, largest in absmax.items()})
        return outputs

    walk_blocks(model, inputs, visit, progress=progress)
    return found


def group_factors(linears: Sequence[nn.Module], activation_absmax: Tensor, alpha: float) -> Tensor:
    """Smoothing factors of layers that share an input.

    Args:
        linears: the layers; a column's maximum is taken over all of them.
        activation_absmax: ``[in_features]``.
        alpha: as :func:`reference.quantization.smoothquant.smoothing_factors`.

    Returns:
        float32 ``[in_features]``. A channel that calibration never saw active gets 1, where the authors' code gives
        it 1e-5.

    Example:
        >>> linear = nn.Linear(3, 1)
        >>> linear.weight.data = torch.ones(1, 3)
        >>> group_factors([linear], torch.tensor([16.0, 1.0, 0.0]), alpha=0.5)  # the last was never active
        tensor([4., 1., 1.])

    Chapter: quantization/smoothquant
    """
    weights = [linear.get_parameter("weight").detach().float() for linear in linears]
    factors = smoothquant.smoothing_factors(activation_absmax, smoothquant.columns_absmax(weights), alpha)
    return torch.where(activation_absmax > 0, factors, 1.0)


@torch.no_grad()
def quantize_integer(
    model: nn.Module,
    inputs: list[Tensor] | Mapping[str, Tensor],
    *,
    alpha: float | None = 0.5,
    weights: QuantizationSpec | Grids = W8,
    activations: ActivationSpec | None = None,
    static_rule: str = "max",
    rotated: Collection[str] = (),
    progress: Callable[[list], Iterable] = iter,
) -> nn.Module:
    """Smooth a model and replace the linear layers of its blocks by integer ones, in place, in one float pass.

    :func:`reference.workflow.quantize` ends in the same layers where steps are dynamic, and does more: other solvers,
    resuming, files larger than memory. This is for encoders, and for trying many settings.

    Args:
        model: an architecture of :mod:`reference.models.families`.
        inputs: token batches, as for :func:`reference.calibration.walk_blocks`; or what :func:`largest_inputs` found
            in them, and the float pass is saved.
        alpha: as :func:`reference.quantization.smoothquant.smoothing_factors`; None does not smooth.
        weights: a symmetric grid, or a function from a layer's full name to its grid, None for a layer to leave in
            float; rounded to nearest.
        activations: granularity and bits, by default 8 bits per token; static scales are calibrated on ``inputs``,
            as the float model sees them.
        static_rule: of :func:`reference.quantization.activation_range.threshold`: where static steps clip. All but
            ``"max"`` run each block a second time, and need the token batches.
        rotated: names, below a block, of layers whose input a Hadamard matrix rotates in each call, before it is
            quantised: for models into which no rotation can be folded. Dynamic activations only.
        progress: wraps the list of blocks, for a progress bar.

    Returns:
        ``model``, its layers :class:`~reference.int8.Int8Linear`. An encoder whose norms cannot carry the factors has
        them in its layers, as ``channel_scale``.

    Raises:
        ValueError: as :func:`smooth_block`, a grid that integers cannot compute with, ``rotated`` layers with static
            activations or of a width without a Hadamard matrix, or largest inputs of another model or for a
            ``static_rule`` that needs the text.

    Example:
        >>> from reference.models import tutorial
        >>> layer = quantize_integer(tutorial.load(), [torch.arange(16)[None]]).model.layers[0].mlp.up_proj
        >>> layer.weight.dtype, layer.activations.granularity
        (torch.int8, 'per_token')

    Chapter: quantization/smoothquant
    """
    family, spec = family_of(model), activations or ActivationSpec()
    if rotated and spec.granularity == "static":
        raise ValueError("rotated layers need dynamic activations: static steps are calibrated on unrotated inputs")
    if static_rule not in activation_range.RULES:
        raise ValueError(f"static_rule is {static_rule!r}; it may be {', '.join(activation_range.RULES)}")

    firsts = [group[0] for group in family.sublayers]
    if isinstance(inputs, Mapping):
        _check_largest(model, inputs, spec, static_rule)
        for index, block in enumerate(progress(list(blocks(model)))):
            path = f"{family.blocks}.{index}"
            absmax = {first: inputs[f"{path}.{first}"] for first in firsts}
            _to_integers(block, family, absmax, alpha, weights, spec, path, rotated)
        return model

    def visit(path: str, block: nn.Module, calls: list[Call]) -> list[Tensor]:
        outputs, absmax = input_absmax(block, calls, firsts, name=path)

        def clipped(scales: dict[str, Tensor | None]) -> dict[str, float]:
            return thresholds(block, calls, scales, static_rule, spec, path)

        clip = clipped if spec.granularity == "static" and static_rule != "max" else None
        _to_integers(block, family, absmax, alpha, weights, spec, path, rotated, clip)
        return outputs

    walk_blocks(model, inputs, visit, progress=progress)
    return model


class AlphaSearch(NamedTuple):
    """The best alpha, and the loss of each that was tried.

    Example:
        >>> found = AlphaSearch(0.75, losses={0.5: 0.02, 0.75: 0.01})
        >>> found.losses[found.alpha] == min(found.losses.values())
        True

    Chapter: quantization/smoothquant
    """

    alpha: float
    losses: dict[float, float]


@torch.no_grad()
def search_alpha(
    model: nn.Module,
    inputs: list[Tensor],
    *,
    alphas: Sequence[float] = ALPHAS,
    weights: QuantizationSpec | Grids = W8,
    activations: ActivationSpec | None = None,
    total: Callable[[Tensor], Tensor] = lambda part: part,
    largest: Callable[[Tensor], Tensor] = lambda part: part,
    enter: Callable[[str], None] = lambda path: None,
    leave: Callable[[str], None] = lambda path: None,
    progress: Callable[[list], Iterable] = iter,
) -> AlphaSearch:
    r"""One alpha for the whole model: the one whose integer blocks are closest to the float blocks.

    Every block gets what the float blocks before it compute. The loss of an alpha is the mean over blocks of
    :math:`\lVert \hat y - y \rVert^2 / \lVert y - x \rVert^2`: the error over what the block adds to its input, so
    that a large residual stream does not hide the error. The model is not changed.

    Args:
        model, inputs, weights, activations, progress: as :func:`quantize_integer`.
        alphas: to try; of equal losses the first wins.
        total, largest: sum and maximum over ranks, each with other calls.
        enter, leave: as :func:`reference.calibration.walk_blocks`.

    Returns:
        The best alpha with all losses. The same arguments give the same result.

    Raises:
        ValueError: ``alphas`` is empty, or as :func:`quantize_integer`.

    Example:
        >>> from reference.models import tutorial
        >>> model = tutorial.load(outliers=100)
        >>> model.model.layers = model.model.layers[:1]
        >>> found = search_alpha(model, [torch.arange(64)[None]], alphas=(0.0, 0.5))
        >>> found.alpha, found.losses[0.5] < found.losses[0.0]  # the weights take their share of the outliers
        (0.5, True)

    Chapter: quantization/smoothquant
    """
    if not alphas:
        raise ValueError("alphas is empty; give at least one")
    family, spec = family_of(model), activations or ActivationSpec()
    losses: dict[float, list[float]] = {alpha: [] for alpha in alphas}

    def visit(path: str, block: nn.Module, calls: list[Call]) -> list[Tensor]:
        outputs, absmax = input_absmax(
            block, calls, [group[0] for group in family.sublayers], largest=largest, name=path
        )
        added = total(_squares([y - args[0] for y, (args, _) in zip(outputs, calls, strict=True)]))
        for alpha in losses:
            candidate = copy.deepcopy(block)
            _to_integers(candidate, family, dict(absmax), alpha, weights, spec, path)
            found, _ = capture(candidate, calls, ())
            error = total(_squares([q - y for q, y in zip(found, outputs, strict=True)]))
            losses[alpha].append(float(error / added))
        return outputs

    walk_blocks(model, inputs, visit, enter=enter, leave=leave, progress=progress)
    means = {alpha: sum(parts) / len(parts) for alpha, parts in losses.items()}
    return AlphaSearch(min(means, key=lambda alpha: means[alpha]), means)


def behind_norms(block: nn.Module, scalings: Sequence[Scaling]) -> list[Scaling]:
    """Those of ``scalings`` that lie behind a norm with weights, which is where SmoothQuant moves channels through.

    Args:
        block, scalings: as :func:`smooth_block`.

    Example:
        >>> block = nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 2), nn.LayerNorm(2, elementwise_affine=False), nn.Linear(2, 2))
        >>> places = [Scaling("0", ("1",), "1"), Scaling("1", ("3",), "3"), Scaling("2", ("3",), "3")]
        >>> [place.previous for place in behind_norms(block, places)]
        ['0']

    Chapter: none (look-up)
    """
    weights = [getattr(block.get_submodule(scaling.previous), "weight", None) for scaling in scalings]
    return [
        scaling
        for scaling, weight in zip(scalings, weights, strict=True)
        if isinstance(weight, Tensor) and weight.ndim == 1
    ]


def _check_largest(
    model: nn.Module, largest: Mapping[str, Tensor], activations: ActivationSpec, static_rule: str
) -> None:
    """Refuse, before anything is changed, maxima that are not this model's, or that a rule cannot do with."""
    if activations.granularity == "static" and static_rule != "max":
        raise ValueError(
            f"static_rule {static_rule!r} needs inputs as token batches: it looks at more than their largest"
        )
    family = family_of(model)
    for index, block in enumerate(blocks(model)):
        for first, *_ in family.sublayers:
            name = f"{family.blocks}.{index}.{first}"
            width = block.get_submodule(first).get_parameter("weight").shape[1]
            if name not in largest or tuple(largest[name].shape) != (width,):
                raise ValueError(f"inputs has no largest magnitudes [{width}] of {name}; give those of this model")


def _smooth(block: nn.Module, scalings: Sequence[Scaling], absmax: dict[str, Tensor], alpha: float, name: str) -> None:
    """Fold the factors of every scaling, and put the largest inputs that follow from it into ``absmax``."""
    for scaling in scalings:
        first, linears = scaling.linears[0], [block.get_submodule(path) for path in scaling.linears]
        factors = group_factors(linears, absmax[first], alpha)
        fold(block.get_submodule(scaling.previous), linears, factors, name=f"{name}: smoothing factors of {first}")
        absmax[first] = absmax[first] / factors


def _to_integers(
    block: nn.Module,
    family: Family,
    absmax: dict[str, Tensor],
    alpha: float | None,
    weights: QuantizationSpec | Grids,
    activations: ActivationSpec,
    name: str,
    rotated: Collection[str] = (),
    clip: Callable[[dict[str, Tensor | None]], dict[str, float]] | None = None,
) -> None:
    """Smooth a block, if alpha is given, and replace its linear layers; ``absmax`` is of each group's first layer."""
    scalings = behind_norms(block, family.scalings)
    if alpha is not None:
        _smooth(block, scalings, absmax, alpha, name)
    scales: dict[str, Tensor | None] = {group[0]: None for group in family.sublayers}
    if alpha is not None and not scalings:
        for first, *others in family.sublayers:
            linears = [block.get_submodule(path) for path in (first, *others)]
            scales[first] = factors = group_factors(linears, absmax[first], alpha)
            absmax[first] = absmax[first] / factors
    limits = clip(scales) if clip is not None else {first: largest.amax() for first, largest in absmax.items()}
    for group in family.sublayers:
        channel_scale = scales[group[0]]
        static = activations.granularity == "static"
        limit = torch.as_tensor(limits[group[0]]).reshape(1)
        input_scale = scale_of(limit.to(absmax[group[0]].device), activations) if static else None
        for path in group:
            linear = block.get_submodule(path)
            grid = weights(f"{name}.{path}") if callable(weights) else weights
            if grid is None:
                continue
            assert isinstance(linear, nn.Linear)
            columns = linear.weight if channel_scale is None else linear.weight * channel_scale.to(linear.weight)
            turn = path in rotated
            weight = round_to_nearest.quantize_layer(hadamard.transform(columns) if turn else columns, grid)
            layer = Int8Linear.from_linear(
                linear, weight, activations, input_scale=input_scale, channel_scale=channel_scale, hadamard=turn
            )
            replace_module(block, path, layer)


def _squares(parts: list[Tensor]) -> Tensor:
    return torch.stack([part.double().square().sum() for part in parts]).sum()
