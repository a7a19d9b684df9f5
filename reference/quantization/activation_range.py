r"""Where to clip activations whose scale is fixed at calibration: the largest value seen, or less.

The absolute maximum keeps every value and spends the grid on the rarest. The others give up the tail:

    ============== ============================================================================
    rule           threshold
    ============== ============================================================================
    ``max``        the largest magnitude
    ``percentile`` the magnitude that a share of the values stays below
    ``mse``        the one with the least squared error, rounding and clipping together
    ``entropy``    the one whose grid keeps most of the distribution, by Kullback-Leibler divergence
    ============== ============================================================================

All four read one histogram of magnitudes.

Sources: Migacz 2017, "8-bit inference with TensorRT" (entropy); torch's histogram observer (mse) in idea.
"""

import numpy as np
import torch
from torch import Tensor

from reference.quantization.activations import ActivationSpec

#: Bins of the histogram, and of the entropy rule's search.
BINS = 2048
RULES = ("max", "percentile", "mse", "entropy")


class MagnitudeHistogram:
    """Counts of ``|x|`` in equal bins from zero, over calibration batches.

    A larger value than the range doubles the range and joins the bins in pairs, so that no count is moved to a
    bin where it does not belong; at least half of the bins are in use.

    Attributes:
        counts: int64 ``[BINS]``.
        limit: upper end of the last bin; 0 before the first value above zero.
        largest: the largest magnitude.

    Example:
        >>> histogram = MagnitudeHistogram()
        >>> histogram.add(torch.tensor([1.0, -3.0]))
        >>> histogram.add(torch.tensor([10.0]))  # the range doubles twice: 3, 6, 12
        >>> histogram.largest, round(histogram.limit), int(histogram.counts.sum())
        (10.0, 12, 3)

    Chapter: quantization/activations
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(BINS, dtype=torch.int64)
        self.limit = 0.0
        self.largest = 0.0

    def add(self, inputs: Tensor, name: str = "inputs") -> None:
        """Take in values of any shape.

        Raises:
            ValueError: NaN or infinite values, by ``name``; nothing is added then.
        """
        values = inputs.detach().float().abs().flatten()
        if not torch.isfinite(values).all():
            raise ValueError(f"{name} holds NaN or infinite activations; the model overflows before this layer")
        if not values.numel():
            return
        largest = values.max().item()
        self.largest = max(self.largest, largest)
        if largest == 0:  # the first bin, whatever the range
            self.counts[0] += len(values)
            return
        if self.limit == 0:
            self.limit = largest * (1 + 2**-20)  # the largest value lies below the end
        while largest >= self.limit:
            self.limit *= 2
            self.counts = torch.cat((self.counts.reshape(-1, 2).sum(1), self.counts.new_zeros(BINS // 2)))
        bins = (values.double() * (BINS / self.limit)).long()
        self.counts += torch.bincount(bins, minlength=BINS).cpu()

    @property
    def centres(self) -> Tensor:
        """float64 ``[BINS]``."""
        return (torch.arange(BINS, dtype=torch.float64) + 0.5) * self.limit / BINS


def threshold(histogram: MagnitudeHistogram, rule: str, spec: ActivationSpec, *, percentile: float = 99.99) -> float:
    """The magnitude to clip at, for :func:`reference.quantization.activations.scale_of`.

    Args:
        histogram: of the calibration activations.
        rule: one of :data:`RULES`.
        spec: bits; the errors of a rule depend on them.
        percentile: above 0, at most 100, of the rule of that name.

    Returns:
        A positive number, at most the largest magnitude; 0 if nothing but zeros was seen.

    Raises:
        ValueError: an unknown rule, or ``percentile`` out of range.

    Example:
        >>> histogram = MagnitudeHistogram()
        >>> histogram.add(torch.tensor([1.0] * 999 + [100.0]))  # one outlier in a thousand
        >>> threshold(histogram, "max", ActivationSpec())
        100.0
        >>> round(threshold(histogram, "percentile", ActivationSpec(), percentile=99))
        1

    Chapter: quantization/activations
    """
    if rule not in RULES:
        raise ValueError(f"rule is {rule!r}; it may be {', '.join(RULES)}")
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile is {percentile}; it may be above 0 and at most 100")
    if histogram.limit == 0 or rule == "max":
        return histogram.largest
    if rule == "percentile":
        return _percentile(histogram, percentile)
    return _least_error(histogram, spec) if rule == "mse" else _least_divergence(histogram, spec)


def _percentile(histogram: MagnitudeHistogram, percentile: float) -> float:
    below = histogram.counts.cumsum(0).double() / histogram.counts.sum()
    first = int((below < percentile / 100 - 1e-12).sum())  # the bin in which the share is reached
    return min((first + 1) * histogram.limit / BINS, histogram.largest)


def _least_error(histogram: MagnitudeHistogram, spec: ActivationSpec) -> float:
    """Try every upper end of a bin; values stand at the centres of their bins."""
    centres, counts = histogram.centres, histogram.counts.double()
    ends = (torch.arange(1, BINS + 1, dtype=torch.float64) * histogram.limit / BINS).clamp(max=histogram.largest)
    best, least = histogram.largest, torch.inf
    for part in ends.split(256):
        step = part[:, None] / spec.steps
        error = ((centres / step).round().clamp(max=spec.highest) * step - centres).square() @ counts
        if error.min() < least:
            best, least = part[error.argmin()].item(), error.min().item()
    return best


def _least_divergence(histogram: MagnitudeHistogram, spec: ActivationSpec) -> float:
    r"""Threshold at the end of bin :math:`i` with the least :math:`\mathrm{KL}(P_i \Vert Q_i)`.

    :math:`P_i`: the first :math:`i` bins, all that lies beyond added to the last. :math:`Q_i`: the same bins without
    that, joined into as many runs as the grid has magnitudes, each run's mass spread over its bins that are not empty.
    """
    counts = histogram.counts.double().numpy()
    levels = spec.highest + 1
    total, best, least = counts.sum(), BINS, np.inf
    for i in range(levels, BINS + 1):
        kept = counts[:i]
        tail = total - kept.sum()
        if tail == total or (tail and not kept[-1]):
            continue  # infinite: the tail falls on an empty bin
        starts = (np.arange(levels) * i + levels - 1) // levels  # first bin of each run
        filled = kept > 0
        mass, members = np.add.reduceat(kept, starts), np.add.reduceat(filled.astype(float), starts)
        spread = np.repeat(mass / np.maximum(members, 1), np.diff(starts, append=i))[filled]
        p = kept[filled]  # a copy
        p[-1] += tail  # the last bin is filled, or there is no tail
        divergence = float((p * np.log(p / total * kept.sum() / spread)).sum()) / total
        if divergence < least:
            best, least = i, divergence
    return min(best * histogram.limit / BINS, histogram.largest)
