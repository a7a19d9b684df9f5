r"""SmoothQuant: divide the activations' large channels by a factor that the weights take over.

With activations and weights both in 8 bits, one step serves all channels of a token, so a channel that is a
hundred times larger than the others leaves them a handful of codes. Dividing channel :math:`j` of the activations
by :math:`s_j` and multiplying column :math:`j` of the weights by it changes nothing:

.. math:: Y = X W^\top = (X\,\mathrm{diag}(s)^{-1})\,(W\,\mathrm{diag}(s))^\top, \qquad
          s_j = \frac{\max |X_{:j}|^{\alpha}}{\max |W_{:j}|^{1 - \alpha}} .

With :math:`\alpha = 1` every channel of the activations gets the largest value 1, with :math:`\alpha = 0` every
column of the weights (which is not the same as leaving them alone), and with 1/2 both get
:math:`\sqrt{\max|X_{:j}| \max|W_{:j}|}`. :mod:`reference.quantization.channel_scale` moves the division into the
norm before.

    =================== ================== ======= ==========================================
    paper               code               shape
    =================== ================== ======= ==========================================
    :math:`\max |X_j|`  activation_absmax  [in]    over the calibration tokens
    :math:`\max |W_j|`  weight_absmax      [in]    over all rows of the layers that read X
    :math:`s`           the result         [in]    multiplied into columns, divided out of inputs
    :math:`\alpha`      alpha              number  0.5; 0.8 to 0.85 for models with larger outliers
    =================== ================== ======= ==========================================
"""

from collections.abc import Sequence

import torch
from torch import Tensor

#: The least magnitude of a column, and of a factor; a channel that is always zero has them too.
SMALLEST = 1e-5


def smoothing_factors(activation_absmax: Tensor, weight_absmax: Tensor, alpha: float) -> Tensor:
    """Factor of each channel.

    A channel that no weight reads gets a large factor, and one that was never active gets 1e-5, as in the authors'
    code: its norm weight grows by 100,000, beyond what float16 holds.
    :func:`reference.transforms.smoothquant.group_factors` takes 1 for it.

    Args:
        activation_absmax: ``[in]``, largest magnitude of each input channel.
        weight_absmax: ``[in]``, largest magnitude of each column over the layers that share the input.
        alpha: how much of the difficulty the weights take, 0 to 1; 0.5 is the paper's choice for OPT, 0.7 to 0.9
            are usual for Llama models.

    Returns:
        ``[in]``, at least 1e-5; float32, or float64 if an argument is. The authors compute in the model's type: in
        float16 three digits are left.

    Raises:
        ValueError: shapes differ, a magnitude is negative or not finite, or ``alpha`` is out of range.

    Source: Xiao et al. 2023, eq. 4; the clamps are those of the authors' ``smooth_ln_fcs``.

    Example:
        >>> smoothing_factors(torch.tensor([16.0, 1.0]), torch.tensor([1.0, 1.0]), 0.5)
        tensor([4., 1.])

    Chapter: quantization/smoothquant
    """
    if activation_absmax.ndim != 1 or activation_absmax.shape != weight_absmax.shape:
        raise ValueError(
            f"activation_absmax has shape {tuple(activation_absmax.shape)} and weight_absmax "
            f"{tuple(weight_absmax.shape)}; both are [in_features]"
        )
    check_alpha(alpha)
    for name, absmax in (("activation_absmax", activation_absmax), ("weight_absmax", weight_absmax)):
        if not torch.isfinite(absmax).all() or (absmax < 0).any():
            raise ValueError(f"{name} holds negative, NaN or infinite values; it is a maximum of magnitudes")
    wide = torch.promote_types(torch.promote_types(activation_absmax.dtype, weight_absmax.dtype), torch.float32)
    activations, weights = activation_absmax.to(wide), weight_absmax.to(wide).clamp(min=SMALLEST)
    return (activations.pow(alpha) / weights.pow(1 - alpha)).clamp(min=SMALLEST)


def columns_absmax(weights: Sequence[Tensor]) -> Tensor:
    """Largest magnitude of each column over all of ``weights``, ``[out, in]`` each: ``[in]``.

    Example:
        >>> columns_absmax([torch.tensor([[1.0, -4.0], [2.0, 3.0]])])
        tensor([2., 4.])

    Chapter: quantization/smoothquant
    """
    return torch.stack([weight.abs().amax(0) for weight in weights]).amax(0)


def check_alpha(alpha: float) -> None:
    """Refuse a share of the difficulty that is none.

    Args:
        alpha: as of :func:`smoothing_factors`.

    Raises:
        ValueError: below 0, above 1, or NaN.

    Example:
        >>> check_alpha(2)
        Traceback (most recent call last):
            ...
        ValueError: alpha is 2; it may be 0 (none of the difficulty goes to the weights) to 1 (all)

    Chapter: none (check)
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; it may be 0 (none of the difficulty goes to the weights) to 1 (all)")
