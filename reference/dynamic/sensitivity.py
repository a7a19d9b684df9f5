r"""How much the model suffers when one layer is quantised: measured, or predicted from derivatives.

Let :math:`\Delta_l = Q(W_l) - W_l`. Near a minimum of the loss its change is :math:`\tfrac12 \Delta_l^\top H_l \Delta_l`.
Three ways to a number for each layer and number of bits:

    name       number                                            what it takes
    ========== ================================================= ===================================
    measured   the loss with only this layer quantised           an evaluation a layer and grid
    fisher     half of the sum of F times the squared change     one backward pass a sample
    hessian    half of the mean diagonal of H times the square   some backward passes of derivatives
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from reference.quantization.grid import QuantizationSpec
from reference.quantization.round_to_nearest import quantize_layer

#: Layer → bits → number.
Table = dict[str, dict[int, float]]


def rounded(weight: Tensor, spec: QuantizationSpec) -> Tensor:
    """The weight as its grid holds it, rounded to nearest, in the weight's own type.

    Args:
        weight: ``[out_features, in_features]``.
        spec: the grid.

    Returns:
        ``[out_features, in_features]``, dtype of ``weight``.

    Example:
        >>> rounded(torch.tensor([[0.0, 0.4, 1.2, 3.0]]), QuantizationSpec(2))  # steps of 1
        tensor([[0., 0., 1., 3.]])

    Chapter: advanced/dynamic
    """
    return quantize_layer(weight.detach(), spec).dequantize(weight.dtype)


@torch.no_grad()
def measured(
    model: nn.Module,
    grids: Sequence[QuantizationSpec],
    names: Sequence[str],
    loss: Callable[[nn.Module], float],
    *,
    rounding: Callable[[str, Tensor, QuantizationSpec], Tensor] | None = None,
    progress: Callable[[list], Iterable] = iter,
) -> Table:
    """What the loss rises by when one layer alone is quantised.

    Args:
        model: its weights are changed while ``loss`` runs, and the same as before at the end, whatever happens.
        grids: one for each number of bits.
        names: of layers with a parameter ``weight`` ``[out, in]``.
        loss: of the model, called once before and once for each layer and grid.
        rounding: from a layer's name, weight and grid to the weight as that will be stored; :func:`rounded` if None. It
            should be the solver that is used in the end: what a better one mends need not be paid for in bits.
        progress: wraps the list of names, for a progress bar.

    Returns:
        Layer → bits → rise of the loss; with few tokens it can be below 0.

    Raises:
        ValueError: two grids have the same bits, or what the grid raises on a weight.
        AttributeError: a name is no layer.

    Source: Dong et al. 2019, "HAWQ", section 1, which calls it the brute-force search that the Hessian replaces.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 1, bias=False))
        >>> model[0].weight.data = torch.tensor([[0.0, 0.25, 1.0, 3.0]])
        >>> loss = lambda model: float((model[0].weight.sum() - 4.25).abs())
        >>> measured(model, [QuantizationSpec(2)], ["0"], loss)  # 0.25 is rounded to 0
        {'0': {2: 0.25}}

    Chapter: advanced/dynamic
    """
    if len({grid.bits for grid in grids}) < len(grids):
        raise ValueError(f"grids have bits {[grid.bits for grid in grids]}; each may occur once")
    before = loss(model)
    table: Table = {}
    for name in progress(list(names)):
        weight = model.get_submodule(name).get_parameter("weight")
        kept = weight.data
        try:
            table[name] = {}
            for grid in grids:
                weight.data = rounding(name, kept, grid) if rounding else rounded(kept, grid)
                table[name][grid.bits] = float(loss(model)) - before
        finally:
            weight.data = kept
    return table


def squared_errors(model: nn.Module, grids: Sequence[QuantizationSpec], names: Sequence[str]) -> Table:
    """Squared norm of the change of each weight.

    Args:
        model, grids, names: as :func:`measured`.

    Returns:
        Layer → bits → sum of squares, computed in float64.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 1, bias=False))
        >>> model[0].weight.data = torch.tensor([[0.0, 0.25, 1.5, 3.0]])
        >>> squared_errors(model, [QuantizationSpec(2)], ["0"])  # 1.5 rounds to 2, 0.25 to 0
        {'0': {2: 0.3125}}

    Chapter: advanced/dynamic
    """
    table: Table = {}
    for name in names:
        weight = model.get_submodule(name).get_parameter("weight").detach()
        table[name] = {grid.bits: float((rounded(weight, grid) - weight).double().square().sum()) for grid in grids}
    return table


def fisher(
    model: nn.Module,
    names: Sequence[str],
    samples: Iterable[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    count: int,
) -> dict[str, Tensor]:
    r"""Diagonal of the empirical Fisher matrix of each weight.

    :math:`F_{ij} = \frac1N \sum_s \big(\partial \ell_s / \partial W_{ij}\big)^2`, where :math:`\ell_s` is the *sum* of the
    losses of sample :math:`s`. It is the Hessian's diagonal where the model's probabilities are those of the data and
    predictions are independent of each other; neither holds quite.

    Args:
        model: parameters of other layers get no gradient.
        names: as :func:`measured`.
        samples: each is passed to ``loss`` alone.
        loss: of the model and a sample, summed over its predictions.
        count: predictions :math:`N` of all samples.

    Returns:
        Layer → ``[out, in]``.

    Raises:
        ValueError: ``count`` is not positive.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 1, bias=False))
        >>> samples = [torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0])]
        >>> fisher(model, ["0"], samples, lambda model, x: model(x).sum(), count=2)["0"]  # mean of x²
        tensor([[1., 5.]])

    Chapter: advanced/dynamic
    """
    if count < 1:
        raise ValueError(f"count is {count}; it may be 1 or more")
    weights = [model.get_submodule(name).get_parameter("weight") for name in names]
    totals = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
    with torch.enable_grad():
        for sample in samples:
            for total, gradient in zip(totals, torch.autograd.grad(loss(model, sample), weights), strict=True):
                total += gradient.float().square()
    return {name: total / count for name, total in zip(names, totals, strict=True)}


def predicted_by_fisher(model: nn.Module, grids: Sequence[QuantizationSpec], diagonal: Mapping[str, Tensor]) -> Table:
    r"""Half of :math:`\sum_{ij} F_{ij} \Delta_{ij}^2` of each layer and grid.

    Args:
        model, grids: as :func:`measured`.
        diagonal: of :func:`fisher`.

    Returns:
        Layer → bits → predicted rise of the loss.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 1, bias=False))
        >>> model[0].weight.data = torch.tensor([[0.0, 0.25, 1.5, 3.0]])
        >>> diagonal = {"0": torch.tensor([[0.0, 16.0, 4.0, 0.0]])}
        >>> predicted_by_fisher(model, [QuantizationSpec(2)], diagonal)  # half of 16 / 16 + 4 / 4
        {'0': {2: 1.0}}

    Chapter: advanced/dynamic
    """
    table: Table = {}
    for name, values in diagonal.items():
        weight = model.get_submodule(name).get_parameter("weight").detach()
        table[name] = {
            grid.bits: float((values * (rounded(weight, grid) - weight).square()).double().sum()) / 2 for grid in grids
        }
    return table


class Trace(NamedTuple):
    """``mean`` of the draws, ``error`` its standard error, and ``size``, the number of weights.

    Example:
        >>> trace = Trace(mean=12.0, error=0.5, size=6)
        >>> trace.mean / trace.size  # mean of the diagonal
        2.0

    Chapter: advanced/dynamic
    """

    mean: float
    error: float
    size: int


def hessian_traces(
    model: nn.Module, names: Sequence[str], loss: Callable[[nn.Module], Tensor], *, draws: int, seed: int = 0
) -> dict[str, Trace]:
    r"""Trace of each layer's block of the Hessian, without forming it.

    For signs :math:`z` that are independent and fair, :math:`\mathbb{E}[z z^\top] = I`, so
    :math:`\mathbb{E}[z^\top H z] = \operatorname{tr}(H\,\mathbb{E}[z z^\top]) = \operatorname{tr} H`. :math:`Hz` is the
    derivative of :math:`\nabla L \cdot z`. One :math:`z` for all layers serves all: the blocks between layers have mean 0.

    Args:
        model: its attention is computed by torch's plain formula, the one that can be derived twice.
        names: as :func:`measured`.
        loss: of the model, a scalar.
        draws: number of :math:`z`, 2 or more; HAWQ-V2 takes about 50.
        seed: of the signs.

    Returns:
        Layer → trace, with the standard error over the draws.

    Raises:
        ValueError: fewer than 2 draws.

    Source: Hutchinson 1989; Dong et al. 2020, "HAWQ-V2", section 3.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 1, bias=False))
        >>> loss = lambda model: (model[0].weight.square() * torch.tensor([[1.0, 3.0]])).sum()
        >>> hessian_traces(model, ["0"], loss, draws=4)  # second derivatives 2 and 6
        {'0': Trace(mean=8.0, error=0.0, size=2)}

    Chapter: advanced/dynamic
    """
    if draws < 2:
        raise ValueError(f"draws is {draws}; a spread needs 2 or more")
    weights = [model.get_submodule(name).get_parameter("weight") for name in names]
    generator = torch.Generator().manual_seed(seed)
    found = []
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        gradients = torch.autograd.grad(loss(model), weights, create_graph=True)
        for draw in range(draws):
            signs = [(2 * torch.randint(2, w.shape, generator=generator) - 1).to(w) for w in weights]
            along = sum((g * z).sum() for g, z in zip(gradients, signs, strict=True))
            products = torch.autograd.grad(along, weights, retain_graph=draw + 1 < draws)  # type: ignore[arg-type]
            found.append([float((h * z).double().sum()) for h, z in zip(products, signs, strict=True)])
    values = torch.tensor(found, dtype=torch.float64)
    error = values.std(0) / draws**0.5
    return {
        name: Trace(float(mean), float(spread), weight.numel())
        for name, mean, spread, weight in zip(names, values.mean(0), error, weights, strict=True)
    }


def predicted_by_hessian(errors: Mapping[str, Mapping[int, float]], traces: Mapping[str, Trace]) -> Table:
    r"""Half of :math:`\frac{\operatorname{tr} H}{n} \lVert\Delta\rVert^2` of each layer and grid; HAWQ-V2 leaves out the half.

    Args:
        errors: of :func:`squared_errors`.
        traces: of :func:`hessian_traces`; the mean of the diagonal counts, so that a large layer is not favoured.

    Returns:
        Layer → bits → predicted rise of the loss.

    Source: Dong et al. 2020, "HAWQ-V2", section 3.

    Example:
        >>> traces = {"up": Trace(mean=12.0, error=0.5, size=6)}
        >>> predicted_by_hessian({"up": {4: 0.5, 8: 0.125}}, traces)  # 12 / 6 · 0.5 / 2
        {'up': {4: 0.5, 8: 0.125}}

    Chapter: advanced/dynamic
    """
    return {
        name: {bits: traces[name].mean / traces[name].size * error / 2 for bits, error in row.items()}
        for name, row in errors.items()
    }


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's correlation: that of the ranks, so a common scale does not matter.

    Args:
        first, second: equally many numbers, two or more.

    Returns:
        From −1 to 1; NaN where one is constant.

    Raises:
        ValueError: the numbers of entries differ, or there is only one.

    Example:
        >>> round(rank_correlation([1.0, 2.0, 3.0], [10.0, 20.0, 500.0]), 3)
        1.0

    Chapter: advanced/dynamic
    """
    from scipy.stats import spearmanr

    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"first has {len(first)} entries, second {len(second)}; equally many, 2 or more")
    return float(spearmanr(first, second).statistic)
