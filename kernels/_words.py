"""Codes out of the 32-bit words that hold them."""

# mypy: allow-untyped-defs
from __future__ import annotations

from ._triton import jit, tl


@jit
def codes_of(words, WIDTH: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr):
    """Codes of WIDTH bits (8, 4, 2 or 1), first in the lowest bits of each word, in order: ``[OUTPUTS, COLUMNS]``.

    ``join`` keeps a word's codes in the thread that loaded it: no way through shared memory before unpacking.
    """
    words = tl.join(words, words >> 16)
    words = tl.join(words, words >> 8)
    if WIDTH <= 4:
        words = tl.join(words, words >> 4)
    if WIDTH <= 2:
        words = tl.join(words, words >> 2)
    if WIDTH == 1:
        words = tl.join(words, words >> 1)
    return tl.reshape(words, (OUTPUTS, COLUMNS)) & ((1 << WIDTH) - 1)
