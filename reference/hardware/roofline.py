r"""Bytes and operations of a linear layer, and the time that a roofline gives it.

A layer reads its weight and its inputs, writes its outputs, and multiplies. Either the memory or the arithmetic takes
longer, and the other hides behind it, so that

.. math:: t(M) = \max\left(\frac{a + b M}{\beta},\ \frac{2 M N K}{\pi}\right)

with ``a`` bytes of weight, ``b`` bytes for each of ``M`` rows of activations, bandwidth β and rate π
(Williams et al. 2009). It is a lower bound of the time: no kernel runs faster, many run slower.
"""

import itertools
import math
from dataclasses import dataclass

from .devices import Device


@dataclass(frozen=True)
class Scheme:
    """In how many bits a layer is stored, and in which arithmetic it computes.

    Args:
        name: such as "W4A16".
        weight_bits: bits of a weight's code.
        activation_bits: bits of an input as the matrix product reads it; outputs are 16-bit.
        arithmetic: key of `Device.rates` at which products run. Where weights have fewer bits than it takes,
            they are widened on the way, which costs instructions that the roofline does not count.
        group_size: columns of a row that share a scale; None: the whole row.
        scale_bits: bits of a weight's scale; 0 for unquantised weights.
        zero_bits: bits of a zero point; 0 for symmetric grids.
        token_scale_bits: bits of the scale of one row of activations; 0 for none.
        cache_bits: bits of one number of the key-value cache.

    Raises:
        ValueError: a width is negative, or ``group_size`` is not positive.

    Example:
        >>> scheme = Scheme("W4A16", 4, 16, "16-bit", group_size=128, scale_bits=16)
        >>> scheme.bits_per_weight(columns=4096)
        4.125

    Chapter: advanced/hardware_aware
    """

    name: str
    weight_bits: float
    activation_bits: float
    arithmetic: str
    group_size: int | None = None
    scale_bits: int = 0
    zero_bits: int = 0
    token_scale_bits: int = 0
    cache_bits: float = 16

    def __post_init__(self) -> None:
        for field in ("weight_bits", "activation_bits", "cache_bits"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{field} is {getattr(self, field)}; it may be positive")
        for field in ("scale_bits", "zero_bits", "token_scale_bits"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field} is {getattr(self, field)}; it may be 0 or more")
        if self.group_size is not None and self.group_size < 1:
            raise ValueError(f"group_size is {self.group_size}; it may be 1 or more, or None for the whole row")

    def bits_per_weight(self, columns: int) -> float:
        """Bits of a weight, its share of scale and zero point included, in rows of ``columns`` weights."""
        groups = math.ceil(columns / (self.group_size or columns))
        return self.weight_bits + (self.scale_bits + self.zero_bits) * groups / columns


#: Weights in groups of 128 with bf16 scale and zero point where they have four bits or fewer; eight bits per channel.
SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("W16A16", 16, 16, "16-bit"),
        Scheme("W8A8", 8, 8, "int8", scale_bits=32, token_scale_bits=32),
        Scheme("W4A16", 4, 16, "16-bit", group_size=128, scale_bits=16, zero_bits=16),
        Scheme("W4A8", 4, 8, "int8", group_size=128, scale_bits=16, zero_bits=16, token_scale_bits=32),
        Scheme("W4A4", 4, 4, "int4", group_size=128, scale_bits=16, zero_bits=16, token_scale_bits=32),
        Scheme("W3A16", 3, 16, "16-bit", group_size=128, scale_bits=16, zero_bits=16),
        Scheme("W2A16", 2, 16, "16-bit", group_size=128, scale_bits=16, zero_bits=16),
    )
}


@dataclass(frozen=True)
class Work:
    """What one call asks of a device.

    Example:
        >>> work = Work(weight_bytes=900.0, activation_bytes=100.0, operations=2000.0, arithmetic="16-bit")
        >>> work.bytes, work.intensity
        (1000.0, 2.0)

    Chapter: advanced/hardware_aware
    """

    weight_bytes: float
    activation_bytes: float
    operations: float
    arithmetic: str

    @property
    def bytes(self) -> float:
        """All bytes, each once."""
        return self.weight_bytes + self.activation_bytes

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.operations / self.bytes


def linear(scheme: Scheme, rows: float, outputs: int, columns: int) -> Work:
    r"""Work of :math:`Y = X W^\top` with ``rows`` rows of ``X``: every byte moved once.

    ================  =====================================================================
    what              bytes
    ================  =====================================================================
    weight            ``outputs · columns · bits / 8``, plus scale and zero point of each group
    ``X``             ``rows · columns · activation_bits / 8``, plus a scale for each row
    ``Y``             ``rows · outputs · 2``
    ================  =====================================================================

    Operations are ``2 · rows · outputs · columns``. What it costs to quantise ``X`` is not in here.

    Args:
        scheme: of the weight and its inputs.
        rows: of ``X``, the tokens that are computed at once.
        outputs: rows of ``W``.
        columns: of ``W`` and ``X``.

    Raises:
        ValueError: a size is not positive.

    Source: Williams et al. 2009.

    Example:
        >>> one, many = (linear(SCHEMES["W16A16"], rows, 4096, 4096) for rows in (1, 1024))
        >>> one.weight_bytes == many.weight_bytes == 2 * 4096**2
        True
        >>> round(one.intensity, 1), round(many.intensity)  # operations a byte
        (1.0, 683)

    Chapter: advanced/hardware_aware
    """
    for name, value in (("rows", rows), ("outputs", outputs), ("columns", columns)):
        if not value > 0:
            raise ValueError(f"{name} is {value}; it may be positive")
    weight = outputs * columns * scheme.bits_per_weight(columns) / 8
    row = columns * scheme.activation_bits / 8 + 2 * outputs + scheme.token_scale_bits / 8
    return Work(weight, rows * row, 2.0 * rows * outputs * columns, scheme.arithmetic)


def seconds(work: Work, device: Device, *, memory_efficiency: float = 1.0, rate_efficiency: float = 1.0) -> float:
    """The roofline's time: the larger of bytes over bandwidth and operations over rate.

    Args:
        work: of a layer or of several, see `linear`.
        device: its ceilings.
        memory_efficiency: fraction of the bandwidth that a kernel reaches, in (0, 1].
        rate_efficiency: fraction of the rate that it reaches, in (0, 1].

    Returns:
        Seconds, at least.

    Raises:
        ValueError: an efficiency is outside (0, 1], or the device lacks the arithmetic.

    Example:
        >>> toy = Device("toy", bandwidth=1e9, rates={"16-bit": 1e12})
        >>> few, many = Work(1e9, 0.0, 1e9, "16-bit"), Work(1e9, 0.0, 5e12, "16-bit")
        >>> seconds(few, toy), seconds(many, toy)  # memory decides, then arithmetic
        (1.0, 5.0)

    Chapter: advanced/hardware_aware
    """
    slope, ceiling = _ceilings(device, work.arithmetic, memory_efficiency, rate_efficiency)
    return max(work.bytes / slope, work.operations / ceiling)


def issue_seconds(instructions: float, device: Device, *, lanes: int = 128) -> float:
    """The third ceiling: time to issue ``instructions``, counted for each lane, if every cycle issues as many as it can.

    A multiprocessor of the listed GPUs starts four instructions a cycle, each for 32 lanes. Conversions and loads take
    more cycles than one, so this too is a lower bound.

    Args:
        instructions: of all lanes together: instructions per weight times weights.
        device: with multiprocessors and a clock.
        lanes: lanes whose instruction one multiprocessor issues in a cycle.

    Returns:
        Seconds, at least.

    Raises:
        ValueError: the device has no multiprocessors or no clock.

    Example:
        >>> toy = Device("toy", bandwidth=1e9, rates={}, multiprocessors=10, clock=1e9)
        >>> issue_seconds(3 * 1.28e12, toy)  # 10 · 128 · 10⁹ lanes a second
        3.0

    Chapter: advanced/kernels
    """
    if device.multiprocessors is None or device.clock is None:
        raise ValueError(f"{device.name} has no number of multiprocessors or no clock")
    return instructions / (device.multiprocessors * lanes * device.clock)


def ridge(scheme: Scheme, device: Device, outputs: int, columns: int) -> float:
    """Rows of activations up to which memory is the limit and beyond which arithmetic is; infinite if it never is.

    Solves ``(a + b M) / bandwidth = 2 M N K / rate``.

    Args:
        scheme: of the layer.
        device: its ceilings.
        outputs: N of the layer.
        columns: K of the layer.

    Returns:
        A number of rows, not a whole one.

    Raises:
        ValueError: the device lacks the arithmetic.

    Example:
        >>> from reference.hardware.devices import device
        >>> round(ridge(SCHEMES["W16A16"], device("H100 SXM"), 4096, 4096))  # rows
        345
        >>> toy = Device("toy", bandwidth=1e9, rates={"16-bit": 1e15})
        >>> ridge(SCHEMES["W16A16"], toy, 64, 64)  # arithmetic that is never waited for
        inf

    Chapter: advanced/hardware_aware
    """
    a, b, c = _lines(scheme, device, outputs, columns, 1.0, 1.0)
    return a / (c - b) if c > b else math.inf


def crossovers(
    first: Scheme,
    second: Scheme,
    device: Device,
    outputs: int,
    columns: int,
    *,
    memory_efficiency: tuple[float, float] = (1.0, 1.0),
    rate_efficiency: tuple[float, float] = (1.0, 1.0),
) -> list[float]:
    """Numbers of rows, not whole ones, at which the two schemes change places; usually one, or none.

    Each time is the maximum of a line ``(a + b M) / bandwidth`` and a line ``c M`` through the origin. Two such
    curves can only meet where one line of the first crosses one line of the second, so there are at most four
    candidates; those are kept at which both lines are the higher of their pair, and the order really changes.

    Args:
        first: a scheme.
        second: another.
        device: its ceilings.
        outputs: N of the layer.
        columns: K of the layer.
        memory_efficiency: fractions of the bandwidth, for the first and the second.
        rate_efficiency: fractions of the rate.

    Returns:
        Ascending; touching without changing places does not count.

    Example:
        >>> from reference.hardware.devices import device
        >>> first, second = SCHEMES["W4A16"], SCHEMES["W8A8"]
        >>> [rows] = crossovers(first, second, device("H100 SXM"), 4096, 4096)
        >>> 100 < rows < 300  # fewer bytes win below, the faster arithmetic above
        True

    Chapter: advanced/hardware_aware
    """
    pair = [
        _lines(scheme, device, outputs, columns, memory, rate)
        for scheme, memory, rate in zip((first, second), memory_efficiency, rate_efficiency, strict=True)
    ]

    def difference(rows: float) -> float:
        times = [max(a + b * rows, c * rows) for a, b, c in pair]
        return times[0] - times[1]

    lines = [((a, b), (0.0, c)) for a, b, c in pair]
    found = set()
    for a1, b1 in lines[0]:
        for a2, b2 in lines[1]:
            if b1 != b2 and (rows := (a2 - a1) / (b1 - b2)) > 0:
                scale = sum(max(a + b * rows, c * rows) for a, b, c in pair)
                if abs(difference(rows)) <= 1e-9 * scale:
                    found.add(rows)
    ordered = sorted(found)
    edges = [0.0, *ordered, 2 * ordered[-1] if ordered else 1.0]
    middles = [(low + high) / 2 for low, high in itertools.pairwise(edges)]
    around = zip(ordered, itertools.pairwise(middles), strict=True)
    return [rows for rows, (low, high) in around if difference(low) * difference(high) < 0]


def _lines(
    scheme: Scheme, device: Device, outputs: int, columns: int, memory: float, rate: float
) -> tuple[float, float, float]:
    """Seconds: of the weight, of a row's bytes, of a row's operations."""
    one = linear(scheme, 1, outputs, columns)
    slope, ceiling = _ceilings(device, scheme.arithmetic, memory, rate)
    return one.weight_bytes / slope, one.activation_bytes / slope, one.operations / ceiling


def _ceilings(device: Device, arithmetic: str, memory: float, rate: float) -> tuple[float, float]:
    for name, value in (("memory_efficiency", memory), ("rate_efficiency", rate)):
        if not 0 < value <= 1:
            raise ValueError(f"{name} is {value}; it may be above 0 and at most 1")
    return device.bandwidth * memory, device.rate(arithmetic) * rate
