"""What the student is trained to match: predictions, hidden states, attention.

All are means over real positions, in float32; ``mask`` says which positions are real, and None that all are.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


def logits_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0, *, mask: Tensor | None = None) -> Tensor:
    r"""Cross-entropy of the teacher's softened distribution with the student's, less its own entropy.

    :math:`T^2\,\mathrm{KL}(\mathrm{softmax}(t/T)\,\|\,\mathrm{softmax}(s/T))`, averaged over
    positions. The factor :math:`T^2` keeps the size of the gradient as the temperature changes.

    Args:
        student, teacher: logits ``[..., vocabulary]``.
        temperature: :math:`T > 0`; larger values let the small probabilities count.
        mask: bool ``[...]``, True where a position counts.

    Returns:
        A scalar in nats, zero exactly where the two distributions agree.

    Raises:
        ValueError: ``temperature`` is not positive, shapes differ, or no position counts.

    Source: Hinton et al. 2015, "Distilling the knowledge in a neural network", section 2.

    Example:
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[9.0, 9.0]])
        >>> float(logits_loss(student, teacher))  # logits differ, distributions do not
        0.0
        >>> bool(logits_loss(student, torch.tensor([[9.0, 0.0]])) > 0)
        True

    Chapter: overview, advanced/distillation
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; it must be positive")
    if student.shape != teacher.shape:
        raise ValueError(f"student has shape {tuple(student.shape)}, teacher {tuple(teacher.shape)}; they must agree")
    if mask is not None:
        student, teacher = _real(student, mask), _real(teacher, mask)
    _some(student)
    vocabulary = student.shape[-1]
    ours = (student.float() / temperature).log_softmax(-1).reshape(-1, vocabulary)
    theirs = (teacher.float() / temperature).log_softmax(-1).reshape(-1, vocabulary)
    return temperature**2 * functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def hidden_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    kind: str = "mse",
    projection: nn.Module | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Distance of the student's hidden states from the teacher's.

    Args:
        student: ``[..., d]``.
        teacher: ``[..., D]``.
        kind: ``"mse"``, mean of squared differences over positions and features (TinyBERT), or ``"cosine"``,
            :math:`1 - \cos` of the two vectors, mean over positions: direction only (DistilBERT).
        projection: maps ``[..., d]`` to ``[..., D]``, learned with the student; None where the widths agree.
        mask: bool ``[...]``, True where a position counts.

    Returns:
        A scalar.

    Raises:
        ValueError: another ``kind``, widths that differ after the projection, or no position counts.

    Source: Jiao et al. 2020 (TinyBERT), equation 8; Sanh et al. 2019 (DistilBERT), section 3.

    Example:
        >>> student, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 0.0]])
        >>> float(hidden_loss(student, teacher)), float(hidden_loss(student, teacher, kind="cosine"))
        (2.0, 0.0)

    Chapter: advanced/distillation
    """
    if kind not in ("mse", "cosine"):
        raise ValueError(f"kind is {kind!r}; it may be 'mse' or 'cosine'")
    ours = student if projection is None else projection(student)
    if ours.shape != teacher.shape:
        raise ValueError(
            f"student has shape {tuple(ours.shape)}, teacher {tuple(teacher.shape)}; a projection must make them agree"
        )
    if mask is not None:
        ours, teacher = _real(ours, mask), _real(teacher, mask)
    _some(ours)
    if kind == "mse":
        return (ours.float() - teacher.float()).square().mean()
    return 1 - functional.cosine_similarity(ours.float(), teacher.float(), dim=-1).mean()


def attention_loss(student: Tensor, teacher: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""Divergence of the teacher's attention from the student's: each row of a map is a distribution over positions.

    Args:
        student, teacher: probabilities ``[batch, heads, queries, keys]``; keys that may not be seen have 0.
        mask: bool ``[batch, queries]``, True where a query counts.

    Returns:
        :math:`\mathrm{KL}(a_t\,\|\,a_s)` in nats, mean over queries and heads. Where the teacher looks and the student
        cannot (its probability is 0), the smallest normal float32 stands in for 0.

    Raises:
        ValueError: shapes differ, or no position counts.

    Source: Wang et al. 2020 (MiniLM), section 3.1.

    Example:
        >>> teacher = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]])  # [batch, heads, queries, keys]
        >>> bool(attention_loss(teacher, teacher).abs() < 1e-6)
        True
        >>> uniform = torch.full((1, 1, 2, 2), 0.5)
        >>> round(float(attention_loss(uniform, teacher).exp()), 3)  # √2: ln 2 for the first query, 0 for the second
        1.414

    Chapter: advanced/distillation
    """
    if student.shape != teacher.shape:
        raise ValueError(f"student has shape {tuple(student.shape)}, teacher {tuple(teacher.shape)}; they must agree")
    ours, theirs = student.float().transpose(1, 2), teacher.float().transpose(1, 2)  # [batch, queries, heads, keys]
    if mask is not None:
        ours, theirs = _real(ours, mask), _real(theirs, mask)
    _some(ours)
    tiny = torch.finfo(torch.float32).tiny
    terms = torch.special.xlogy(theirs, theirs) - theirs * ours.clamp_min(tiny).log()
    return terms.sum(-1).mean()


def next_token_loss(logits: Tensor, ids: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Cross-entropy with the text itself: position ``i`` predicts token ``i + 1``.

    Args:
        logits: ``[batch, length, vocabulary]``.
        ids: int64 ``[batch, length]``.
        mask: bool ``[batch, length]``, True for tokens, False for padding; padding is neither predicted nor predicts.

    Returns:
        A scalar, nats a predicted token.

    Raises:
        ValueError: no token is predicted.

    Example:
        >>> logits, ids = torch.zeros(1, 3, 4), torch.tensor([[2, 0, 3]])  # four tokens, equally likely
        >>> round(float(next_token_loss(logits, ids).exp()), 3)
        4.0

    Chapter: advanced/distillation
    """
    predictions, labels = logits[:, :-1], ids[:, 1:]
    if mask is not None:
        counts = mask[:, 1:] & mask[:, :-1]
        predictions, labels = _real(predictions, counts), labels[counts]
    if not labels.numel():
        raise ValueError(f"ids has shape {tuple(ids.shape)} and no token to predict; windows need two tokens or more")
    return functional.cross_entropy(predictions.flatten(0, -2).float(), labels.flatten())


def _real(values: Tensor, mask: Tensor) -> Tensor:
    """The positions that count, ``[positions, …]``."""
    if mask.dtype != torch.bool or mask.shape != values.shape[: mask.ndim]:
        raise ValueError(
            f"mask is {mask.dtype} of shape {tuple(mask.shape)}; it may be bool of {tuple(values.shape[: mask.ndim])}"
        )
    if not mask.any():
        raise ValueError("mask is False everywhere; one position or more must count")
    return values[mask]


def _some(values: Tensor) -> None:
    """Refuse nothing at all: its mean is no number."""
    if not values.numel():
        raise ValueError(f"student has shape {tuple(values.shape)}: no position counts")
