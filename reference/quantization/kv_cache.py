r"""A key-value cache of 8, 4 or 2 bits: keys in groups along tokens, values in groups along channels.

.. math:: \hat x = \text{low} + s\,q, \qquad s = (\text{high} - \text{low}) / (2^b - 1)

Keys have channels that are large in every token, so a group of keys is one channel of ``group_size`` tokens: the
outlier then widens its own group only. Values have none, and are multiplied by weights that differ from token to
token, so a group of values lies within one token. A group of keys is complete only after ``group_size`` tokens;
until then, and for the newest ``residual`` tokens in any case, the cache keeps what it was given.

    ============ ======================================= =============================
    stored       keys                                    values
    ============ ======================================= =============================
    codes        ``[batch, heads, chunks, D, words]``    ``[batch, heads, T, D/g, words]``
    scale, low   ``[batch, heads, chunks, D]``           ``[batch, heads, T, D/g]``
    ============ ======================================= =============================

Source: Liu et al. 2024, KIVI, sections 3 and 4.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Cache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from reference.evaluation import evaluating
from reference.quantization.kv_groups import Groups, dequantize_groups, quantize_groups


@dataclass(frozen=True)
class CacheSpec:
    """How keys and values are stored.

    Args:
        bits: 1 to 8, of each code.
        group_size: values that share a scale; divides the heads' width.
        residual: newest tokens that stay in floating point, 0 or more; up to ``group_size - 1`` more do.
        keys: ``"per_channel"``, or ``"per_token"`` to see what it costs.

    Raises:
        ValueError: a field is outside what it may be.

    Example:
        >>> CacheSpec(2).bits_per_value()  # 16 bits each for scale and low end, shared by 32 values
        3.0

    Chapter: quantization/activations
    """

    bits: int
    group_size: int = 32
    residual: int = 32
    keys: str = "per_channel"

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise ValueError(f"bits is {self.bits!r}; it may be an integer from 1 to 8")
        if self.group_size < 1 or self.residual < 0:
            raise ValueError(
                f"group_size is {self.group_size} and residual {self.residual}; they may be at least 1 and at least 0"
            )
        if self.keys not in ("per_channel", "per_token"):
            raise ValueError(f"keys is {self.keys!r}; it may be 'per_channel' or 'per_token'")

    def bits_per_value(self) -> float:
        """Bits of a stored value that is out of the residual, its 16-bit scale and low end included."""
        return self.bits + 32 / self.group_size


class QuantizedCacheLayer(DynamicLayer):
    """One layer's cache for ``transformers``: packed groups, then a floating-point residual.

    ``update`` gives attention the keys and values of the call as they came, and everything older as stored;
    unpacking at each call costs time, which a fused attention kernel would not.

    Args:
        spec: bits and groups.

    Example:
        >>> layer = QuantizedCacheLayer(CacheSpec(8, group_size=4, residual=2))
        >>> tokens = torch.arange(7.0).reshape(1, 1, 7, 1).expand(1, 1, 7, 4)  # seven tokens of one head of width 4
        >>> keys, values = layer.update(tokens, tokens)
        >>> layer.get_seq_length(), layer.keys.shape[2]  # one chunk of four is packed, three tokens are not
        (7, 3)

    Chapter: quantization/activations
    """

    is_croppable = False
    keys: Tensor
    values: Tensor

    def __init__(self, spec: CacheSpec) -> None:
        super().__init__()
        self.spec = spec
        self.old_keys: Groups | None = None
        self.old_values: Groups | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take type, device and shapes from the first keys.

        Raises:
            ValueError: the group size does not divide the heads' width.
        """
        super().lazy_initialization(key_states, value_states)
        if key_states.shape[-1] % self.spec.group_size:
            raise ValueError(
                f"group_size {self.spec.group_size} does not divide the heads' width, {key_states.shape[-1]}"
            )
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append ``[batch, heads, new, D]``; returns all keys and values, ``[batch, heads, all, D]``."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = torch.cat((self.keys, key_states), dim=-2)
        self.values = torch.cat((self.values, value_states), dim=-2)
        keys, values = self._stored_keys(), self._stored_values()
        everything = torch.cat((keys, self.keys), dim=-2), torch.cat((values, self.values), dim=-2)
        self._store()
        return everything

    def _store(self) -> None:
        """Move all complete groups beyond the residual into packed form."""
        size = self.spec.group_size
        tokens = max(0, self.keys.shape[-2] - self.spec.residual) // size * size
        if not tokens:
            return
        keys, values = self.keys[:, :, :tokens], self.values[:, :, :tokens]
        if self.spec.keys == "per_channel":
            keys = keys.unflatten(2, (-1, size)).transpose(-1, -2)  # [batch, heads, chunks, D, tokens of a chunk]
        new = quantize_groups(keys, self.spec.bits, size)
        if self.spec.keys == "per_channel":
            new = Groups(*(part.squeeze(4) for part in new))  # one group a row
        self.old_keys = _append(self.old_keys, new)
        self.old_values = _append(self.old_values, quantize_groups(values, self.spec.bits, size))
        self.keys, self.values = self.keys[:, :, tokens:].clone(), self.values[:, :, tokens:].clone()

    def _stored_keys(self) -> Tensor:
        if self.old_keys is None:
            return self.keys[:, :, :0]
        if self.spec.keys == "per_token":
            return dequantize_groups(self.old_keys, self.spec.bits, self.spec.group_size, self.dtype)
        one_group = Groups(*(part.unsqueeze(4) for part in self.old_keys))
        chunks = dequantize_groups(one_group, self.spec.bits, self.spec.group_size, self.dtype)
        return chunks.transpose(-1, -2).flatten(2, 3)

    def _stored_values(self) -> Tensor:
        if self.old_values is None:
            return self.values[:, :, :0]
        return dequantize_groups(self.old_values, self.spec.bits, self.spec.group_size, self.dtype)

    def get_seq_length(self) -> int:
        """Tokens seen, packed or not."""
        if not self.is_initialized:
            return 0
        return (0 if self.old_values is None else self.old_values.scale.shape[2]) + self.keys.shape[-2]

    @property
    def nbytes(self) -> int:
        """Bytes of everything stored, residual included."""
        if not self.is_initialized:
            return 0
        packed = sum(groups.nbytes for groups in (self.old_keys, self.old_values) if groups is not None)
        return packed + self.keys.nbytes + self.values.nbytes

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.old_keys = self.old_values = None

    def _each(self, change: Callable[[Tensor], Tensor]) -> None:
        """Apply a change of the batch axis to all that is stored."""
        if self.is_initialized:
            self.keys, self.values = change(self.keys), change(self.values)
            if self.old_keys is not None and self.old_values is not None:
                self.old_keys = Groups(*map(change, self.old_keys))
                self.old_values = Groups(*map(change, self.old_values))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take the batch entries ``beam_idx``, for beam search."""
        self._each(lambda part: part.index_select(0, beam_idx.to(part.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each batch entry."""
        self._each(lambda part: part.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only the batch entries ``indices``."""
        self._each(lambda part: part[indices])

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: packed groups cannot lose single tokens.

        Raises:
            ValueError: always, unless ``tokens_to_remove`` is 0.
        """
        if tokens_to_remove:
            raise ValueError("a quantised cache cannot be cropped: its groups of keys span tokens; start a new one")


def _append(old: Groups | None, new: Groups) -> Groups:
    return new if old is None else Groups(*(torch.cat(pair, dim=2) for pair in zip(old, new, strict=True)))


def quantized_cache(config: PreTrainedConfig, spec: CacheSpec) -> Cache:
    """An empty cache for ``model(..., past_key_values=cache)`` or ``model.generate(..., past_key_values=cache)``.

    Args:
        config: of a decoder whose layers all attend to everything.
        spec: bits and groups.

    Raises:
        ValueError: the model has sliding or linear attention layers.

    Example:
        >>> from reference.models import tutorial
        >>> model, ids = tutorial.load(), torch.arange(8)[None]
        >>> cache = quantized_cache(model.config, CacheSpec(4))
        >>> model(ids, past_key_values=cache).logits.shape, cache.get_seq_length()
        (torch.Size([1, 8, 4096]), 8)

    Chapter: quantization/activations
    """
    config = config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise ValueError(f"config has layers of the kinds {sorted(kinds)}; only full attention is supported")
    return Cache(layers=[QuantizedCacheLayer(spec) for _ in range(config.num_hidden_layers)])


def cache_nbytes(cache: Cache) -> int:
    """Bytes that a cache holds now, quantised or not.

    Args:
        cache: of :func:`quantized_cache`, or a ``DynamicCache`` of transformers.

    Example:
        >>> cache = Cache(layers=[QuantizedCacheLayer(CacheSpec(4, residual=0))])
        >>> keys = torch.zeros(1, 1, 64, 32)  # 64 tokens, one head: 2,048 numbers, and as many values
        >>> _ = cache.update(keys, keys, 0)
        >>> cache_nbytes(cache)  # 4,096 codes of 5 bits, with scale and low end
        2560

    Chapter: quantization/activations
    """
    total = 0
    for layer in cache.layers:
        if isinstance(layer, QuantizedCacheLayer):
            total += layer.nbytes
        elif isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None:
            total += layer.keys.nbytes + layer.values.nbytes
    return total


@torch.no_grad()
def cached_losses(
    model: nn.Module,
    tokens: Tensor,
    cache: Callable[[], Cache],
    *,
    window: int,
    chunk: int = 16,
    progress: Callable[[list], Iterable] = iter,
) -> Tensor:
    """Negative log-likelihood of each token when the model reads the text through a cache, as it does in generation.

    Within a chunk attention sees keys and values as computed, before it what the cache gives back. The model is put in
    evaluation mode meanwhile.

    Args:
        model: a causal language model.
        tokens: int64 ``[count]``; what is left after the last whole window is dropped.
        cache: makes an empty cache, one a window.
        window: tokens, at least 2; windows do not overlap, and all run as one batch.
        chunk: tokens a forward pass, 1 or more.
        progress: wraps the list of chunks.

    Returns:
        float32 ``[windows, window − 1]``.

    Raises:
        ValueError: the text is shorter than a window, or ``chunk`` is below 1.

    Example:
        >>> from reference.models import tutorial
        >>> model, tokens = tutorial.load(), torch.arange(64)
        >>> spec = CacheSpec(8, residual=0)
        >>> losses = cached_losses(model, tokens, lambda: quantized_cache(model.config, spec), window=64, chunk=32)
        >>> exact = functional.cross_entropy(model(tokens[None]).logits[0, :-1], tokens[1:], reduction="none")
        >>> losses.shape, bool((losses[0] - exact).abs().max() < 0.1)
        (torch.Size([1, 63]), True)

    Chapter: quantization/activations
    """
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; it may be 1 or more")
    rows = len(tokens) // window
    if rows < 1:
        raise ValueError(f"tokens has {len(tokens)} entries, fewer than a window of {window}")
    ids = tokens[: rows * window].reshape(rows, window)
    past, losses = cache(), []
    with evaluating(model):
        for begin in progress(list(range(0, window, chunk))):
            logits = model(input_ids=ids[:, begin : begin + chunk], past_key_values=past, use_cache=True).logits
            targets = ids[:, begin + 1 : begin + chunk + 1]
            logits = logits[:, : targets.shape[1]].float()
            nats = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
            losses.append(nats.view(targets.shape))
    return torch.cat(losses, dim=1)
