"""What training under quantisation minimises, and at which rates."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from reference.distillation.losses import logits_loss

OBJECTIVES = ("cross_entropy", "distillation")
_STEPS = ("log_step", "log_input_step", "zero_point")


def parameter_groups(
    model: nn.Module, rate: float, *, step_rate: float | None = None, rest_rate: float | None = None
) -> list[dict]:
    """Groups for AdamW: weights of the blocks, steps and zero points, and the rest.

    Args:
        model: parameters that do not require a gradient are left out.
        rate: of the matrices, quantised or low-rank.
        step_rate: of steps and zero points, ``rate`` if None. A ``log_step`` moves by about this *fraction* of
            its step a step of Adam.
        rest_rate: of embeddings, norms and biases, ``rate`` if None; 0 leaves them out and freezes them.

    Returns:
        Groups with ``params`` and ``lr``, none empty, without weight decay: a decay would pull weights
        over the edges of their cells for no reason that the loss knows.

    Example:
        >>> from reference.quantization.grid import QuantizationSpec
        >>> from reference.quantization.preparation import first_grid
        >>> from reference.quantization.trained import TrainedLinear
        >>> linear = nn.Linear(4, 2)
        >>> layer = TrainedLinear(linear, first_grid(linear.weight.detach(), QuantizationSpec(4)))
        >>> groups = parameter_groups(layer, 1e-4, step_rate=1e-3, rest_rate=0)
        >>> [(len(group["params"]), group["lr"]) for group in groups]  # weight; step and zero point; not the bias
        [(1, 0.0001), (2, 0.001)]

    Chapter: quantization/quantization_aware
    """
    embedded = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    kinds: dict[str, list[nn.Parameter]] = {"weights": [], "steps": [], "rest": []}
    for name, parameter in model.named_parameters():
        last = name.rpartition(".")[2]
        if not parameter.requires_grad:
            continue
        if last in _STEPS:
            kinds["steps"].append(parameter)
        elif parameter.ndim >= 2 and id(parameter) not in embedded and "lm_head" not in name:
            kinds["weights"].append(parameter)
        elif rest_rate == 0:
            parameter.requires_grad_(False)
        else:
            kinds["rest"].append(parameter)
    rates = {
        "weights": rate,
        "steps": rate if step_rate is None else step_rate,
        "rest": rate if rest_rate is None else rest_rate,
    }
    return [{"params": found, "lr": rates[kind], "weight_decay": 0.0} for kind, found in kinds.items() if found]


def objective(model: nn.Module, kind: str, teacher: nn.Module | None = None) -> Callable[[Tensor], Tensor]:
    """The loss of a batch of windows.

    Args:
        model: the student.
        kind: ``"cross_entropy"`` with the text's next token, or ``"distillation"``: the divergence of the
            teacher's prediction from the student's at every position, the text itself being only input.
        teacher: the float model, for ``"distillation"``.

    Returns:
        A function from token ids ``[batch, length]`` to a scalar, nats per position.

    Raises:
        ValueError: no such kind, or no teacher.

    Source: Liu et al. 2024 (LLM-QAT).

    Example:
        >>> from reference.models import tutorial
        >>> student, ids = tutorial.load(), torch.arange(16)[None]
        >>> loss = objective(student, "distillation", teacher=tutorial.load())
        >>> round(abs(loss(ids).item()), 3)  # a copy of the teacher has nothing to learn
        0.0

    Chapter: quantization/quantization_aware
    """
    if kind not in OBJECTIVES:
        raise ValueError(f"kind is {kind!r}; it may be {' or '.join(OBJECTIVES)}")
    if kind == "cross_entropy":

        def next_token(ids: Tensor) -> Tensor:
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
            return functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())

        return next_token
    if teacher is None:
        raise ValueError("teacher is None; distillation needs the float model")

    def divergence(ids: Tensor) -> Tensor:
        with torch.no_grad():
            target = teacher(input_ids=ids, use_cache=False).logits
        return logits_loss(model(input_ids=ids, use_cache=False).logits, target)

    return divergence
