"""How sure a classifier is of its answer, and whether that can be believed."""

import torch
from torch import Tensor

_COLDEST, _HOTTEST = 1e-2, 1e2


def confidence(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Probability of the most likely class.

    Args:
        logits: ``[..., classes]``.
        temperature: positive.

    Returns:
        float32 ``[...]`` from 1 / classes to 1.

    Raises:
        ValueError: ``temperature`` is not positive.

    Example:
        >>> logits = torch.tensor([2.0, 0.0])
        >>> cold, plain, hot = (float(confidence(logits, temperature)) for temperature in (0.1, 1.0, 10.0))
        >>> 0.5 < hot < plain < cold
        True

    Chapter: advanced/distillation
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; it must be positive")
    scaled = logits.float() / temperature
    return (scaled.amax(-1) - scaled.logsumexp(-1)).exp()


def fit_temperature(logits: Tensor, labels: Tensor, *, tolerance: float = 1e-6, most: int = 100) -> float:
    r"""The temperature under which held-out labels are most likely.

    In :math:`\beta = 1/T` the loss :math:`\langle \ln\sum_c e^{\beta z_c} - \beta z_y \rangle` is convex; its
    derivative is what the model expects of its own logit less what it gets,
    :math:`\langle \sum_c p_c z_c - z_y \rangle`, and Newton's method with a bracket finds the zero. No ranking changes.

    Args:
        logits: ``[rows, classes]``, on data that the model was not trained on.
        labels: int64 ``[rows]``.
        tolerance: on the step of :math:`\ln\beta`.
        most: steps.

    Returns:
        ``T``, from 0.01 to 100: a model that is always right gets the one end, one that knows less than nothing the other.

    Raises:
        ValueError: shapes do not fit, or there are no rows.

    Source: Guo et al. 2017, "On calibration of modern neural networks", section 4.2.

    Example:
        >>> logits, labels = torch.tensor([[10.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1])  # right in 3 of 4
        >>> temperature = fit_temperature(logits, labels)
        >>> round(float(confidence(logits, temperature)[0]), 3)
        0.75

    Chapter: advanced/distillation
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise ValueError(
            f"logits has shape {tuple(logits.shape)} and labels {tuple(labels.shape)}; they may be [rows, classes], [rows]"
        )
    z = logits.double()
    right = z.gather(1, labels[:, None]).mean()
    low, high, beta = 1 / _HOTTEST, 1 / _COLDEST, 1.0
    for _ in range(most):
        p = (beta * z).softmax(-1)
        expected = (p * z).sum(-1)
        slope = float(expected.mean() - right)
        low, high = (low, beta) if slope > 0 else (beta, high)
        curvature = float(((p * z.square()).sum(-1) - expected.square()).mean())
        following = beta - slope / curvature if curvature > 0 else 0.0
        if not low < following < high:
            following = (low * high) ** 0.5
        step, beta = abs(following / beta - 1), following
        if step < tolerance:
            break
    return 1 / beta


def calibration_error(confidences: Tensor, correct: Tensor, *, bins: int = 15) -> float:
    """How far confidence is from the share of right answers: mean distance over bins of equal width, by their rows.

    Args:
        confidences: ``[rows]``, 0 to 1.
        correct: bool ``[rows]``.
        bins: of equal width.

    Returns:
        From 0, where confidence is right, to 1.

    Raises:
        ValueError: shapes differ, there are no rows, or ``bins`` is below 1.

    Source: Guo et al. 2017, equation 3 (expected calibration error).

    Example:
        >>> calibration_error(torch.tensor([0.75, 0.75, 0.75, 0.75]), torch.tensor([True, True, True, False]))
        0.0
        >>> calibration_error(torch.tensor([1.0, 1.0]), torch.tensor([True, False]))  # sure, and wrong half of the time
        0.5

    Chapter: advanced/distillation
    """
    if confidences.shape != correct.shape or confidences.ndim != 1 or not len(correct):
        raise ValueError(
            f"confidences has shape {tuple(confidences.shape)}, correct {tuple(correct.shape)}; both may be [rows]"
        )
    if bins < 1:
        raise ValueError(f"bins is {bins}; it may be 1 or more")
    sure = confidences.double()
    place = (sure * bins).ceil().long().sub(1).clamp(0, bins - 1)  # a bin holds its upper edge
    gap = torch.zeros(bins, dtype=torch.float64, device=sure.device).index_add(0, place, sure - correct.double())
    return float(gap.abs().sum() / len(sure))
