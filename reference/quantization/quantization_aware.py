r"""Fake quantisation: the forward pass rounds, the backward pass lets a gradient through.

Rounding has derivative zero almost everywhere, so its gradient teaches nothing. The straight-through
estimator puts one in its place, and what is left to decide is where the clamp stops it:

    =========== ======================================= ===================================
    ``mask``    order                                   gradient of x at 7.2 steps, top 7
    =========== ======================================= ===================================
    unrounded   ``round(clamp(x / s))`` (LSQ)           0: beyond the last level
    rounded     ``clamp(round(x / s))`` (torch)         1: it still rounds to the last level
    =========== ======================================= ===================================

Values are the same either way. Everything is differentiable by autograd; codes are those of
:mod:`reference.quantization.grid`, less the zero point.
"""

import torch
from torch import Tensor

from reference.quantization.activations import ActivationSpec, dequantize, quantize_activations

MASKS = ("unrounded", "rounded")


def straight_through(value: Tensor, x: Tensor) -> Tensor:
    """``value`` going forward, the derivative of ``x`` going backward.

    Args:
        value: what is computed with; no gradient flows into it.
        x: finite, of the same shape; it gets the whole gradient.

    Source: Bengio et al. 2013.

    Example:
        >>> x = torch.tensor(0.7, requires_grad=True)
        >>> straight_through(x.round(), x).backward()
        >>> x.grad
        tensor(1.)

    Chapter: quantization/quantization_aware
    """
    # x - x is exactly zero; x + (value - x) would round.
    return value.detach() + (x - x.detach())


def scale_gradient(x: Tensor, factor: float | Tensor) -> Tensor:
    """``x`` going forward, ``factor`` times its gradient going backward.

    Args:
        x: any shape.
        factor: a number, or a tensor that broadcasts over ``x``.

    Example:
        >>> x = torch.tensor(2.0, requires_grad=True)
        >>> y = scale_gradient(x, 0.5)
        >>> y.backward()
        >>> y.item(), x.grad.item()
        (2.0, 0.5)

    Chapter: quantization/quantization_aware
    """
    return straight_through(x, x * factor)


def fake_quantize(
    x: Tensor, step: Tensor, qmin: int | Tensor, qmax: int | Tensor, *, mask: str = "unrounded"
) -> Tensor:
    r"""Round ``x`` to the grid :math:`s \cdot \{q_{min}, \ldots, q_{max}\}`, with straight-through gradients.

    Args:
        x: any shape.
        step: positive, broadcast over ``x``; one per tensor, channel or group.
        qmin, qmax: least and largest code; tensors where they are learned, as an affine grid's
            ``-zero_point`` and ``levels - zero_point`` are.
        mask: ``"unrounded"`` or ``"rounded"``, see the module's table.

    Returns:
        The shape of ``x``. With :math:`v = x/s`, the derivatives are, inside the range,
        :math:`\partial\hat x/\partial x = 1` and :math:`\partial\hat x/\partial s = \mathrm{round}(v) - v`;
        below and above it :math:`0`, and :math:`q_{min}` or :math:`q_{max}`.

    Raises:
        ValueError: no such mask.

    Example:
        >>> x, step = torch.tensor([0.25, 1.75, 9.0], requires_grad=True), torch.tensor(1.0, requires_grad=True)
        >>> y = fake_quantize(x, step, 0, 3)
        >>> y.sum().backward()
        >>> y.tolist(), x.grad.tolist(), step.grad.item()  # the step's: -0.25 + 0.25 + 3
        ([0.0, 2.0, 3.0], [1.0, 1.0, 0.0], 3.0)

    Chapter: quantization/quantization_aware
    """
    if mask not in MASKS:
        raise ValueError(f"mask is {mask!r}; it may be {' or '.join(MASKS)}")
    v = x / step
    if mask == "rounded":
        return _clamp(straight_through(v.round(), v), qmin, qmax) * step
    v = _clamp(v, qmin, qmax)
    return straight_through(v.round(), v) * step


def _clamp(v: Tensor, low: int | Tensor, high: int | Tensor) -> Tensor:
    """``v.clamp``, which takes two numbers or two tensors."""
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        return v.clamp(torch.as_tensor(low, dtype=v.dtype, device=v.device),
                       torch.as_tensor(high, dtype=v.dtype, device=v.device))  # fmt: skip
    return v.clamp(low, high)


def gradient_factor(count: int, qmax: int) -> float:
    r"""LSQ's factor on the gradient of a step, :math:`1/\sqrt{N\,Q_P}`.

    The gradient of a step sums over all :math:`N` values that share it, so it outgrows that of a
    weight; the factor brings the *relative* change of both to the same size.

    Args:
        count: weights of the layer, or features of its input.
        qmax: largest code of a signed grid.

    Raises:
        ValueError: not positive.

    Source: Esser et al. 2020, section 2.2.

    Example:
        >>> gradient_factor(400, 4)
        0.025

    Chapter: quantization/quantization_aware
    """
    if count < 1 or qmax < 1:
        raise ValueError(f"count is {count} and qmax {qmax}; both must be 1 or more")
    return (count * qmax) ** -0.5


def lsq(
    x: Tensor,
    step: Tensor,
    qmin: int | Tensor,
    qmax: int | Tensor,
    *,
    factor: float | Tensor | None = None,
    mask: str = "unrounded",
) -> Tensor:
    """Fake quantisation with a learned step: :func:`fake_quantize`, the step's gradient scaled.

    Args:
        x: any shape.
        step: positive, broadcast over ``x``.
        qmin, qmax: least and largest code.
        factor: on the step's gradient; by default :func:`gradient_factor` of all numbers in ``x``,
            which the authors' codes take per channel too. 1 for none.
        mask: see :func:`fake_quantize`.

    Returns:
        The shape of ``x``.

    Raises:
        ValueError: no such mask, or ``factor`` is missing where ``qmax`` is a tensor.

    Source: Esser et al. 2020, equations 1 to 3.

    Example:
        >>> step = torch.tensor(1.0, requires_grad=True)
        >>> lsq(torch.tensor([9.0, 9.0, 9.0, 9.0]), step, 0, 4).sum().backward()
        >>> step.grad.item()  # four times 4, over the root of four values times 4
        4.0

    Chapter: quantization/quantization_aware
    """
    if factor is None:
        if isinstance(qmax, Tensor):
            raise ValueError("factor is None; with a tensor as qmax it must be given")
        factor = gradient_factor(x.numel(), qmax)
    return fake_quantize(x, scale_gradient(step, factor), qmin, qmax, mask=mask)


def initial_step(x: Tensor, qmax: int, axis: int | None = None) -> Tensor:
    r"""LSQ's first step, :math:`2\,\langle|x|\rangle/\sqrt{Q_P}`, over all of ``x`` or along ``axis`` (kept).

    Args:
        x: weights or activations, floating point.
        qmax: largest code.
        axis: along which values share a step; None for one step.

    Source: Esser et al. 2020, section 2.1.

    Example:
        >>> initial_step(torch.tensor([3.0, -1.0, 1.0, -3.0]), qmax=4).item()  # 2 · 2 / 2
        2.0

    Chapter: quantization/quantization_aware
    """
    mean = x.abs().mean() if axis is None else x.abs().mean(axis, keepdim=True)
    return 2 * mean / qmax**0.5


def fake_activations(x: Tensor, spec: ActivationSpec) -> Tensor:
    """Quantise activations with a step made on the spot, gradient straight through.

    What :class:`reference.int8.Int8Linear` will compute with, in float.

    Args:
        x: ``[..., channels]``.
        spec: dynamic, per token or per tensor.

    Returns:
        The shape and type of ``x``; nothing is clipped that the gradient should know about, as the
        range is that of ``x``.

    Raises:
        ValueError: ``spec`` is static; use :func:`lsq` with the step that is learned.

    Example:
        >>> x = torch.tensor([[127.0, -64.4]], requires_grad=True)
        >>> y = fake_activations(x, ActivationSpec(restricted=True))
        >>> y.sum().backward()
        >>> y.tolist(), x.grad.tolist()
        ([[127.0, -64.0]], [[1.0, 1.0]])

    Chapter: quantization/quantization_aware
    """
    if spec.granularity == "static":
        raise ValueError("spec is static; its step is a parameter, which lsq() trains")
    return straight_through(dequantize(*quantize_activations(x.detach(), spec)).to(x.dtype), x)


def pact(x: Tensor, alpha: Tensor, bits: int) -> Tensor:
    r"""Clip at a learned value and round to ``2^bits`` levels from zero (PACT).

    :math:`y = \mathrm{clip}(x, 0, \alpha)` on a grid of step :math:`\alpha/(2^b - 1)`. Backward the
    rounding is passed straight through, so :math:`\partial y/\partial\alpha` is 1 where
    :math:`x \ge \alpha` and 0 elsewhere: inside the range the clip learns nothing, unlike the step of LSQ.

    Args:
        x: any shape; what follows a ReLU, say.
        alpha: ``[1]``, positive. It starts large, and needs a decay (L2) that pulls it down.
        bits: 2 to 8.

    Returns:
        The shape of ``x``.

    Raises:
        ValueError: ``bits`` out of range.

    Source: Choi et al. 2018, equations 1 to 3.

    Example:
        >>> alpha = torch.tensor([3.0], requires_grad=True)
        >>> y = pact(torch.tensor([-1.0, 1.2, 5.0]), alpha, bits=2)
        >>> y.sum().backward()
        >>> y.tolist(), alpha.grad.tolist()  # only the clipped value moves alpha
        ([0.0, 1.0, 3.0], [1.0])

    Chapter: quantization/quantization_aware
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"bits is {bits}; it may be 2 to 8")
    clipped = torch.where(x < alpha, x.clamp(min=0), alpha)
    step = alpha.detach() / (2**bits - 1)
    return straight_through((clipped / step).round() * step, clipped)
