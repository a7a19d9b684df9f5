"""What a user asks for, and whether a model is that."""

import math
import re
from collections.abc import Iterable
from typing import NamedTuple, Protocol, TypeVar

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


class Measured(Protocol):
    """What has been measured of a model.

    Example:
        >>> from types import SimpleNamespace
        >>> Target(max_loss=0.02, max_bytes=500).met(SimpleNamespace(rise=0.015, bytes=480))
        True

    Chapter: none (an interface)
    """

    @property
    def rise(self) -> float:
        """Rise of the perplexity, as a fraction."""

    @property
    def bytes(self) -> int:
        """Bytes on the disk."""


Found = TypeVar("Found", bound=Measured)


class Target(NamedTuple):
    """A limit on the loss and, if wanted, one on the size.

    ``max_loss``: largest rise of the perplexity, as a fraction, on the text where it rises most. ``max_bytes``: of the
    checkpoint's files, infinite for none.

    Example:
        >>> from types import SimpleNamespace
        >>> target = Target(max_loss=0.02)
        >>> target.met(SimpleNamespace(rise=0.02, bytes=10**12)), target.met(SimpleNamespace(rise=0.021, bytes=1))
        (True, False)

    Chapter: practice/quantization_workflow
    """

    max_loss: float
    max_bytes: float = math.inf

    def fits(self, bytes: float) -> bool:
        """Whether the files are small enough."""
        return bytes <= self.max_bytes

    def met(self, found: Measured) -> bool:
        """Whether both limits hold."""
        return self.fits(found.bytes) and found.rise <= self.max_loss


def make_target(
    max_loss: float, dense_bytes: int, *, max_bytes: float | None = None, min_ratio: float | None = None
) -> Target:
    """The target of a command: of several limits on the size the smallest counts.

    Args:
        max_loss: as of :class:`Target`.
        dense_bytes: of the files before.
        max_bytes: largest size, or None.
        min_ratio: least ratio of bytes before and after, above 1, or None.

    Returns:
        The limit on the size in bytes, infinite where none is given.

    Raises:
        ValueError: a limit is negative, zero, not finite, or ``min_ratio`` is not above 1.

    Example:
        >>> make_target(0.02, dense_bytes=1000, max_bytes=600, min_ratio=4)  # a quarter is less than 600
        Target(max_loss=0.02, max_bytes=250.0)

    Chapter: practice/quantization_workflow
    """
    if not 0 <= max_loss < math.inf:
        raise ValueError(f"max_loss is {max_loss}; it may be 0 or more, and finite")
    if max_bytes is not None and not 0 < max_bytes < math.inf:
        raise ValueError(f"max_bytes is {max_bytes}; it may be any positive number of bytes")
    if min_ratio is not None and not 1 < min_ratio < math.inf:
        raise ValueError(f"min_ratio is {min_ratio}; it may be any number above 1")
    limits = [max_bytes] if max_bytes is not None else []
    limits += [dense_bytes / min_ratio] if min_ratio is not None else []
    return Target(max_loss, min(limits, default=math.inf))


def best(found: Iterable[Found], target: Target) -> Found:
    """Of models that miss the target the one that misses by least: small enough first, then the least loss.

    Args:
        found: one or more.
        target: which limits. Where nothing is small enough the smallest is taken.

    Raises:
        ValueError: nothing was found.

    Example:
        >>> from types import SimpleNamespace
        >>> small, good = SimpleNamespace(rise=0.5, bytes=100), SimpleNamespace(rise=0.1, bytes=300)
        >>> [best([small, good], Target(0.02, max_bytes)).bytes for max_bytes in (400, 200)]
        [300, 100]

    Chapter: practice/quantization_workflow
    """
    every = list(found)
    if not every:
        raise ValueError("found is empty; it must hold one model or more")
    small = [one for one in every if target.fits(one.bytes)]
    if small:
        return min(small, key=lambda one: (one.rise, one.bytes))
    return min(every, key=lambda one: (one.bytes, one.rise))


def fraction(text: str, name: str) -> float:
    """A share as people write it: ``"2%"``, ``"2 %"`` or ``"0.02"``.

    Args:
        text: a percentage, or a number from 0 to below 1.
        name: of the argument, for the error.

    Raises:
        ValueError: it is neither. A bare number of 1 or more is refused, since ``2`` could mean 2 % or 200 %.

    Example:
        >>> fraction("2%", "max_loss"), fraction("0.02", "max_loss")
        (0.02, 0.02)
        >>> fraction("2", "max_loss")
        Traceback (most recent call last):
            ...
        ValueError: max_loss is '2'; write 2% for a percentage, or a number below 1

    Chapter: none (reads arguments)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(%?)\s*", text)
    if match is None:
        raise ValueError(f"{name} is {text!r}; it may be a percentage such as 2%, or a number such as 0.02")
    value = float(match[1])
    if match[2]:
        return value / 100
    if value >= 1:
        raise ValueError(f"{name} is {text!r}; write {match[1]}% for a percentage, or a number below 1")
    return value


def byte_count(text: str, name: str) -> int:
    """A size as people write it: ``"5000000"``, ``"5MB"`` or ``"4.2 GB"``, units of a thousand.

    Args:
        text: a number, with a unit or without.
        name: of the argument, for the error.

    Raises:
        ValueError: it is none, with ``name``, the argument's.

    Example:
        >>> byte_count("4.5 MB", "max_bytes"), byte_count("300k", "max_bytes")
        (4500000, 300000)

    Chapter: none (reads arguments)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([kKMG]?B?)\s*", text)
    unit = "" if match is None else match[2].upper()
    unit = f"{unit}B" if unit in ("K", "M", "G") else unit
    if match is None or not float(match[1]):
        raise ValueError(f"{name} is {text!r}; it may be a number of bytes, or one with kB, MB or GB, such as 4.5MB")
    return int(float(match[1]) * _UNITS[unit])
