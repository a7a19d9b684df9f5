"""Memory, speed and loss of a model, a scheme and a device in one estimate.

The parts are those of :mod:`reference.hardware`: bytes from the shape, times from the roofline. Losses are
not computed but looked up, each with its source: no formula gives them.

    =============== ==================================================== ==========================
    what            from                                                 how good
    =============== ==================================================== ==========================
    weights         shape, bits, groups                                  exact
    cache           shape, bits of the cache, sequences, context         exact, less its scales
    activations     shape, tokens that are computed at once              a lower bound
    time            bytes over bandwidth, operations over rate           a lower bound
    loss            measurements                                         of that model and method
    =============== ==================================================== ==========================
"""

import dataclasses
import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from reference.data import recorded
from reference.hardware.devices import Device
from reference.hardware.memory import DecoderMemory, decoder_memory
from reference.hardware.roofline import Scheme
from reference.hardware.serving import (
    LLAMA_2_7B,
    LLAMA_2_70B,
    LLAMA_3_8B,
    DecoderShape,
    prefill_seconds,
    step_seconds,
    weight_bytes,
)

FILE = Path(__file__).with_name("losses.json")
#: Tokens that a server computes at once when it reads a prompt; a longer one is read in pieces.
CHUNK = 2048

#: The shipped model, the models of the published measurements, and one for a phone, from its published configuration.
MODELS = {
    "tutorial": DecoderShape(6, 256, 768, 4, 2, 64, 4096, tied=True),
    "Llama-3.2-1B": DecoderShape(16, 2048, 8192, 32, 8, 64, 128256, tied=True),
    "Llama-2-7B": LLAMA_2_7B,
    "Llama-3-8B": LLAMA_3_8B,
    "Llama-2-70B": LLAMA_2_70B,
}


class Estimate(NamedTuple):
    """What :func:`estimate` says.

    ``memory``: bytes. ``capacity``: bytes that there are, None where it is not known. ``prefill``: seconds until the
    first token of all prompts, None where the device's rate is not known. ``step``: seconds of one token of every sequence.
    ``batch``: sequences. Times are lower bounds.

    Example:
        >>> estimate = Estimate(DecoderMemory(6e9, 1e9, 1e9), capacity=24e9, prefill=None, step=0.02, batch=4)
        >>> estimate.fits, estimate.tokens_per_second
        (True, 200.0)

    Chapter: deployment/trade_offs
    """

    memory: DecoderMemory
    capacity: float | None
    prefill: float | None
    step: float
    batch: int

    @property
    def fits(self) -> bool:
        """Whether the memory suffices; True where it is not known."""
        return self.capacity is None or self.memory.total <= self.capacity

    @property
    def tokens_per_second(self) -> float:
        """Of all sequences together, at most."""
        return self.batch / self.step


def estimate(
    shape: DecoderShape,
    scheme: Scheme,
    device: Device,
    *,
    batch: int,
    context: int,
    capacity: float | None = None,
    memory_efficiency: float = 1.0,
    rate_efficiency: float = 1.0,
) -> Estimate:
    """Memory and time of ``batch`` sequences whose prompts and answers fill ``context`` tokens of cache.

    Args:
        shape: the model.
        scheme: of its blocks and its cache.
        device: its ceilings. Without a rate for the scheme's arithmetic only memory limits a step, and
            ``prefill`` is None.
        batch: sequences.
        context: tokens in each cache, 1 or more; a prompt of that length is what ``prefill`` reads.
        capacity: bytes that the model may use; the device's memory if None.
        memory_efficiency: as in :func:`reference.hardware.roofline.seconds`.
        rate_efficiency: as there.

    Raises:
        ValueError: ``batch``, ``context`` or ``capacity`` is not positive, or as :func:`reference.hardware.roofline.seconds`.

    Example:
        >>> from reference.hardware.devices import device
        >>> from reference.hardware.roofline import SCHEMES
        >>> for name in ("W16A16", "W4A16"):
        ...     found = estimate(LLAMA_3_8B, SCHEMES[name], device("RTX 4090"), batch=1, context=2048)
        ...     print(name, round(found.memory.weights / 1e9, 1), "GB", round(found.tokens_per_second), "tokens/s")
        W16A16 16.1 GB 66 tokens/s
        W4A16 5.8 GB 200 tokens/s

    Chapter: deployment/trade_offs
    """
    if batch < 1 or context < 1:
        raise ValueError(f"batch is {batch} and context {context}; they may be 1 or more")
    if capacity is not None and not capacity > 0:
        raise ValueError(f"capacity is {capacity}; it may be positive, or None for the device's memory")
    known = all(arithmetic in device.rates for arithmetic in (scheme.arithmetic, "16-bit"))
    if not known:
        device = dataclasses.replace(device, rates={scheme.arithmetic: math.inf, "16-bit": math.inf})
    options = {"batch": batch, "memory_efficiency": memory_efficiency, "rate_efficiency": rate_efficiency}
    prefill = prefill_seconds(shape, scheme, device, prompt=context, **options) if known else None  # type: ignore[arg-type]
    return Estimate(
        needed(shape, scheme, batch=batch, context=context),
        device.memory if capacity is None else capacity,
        prefill,
        step_seconds(shape, scheme, device, context=context, **options),  # type: ignore[arg-type]
        batch,
    )


def throughput(
    shape: DecoderShape,
    scheme: Scheme,
    device: Device,
    *,
    batch: int,
    prompt: int,
    answer: int,
    memory_efficiency: float = 1.0,
    rate_efficiency: float = 1.0,
) -> float:
    """Tokens of answers per second, at most, when ``batch`` prompts are read and then answered in step.

    Reading gives the first token of each answer, steps the others. A step's time grows linearly with the context, so the
    step at the mean context, ``prompt + answer / 2``, stands for all.

    Args:
        shape: the model.
        scheme: of its blocks and its cache.
        device: its ceilings.
        batch: sequences.
        prompt: tokens of each prompt.
        answer: tokens of each answer.
        memory_efficiency: as in :func:`reference.hardware.roofline.seconds`.
        rate_efficiency: as there.

    Raises:
        ValueError: a number is below 1, or as :func:`reference.hardware.roofline.seconds`.

    Example:
        >>> from reference.hardware.devices import device
        >>> from reference.hardware.roofline import SCHEMES
        >>> rate = lambda batch: throughput(
        ...     LLAMA_3_8B, SCHEMES["W4A16"], device("H100 SXM"), batch=batch, prompt=512, answer=128)
        >>> 5 < rate(8) / rate(1) < 8  # eight sequences share the reading of the weights
        True

    Chapter: deployment/trade_offs
    """
    if answer < 1:
        raise ValueError(f"answer is {answer}; it may be 1 or more")
    options = {"batch": batch, "memory_efficiency": memory_efficiency, "rate_efficiency": rate_efficiency}
    reading = prefill_seconds(shape, scheme, device, prompt=prompt, **options)  # type: ignore[arg-type]
    step = step_seconds(shape, scheme, device, context=prompt + answer // 2, **options)  # type: ignore[arg-type]
    return batch * answer / (reading + (answer - 1) * step)


def needed(shape: DecoderShape, scheme: Scheme, *, batch: int, context: int) -> DecoderMemory:
    """Bytes of weights, caches, and the activations of the wider of two moments.

    One is a piece of :data:`CHUNK` tokens of one prompt, the other a token of every sequence.

    Args:
        shape, scheme, batch, context: as :func:`estimate`.

    Example:
        >>> from reference.hardware.roofline import SCHEMES
        >>> found = needed(LLAMA_3_8B, SCHEMES["W4A16"], batch=4, context=1024)
        >>> found.cache == 2 * 32 * 8 * 128 * 4 * 1024 * 2  # keys and values, layers, heads, width, tokens, bytes
        True

    Chapter: deployment/trade_offs
    """
    reading = decoder_memory(shape, scheme, batch=1, context=context, tokens=min(context, CHUNK))
    writing = decoder_memory(shape, scheme, batch=batch, context=context)
    return writing._replace(activations=max(reading.activations, writing.activations))


def largest_batch(shape: DecoderShape, scheme: Scheme, capacity: float, *, context: int) -> int:
    """Most sequences of ``context`` tokens that fit into ``capacity`` bytes; 0 if not even one does.

    Args:
        shape, scheme, context: as :func:`estimate`.
        capacity: bytes.

    Example:
        >>> from reference.hardware.roofline import SCHEMES
        >>> [largest_batch(LLAMA_3_8B, SCHEMES[name], 24e9, context=4096) for name in ("W16A16", "W4A16")]
        [14, 33]

    Chapter: deployment/trade_offs
    """
    return _largest(lambda batch: needed(shape, scheme, batch=batch, context=context).total <= capacity)


def largest_context(shape: DecoderShape, scheme: Scheme, capacity: float, *, batch: int) -> int:
    """Longest context of ``batch`` sequences that fits into ``capacity`` bytes; 0 if not even one token does.

    The model's own limit is not in here.

    Args:
        shape, scheme, batch: as :func:`estimate`.
        capacity: bytes.

    Example:
        >>> from reference.hardware.roofline import SCHEMES
        >>> [largest_context(LLAMA_2_70B, SCHEMES[name], 80e9, batch=1) for name in ("W16A16", "W4A16")]
        [0, 129043]

    Chapter: deployment/trade_offs
    """
    return _largest(lambda context: needed(shape, scheme, batch=batch, context=context).total <= capacity)


def checkpoint_bytes(shape: DecoderShape, scheme: Scheme) -> int:
    """Bytes of all tensors in the files of a checkpoint in the compressed-tensors format, without the files' headers.

    Packed weights, which all are but those of 16 bits and W8A8's, carry a record of their shape: two 64-bit integers a
    layer. Norms are 16-bit vectors. Say in the scheme what the file holds: 16-bit scales, and zero points of the weights' bits
    or none.

    Args:
        shape: the model.
        scheme: of its blocks.

    Example:
        >>> from reference.hardware.roofline import SCHEMES
        >>> tiny = DecoderShape(1, 128, 128, 1, 1, 128, vocabulary=10)
        >>> checkpoint_bytes(tiny, SCHEMES["W16A16"])
        235264
        >>> 2 * (7 * 128**2 + 2 * 10 * 128 + 3 * 128)  # matrices, two tables, norms
        235264

    Chapter: deployment/trade_offs
    """
    norms = 2 * (2 * shape.layers + 1) * shape.hidden
    plain = scheme.weight_bits >= 16 or (scheme.weight_bits == 8 and scheme.activation_bits <= 8)
    records = 0 if plain else 16 * len(shape.linears()) * shape.layers
    return round(weight_bytes(shape, scheme)) + norms + records


class Loss(NamedTuple):
    """One measurement of a ``method``: ``metric`` before and after, and where it is from (a citation's key, or a recorded result).

    Example:
        >>> loss = Loss("GPTQ", "perplexity", before=5.0, after=5.5, source="frantar2023gptq")
        >>> round(loss.per_cent, 6)
        10.0

    Chapter: deployment/trade_offs
    """

    method: str
    metric: str
    before: float
    after: float
    source: str

    @property
    def per_cent(self) -> float:
        """Growth of the metric."""
        return 100 * (self.after / self.before - 1)


def losses(model: str, scheme: str) -> list[Loss]:
    """What is known of a model under a scheme, least loss first; empty where nothing is.

    Perplexities on WikiText-2 of the published models, groups of 128; bits per byte of documentation of the shipped model,
    the mean over draws of the calibration text (``book/data/trade_offs.json``).

    Args:
        model: a key of :data:`MODELS`.
        scheme: a name such as ``"W4A16"``.

    Raises:
        ValueError: an unknown model.

    Example:
        >>> [loss.method for loss in losses("Llama-2-7B", "W4A16")][:1], losses("Llama-3.2-1B", "W2A16")
        (['AWQ'], [])

    Chapter: deployment/trade_offs
    """
    if model not in MODELS:
        raise ValueError(f"model is {model!r}; it may be {', '.join(MODELS)}")
    if model == "tutorial":
        study = recorded.read("trade_offs")
        before = study["float"]["bits_per_byte"]["documentation"]
        found = []
        for method, row in study["settings"].get(scheme, {}).items():
            values = row["bits_per_byte"]["documentation"]
            found.append(Loss(method, "bits per byte", before, sum(values) / len(values), "trade_offs"))
    else:
        rows = [row for row in _published() if (row["model"], row["scheme"]) == (model, scheme)]
        found = [Loss(row["method"], "perplexity", row["before"], row["after"], row["cite"]) for row in rows]
    return sorted(found, key=lambda loss: loss.after)


@cache
def _published() -> list[dict]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def _largest(fits: Callable[[int], bool]) -> int:
    """Largest whole number that fits, where every smaller one does too."""
    high = 1
    while fits(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
