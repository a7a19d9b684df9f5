"""From a model and a number of bits per weight to the bits of each layer."""

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from reference.dynamic.allocation import bits_within, stored_bytes
from reference.dynamic.sensitivity import measured
from reference.models.families import block_linears, blocks, family_of, input_groups
from reference.quantization.gptq import quantize_layer
from reference.quantization.grid import QuantizationSpec
from reference.quantization.hessian import HessianAccumulator
from reference.tensors import storage_dtype

#: Bits that a layer may get.
OPTIONS = (2, 3, 4, 5, 6, 8)


class Divergence:
    """A loss of a changed model: the mean Kullback–Leibler divergence from what it predicted before, nats a token.

    It is 0 for the unchanged model and never below, and it compares whole distributions where the loss on text sees one
    number a token: few tokens tell layers apart.

    Args:
        model: before the change, a causal language model; its predictions are kept, four bytes a token and vocabulary entry.
        batches: ids ``[batch, length]``.

    Raises:
        ValueError: there are no batches.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8,
        ...                      num_hidden_layers=1, num_attention_heads=2)
        >>> model = LlamaForCausalLM(config).eval()
        >>> loss = Divergence(model, [torch.tensor([[1, 2, 3]])])
        >>> before = loss(model)
        >>> model.lm_head.weight.data *= 50
        >>> before, loss(model) > 0
        (0.0, True)

    Chapter: advanced/dynamic
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, batches: Sequence[Tensor]) -> None:
        if not batches:
            raise ValueError("batches is empty; at least one is needed")
        self.batches = batches
        self.before = [model(input_ids=ids).logits.float().log_softmax(-1) for ids in batches]

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> float:
        total, count = 0.0, 0
        for ids, before in zip(self.batches, self.before, strict=True):
            after = model(input_ids=ids).logits.float().log_softmax(-1)
            total += float((before.exp() * (before - after)).sum(-1).double().sum())
            count += ids.numel()
        return total / count


class GptqRounding:
    """The rounding of GPTQ for one layer at a time, its inputs being those of the model in floating point.

    In a whole run of GPTQ a layer sees the outputs of layers already quantised; alone, it sees what is collected here.

    Args:
        model: of :mod:`reference.models.families`; unchanged. One matrix ``[in, in]`` of float64 is kept for each group of
            layers that share an input.
        batches: calibration ids ``[batch, length]``.

    Raises:
        ValueError: there are no batches.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8,
        ...                      num_hidden_layers=1, num_attention_heads=2)
        >>> model, name = LlamaForCausalLM(config).eval(), "model.layers.0.mlp.up_proj"
        >>> rounding = GptqRounding(model, [torch.arange(64).view(8, 8) % 8])
        >>> weight = rounding(name, model.get_submodule(name).weight.data, QuantizationSpec(2))
        >>> [len(row.unique()) <= 4 for row in weight[:2]]  # two bits: four values a row
        [True, True]

    Chapter: advanced/dynamic
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, batches: Sequence[Tensor]) -> None:
        if not batches:
            raise ValueError("batches is empty; GPTQ needs at least one")
        self.hessians: dict[str, HessianAccumulator] = {}
        family = family_of(model)
        handles: list[RemovableHandle] = []
        for number, block in enumerate(blocks(model)):
            for group in family.sublayers:
                layer = block.get_submodule(group[0])
                found = HessianAccumulator(layer.get_parameter("weight").shape[1])
                self.hessians |= dict.fromkeys((f"{family.blocks}.{number}.{name}" for name in group), found)
                handles.append(layer.register_forward_pre_hook(lambda _, args, found=found: found.add(args[0])))
        try:
            for ids in batches:
                model(input_ids=ids)
        finally:
            for handle in handles:
                handle.remove()

    def __call__(self, name: str, weight: Tensor, spec: QuantizationSpec) -> Tensor:
        solved = quantize_layer(
            weight, self.hessians[name].hessian, spec, scale_dtype=storage_dtype(weight), static_groups=True, name=name
        )
        return solved.dequantize(weight.dtype)


def shapes_of(model: nn.Module, skip: Sequence[str] = ()) -> dict[str, tuple[int, int]]:
    """``(out_features, in_features)`` of the linear layers of the blocks, by name, but for those that ``skip`` fits.

    Args:
        model: of :mod:`reference.models.families`.
        skip: patterns of names.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=12,
        ...                      num_hidden_layers=1, num_attention_heads=2)
        >>> shapes_of(LlamaForCausalLM(config), skip=["*self_attn*", "*up_proj"])
        {'model.layers.0.mlp.gate_proj': (12, 8), 'model.layers.0.mlp.down_proj': (8, 12)}

    Chapter: advanced/dynamic
    """
    return {
        name: (layer.out_features, layer.in_features)
        for name, layer in block_linears(model)
        if isinstance(layer, nn.Linear) and not any(fnmatch.fnmatchcase(name, pattern) for pattern in skip)
    }


def choose_bits(
    model: nn.Module,
    spec: QuantizationSpec,
    average_bits: float,
    batches: Sequence[Tensor],
    *,
    options: Sequence[int] = OPTIONS,
    skip: Sequence[str] = (),
    rounding: Callable[[str, Tensor, QuantizationSpec], Tensor] | None = None,
    progress: Callable[[list], Iterable] = iter,
) -> dict[str, int]:
    """Measure each layer's sensitivity, and share out the bits by the exact knapsack.

    Layers that read the same input get the same bits: servers compute queries, keys and values as one layer, gate and up as
    another, and refuse parts of different grids.

    Args:
        model: in floating point, whole in memory.
        spec: grid of every layer, but for its bits.
        average_bits: stored bits a weight over all layers, scales and zero points included. The bytes of uniform 3 bits
            in symmetric groups of 128 are 3.125.
        batches: calibration ids ``[batch, length]``; about a thousand tokens do.
        options: bits to choose from, each 2 to 8.
        skip: patterns of layers that stay in float, which do not count.
        rounding: as :func:`reference.dynamic.sensitivity.measured`: :class:`GptqRounding` where GPTQ will round.
        progress: wraps the list of layers, for a progress bar.

    Returns:
        Layer → bits, for ``bits_for`` of the pipeline.

    Raises:
        ValueError: ``average_bits`` is below what the fewest bits take, or no layer is left.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=8, hidden_size=32, intermediate_size=32, initializer_range=0.5,
        ...                      num_hidden_layers=1, num_attention_heads=2)
        >>> model, ids = LlamaForCausalLM(config).eval(), torch.arange(16).view(2, 8) % 8
        >>> bits = choose_bits(model, QuantizationSpec(4, symmetric=True), 3.5, [ids], options=(2, 4))
        >>> sorted(set(bits.values())), sum(bits.values()) <= 3 * len(bits)  # half a bit a weight goes to the scales
        ([2, 4], True)

    Chapter: advanced/dynamic
    """
    shapes = shapes_of(model, skip)
    if not shapes:
        raise ValueError("skip leaves no layer to share bits among")
    weights = sum(rows * columns for rows, columns in shapes.values())
    grids = [replace(spec, bits=bits) for bits in sorted(set(options))]
    check_budget(shapes, grids[0], average_bits)
    table = measured(model, grids, list(shapes), Divergence(model, batches), rounding=rounding, progress=progress)
    return bits_within(table, shapes, spec, average_bits * weights / 8, together=input_groups(model))


def check_budget(shapes: Mapping[str, tuple[int, int]], smallest: QuantizationSpec, average_bits: float) -> None:
    """Refuse a budget that no choice fits, before anything is measured.

    Args:
        shapes: of the layers.
        smallest: the grid of the fewest bits.
        average_bits: as :func:`choose_bits`.

    Raises:
        ValueError: ``average_bits`` is below what ``smallest`` takes; the message has that.

    Example:
        >>> check_budget({"up": (8, 64)}, QuantizationSpec(2, symmetric=True), 2.25)  # 2 bits, and 16 for 64 weights
        >>> check_budget({"up": (8, 64)}, QuantizationSpec(2, symmetric=True), 2.0)
        Traceback (most recent call last):
            ...
        ValueError: average_bits is 2.0; 2 bits in every layer take 2.25 with scales and zero points...

    Chapter: none (checks)
    """
    weights = sum(rows * columns for rows, columns in shapes.values())
    least = 8 * sum(stored_bytes(shape, smallest) for shape in shapes.values()) / weights
    if not average_bits >= least:
        raise ValueError(
            f"average_bits is {average_bits}; {smallest.bits} bits in every layer take {least:.4g} with scales and zero "
            "points, so it may be that or more"
        )
