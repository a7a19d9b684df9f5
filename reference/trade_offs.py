"""One row of the trade-off table: how a model is quantised, and what that costs and keeps.

    setting   weights                              activations
    ========= ==================================== ======================
    W8A8      8 bits, one scale an output channel  8 bits, per token
    W4A16     4 bits, groups of 128                16-bit floats
    W4A8      4 bits, groups of 128                8 bits, per token
    W4A4      4 bits, groups of 128                4 bits, per token
    W3A16     3 bits, groups of 128                16-bit floats
    W2A16     2 bits, groups of 128                16-bit floats

All grids are symmetric.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from reference import checkpoint, workflow
from reference.evaluation import agreement, bits_per_byte, size_on_disk, token_losses
from reference.hardware.memory import model_bytes
from reference.int8 import Int8Linear
from reference.layers import QuantizedLinear
from reference.quantization.activations import ActivationSpec
from reference.quantization.grid import QuantizationSpec
from reference.transforms.rotation import rotate


@dataclass(frozen=True)
class Setting:
    """Grids of weights and of activations.

    Args:
        weights: of every linear layer of the blocks.
        activations: of their inputs; None leaves them in floating point.

    Example:
        >>> SETTINGS["W4A8"].weights.bits, SETTINGS["W4A8"].weights.group_size, SETTINGS["W4A8"].activations.bits
        (4, 128, 8)

    Chapter: quantization/trade_offs
    """

    weights: QuantizationSpec
    activations: ActivationSpec | None = None


def _groups(bits: int) -> QuantizationSpec:
    return QuantizationSpec(bits, symmetric=True, group_size=128)


SETTINGS = {
    "W8A8": Setting(QuantizationSpec(8, symmetric=True), ActivationSpec()),
    "W4A16": Setting(_groups(4)),
    "W4A8": Setting(_groups(4), ActivationSpec()),
    "W4A4": Setting(_groups(4), ActivationSpec(bits=4)),
    "W3A16": Setting(_groups(3)),
    "W2A16": Setting(_groups(2)),
}
#: Methods of :func:`reference.workflow.quantize`, and GPTQ on the rotated model.
METHODS = ("round_to_nearest", "gptq", "awq", "smoothquant+gptq", "rotation+gptq")


def compress(model: PreTrainedModel, setting: Setting, method: str, calibration: list[Tensor]) -> PreTrainedModel:
    """Quantise a model in place by one of :data:`METHODS`.

    Args:
        model: in floating point.
        setting: grids.
        method: one of :data:`METHODS`.
        calibration: token batches, as for :func:`reference.workflow.quantize`.

    Returns:
        ``model``.

    Raises:
        ValueError: an unknown method, or as :func:`reference.workflow.quantize` and
            :func:`reference.transforms.rotation.rotate`.

    Example:
        >>> from reference.models import tutorial
        >>> model = tutorial.load()
        >>> model.model.layers = model.model.layers[:1]
        >>> execution(compress(model, SETTINGS["W8A8"], "round_to_nearest", []), rows=1)
        'integer products'

    Chapter: quantization/trade_offs
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; it may be {', '.join(METHODS)}")
    if method == "rotation+gptq":
        rotate(model)
        method = "gptq"
    workflow.quantize(
        model, setting.weights, method=method, activations=setting.activations,
        calibration=None if method == "round_to_nearest" else calibration,
    )  # fmt: skip
    return model


class Row(NamedTuple):
    """What a model costs and keeps.

    ``bits_per_byte`` of each text, by name. ``kl``: divergence from the original's predictions, nats a token, of each
    text. ``bytes_linear``: of the blocks' linear layers on the disk, scales included; ``bytes_total``: of the
    checkpoint's files. ``resident``: bytes of the tensors in memory once the model has run on one row and on many;
    copies that a layer makes for its operators are among them.

    Example:
        >>> from reference.models import tutorial
        >>> model = tutorial.load()
        >>> model.model.layers = model.model.layers[:1]
        >>> row = measure(model, model, {"numbers": (torch.arange(64), 100)}, window=32)
        >>> row.kl, row.bytes_linear  # 786,432 weights of float32
        ({'numbers': 0.0}, 3145728)

    Chapter: quantization/trade_offs
    """

    bits_per_byte: dict[str, float]
    kl: dict[str, float]
    bytes_linear: int
    bytes_total: int
    resident: int


def measure(
    model: PreTrainedModel,
    original: PreTrainedModel,
    texts: Mapping[str, tuple[Tensor, int]],
    *,
    window: int = 256,
) -> Row:
    """Fill one row of the table.

    Args:
        model: quantised or not.
        original: what it came from.
        texts: token ids ``[count]`` and bytes of UTF-8 of each text, by name.
        window: tokens that the model sees at once; it moves by half.

    Returns:
        The row; the checkpoint that it weighs is written to a temporary folder.

    Raises:
        ValueError: a text is shorter than a window, or as :func:`reference.checkpoint.save`.

    Example:
        >>> from reference.models import tutorial
        >>> original, model = tutorial.load(), tutorial.load()
        >>> original.model.layers, model.model.layers = original.model.layers[:1], model.model.layers[:1]
        >>> _ = compress(model, SETTINGS["W2A16"], "round_to_nearest", [])
        >>> row = measure(model, original, {"numbers": (torch.arange(64), 100)}, window=32)
        >>> row.kl["numbers"] > 0.1, row.bytes_linear  # 786,432 weights of 2 bits, scales of 16 for each 128
        (True, 208896)

    Chapter: quantization/trade_offs
    """
    rates, divergence = {}, {}
    for name, (ids, size) in texts.items():
        rates[name] = bits_per_byte(token_losses(model, ids, window=window, stride=window // 2), size)
        divergence[name] = agreement(model, original, ids, window=window).kl
    decode_step(model, 1)()  # makes the copies that operators for few rows want
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(model, Path(folder) / "model")
        sizes = size_on_disk(Path(folder) / "model")
    linear = sizes["weights"] + sizes["scales"] + sizes["zero_points"]
    return Row(rates, divergence, linear, sizes["total"], sum(model_bytes(model).values()) + _copies(model))


def decode_step(model: PreTrainedModel, batch: int, *, context: int = 32) -> Callable[[], object]:
    """A call that computes one new token for each of ``batch`` sequences, for timing.

    The cache is cut back after each call, so that all calls do the same work.

    Args:
        model: a causal language model.
        batch: sequences.
        context: tokens in the cache.

    Returns:
        A function without arguments that returns logits ``[batch, 1, vocabulary]``.

    Example:
        >>> from reference.models import tutorial
        >>> step = decode_step(tutorial.load(), batch=2, context=4)
        >>> step().shape, torch.equal(step(), step())  # the same token of each sequence each time
        (torch.Size([2, 1, 4096]), True)

    Chapter: quantization/trade_offs
    """
    device = model.get_input_embeddings().get_parameter("weight").device
    ids = torch.arange(batch * (context + 1), device=device).reshape(batch, -1) % model.config.vocab_size
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids[:, :context], past_key_values=cache)

    @torch.no_grad()
    def step() -> Tensor:
        logits = model(ids[:, context:], past_key_values=cache).logits
        cache.crop(-1)
        return logits

    return step


def execution(model: PreTrainedModel, rows: int) -> str:
    """How the blocks' linear layers multiply ``rows`` rows on this device, in words.

    Args:
        model: quantised or not.
        rows: tokens that a layer multiplies at once: sequences when it generates, all tokens when it reads.

    Returns:
        ``"float"``, ``"packed int4"``, ``"integer products"`` or ``"unpacked at each call"``.

    Example:
        >>> from reference.models import tutorial
        >>> model = tutorial.load()
        >>> model.model.layers = model.model.layers[:1]
        >>> _ = compress(model, SETTINGS["W4A16"], "round_to_nearest", [])
        >>> execution(model, rows=1), execution(model, rows=64)
        ('packed int4', 'unpacked at each call')

    Chapter: quantization/trade_offs
    """
    for layer in model.modules():
        if isinstance(layer, Int8Linear):
            return "integer products"
        if isinstance(layer, QuantizedLinear):
            return "packed int4" if layer.multiplies_packed(rows) else "unpacked at each call"
    return "float"


def _copies(model: PreTrainedModel) -> int:
    return sum(layer.copied_bytes for layer in model.modules() if isinstance(layer, QuantizedLinear))
