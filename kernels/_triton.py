"""Triton, or a clear refusal: kernels can be imported where Triton has no wheel (macOS, Windows, Arm)."""

# mypy: allow-untyped-defs
from __future__ import annotations

from collections.abc import Callable
from typing import Any

try:
    import triton
    import triton.language as tl

    jit = triton.jit
    constexpr = tl.constexpr
    # True on CPU under TRITON_INTERPRET=1. `jit` reads the variable when it decorates, so both are fixed on import.
    INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
except ImportError:
    triton = tl = INTERPRETED = None

    def constexpr(value: Any) -> Any:
        return value

    def jit(function: Callable[..., Any]) -> Callable[..., Any]:
        return function


def require_triton() -> None:
    """Raise ImportError, saying what to install, where Triton is missing."""
    if triton is None:
        raise ImportError("the kernels run with Triton, which is not installed; on Linux: pip install 'triton>=3.6'")


@jit
def round_to(value, dtype: tl.constexpr):
    """fp32 to ``dtype``, to nearest even. The interpreter's own conversion to bf16 cuts the lower bits off."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return value.to(dtype)


@jit
def wait_for_previous():
    """For kernels launched with ``launch_pdl=True``: they start while the previous kernel ends, and wait here for it.

    Nothing may be read or written before. Launched otherwise, it does nothing.
    """
    if not INTERPRETED:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@jit
def prefetch_to_cache(pointers):
    """Ask for the line of the L2 cache, 128 bytes, in which each pointer lies. Nothing is read."""
    if not INTERPRETED:
        assembly: tl.constexpr = "prefetch.global.L2 [$1]; mov.u32 $0, 0;"
        tl.inline_asm_elementwise(assembly, "=r,l", [pointers], tl.int32, is_pure=False, pack=1)
