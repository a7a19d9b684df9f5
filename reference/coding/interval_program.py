"""The dynamic program behind optimal k-means: cut a sorted line into intervals of least squared error."""

import numpy as np
from numba import njit


def best_cuts(x: np.ndarray, weight: np.ndarray, k: int) -> np.ndarray:
    """First index of each interval of the best division into exactly ``k``.

    Args:
        x: float64 ``[n]``, strictly ascending; centred, as sums of squares cancel otherwise.
        weight: float64 ``[n]``, how often each value occurs.
        k: intervals, ``1 <= k <= n``.

    Returns:
        int64 ``[k]``, ascending, starting with 0.

    Source: Grønlund et al. 2017, "Fast exact k-means, k-medians and Bregman divergence clustering in 1D".

    Example:
        >>> best_cuts(np.array([-5.0, -4.0, 0.0, 4.0, 5.0]), np.ones(5), 3)
        array([0, 2, 3])

    Chapter: pruning/deep_compression
    """
    w, s, q = (np.concatenate([[0.0], np.cumsum(weight * x**power)]) for power in range(3))
    starts = _fill(w, s, q, k)
    cuts = np.zeros(k, np.int64)
    end = len(x)
    for row in range(k - 1, 0, -1):
        end = starts[row, end]
        cuts[row] = end
    return cuts


@njit(cache=True)
def _cost(w: np.ndarray, s: np.ndarray, q: np.ndarray, i: int, m: int) -> float:
    """Squared error of values i to m − 1 around their mean."""
    total = s[m] - s[i]
    return max(0.0, q[m] - q[i] - total * total / (w[m] - w[i]))


@njit(cache=True)
def _fill(w: np.ndarray, s: np.ndarray, q: np.ndarray, k: int) -> np.ndarray:
    """``starts[j, m]``: where the last of j + 1 intervals over the first m values begins."""
    n = len(w) - 1
    starts = np.zeros((k, n + 1), np.int32)
    previous = np.empty(n + 1)
    previous[0] = 0.0
    for m in range(1, n + 1):
        previous[m] = _cost(w, s, q, 0, m)
    stack = np.empty((128, 4), np.int64)
    for row in range(1, k):
        current = np.full(n + 1, np.inf)
        stack[0] = (row + 1, n, row, n - 1)
        height = 1
        while height:
            height -= 1
            low, high, first, last = stack[height]
            if low > high:
                continue
            m = (low + high) // 2
            best, where = np.inf, first
            for i in range(first, min(last, m - 1) + 1):
                value = previous[i] + _cost(w, s, q, i, m)
                if value < best:
                    best, where = value, i
            current[m] = best
            starts[row, m] = where
            stack[height] = (low, m - 1, first, where)
            stack[height + 1] = (m + 1, high, where, last)
            height += 2
        previous = current
    return starts
