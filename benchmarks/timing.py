"""Times of calls on a GPU, what the card can do at most, and the comparison with float64: for the kernels' benchmarks."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import torch
from cases import Built, Call, Case
from torch import Tensor

from reference.hardware import latency

Emit = Callable[[dict], None]


def timer(call: Callable[[int], Tensor], copies: int, *, capture: bool = True) -> Callable[[], float]:
    """Microseconds per call of ``call(0) … call(copies - 1)``, by replaying a graph of them or, without one, by launching each."""
    seconds = (latency.captured if capture else latency.launched)(call, copies)
    return lambda: 1e6 * seconds()


def spread(times: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(times, n=10)
    return {"median": statistics.median(times), "p20": cuts[1], "p80": cuts[7], "n": len(times)}


def warm_up(seconds: float = 0.5) -> None:
    """Work until an idle card has raised its clocks."""
    a = torch.randn((4096, 4096), device="cuda", dtype=torch.bfloat16)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for _ in range(10):
            a @ a
        torch.cuda.synchronize()


def ceilings() -> dict[str, float]:
    """GB/s of a copy (read and written) and of reading only, TFLOP/s of a bf16 product: the fastest of twenty.

    The copy is the faster of the driver's and of an elementwise kernel's.
    """
    source = torch.randint(0, 255, (2**30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    words, to = source.view(torch.int64), target.view(torch.int64)
    a, b = (torch.randn((8192, 8192), device="cuda", dtype=torch.bfloat16) for _ in range(2))
    runs = {
        "copy": timer(lambda i: target.copy_(source), 2),
        "not": timer(lambda i: torch.bitwise_not(words, out=to), 2),
        "read": timer(lambda i: words.sum(), 2),
        "product": timer(lambda i: a @ b, 2),
    }
    warm_up()
    took = {name: min(run() for _ in range(20)) for name, run in runs.items()}
    return {
        "copy_gbps": 2 * source.numel() / min(took["copy"], took["not"]) / 1000,
        "driver_copy_gbps": 2 * source.numel() / took["copy"] / 1000,
        "read_gbps": source.numel() / took["read"] / 1000,
        "bf16_tflops": 2 * 8192**3 / took["product"] / 1e6,
    }


def error(y: Tensor, expected: Tensor) -> float:
    """Relative norm of the difference; infinite where shapes differ or a value is not finite."""
    if y.shape != expected.shape:
        return float("inf")
    difference = (y.double() - expected.double()).norm()
    found = (difference / expected.double().norm().clamp(min=1e-300)).item()
    return found if found == found else float("inf")


def check(case: Case, device: torch.device, emit: Emit) -> None:
    """Compare every call of a case with its float64 result, on inputs drawn now."""
    seed = int.from_bytes(os.urandom(4), "little")
    built = case.build(device, torch.Generator(device).manual_seed(seed), 1)
    for name, call in built.calls.items():
        bound = built.bounds.get(name, built.bound)
        try:
            found, words = error(built.compared(call(0)), built.expected), ""
        except Exception as problem:  # the next call must still be checked
            found, words = float("inf"), f"{type(problem).__name__}: {' '.join(str(problem).split())[-300:]}"
        ok = found <= bound
        emit({"check": case.name, "call": name, "ok": ok, "error": found, "bound": bound, "seed": seed, "why": words})
    for name, why in built.refused.items():
        emit({"check": case.name, "call": name, "ok": None, "why": why, "seed": seed})


def timers_of(
    built: Built, calls: dict[str, Call], copies: int, refused: dict[str, str], *, capture: bool = True
) -> dict[str, Callable[[], float]]:
    """A timer for each call whose result on copy 0 is within its bound; the others are refused, with the reason."""
    timers = {}
    for name, call in calls.items():
        try:
            found, bound = error(built.compared(call(0)), built.expected), built.bounds.get(name, built.bound)
            if found <= bound:
                timers[name] = timer(call, copies, capture=capture)
            else:
                refused[name] = f"failed the check: error {found:.2e}, bound {bound:.2e}"
        except Exception as problem:  # one that cannot run must not end the others
            refused[name] = f"{type(problem).__name__}: {' '.join(str(problem).split())[-200:]}"
            torch.cuda.synchronize()
    return timers
