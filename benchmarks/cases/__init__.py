"""What `benchmarks/kernels.py` measures: every module here gives `cases(quick)`.

A case says how many bytes and operations its product needs, and builds the calls to compare: our kernel first, then
variants of it and peers. Building allocates on the device that it is given; listing cases allocates nothing.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Call = Callable[[int], Any]

#: (outputs N, columns K) of the linear layers of Llama-2-7B, -13B and -70B.
SHAPES = {
    "7B attention": (4096, 4096),
    "7B up": (11008, 4096),
    "7B down": (4096, 11008),
    "13B attention": (5120, 5120),
    "13B up": (13824, 5120),
    "70B attention": (8192, 8192),
    "70B up": (28672, 8192),
    "70B down": (8192, 28672),
}
QUICK_SHAPES = {name: SHAPES[name] for name in ("7B attention", "7B up")}


@dataclass(frozen=True)
class Built:
    """Calls on tensors that exist.

    Attributes:
        calls: by name; the first is our kernel through its public function. ``call(i)`` works on copy ``i`` and
            does not wait for the device.
        expected: float64, what ``call(0)`` returns; of integers or bits the exact tensor.
        bound: ``‖y - expected‖ / ‖expected‖`` allowed; 0: equal in every element.
        bounds: other bounds, by call name (peers that round more).
        refused: calls that are not here, and why.
        compared: makes of a call's result what is compared with ``expected``; not part of the time.
    """

    calls: dict[str, Call]
    expected: Tensor
    bound: float
    bounds: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    compared: Callable[[Any], Tensor] = lambda result: result


@dataclass(frozen=True)
class Case:
    """One problem.

    Attributes:
        kernel: name of our kernel, and of the first call.
        shape: sizes by name.
        options: group size, types, density: what else defines the problem.
        bytes: that must move, each tensor once.
        flops: multiplications and additions.
        rotated: bytes of one copy of what must come from memory; so many copies are made that they exceed the L2 cache.
        build: makes the tensors of so many copies and the calls.
        capture: False where a call waits for the device: then it is timed without a CUDA graph.
    """

    kernel: str
    shape: dict[str, int]
    options: dict[str, object]
    bytes: int
    flops: int
    rotated: int
    build: Callable[[torch.device, torch.Generator, int], Built]
    capture: bool = True

    @property
    def name(self) -> str:
        return " ".join([self.kernel, *(f"{k}={v}" for k, v in (self.shape | self.options).items())])


def peer(calls: dict[str, Call], refused: dict[str, str], name: str, make: Callable[[], Call]) -> None:
    """Add a call if it can be made and runs once on copy 0; otherwise note why not."""
    try:
        call = make()
        call(0)
    except Exception as error:  # another library, with reasons of its own
        refused[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    else:
        calls[name] = call


def rounding(dtype: torch.dtype) -> float:
    """Relative error that rounding a result to ``dtype`` may cost, plus that of fp32 sums."""
    return torch.finfo(dtype).eps / 2 + 4e-6


FIRST = ("w4a16", "w8a8", "quantize_activations", "codebook", "huffman")
SMALL = {"M": 20, "N": 80, "K": 512}


def all_cases(quick: bool, kind: str = "", small: bool = False) -> Iterator[Case]:
    """Cases of the modules of this folder whose names end in ``kind`` ("": neither ``_sweep`` nor ``_steps``).

    ``small``: one case of each kernel and set of options, with sizes that the interpreter can do: modules are asked
    by ``small_cases()`` where they have it.
    """
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    names = [n for n in names if n.endswith(kind) and (kind or not n.endswith(("_sweep", "_steps")))]
    for name in sorted(names, key=lambda n: (FIRST.index(n) if n in FIRST else len(FIRST), n)):
        module = importlib.import_module(f"{__name__}.{name}")
        yield from module.small_cases() if small else module.cases(quick)
