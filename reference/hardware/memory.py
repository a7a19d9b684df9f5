"""Bytes that stay resident: of a process, of a model, and of a decoder from its shape."""

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from torch import nn

from .roofline import Scheme
from .serving import DecoderShape, cache_bytes, weight_bytes

STATUS = Path("/proc/self/status")
Result = TypeVar("Result")


class Resident(NamedTuple):
    """Bytes of this process in memory: now, and the most so far.

    Example:
        >>> before, after = Resident(now=100, peak=300), Resident(now=150, peak=300)
        >>> after.now - before.now  # the peak was earlier, and says nothing of these
        50

    Chapter: advanced/hardware_aware
    """

    now: int
    peak: int


def resident() -> Resident:
    """Bytes of this process that lie in memory, libraries included.

    Pages of mapped files count, and the system may drop and reload them; on Linux, ``now`` and ``peak`` are VmRSS and
    VmHWM. Elsewhere only the peak is known, and stands for both.

    Example:
        >>> found = resident()
        >>> found.peak >= found.now > 1_000_000
        True

    Chapter: advanced/hardware_aware
    """
    if STATUS.is_file():
        lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if ":" in line)
        now, peak = (int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
        return Resident(now, max(now, peak))
    import resource

    # macOS counts bytes, other systems KiB.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Resident(peak, peak)


def added_peak(function: Callable[[], Result], *, every: float = 0.002) -> tuple[Result, int]:
    """Run ``function`` and sample by how many bytes resident memory grew at most meanwhile.

    A thread looks every ``every`` seconds: shorter peaks are missed, and memory that the allocator already held is not
    new. Run it in a fresh process to measure a model's load.

    Args:
        function: called once.
        every: seconds between two looks.

    Returns:
        What the function returned, and bytes, 0 or more.

    Raises:
        RuntimeError: the system has no ``/proc/self/statm``.

    Example:
        >>> result, added = added_peak(lambda: bytearray(b"x") * 50_000_000)
        >>> len(result), added > 40_000_000
        (50000000, True)

    Chapter: advanced/hardware_aware
    """
    statm = Path("/proc/self/statm")
    if not statm.is_file():
        raise RuntimeError("added_peak reads /proc/self/statm, which this system does not have")
    page = os.sysconf("SC_PAGE_SIZE")

    def now() -> int:
        return int(statm.read_text().split()[1]) * page

    before, highest, done = now(), 0, threading.Event()

    def sample() -> None:
        nonlocal highest
        while not done.wait(every):
            highest = max(highest, now() - before)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        result = function()
    finally:
        done.set()
        thread.join()
    return result, max(highest, now() - before, 0)


def model_bytes(model: nn.Module) -> dict[str, int]:
    """Bytes of a model's tensors by kind, storage that several share counted once; on the device ``meta``, what they
    would take.

    Args:
        model: any module.

    Returns:
        ``"parameters"`` and ``"buffers"`` (packed codes, scales, masks, …); in a tie the parameter has it.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
        >>> model_bytes(model)  # 4 · (8 + 2 + 2 + 2), and two statistics with an 8-byte counter
        {'parameters': 56, 'buffers': 24}

    Chapter: advanced/hardware_aware
    """
    seen: set[int] = set()
    found = {"parameters": 0, "buffers": 0}
    for kind, tensors in (("parameters", model.parameters()), ("buffers", model.buffers())):
        for tensor in tensors:
            storage = tensor.untyped_storage()
            place = storage.data_ptr() or storage._cdata  # on the device meta all addresses are 0
            if place not in seen:
                seen.add(place)
                found[kind] += storage.nbytes()
    return found


class DecoderMemory(NamedTuple):
    """Bytes of a decoder at work.

    Example:
        >>> DecoderMemory(weights=6e9, cache=1e9, activations=5e8).total
        7500000000.0

    Chapter: advanced/hardware_aware
    """

    weights: float
    cache: float
    activations: float

    @property
    def total(self) -> float:
        """All three."""
        return self.weights + self.cache + self.activations


def decoder_memory(
    shape: DecoderShape, scheme: Scheme, *, batch: int, context: int, tokens: int = 1, logits: int | None = None
) -> DecoderMemory:
    """What a decoder needs, from its shape: weights, caches, and the largest set of activations that live together.

    Activations are 16-bit. A step of ``tokens`` tokens for each sequence holds the residual stream and, at its widest,
    either the gate, its product and the input of the feed-forward net, or queries, keys, values and output of the
    attention (computed without storing the scores); or, at the end, the 32-bit logits of ``logits`` tokens. Libraries
    keep workspaces beside these, and allocators fragment: real programs need more.

    Args:
        shape: the model.
        scheme: of its blocks' weights and its cache.
        batch: sequences.
        context: tokens in each cache.
        tokens: tokens of each sequence in one step: 1 when decoding, the prompt's length in prefill.
        logits: tokens of each sequence whose logits are computed at once; None: the last one only.

    Returns:
        Bytes.

    Raises:
        ValueError: ``tokens`` is below 1, or as :func:`reference.hardware.serving.cache_bytes`.

    Example:
        >>> from reference.hardware.roofline import SCHEMES
        >>> shape = DecoderShape(
        ...     layers=2, hidden=8, intermediate=16, heads=2, key_value_heads=1, head_size=4, vocabulary=10)
        >>> found = decoder_memory(shape, SCHEMES["W16A16"], batch=3, context=100)
        >>> found.cache == 2 * 2 * 4 * 100 * 3 * 2  # keys and values, layers, width, tokens, sequences, bytes
        True

    Chapter: advanced/hardware_aware
    """
    if tokens < 1:
        raise ValueError(f"tokens is {tokens}; it may be 1 or more")
    heads = shape.heads + 2 * shape.key_value_heads
    feed_forward = shape.hidden + 2 * shape.intermediate
    attention = shape.hidden + (heads + shape.heads) * shape.head_size
    widest = 2 * batch * tokens * (shape.hidden + max(feed_forward, attention))
    last = 2 * batch * tokens * shape.hidden + 4 * batch * (logits or 1) * shape.vocabulary
    return DecoderMemory(
        weight_bytes(shape, scheme), cache_bytes(shape, scheme.cache_bits, context, batch), max(widest, last)
    )
