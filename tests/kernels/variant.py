"""One way to compile a kernel, and what its machine code must show."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Variant:
    """A kernel with the types and constants of one launch.

    Attributes:
        name: kernel and settings, as the table prints it.
        kernel: the jitted function.
        types: Triton's type of each argument that is not a constant, such as ``*bf16`` or ``i32``.
        constants: values of the constant arguments.
        aligned: arguments that are multiples of 16, as Triton finds by itself at a launch.
        warps, stages: as launched.
        weights: that a program unpacks or multiplies in one turn of its loop; 0: instructions are not counted.
        most_instructions: allowed for each of them.
        stream: bytes of weight that a program loads in one turn, 16 at a time; 0: not looked at.
        matrix: by capability, what the PTX matrix instruction starts with; "": there may be none.
        capabilities: to compile for.
    """

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    aligned: frozenset[str]
    warps: int
    stages: int
    weights: int = 0
    most_instructions: float = 0.0
    stream: int = 0
    matrix: dict[int, str] = field(default_factory=dict)
    capabilities: tuple[int, ...] = (80, 90)
