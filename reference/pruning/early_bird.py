"""Early-bird tickets: stop training the dense network when the mask that one would draw from it no longer changes.

Two masks are compared by their normalised Hamming distance. Mind its scale: two masks of density d that have nothing
to do with each other differ in a share 2 d (1 - d) of their positions, not in half of them. With few weights kept any
two masks are near, and a threshold made for half of the channels is met by chance; :func:`chance_distance` tells.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from reference.pruning import magnitude
from reference.pruning.densities import check_density

Masks = Mapping[str, Tensor]
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def channel_masks(model: nn.Module, ratio: float) -> dict[str, Tensor]:
    """Keep the channels with the largest batch-norm scale, ranked over all batch norms of a network.

    Args:
        model: with affine batch norms.
        ratio: fraction of all channels removed, ``0 <= ratio < 1``.

    Returns:
        Name of the batch norm → bool ``[channels]``, True where kept. As in the authors' code, what does not *exceed*
        the threshold goes: one channel more than ``int(ratio · n)``, and all that equal it. At the start all scales
        are equal, and nothing would be kept.

    Raises:
        ValueError: ``ratio`` is out of range, or the model has no affine batch norm.

    Source: Liu et al. 2017, "Learning efficient convolutional networks through network slimming", section 3, for the
    criterion; You et al. 2020, section 3.

    Example:
        >>> norm = nn.BatchNorm1d(4)
        >>> norm.weight.data = torch.tensor([0.9, 0.1, 0.2, 0.8])
        >>> channel_masks(nn.Sequential(norm), 0.25)  # int(0.25 · 4), and one channel more
        {'0': tensor([ True, False, False,  True])}

    Chapter: pruning/lottery_ticket
    """
    scales = {
        name: module.weight.detach()
        for name, module in model.named_modules()
        if isinstance(module, NORMS) and module.affine
    }
    if not scales:
        raise ValueError("model has no affine batch norm, whose scales could rank channels")
    return magnitude.global_masks(scales, ratio, count_rule="floor_plus_one", tie_rule="all", min_keep=0)


def mask_distance(first: Masks, second: Masks) -> float:
    """Share of positions at which two masks differ (normalised Hamming distance).

    Args:
        first, second: name → bool, same names and shapes.

    Returns:
        0 for equal masks, to 1 for opposite ones; masks of one density d differ by at most ``2 min(d, 1 - d)``.

    Raises:
        ValueError: names, shapes or types differ, or there is nothing to compare.

    Source: You et al. 2020, section 3.2.

    Example:
        >>> first = {"norm": torch.tensor([True, True, False, False])}
        >>> second = {"norm": torch.tensor([True, False, True, False])}
        >>> mask_distance(first, second)
        0.5

    Chapter: pruning/lottery_ticket
    """
    if set(first) != set(second):
        raise ValueError(f"first names {sorted(first)} and second {sorted(second)}; they must be the same")
    differing = total = 0
    for name, mask in first.items():
        other = second[name]
        if mask.shape != other.shape or mask.dtype != torch.bool or other.dtype != torch.bool:
            raise ValueError(
                f"masks {name!r} are {mask.dtype} {tuple(mask.shape)} and {other.dtype} {tuple(other.shape)}; "
                "they must be bool of one shape"
            )
        differing += int((mask ^ other).sum())
        total += mask.numel()
    if not total:
        raise ValueError("first and second hold no positions to compare")
    return differing / total


def chance_distance(density: float) -> float:
    """Expected distance of two masks of one density that are drawn independently: ``2 d (1 - d)``.

    Args:
        density: fraction kept, ``0 < density <= 1``.

    Raises:
        ValueError: ``density`` is out of range.

    Example:
        >>> chance_distance(0.5)
        0.5

    Chapter: pruning/lottery_ticket
    """
    check_density(density)
    return 2 * density * (1 - density)


def distances(masks: Sequence[Masks]) -> np.ndarray:
    """Distances of all pairs of masks, those of successive epochs next to the diagonal.

    Args:
        masks: one an epoch.

    Returns:
        float64 ``[epochs, epochs]``, symmetric, zeros on the diagonal.

    Raises:
        ValueError: as :func:`mask_distance`.

    Source: You et al. 2020, figure 3.

    Example:
        >>> epochs = [{"norm": torch.tensor(bits) == 1} for bits in ([1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 0])]
        >>> distances(epochs).tolist()
        [[0.0, 0.5, 0.5], [0.5, 0.0, 0.0], [0.5, 0.0, 0.0]]

    Chapter: pruning/lottery_ticket
    """
    table = np.zeros((len(masks), len(masks)))
    for row in range(len(masks)):
        for column in range(row):
            table[row, column] = table[column, row] = mask_distance(masks[row], masks[column])
    return table


def first_stable(table: np.ndarray, *, window: int = 5, threshold: float = 0.1) -> int | None:
    """The epoch at which an early-bird ticket is drawn: its mask is near all those of the window before it.

    Args:
        table: of :func:`distances`.
        window: masks in the queue, the newest included, 2 or more; the newest is compared with each of the others.
        threshold: largest distance that counts as near, 0 to 1.

    Returns:
        Index of the first epoch whose last ``window - 1`` predecessors are all within ``threshold``, or None.

    Raises:
        ValueError: ``table`` is not square, or an argument is out of range.

    Source: You et al. 2020, algorithm 1, and the authors' code: a queue of 5 masks, threshold 0.1.

    Example:
        >>> table = np.array([[0.0, 0.5, 0.5], [0.5, 0.0, 0.05], [0.5, 0.05, 0.0]])
        >>> first_stable(table, window=2)
        2
        >>> first_stable(table, window=3) is None  # epoch 2 is still far from epoch 0
        True

    Chapter: pruning/lottery_ticket
    """
    if table.ndim != 2 or table.shape[0] != table.shape[1]:
        raise ValueError(f"table is {table.shape}; it must be square, epochs by epochs")
    if window < 2 or not 0 <= threshold <= 1:
        raise ValueError(f"window is {window} and threshold {threshold}; they may be 2 or more, and 0 to 1")
    for epoch in range(window - 1, len(table)):
        if (table[epoch, epoch - window + 1 : epoch] <= threshold).all():
            return epoch
    return None
