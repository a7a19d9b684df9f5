r"""A whole decoder: bytes, operations and tokens per second of one step, from its shape.

One step takes ``batch`` sequences, makes one token of each, and reads every weight once and every sequence's cache
once. Blocks are Llama's: grouped-query attention and a gated feed-forward net. Embeddings are looked up, the output
layer is 16-bit, norms and rotations are not counted.
"""

from dataclasses import dataclass

from .devices import Device
from .roofline import SCHEMES, Scheme, Work, linear, seconds


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of a Llama-like decoder.

    Args:
        layers: blocks.
        hidden: width of the residual stream.
        intermediate: width of the gated feed-forward net.
        heads: query heads.
        key_value_heads: heads of keys and values.
        head_size: width of a head.
        vocabulary: tokens.
        tied: whether the output layer is the embedding.

    Raises:
        ValueError: a size is below 1, or query heads do not divide among key-value heads.

    Example:
        >>> shape = DecoderShape(
        ...     layers=2, hidden=8, intermediate=16, heads=2, key_value_heads=1, head_size=4, vocabulary=10)
        >>> shape.linears()  # query, key, value, output; gate, up, down
        [(8, 8), (4, 8), (4, 8), (8, 8), (16, 8), (16, 8), (8, 16)]

    Chapter: advanced/hardware_aware
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_size: int
    vocabulary: int
    tied: bool = False

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "intermediate", "heads", "key_value_heads", "head_size", "vocabulary"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it may be 1 or more")
        if self.heads % self.key_value_heads:
            raise ValueError(f"heads is {self.heads}; it may be a multiple of key_value_heads ({self.key_value_heads})")

    def linears(self) -> list[tuple[int, int]]:
        """``(outputs, columns)`` of the seven linear layers of one block; query, key and value separately."""
        queries, values = self.heads * self.head_size, self.key_value_heads * self.head_size
        wide = [(self.intermediate, self.hidden)] * 2
        return [
            *((queries, self.hidden), (values, self.hidden), (values, self.hidden), (self.hidden, queries)),
            *wide,
            (self.hidden, self.intermediate),
        ]


#: Shapes from the models' published configurations.
LLAMA_2_7B = DecoderShape(32, 4096, 11008, 32, 32, 128, 32000)
LLAMA_3_8B = DecoderShape(32, 4096, 14336, 32, 8, 128, 128256)
LLAMA_2_70B = DecoderShape(80, 8192, 28672, 64, 8, 128, 32000)


def weight_bytes(shape: DecoderShape, scheme: Scheme) -> float:
    """Bytes of all weights: blocks under ``scheme``, embedding and output layer in 16 bits, norms left out.

    Args:
        shape: the model.
        scheme: of the blocks' linear layers.

    Example:
        >>> [round(weight_bytes(LLAMA_2_7B, SCHEMES[name]) / 1e9, 1) for name in ("W16A16", "W4A16")]
        [13.5, 4.0]

    Chapter: advanced/hardware_aware
    """
    block = sum(n * k * scheme.bits_per_weight(k) / 8 for n, k in shape.linears())
    return shape.layers * block + 2 * shape.vocabulary * shape.hidden * (1 if shape.tied else 2)


def cache_bytes(shape: DecoderShape, bits: float, context: int, batch: int = 1) -> float:
    """Bytes of keys and values of ``batch`` sequences of ``context`` tokens; scales of a quantised cache left out.

    Args:
        shape: the model.
        bits: of one number of the cache.
        context: tokens in each cache, 0 or more.
        batch: sequences, 1 or more.

    Raises:
        ValueError: ``context`` or ``batch`` is out of range.

    Example:
        >>> [cache_bytes(shape, 16, context=1) / 2**10 for shape in (LLAMA_2_7B, LLAMA_3_8B)]  # KiB a token
        [512.0, 128.0]

    Chapter: advanced/hardware_aware
    """
    if context < 0 or batch < 1:
        raise ValueError(f"context is {context} and batch {batch}; they may be 0 or more and 1 or more")
    return 2 * shape.layers * shape.key_value_heads * shape.head_size * context * batch * bits / 8


def attention(shape: DecoderShape, bits: float, context: int, batch: int = 1) -> Work:
    """Work of one step's attention over caches of ``context`` tokens, all layers: two products for each query head.

    Args:
        shape: the model.
        bits: of one number of the cache.
        context: tokens in each cache, 1 or more.
        batch: sequences, each with one new token.

    Raises:
        ValueError: as :func:`cache_bytes`.

    Example:
        >>> [attention(shape, 16, context=1000).intensity for shape in (LLAMA_2_7B, LLAMA_3_8B)]  # queries a key
        [1.0, 4.0]

    Chapter: advanced/hardware_aware
    """
    operations = 4.0 * shape.layers * shape.heads * shape.head_size * context * batch
    return Work(0.0, cache_bytes(shape, bits, context, batch), operations, "16-bit")


def step_seconds(
    shape: DecoderShape,
    scheme: Scheme,
    device: Device,
    *,
    batch: int,
    context: int,
    memory_efficiency: float = 1.0,
    rate_efficiency: float = 1.0,
) -> float:
    """Time of one step: each linear layer, the attention and the output layer one after another.

    Args:
        shape: the model.
        scheme: of the blocks' linear layers, and of the cache.
        device: its ceilings.
        batch: sequences.
        context: tokens in each cache.
        memory_efficiency: as in `roofline.seconds`.
        rate_efficiency: as in `roofline.seconds`.

    Returns:
        Seconds, at least.

    Raises:
        ValueError: a number is out of range, an efficiency is outside (0, 1], or the device lacks the arithmetic.

    Example:
        >>> from reference.hardware.devices import device
        >>> h100, scheme = device("H100 SXM"), SCHEMES["W16A16"]
        >>> one, eight = (step_seconds(LLAMA_2_7B, scheme, h100, batch=batch, context=0) for batch in (1, 8))
        >>> round(1000 * one, 1), eight / one < 1.01  # milliseconds; eight tokens for the price of one
        (3.9, True)

    Chapter: advanced/hardware_aware
    """
    work = [linear(scheme, batch, n, k) for n, k in shape.linears()] * shape.layers
    work.append(linear(SCHEMES["W16A16"], batch, shape.vocabulary, shape.hidden))
    if context:
        work.append(attention(shape, scheme.cache_bits, context, batch))
    return sum(
        seconds(part, device, memory_efficiency=memory_efficiency, rate_efficiency=rate_efficiency) for part in work
    )


def prefill_seconds(
    shape: DecoderShape,
    scheme: Scheme,
    device: Device,
    *,
    batch: int,
    prompt: int,
    memory_efficiency: float = 1.0,
    rate_efficiency: float = 1.0,
) -> float:
    """Time to read ``batch`` prompts of ``prompt`` tokens: every layer once, over all tokens together.

    A token attends to itself and those before it, ``(prompt + 1) / 2`` on average; logits are those of the last token.

    Args:
        shape: the model.
        scheme: of the blocks' linear layers, and of the cache.
        device: its ceilings.
        batch: sequences.
        prompt: tokens of each.
        memory_efficiency: as in `roofline.seconds`.
        rate_efficiency: as in `roofline.seconds`.

    Returns:
        Seconds, at least.

    Raises:
        ValueError: ``prompt`` or ``batch`` is below 1, or as `roofline.seconds`.

    Example:
        >>> from reference.hardware.devices import device
        >>> h100, scheme = device("H100 SXM"), SCHEMES["W16A16"]
        >>> short, long = (prefill_seconds(LLAMA_2_7B, scheme, h100, batch=1, prompt=prompt) for prompt in (1024, 4096))
        >>> 4 < long / short < 5  # a little more than in proportion: attention
        True

    Chapter: deployment/trade_offs
    """
    if prompt < 1:
        raise ValueError(f"prompt is {prompt}; it may be 1 or more")
    work = [linear(scheme, batch * prompt, n, k) for n, k in shape.linears()] * shape.layers
    work.append(linear(SCHEMES["W16A16"], batch, shape.vocabulary, shape.hidden))
    pairs = batch * prompt * (prompt + 1) / 2
    operations = 4.0 * shape.layers * shape.heads * shape.head_size * pairs
    work.append(Work(0.0, cache_bytes(shape, scheme.cache_bits, prompt, batch), operations, "16-bit"))
    return sum(
        seconds(part, device, memory_efficiency=memory_efficiency, rate_efficiency=rate_efficiency) for part in work
    )


def tokens_per_second(
    shape: DecoderShape,
    scheme: Scheme,
    device: Device,
    *,
    batch: int,
    context: int,
    memory_efficiency: float = 1.0,
    rate_efficiency: float = 1.0,
) -> float | None:
    """Tokens per second of all sequences together, at most; None where weights and caches do not fit the device.

    Args:
        shape, scheme, device, batch, context, memory_efficiency, rate_efficiency: as :func:`step_seconds`.

    Raises:
        ValueError: as :func:`step_seconds`.

    Example:
        >>> from reference.hardware.devices import device
        >>> h100 = device("H100 SXM")
        >>> tokens_per_second(LLAMA_2_70B, SCHEMES["W16A16"], h100, batch=1, context=1024) is None  # 138 GB
        True
        >>> round(tokens_per_second(LLAMA_2_70B, SCHEMES["W4A16"], h100, batch=1, context=1024))
        90

    Chapter: advanced/hardware_aware
    """
    needed = weight_bytes(shape, scheme) + cache_bytes(shape, scheme.cache_bits, context, batch)
    if device.memory is not None and needed > device.memory:
        return None
    return batch / step_seconds(
        shape,
        scheme,
        device,
        batch=batch,
        context=context,
        memory_efficiency=memory_efficiency,
        rate_efficiency=rate_efficiency,
    )
