"""Devices and their datasheets: the two ceilings of the roofline, from ``devices.json``."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("devices.json")


@dataclass(frozen=True)
class Device:
    """Nominal ceilings of one device: what its maker states, dense, without sparsity.

    Args:
        name: as in ``devices.json``.
        bandwidth: bytes per second between memory and chip.
        rates: arithmetic → operations per second, a multiplication and an addition counted as two:
            ``"16-bit"`` (fp16 or bf16 with fp32 sums), ``"int8"``, ``"fp8"``, ``"vector fp32"``
            (outside the matrix units). An arithmetic that is missing does not exist, or is not stated.
        memory: bytes, or None where it varies.
        last_cache: bytes of the last cache before memory, or None.
        multiprocessors: streaming multiprocessors or cores, or None.
        clock: cycles per second of the multiprocessors to which the rates belong, or None.
        kind: "GPU", "CPU", "laptop" or "phone".
        cite: keys of the book's bibliography.
        unchecked: names of fields that we could not compare with the source.

    Example:
        >>> toy = Device("toy", bandwidth=100e9, rates={"16-bit": 10e12})
        >>> toy.rate("16-bit") / toy.bandwidth  # operations that it can do for each byte that it can read
        100.0
        >>> toy.rate("int8")
        Traceback (most recent call last):
            ...
        ValueError: toy has no rate for 'int8'; it has 16-bit

    Chapter: advanced/hardware_aware
    """

    name: str
    bandwidth: float
    rates: Mapping[str, float]
    memory: float | None = None
    last_cache: float | None = None
    multiprocessors: int | None = None
    clock: float | None = None
    kind: str = "GPU"
    cite: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.bandwidth > 0:
            raise ValueError(f"bandwidth is {self.bandwidth}; it may be positive")
        for arithmetic, rate in self.rates.items():
            if not rate > 0:
                raise ValueError(f"rates[{arithmetic!r}] is {rate}; it may be positive")

    def rate(self, arithmetic: str) -> float:
        """Operations per second; ValueError where the device has no such arithmetic."""
        if arithmetic not in self.rates:
            raise ValueError(f"{self.name} has no rate for {arithmetic!r}; it has {', '.join(self.rates) or 'none'}")
        return self.rates[arithmetic]


@cache
def _read() -> dict[str, Device]:
    devices = {}
    for name, row in json.loads(FILE.read_text()).items():
        row.pop("notes", None)
        row["cite"], row["unchecked"] = tuple(row["cite"]), tuple(row["unchecked"])
        devices[name] = Device(name=name, **row)
    return devices


def devices() -> dict[str, Device]:
    """All devices of the data file, by name, in its order.

    Example:
        >>> [name for name, device in devices().items() if device.kind == "phone"]
        ['Snapdragon 8 Gen 3']

    Chapter: advanced/hardware_aware
    """
    return dict(_read())


def device(name: str) -> Device:
    """One device of the data file.

    Args:
        name: such as ``"H100 SXM"``.

    Returns:
        The same object at each call.

    Raises:
        ValueError: there is no such device.

    Example:
        >>> h100 = device("H100 SXM")
        >>> h100.bandwidth, round(h100.rate("int8") / h100.rate("16-bit"), 2)
        (3350000000000.0, 2.0)

    Chapter: advanced/hardware_aware
    """
    if name not in _read():
        raise ValueError(f"name is {name!r}; it may be one of {', '.join(_read())}")
    return _read()[name]
