r"""Train many networks of one architecture at once: seeds, rates, masks and orders of the data side by side.

A state is a dict of parameters whose tensors have the network as first dimension, ``[models, …]``. One call of
``torch.func.vmap`` over the gradient of one network does a step of all:

    ============= ======================= =========================================
    tensor        shape                   one a network
    ============= ======================= =========================================
    weight        ``[models, out, in]``   yes
    mask          ``[models, out, in]``   yes
    batch         ``[models, batch, …]``  yes: each has an order of its own
    images        ``[n, …]``              no, all draw from the same
    ============= ======================= =========================================

It saves what a step costs beside its arithmetic: calls, and on a GPU launches. It saves no arithmetic.
"""

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from torch.nn import functional

States = dict[str, Tensor]
#: From groups ``{"params": …, "lr": …}`` to an optimiser.
OptimizerFactory = Callable[[list[dict]], torch.optim.Optimizer]
#: From an architecture, a state, images and labels to gradients and losses, as :func:`gradients`.
Gradient = Callable[[nn.Module, Mapping[str, Tensor], Tensor, Tensor], tuple[States, Tensor]]


def adam(groups: list[dict]) -> torch.optim.Optimizer:
    """Adam with PyTorch's defaults, in one kernel.

    Args:
        groups: dicts of ``params`` and ``lr``, as :func:`train` makes them.

    Example:
        >>> weight = torch.tensor([1.0, 1.0])
        >>> weight.grad = torch.tensor([5.0, -0.01])
        >>> adam([{"params": [weight], "lr": 0.25}]).step()  # its first step is the rate, whatever the slope
        >>> [round(value, 3) for value in weight.tolist()]
        [0.75, 1.25]

    Chapter: pruning/lottery_ticket
    """
    return torch.optim.Adam(groups, fused=True)


def sgd(groups: list[dict]) -> torch.optim.Optimizer:
    """Stochastic gradient descent without momentum or weight decay, in one kernel.

    Args:
        groups: dicts of ``params`` and ``lr``, as :func:`train` makes them.

    Example:
        >>> weight = torch.tensor([1.0, 1.0])
        >>> weight.grad = torch.tensor([5.0, -1.0])
        >>> sgd([{"params": [weight], "lr": 0.25}]).step()
        >>> weight
        tensor([-0.2500,  1.2500])

    Chapter: pruning/lottery_ticket
    """
    return torch.optim.SGD(groups, fused=True)


def stack(models: Sequence[nn.Module]) -> States:
    """Parameters of several networks as one state.

    Args:
        models: at least one, of the same architecture, without buffers (batch norm keeps running statistics).

    Returns:
        name → ``[models, …]``, copies without gradients.

    Raises:
        ValueError: there is no model, one has buffers, or names or shapes differ.

    Example:
        >>> states = stack([nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(3, 2)])
        >>> {name: tuple(value.shape) for name, value in states.items()}
        {'weight': (3, 2, 3), 'bias': (3, 2)}

    Chapter: pruning/lottery_ticket
    """
    if not models:
        raise ValueError("models is empty; there must be at least one")
    shapes = [{name: p.shape for name, p in model.named_parameters()} for model in models]
    if odd := [number for number, found in enumerate(shapes) if found != shapes[0]]:
        raise ValueError(f"models[{odd[0]}] has other parameters than models[0]; all must be of one architecture")
    parameters, buffers = stack_module_state(list(models))
    if buffers:
        raise ValueError(f"models have the buffers {sorted(buffers)}; only networks without buffers can be stacked")
    return {name: value.detach() for name, value in parameters.items()}


def member(model: nn.Module, states: Mapping[str, Tensor], index: int) -> nn.Module:
    """One network of a state, as a module of its own.

    Args:
        model: of the architecture; it is copied, not changed.
        states: name → ``[models, …]``.
        index: which network.

    Raises:
        RuntimeError: names or shapes do not fit ``model``.

    Example:
        >>> states = {"weight": torch.tensor([[[1.0]], [[2.0]]])}  # two networks
        >>> member(nn.Linear(1, 1, bias=False), states, 1)(torch.tensor([[10.0]])).item()
        20.0

    Chapter: pruning/lottery_ticket
    """
    single = copy.deepcopy(model)
    single.load_state_dict({name: value[index] for name, value in states.items()})
    return single


def gradients(
    model: nn.Module, states: Mapping[str, Tensor], images: Tensor, labels: Tensor
) -> tuple[States, Tensor]:  # fmt: skip
    """Gradient of the mean cross-entropy of each network on its own batch.

    Args:
        model: of the architecture; its own weights are not used.
        states: name → ``[models, …]``.
        images: ``[models, batch, …]``.
        labels: int64 ``[models, batch]``.

    Returns:
        name → ``[models, …]`` and the losses ``[models]``.

    Example:
        >>> states = {"weight": torch.zeros(1, 2, 1)}  # one network, both classes equally likely
        >>> model, images, labels = nn.Linear(1, 2, bias=False), torch.tensor([[[3.0]]]), torch.tensor([[0]])
        >>> slopes, losses = gradients(model, states, images, labels)
        >>> slopes["weight"].flatten().tolist()  # (softmax - one-hot) times the input
        [-1.5, 1.5]

    Chapter: pruning/lottery_ticket
    """

    def loss(parameters: States, batch: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(functional_call(model, parameters, (batch,)), targets)

    return vmap(grad_and_value(loss))(dict(states), images, labels)


@torch.no_grad()
def evaluate(
    model: nn.Module, states: Mapping[str, Tensor], images: Tensor, labels: Tensor, *, batch: int = 500
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Mean cross-entropy and accuracy of each network on the same images.

    Args:
        model: of the architecture; its own weights are not used.
        states: name → ``[models, …]``.
        images: ``[n, …]``, at least one.
        labels: int64 ``[n]``.
        batch: images at a time.

    Returns:
        Two float64 ``[models]``; the accuracy is a fraction from 0 to 1.

    Example:
        >>> states = {"weight": torch.tensor([[[9.0], [0.0]], [[0.0], [9.0]]])}  # the second has the classes swapped
        >>> images, labels = torch.tensor([[1.0], [-1.0], [2.0]]), torch.tensor([0, 1, 0])
        >>> loss, accuracy = evaluate(nn.Linear(1, 2, bias=False), states, images, labels)
        >>> accuracy.tolist(), bool(loss[0] < loss[1])
        ([1.0, 0.0], True)

    Chapter: pruning/lottery_ticket
    """
    models = len(next(iter(states.values())))
    loss = torch.zeros(models, dtype=torch.float64, device=images.device)
    correct = torch.zeros_like(loss)
    logits_of = vmap(lambda parameters, rows: functional_call(model, parameters, (rows,)), in_dims=(0, None))
    for rows, targets in zip(images.split(batch), labels.split(batch), strict=True):
        logits = logits_of(dict(states), rows)
        every = targets.expand(models, -1)
        loss += functional.cross_entropy(logits.movedim(2, 1), every, reduction="none").sum(1)
        correct += (logits.argmax(2) == every).sum(1)
    return loss / len(labels), correct / len(labels)


def orders_of(seeds: Sequence[int], n: int, *, batch: int, start: int = 0) -> Iterator[Tensor]:
    """Rows of the images that each network sees, step after step without an end.

    Each epoch is one permutation, cut into batches; the last may be smaller. It is the order of
    :func:`reference.training.fit`.

    Args:
        seeds: one a network; equal seeds give equal orders.
        n: number of images.
        batch: images a step.
        start: number of steps to leave out at the beginning.

    Yields:
        int64 ``[models, batch]``.

    Example:
        >>> first, second = itertools.islice(orders_of([7, 7, 8], n=5, batch=3), 2)
        >>> first.shape, second.shape  # three networks; the epoch's last batch has what is left
        (torch.Size([3, 3]), torch.Size([3, 2]))
        >>> bool((first[0] == first[1]).all()), sorted(torch.cat([first[2], second[2]]).tolist())
        (True, [0, 1, 2, 3, 4])

    Chapter: pruning/lottery_ticket
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    an_epoch = -(-n // batch)
    for epoch in itertools.count():
        order = torch.stack([torch.randperm(n, generator=generator) for generator in generators])
        for step, rows in enumerate(order.split(batch, dim=1)):
            if epoch * an_epoch + step >= start:
                yield rows


def train(
    model: nn.Module,
    states: Mapping[str, Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    steps: int,
    seeds: Sequence[int],
    rates: Sequence[float],
    optimizer: OptimizerFactory = adam,
    batch: int = 60,
    gradient: Gradient | None = None,
    start: int = 0,
    masks: Mapping[str, Tensor] | None = None,
    schedule: Callable[[int, int], float] | None = None,
    after_step: Callable[[int, States], object] | None = None,
    remask: Callable[[int, States, States], Mapping[str, Tensor] | None] | None = None,
) -> States:
    """Train each network of a state by itself, all at once.

    Args:
        model: of the architecture; its own weights are neither used nor changed.
        states: name → ``[models, …]``; not changed.
        images, labels: ``[n, …]`` and int64 ``[n]``.
        steps: the step before which training ends, so that ``steps - start`` are taken.
        seeds: of the order of the images, one a network.
        rates: learning rates, one a network; equal rates that are neighbours share a kernel.
        optimizer: makes the optimiser, with fresh state; a network's step must depend on its own gradient only.
        batch: images a step.
        gradient: in place of :func:`gradients`, which it must equal; for fully connected networks
            :func:`reference.pruning.chain_gradients.chain_gradients` is faster.
        start: first step. The order of the images and the schedule go on as if earlier steps had been taken.
        masks: name → bool ``[models, …]``, False where a weight is zero and stays zero. Others stay dense.
        schedule: maps step and ``steps`` to a factor on the rates.
        after_step: called with the number of steps taken so far, and the state, which it must not keep or change.
        remask: called before each step with its number, the state and the gradient of *all* weights, the masked
            ones too; returns new masks for some names, or None. The step that follows moves kept weights only.

    Returns:
        name → ``[models, …]``.

    Raises:
        ValueError: lengths do not fit, ``start`` is not 0 to ``steps``, or a mask is not bool of the right shape.

    Example:
        >>> model, states = nn.Linear(1, 2, bias=False), {"weight": torch.zeros(2, 2, 1)}  # two networks
        >>> settings = {"steps": 1, "seeds": [0, 0], "rates": [0.5, 1.0], "optimizer": sgd}
        >>> found = train(model, states, torch.tensor([[2.0]]), torch.tensor([0]), **settings)
        >>> found["weight"].flatten(1).tolist()  # one image, its slope -1 and 1: a step is the rate
        [[0.5, -0.5], [1.0, -1.0]]

    Chapter: pruning/lottery_ticket
    """
    models = len(next(iter(states.values())))
    if not len(seeds) == len(rates) == models:
        raise ValueError(f"seeds and rates are {len(seeds)} and {len(rates)}; they must be {models}, one a network")
    if not 0 <= start <= steps:
        raise ValueError(f"start is {start}; it may be 0 to steps = {steps}")
    state = {name: value.detach().clone() for name, value in states.items()}
    kept = _checked(masks or {}, state)
    groups: list[dict] = []
    where: list[tuple[str, slice, Tensor]] = []
    for rate, members in itertools.groupby(range(models), key=lambda index: rates[index]):
        numbers = list(members)
        part = slice(numbers[0], numbers[-1] + 1)
        # Views: the optimiser's steps are steps of `state`.
        views = {name: value[part] for name, value in state.items()}
        groups.append({"params": list(views.values()), "lr": rate})
        where += [(name, part, view) for name, view in views.items()]
    peaks = [group["lr"] for group in groups]
    stepper = optimizer(groups)
    _apply(kept, state)
    factors = {
        name: mask.to(state[name].dtype) for name, mask in kept.items()
    }  # a bool factor takes five times as long
    rows_of = orders_of(seeds, len(images), batch=batch, start=start)
    for step in range(start, steps):
        rows = next(rows_of).to(images.device)
        slopes, _ = (gradient or gradients)(model, state, images[rows], labels[rows])
        if remask is not None and (new := remask(step, state, slopes)) is not None:
            kept |= _checked(new, state)
            _apply(kept, state)
            _forget(kept, stepper, where)
            factors = {name: mask.to(state[name].dtype) for name, mask in kept.items()}
        for name, factor in factors.items():
            slopes[name] *= factor
        for name, part, view in where:
            view.grad = slopes[name][part]
        if schedule is not None:
            for group, peak in zip(stepper.param_groups, peaks, strict=True):
                group["lr"] = peak * schedule(step, steps)
        stepper.step()
        if after_step is not None:
            after_step(step + 1, state)
    return state


def _checked(masks: Mapping[str, Tensor], state: States) -> States:
    for name, mask in masks.items():
        if name not in state or mask.dtype != torch.bool or mask.shape != state[name].shape:
            expected = tuple(state[name].shape) if name in state else f"one of {list(state)}"
            raise ValueError(f"mask {name!r} is {mask.dtype} {tuple(mask.shape)}; it must be bool {expected}")
    return dict(masks)


def _apply(masks: States, state: States) -> None:
    for name, mask in masks.items():
        state[name].masked_fill_(~mask, 0)


def _forget(masks: States, optimizer: torch.optim.Optimizer, where: list[tuple[str, slice, Tensor]]) -> None:
    """Zero the optimiser's memory of masked weights: momentum would move them."""
    for name, part, view in where:
        for value in optimizer.state.get(view, {}).values():
            if name in masks and isinstance(value, Tensor) and value.shape == view.shape:
                value.masked_fill_(~masks[name][part], 0)
