"""What a public function launches, as variants to compile: types, alignment and constants are those of a real launch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature
from variant import Variant

from reference.kernels import _checks

#: Fields of a variant from the constants of the launch.
Facts = Callable[[dict[str, Any]], dict[str, Any]]


@contextmanager
def recorded() -> Iterator[list[tuple[Any, dict[str, str], dict[str, Any], frozenset[str], int, int]]]:
    """Launches within do not run but are listed: kernel, types, constants, aligned arguments, warps, stages.

    Tensors may lie on the CPU. Small whole numbers that Triton would take for constants (1) count as such here too.
    """
    found: list[tuple[Any, dict[str, str], dict[str, Any], frozenset[str], int, int]] = []
    backend = make_backend(GPUTarget("cuda", 90, 32))
    run, interpreted = JITFunction.run, _checks.INTERPRETED

    def record(self, *args, grid, warmup, **options):
        options["debug"] = False
        bind = create_function_from_signature(self.signature, self.params, backend)
        bound, specialization, rest = bind(*args, **options)
        rest, signature, constants, attributes = self._pack_args(backend, options, bound, specialization, rest)
        names = list(signature)
        constant = {names[path[0]]: value for path, value in constants.items()}
        aligned = frozenset(names[path[0]] for path, values in attributes.items() if ["tt.divisibility", 16] in values)
        types = {name: kind for name, kind in signature.items() if name not in constant}
        found.append((self, types, constant, aligned, rest.num_warps, rest.num_stages))

    try:
        JITFunction.run = record
        _checks.INTERPRETED = triton.language.constexpr(True)  # lets tensors on the CPU pass
        yield found
    finally:
        JITFunction.run, _checks.INTERPRETED = run, interpreted


def launched(name: str, call: Callable[..., Any], *arguments: Any, facts: Facts, **options: Any) -> Iterator[Variant]:
    """Variants of the kernels that ``call`` launches; ``facts`` are of the last one, sums over splits left out."""
    with recorded() as found:
        call(*arguments, **options)
    kernels = [launch for launch in found if launch[0].fn.__name__ != "add_splits"]
    for kernel, types, constants, aligned, warps, stages in kernels[-1:]:
        yield Variant(name, kernel, types, constants, aligned, warps, stages, **facts(constants))


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype)  # no page of it is touched
