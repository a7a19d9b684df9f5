"""Byte-level n-gram with Witten–Bell smoothing: the baseline that a neural model must beat."""

import numpy as np


class Ngram:
    """Interpolated n-gram over bytes.

    ``P_k(c | h) = (N(hc) + T(h) P_{k-1}(c | h')) / (N(h) + T(h))`` with ``T(h)`` the number of
    different bytes seen after ``h`` (Witten and Bell 1991), down to the uniform distribution.

    Args:
        text: training bytes.
        order: bytes of context.
    """

    def __init__(self, text: bytes, order: int) -> None:
        self.order = order
        data = np.frombuffer(text, np.uint8).astype(np.uint64)
        self.tables = []
        for k in range(order + 1):
            grams, counts = np.unique(_keys(data, k + 1), return_counts=True)
            contexts, first = np.unique(grams >> np.uint64(8), return_index=True)
            totals = np.add.reduceat(counts, first)
            kinds = np.diff(np.append(first, len(grams)))
            self.tables.append((grams, counts, contexts, totals, kinds))

    def bits(self, text: bytes) -> float:
        """Bits that the model spends on ``text``."""
        data = np.frombuffer(text, np.uint8).astype(np.uint64)
        probability = np.full(len(data), 1 / 256)
        for k, (grams, counts, contexts, totals, kinds) in enumerate(self.tables):
            keys = _keys(data, k + 1)
            seen = _look_up(contexts, totals, keys >> np.uint64(8))
            different = _look_up(contexts, kinds, keys >> np.uint64(8))
            here = _look_up(grams, counts, keys)
            lower = probability[k:]
            probability[k:] = np.where(seen > 0, (here + different * lower) / np.maximum(seen + different, 1), lower)
        return float(-np.log2(probability).sum())


def _keys(data: np.ndarray, length: int) -> np.ndarray:
    """Every run of ``length`` bytes as one integer, oldest byte highest."""
    keys = np.zeros(len(data) - length + 1, np.uint64)
    for offset in range(length):
        keys = (keys << np.uint64(8)) | data[offset : offset + len(keys)]
    return keys


def _look_up(known: np.ndarray, values: np.ndarray, keys: np.ndarray) -> np.ndarray:
    position = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return np.where(known[position] == keys, values[position], 0)
