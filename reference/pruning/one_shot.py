"""From a model and a sparsity to a pruned model, block by block, without training."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from reference.calibration import warn_of_few_tokens
from reference.job import Job
from reference.models.families import block_linears
from reference.models.streaming import StreamedModel
from reference.pruning import magnitude
from reference.quantization.grid import QuantizationSpec, check_weight
from reference.quantization.hessian import check_damping
from reference.ranks import ALONE, Ranks
from reference.rounding import HESSIAN_SOLVERS, OBSERVERS, LayerError, Options, Rounding

#: By the weights alone; by weights and norms of inputs; by the Hessian, with an update of the weights that stay.
METHODS = ("magnitude", "wanda", "sparsegpt")
#: Columns whose mask SparseGPT chooses at once.
BLOCK_SIZE = 128


def prune(
    model: nn.Module,
    sparsity: float | None = None,
    *,
    pattern: tuple[int, int] | None = None,
    method: str = "sparsegpt",
    spec: QuantizationSpec | None = None,
    skip: Callable[[str], bool] = lambda name: False,
    calibration: list[Tensor] | None = None,
    damping: float = 0.01,
    scale_dtype: torch.dtype | None = None,
    progress: Callable[[list], Iterable] = iter,
    job: Job | None = None,
    streamed: StreamedModel | None = None,
    ranks: Ranks = ALONE,
    errors: dict[str, LayerError] | None = None,
) -> nn.Module:
    """Prune the linear layers of the blocks, in place, each to the same sparsity; every layer sees pruned ones before it.

    Every layer is checked before the first is changed, so a wrong argument leaves the model as it was.

    Args:
        model: an architecture of :mod:`reference.models.families`.
        sparsity: fraction removed of each layer, ``0 <= sparsity < 1``; or
        pattern: ``(n, m)``: n of each m neighbours along the inputs stay, such as (2, 4).
        method: one of :data:`METHODS`. "magnitude" ranks the weights of a layer, "wanda" those of a row, "sparsegpt" those
            of a block of columns.
        spec: also quantise what stays. "sparsegpt" does both in one pass, the others round afterwards.
        skip: told a layer's name; True leaves it as it is.
        calibration: token batches of :func:`reference.calibration.batches`; all methods but "magnitude" need them.
        damping: for "sparsegpt", as :func:`reference.pruning.sparsegpt.prune_layer`.
        scale_dtype, progress, job, streamed, ranks: as :func:`reference.workflow.quantize`.
        errors: filled with the :class:`~reference.rounding.LayerError` of each layer, by name; its ``removed`` is the
            layer's sparsity.

    Returns:
        ``model``: its layers are plain ones with zeros or, where a grid was given, quantised ones.

    Raises:
        ValueError: unknown architecture or method, a layer that ``pattern`` or ``spec`` does not fit, named, or not exactly
            one of ``sparsity`` and ``pattern``.

    Warns:
        CalibrationWarning: as :func:`check`.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=16,
        ...                      num_hidden_layers=1, num_attention_heads=4)
        >>> model = prune(LlamaForCausalLM(config), pattern=(2, 4), method="magnitude")
        >>> weight = model.model.layers[0].mlp.up_proj.weight
        >>> (weight.view(-1, 4) != 0).sum(1).unique().tolist()  # in each four neighbours
        [2]

    Chapter: pruning/one_shot
    """
    grids = check(
        model, sparsity, pattern=pattern, method=method, spec=spec, skip=skip, calibration=calibration, damping=damping,
    )  # fmt: skip
    if streamed and job is None:
        raise ValueError("job is None; a streamed model needs one, to put finished blocks into")
    mine = ranks.share(calibration) if calibration and method in OBSERVERS else []
    options = Options(method, damping=damping, scale_dtype=scale_dtype, sparsity=sparsity, pattern=pattern)
    rounding = Rounding(
        model, grids, options, job=job, streamed=streamed, ranks=ranks, prepare=lambda block: None
    )  # fmt: skip
    rounding.run(mine, progress)
    if errors is not None:
        errors.update(rounding.errors)
    return model


def check(
    model: nn.Module,
    sparsity: float | None = None,
    *,
    pattern: tuple[int, int] | None = None,
    method: str = "sparsegpt",
    spec: QuantizationSpec | None = None,
    skip: Callable[[str], bool] = lambda name: False,
    calibration: list[Tensor] | None = None,
    damping: float = 0.01,
) -> dict[str, QuantizationSpec | None]:
    """What :func:`prune` refuses, refused before a long run; weights may be on the meta device.

    Args:
        model, sparsity, pattern, method, spec, skip, calibration, damping: as :func:`prune`.

    Returns:
        ``spec`` for each layer that will be pruned, by full name.

    Raises:
        ValueError: as :func:`prune`.

    Warns:
        CalibrationWarning: fewer calibration tokens than a layer has inputs.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=16,
        ...                      num_hidden_layers=1, num_attention_heads=4)
        >>> with torch.device("meta"):
        ...     model = LlamaForCausalLM(config)
        >>> len(check(model, 0.5, method="magnitude"))  # layers that would be pruned
        7
        >>> check(model, 0.5, method="wanda")
        Traceback (most recent call last):
            ...
        ValueError: calibration is empty; method 'wanda' needs token batches to calibrate on

    Chapter: none (checks)
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; it may be {', '.join(METHODS)}")
    if (sparsity is None) == (pattern is None):
        raise ValueError(f"sparsity is {sparsity} and pattern is {pattern}; exactly one of them may be given")
    if sparsity is not None:
        magnitude.removed_count(sparsity, 1)  # its range
    n, m = pattern or (1, 1)
    if not 1 <= n <= m or (method == "sparsegpt" and BLOCK_SIZE % m):
        divides = f", and {method} needs an m that divides {BLOCK_SIZE}" if method == "sparsegpt" else ""
        raise ValueError(f"pattern is {n}:{m}; it may be n:m with 1 <= n <= m{divides}")
    if spec is not None and not spec.zero_in_range:
        raise ValueError("spec has zero_in_range=False; a removed weight must have a code, so zero must be on the grid")
    if method != "magnitude" and not calibration:
        raise ValueError(f"calibration is empty; method {method!r} needs token batches to calibrate on")
    if method in HESSIAN_SOLVERS:
        check_damping(damping)
    found = [(name, linear) for name, linear in block_linears(model) if isinstance(linear, nn.Linear)]
    if not found:
        raise ValueError("the model has no float linear layer to prune; is it quantised already?")
    chosen = {name: linear for name, linear in found if not skip(name)}
    if not chosen:
        raise ValueError(f"skip leaves all {len(found)} linear layers as they are; there is nothing to do")
    for name, linear in chosen.items():
        check_weight(linear.weight, spec or QuantizationSpec(8), name)
        if linear.in_features % m:
            raise ValueError(f"pattern is {n}:{m}; {m} does not divide the {linear.in_features} inputs of {name}")
    if method in HESSIAN_SOLVERS:
        warn_of_few_tokens(calibration, chosen)
    return dict.fromkeys(chosen, spec)
