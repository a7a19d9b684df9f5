r"""What a training costs, counted in multiplications: dense, pruned in rounds, sparse from the start, or moving.

A layer with :math:`k` connections, used at :math:`p` positions, takes :math:`f = kp` products for one example going
forward, :math:`f` for the gradient of its input and :math:`f` for the gradient of its weights: :math:`3f` a step.
Zeros are not counted, as if hardware skipped them. Common hardware does not (chapter ``pruning/structured``), so
this is what sparse training *could* cost. Products only: norms, activations and the optimiser are not counted.

    ============ ================================================= =============================================
    method       products                                          because
    ============ ================================================= =============================================
    dense        :math:`3 f_D N`                                   N examples, over all steps
    static mask  :math:`3 f_S N`
    SNIP         :math:`3 f_S N + 3 f_D n`                         n examples score the dense network, once
    SET          :math:`3 f_S N`                                   the choice at random is free
    RigL         :math:`3 f_S (N - n) + (2 f_S + f_D) n`           n examples give a gradient of all weights
    ticket       :math:`\sum_r 3 f_r N`                            each round is a training, the last the ticket's
    ============ ================================================= =============================================
"""

from collections.abc import Mapping, Sequence

from torch import Tensor


def forward_products(masks: Mapping[str, Tensor], positions: Mapping[str, int] | None = None) -> int:
    """Products of one example going forward: connections, times the positions at which a filter is applied.

    Args:
        masks: name → bool mask of a weight, True where a connection is; of a dense layer all True.
        positions: name → output positions of a convolution; names not given count once, as linear layers do.

    Raises:
        ValueError: ``positions`` names no mask, or holds a number below 1.

    Example:
        >>> import torch
        >>> masks = {"conv": torch.tensor([[True, False, True]]), "linear": torch.ones(2, 5).bool()}
        >>> forward_products(masks, {"conv": 100})  # 2 · 100 + 10
        210

    Chapter: pruning/lottery_ticket
    """
    positions = positions or {}
    if wrong := {name: value for name, value in positions.items() if name not in masks or value < 1}:
        raise ValueError(f"positions holds {wrong}; it may hold 1 or more for {list(masks)}")
    return sum(int(mask.sum()) * positions.get(name, 1) for name, mask in masks.items())


def static_products(forward: int, examples: int) -> int:
    """Products of a training whose mask stays: dense, random, SET (whose updates cost nothing), or given.

    Args:
        forward: of one example, see :func:`forward_products`.
        examples: batch size times steps.

    Raises:
        ValueError: an argument is negative.

    Source: Evci et al. 2020, appendix on FLOPs.

    Example:
        >>> static_products(1000, 20)
        60000

    Chapter: pruning/lottery_ticket
    """
    _check(forward=forward, examples=examples)
    return 3 * forward * examples


def snip_products(forward: int, forward_dense: int, examples: int, scored: int) -> int:
    """Products of SNIP: one dense pass, forward and back, over the examples that score, then a static training.

    Args:
        forward, forward_dense: of one example, sparse and dense.
        examples: of the training.
        scored: examples that the sensitivity is computed on.

    Raises:
        ValueError: an argument is negative.

    Example:
        >>> snip_products(forward=100, forward_dense=1000, examples=60, scored=10)  # 3 · (100 · 60 + 1000 · 10)
        48000

    Chapter: pruning/lottery_ticket
    """
    return static_products(forward, examples) + static_products(forward_dense, scored)


def rigl_products(forward: int, forward_dense: int, examples: int, dense_examples: int) -> int:
    r"""Products of RigL: a static training, but for the steps that need the gradient of all weights.

    In such a step forward and the gradient of the inputs are sparse, :math:`2 f_S`, and the gradient of the weights
    is dense, :math:`f_D`. With one of them after every :math:`\Delta T` others the mean step takes
    :math:`(3 f_S \Delta T + 2 f_S + f_D) / (\Delta T + 1)` an example.

    Args:
        forward, forward_dense: of one example, sparse and dense.
        examples: of all steps.
        dense_examples: of those steps among them whose mask is updated.

    Raises:
        ValueError: an argument is negative, or ``dense_examples`` is more than ``examples``.

    Source: Evci et al. 2020, appendix on FLOPs.

    Example:
        >>> rigl_products(forward=100, forward_dense=1000, examples=60, dense_examples=10)  # 300 · 50 + 1200 · 10
        27000

    Chapter: pruning/lottery_ticket
    """
    _check(forward_dense=forward_dense, dense_examples=dense_examples)
    if dense_examples > examples:
        raise ValueError(f"dense_examples is {dense_examples}; it may be up to the {examples} examples")
    return static_products(forward, examples - dense_examples) + (2 * forward + forward_dense) * dense_examples


def ticket_products(forwards: Sequence[int], examples: int | Sequence[int]) -> int:
    """Products of finding and training a ticket: one static training for each round, from dense to the ticket.

    Args:
        forwards: products of one example in each round; the first is the dense network, the last the ticket.
        examples: of each round, or one number for all.

    Raises:
        ValueError: there are no rounds, the numbers of rounds differ, or one is negative.

    Source: Frankle and Carbin 2019, section 1, for the procedure; they do not count.

    Example:
        >>> ticket_products([1000, 800, 640], examples=60)  # 3 · 2440 · 60
        439200

    Chapter: pruning/lottery_ticket
    """
    each = [examples] * len(forwards) if isinstance(examples, int) else list(examples)
    if not forwards or len(each) != len(forwards):
        raise ValueError(f"forwards has {len(forwards)} rounds and examples {len(each)}; they must agree, 1 or more")
    return sum(static_products(forward, count) for forward, count in zip(forwards, each, strict=True))


def _check(**counts: int) -> None:
    for name, value in counts.items():
        if value < 0:
            raise ValueError(f"{name} is {value}; it may be 0 or more")
