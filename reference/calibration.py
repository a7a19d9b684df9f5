"""Calibration: token batches, and the walk that shows each layer its inputs, block by block.

The walk is truly sequential in one pass. Every batch runs through a block in a greenlet of its
own and stops in front of each group of layers that share an input. When all batches have
arrived, the group's statistics are complete: the group is solved, its weights are exchanged, and
the batches go on. So every layer sees the outputs of the layers already quantised, and every
block runs once a batch, where re-running it for every group would take five runs.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from reference.models.families import blocks, family_of
from reference.quantization import CalibrationWarning


def batches(tokens: Tensor, *, sequences: int, length: int, batch: int = 8, seed: int = 0) -> list[Tensor]:
    """Draw calibration sequences from a text.

    Args:
        tokens: int64 ``[count]``.
        sequences: how many to draw, at starts drawn without replacement; fewer where the text has fewer.
        length: tokens each.
        batch: sequences a batch.
        seed: of the draw.

    Returns:
        A list of int64 ``[<= batch, length]``.

    Raises:
        ValueError: the text is shorter than one sequence, or an argument is below 1.

    Warns:
        CalibrationWarning: the text is shorter than all sequences together, so they overlap.

    Example:
        >>> first, second = batches(torch.arange(100), sequences=3, length=4, batch=2)
        >>> first.shape, second.shape
        (torch.Size([2, 4]), torch.Size([1, 4]))
        >>> first.diff()  # each row is a piece of the text
        tensor([[1, 1, 1],
                [1, 1, 1]])

    Chapter: quantization/gptq
    """
    for name, value in (("sequences", sequences), ("length", length), ("batch", batch)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it may be 1 or more")
    places = len(tokens) - length + 1
    if places < 1:
        raise ValueError(f"tokens has {len(tokens)} entries; a sequence of length {length} does not fit")
    if len(tokens) < sequences * length:
        what = "they overlap" if sequences <= places else f"it has {places} only" + ", which overlap" * (places > 1)
        warnings.warn(
            f"the calibration text has {len(tokens):,} tokens and {sequences} sequences of {length} are asked for: {what}, "
            "so the statistics know less than their number says. Give more text, or fewer sequences",
            CalibrationWarning,
            stacklevel=2,
        )
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randperm(places, generator=generator)[:sequences]
    return list(torch.stack([tokens[start : start + length] for start in starts.tolist()]).split(batch))


def warn_of_few_tokens(calibration: list[Tensor] | None, layers: Mapping[str, nn.Linear]) -> None:
    """Say that a Hessian will be singular, for the function whose caller's caller asked for it.

    Args:
        calibration: int64 token batches.
        layers: by full name, those whose Hessian is needed; one or more.

    Warns:
        CalibrationWarning: fewer calibration tokens than a layer has inputs.

    Example:
        >>> with warnings.catch_warnings(record=True) as said:
        ...     warnings.simplefilter("always")
        ...     warn_of_few_tokens([torch.zeros(1, 10, dtype=torch.int64)], {"up": nn.Linear(64, 8)})
        >>> str(said[0].message).split(":")[0]
        'calibration has 10 tokens, fewer than the 64 inputs of up'

    Chapter: none (checks)
    """
    tokens = sum(ids.numel() for ids in calibration or [])
    widest, linear = max(layers.items(), key=lambda pair: pair[1].in_features)
    if tokens < linear.in_features:
        warnings.warn(
            f"calibration has {tokens} tokens, fewer than the {linear.in_features} inputs of {widest}: its Hessian is "
            "singular, and damping decides the directions that no token shows. Ten tokens an input are usual",
            CalibrationWarning,
            stacklevel=4,
        )


class _Stop(Exception):
    """Raised in place of the last block, when all arguments are known."""


#: One call of a module, its positional and its named arguments.
Call = tuple[tuple, dict]


def _nothing(path: str) -> None:
    pass


@torch.no_grad()
def walk_blocks(
    model: nn.Module,
    inputs: list[Tensor],
    visit: Callable[[str, nn.Module, list[Call]], list[Tensor]],
    *,
    enter: Callable[[str], None] = _nothing,
    leave: Callable[[str], None] = _nothing,
    progress: Callable[[list], Iterable] = iter,
) -> None:
    """Visit the blocks one after the other, each with what the calibration batches bring to it.

    Args:
        model: an architecture of :mod:`reference.models.families`; in evaluation mode meanwhile.
        inputs: token batches of :func:`batches`.
        visit: called with a block's name, the block, and one call for each batch; returns the
            block's outputs ``[sequences, length, hidden]``, which the next block is called with.
        enter, leave: called with a block's name before and after its visit. Weights may be read in
            the one and dropped in the other: only the block that is visited needs them.
        progress: wraps the list of blocks, for a progress bar.

    Raises:
        ValueError: unknown architecture, or ``inputs`` is empty.

    Example:
        >>> from reference.models import tutorial
        >>> visited = []
        >>> def visit(name, block, calls):
        ...     visited.append(name)
        ...     return capture(block, calls, ())[0]
        >>> walk_blocks(tutorial.load(), [torch.arange(8)[None]], visit)
        >>> visited[:2], len(visited)
        (['model.layers.0', 'model.layers.1'], 6)

    Chapter: quantization/gptq
    """
    if not inputs:
        raise ValueError("inputs is empty; at least one calibration batch is needed")
    family = family_of(model)
    found = list(blocks(model))
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        hidden, arguments = _arguments_of_blocks(model, found, inputs)
        for index, block in enumerate(progress(found)):
            path = f"{family.blocks}.{index}"
            enter(path)
            rest = arguments[index]
            hidden = visit(path, block, [((x, *args), kwargs) for x, (args, kwargs) in zip(hidden, rest, strict=True)])
            leave(path)
    finally:
        for module in training:
            module.training = True


def walk(
    model: nn.Module,
    inputs: list[Tensor],
    *,
    observe: Callable[[tuple[str, ...], Tensor], None],
    solve: Callable[[tuple[str, ...]], dict[str, Tensor]],
    enter: Callable[[str], None] = _nothing,
    finish: Callable[[str], None] = _nothing,
    progress: Callable[[list], Iterable] = iter,
) -> None:
    """Visit every block once; in it, every group of linear layers with its calibration inputs.

    Args:
        model: an architecture of :mod:`reference.models.families`.
        inputs: token batches of :func:`batches`.
        observe: called with the full names of a group's layers and one batch of their shared
            input, ``[sequences, ..., in_features]``, also where the model joins sequences on the way.
        solve: called once a group when all batches have been observed; returns new weights
            ``[out, in]`` by full name, which the rest of the walk computes with.
        enter: called with a block's name before its first layer.
        finish: called with a block's name when its last group is solved and all batches have
            passed; here modules may be replaced.
        progress: wraps the list of blocks, for a progress bar.

    Raises:
        ValueError: unknown architecture, or ``inputs`` is empty.

    Example:
        >>> from reference.models import tutorial
        >>> seen = {}
        >>> def observe(names, inputs):
        ...     seen[names] = tuple(inputs.shape)
        >>> walk(tutorial.load(), [torch.arange(8)[None]], observe=observe, solve=lambda names: {})
        >>> seen["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"]  # they read the same input
        (1, 8, 256)

    Chapter: quantization/gptq
    """
    sublayers = family_of(model).sublayers

    def visit(path: str, block: nn.Module, calls: list[Call]) -> list[Tensor]:
        groups = {group[0]: tuple(f"{path}.{name}" for name in group) for group in sublayers}
        return _run_block(block, calls, groups, path, observe, solve)

    walk_blocks(model, inputs, visit, enter=enter, leave=finish, progress=progress)


def working_memory(model: nn.Module, inputs: list[Tensor]) -> dict[str, int]:
    """Bytes that a walk with GPTQ needs at its widest moment, beside the model's other weights.

    Suspending the batches in front of a layer has a price: all of them hold what the rest of the block
    needs. A walk that runs the block anew for each group holds one batch.

    Args:
        model: its parameters may be on the meta device.
        inputs: token batches of one rank.

    Returns:
        ``"block"``, the weights of one block; ``"activations"``, for each token the block's input, the
        residual stream, its norm and the widest input of a layer; ``"hessian"``, the float64 sum and the float32
        mean, or the mean and its factor.

    Example:
        >>> from reference.models import tutorial
        >>> needs = working_memory(tutorial.load(), [torch.zeros(4, 256, dtype=torch.int64)])
        >>> needs["hessian"], needs["activations"]  # 12 · 768², 1,024 tokens · (3 · 256 + 768) · 4 bytes
        (7077888, 6291456)

    Chapter: quantization/gptq
    """
    family, block = family_of(model), blocks(model)[0]
    widths = [block.get_submodule(group[0]).get_parameter("weight").shape[1] for group in family.sublayers]
    parameters = list(block.parameters())
    tokens = sum(ids.numel() for ids in inputs)
    return {
        "block": sum(parameter.numel() * parameter.element_size() for parameter in parameters),
        "activations": tokens * (3 * widths[0] + max(widths)) * parameters[0].element_size(),
        "hessian": 12 * max(widths) ** 2,
    }


@torch.no_grad()
def capture(block: nn.Module, calls: list[Call], names: Iterable[str]) -> tuple[list[Tensor], dict[str, list[Call]]]:
    """Run a block on every batch and keep how some modules inside it were called.

    Args:
        block: a transformer block.
        calls: one call of the block for each batch.
        names: of modules below the block.

    Returns:
        ``(outputs, inputs)``: the block's outputs, one for each batch, and for each name the calls
        of that module, one for each batch.

    Example:
        >>> block = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU())
        >>> block[0].weight.data = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
        >>> outputs, inputs = capture(block, [((torch.tensor([3.0, 4.0]),), {})], ["1"])
        >>> outputs, inputs["1"]  # what the ReLU gave, and what it was given
        ([tensor([3., 0.])], [((tensor([ 3., -4.]),), {})])

    Chapter: quantization/awq
    """
    inputs: dict[str, list[Call]] = {name: [] for name in names}
    handles = [
        block.get_submodule(name).register_forward_pre_hook(
            lambda _, args, kwargs, name=name: inputs[name].append((args, kwargs)), with_kwargs=True
        )
        for name in inputs
    ]
    try:
        outputs = [_first(block(*args, **kwargs)) for args, kwargs in calls]
    finally:
        for handle in handles:
            handle.remove()
    return outputs, inputs


def _first(result: Any) -> Tensor:
    """The hidden states, where a block returns more than them."""
    return result[0] if isinstance(result, tuple) else result


def _arguments_of_blocks(
    model: nn.Module, found: list[nn.Module], inputs: list[Tensor]
) -> tuple[list[Tensor], list[list[Call]]]:
    """What the first block is given, and what else each block is called with, for every batch.

    Masks may differ from block to block: some attend to a sliding window, some to everything. No block computes.
    """
    hidden: list[Tensor] = []
    arguments: list[list[Call]] = [[] for _ in found]

    def stand_in(index: int) -> Callable[..., Tensor]:
        def forward(*args: Any, **kwargs: Any) -> Tensor:
            x, *rest = args or (kwargs.pop("hidden_states"),)
            if index == 0:
                hidden.append(x)
            arguments[index].append((tuple(rest), kwargs))
            if index == len(found) - 1:
                raise _Stop
            return x

        return forward

    before = [vars(block).get("forward") for block in found]
    try:
        for index, block in enumerate(found):
            block.forward = stand_in(index)
        for ids in inputs:
            try:
                model(input_ids=ids, use_cache=False)
            except _Stop:
                continue
    finally:
        for block, own in zip(found, before, strict=True):
            vars(block).pop("forward", None)
            if own is not None:
                block.forward = own
    return hidden, arguments


def _run_block(
    block: nn.Module,
    calls: list[Call],
    groups: dict[str, tuple[str, ...]],
    path: str,
    observe: Callable[[tuple[str, ...], Tensor], None],
    solve: Callable[[tuple[str, ...]], dict[str, Tensor]],
) -> list[Tensor]:
    """Outputs of the block for every batch, its weights exchanged group by group on the way."""
    hub = getcurrent()

    def pause(name: str) -> Callable:
        def hook(_: nn.Module, args: tuple) -> None:
            inputs = args[0]
            if inputs.ndim == 2:  # OPT joins sequences in front of its first MLP layer
                inputs = inputs.unflatten(0, leading[getcurrent()])
            observe(groups[name], inputs)
            hub.switch(name)

        return hook

    handles = [block.get_submodule(name).register_forward_pre_hook(pause(name)) for name in groups]
    try:
        runs = [greenlet(lambda args=args, kwargs=kwargs: _first(block(*args, **kwargs))) for args, kwargs in calls]
        leading = {run: args[0].shape[:-1] for run, (args, _) in zip(runs, calls, strict=True)}
        waiting = [run.switch() for run in runs]
        while not all(run.dead for run in runs):
            (name,) = set(waiting)  # all batches stand in front of the same group
            for layer, weight in solve(groups[name]).items():
                linear = block.get_submodule(layer.removeprefix(f"{path}."))
                parameter = linear.get_parameter("weight")
                parameter.data = weight.to(parameter)
            waiting = [run.switch() for run in runs]
        return waiting
    finally:
        for handle in handles:
            handle.remove()
