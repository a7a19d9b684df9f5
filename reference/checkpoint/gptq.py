"""The GPTQ format: names, shapes and configuration, as AutoGPTQ, GPTQModel and vLLM read it.

    ========== ======= ============== ==================================================================
    qweight    int32   [in·b/32, out] unsigned codes, a bit stream along the input
    qzeros     int32   [g, out·b/32]  zero points, a bit stream along the output, as the version says
    scales     float16 [g, out]       weight[o, i] = scales[k, o] · (code[o, i] − zero[k, o]), k = g_idx[i]
    g_idx      int32   [in]           group of each input; i // group_size unless act-order moved it
    ========== ======= ============== ==================================================================

Version 1 (``checkpoint_format`` "gptq") stores zero points minus one, modulo 2^b; version 2
("gptq_v2") stores them as they are. A zero point of 0 therefore wraps to 2^b − 1 in version 1, and
there readers part: those that add one to each value get 0 back, those that add one to each *word*
carry into the neighbours. So a model with such a zero point is written as version 2, which current
GPTQModel reads, and any other as version 1, which older readers know too. Ours reads both. vLLM 0.32.0
reads symmetric grids alone, and no groups that act-order moved.
"""

import re
from collections import Counter

import torch
from torch import Tensor, nn

from reference import __version__
from reference.checkpoint.stored import check, float16_scale, pop
from reference.layers import QuantizedLinear
from reference.quantization.grid import QuantizationSpec
from reference.tensors import QuantizedTensor, pack, unpack

BITS = (2, 3, 4, 8)
#: Servers run these layers as one, under the name on the left, and ask for its rules by that name.
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def configuration(layers: dict[str, nn.Module], float_linears: list[str]) -> dict:
    """The ``quantization_config`` of config.json, and the content of ``quantize_config.json``.

    Layers that differ from the most common grid, and layers of the blocks that stay in float, are
    listed under ``dynamic`` (GPTQModel, vLLM); the latter also by what is left, under
    ``modules_in_block_to_quantize`` (transformers, which has no word for different grids).

    Args:
        layers: the quantised layers by name.
        float_linears: names of the linear layers left in float.

    Returns:
        A JSON-ready dictionary.

    Raises:
        ValueError: a layer that the format cannot hold, named.

    Example:
        >>> from reference.quantization.round_to_nearest import quantize_layer
        >>> layer = QuantizedLinear(quantize_layer(torch.ones(32, 64), QuantizationSpec(4, symmetric=True)))
        >>> found = configuration({"model.layers.0.mlp.up_proj": layer}, ["model.layers.0.mlp.down_proj", "lm_head"])
        >>> found["bits"], found["group_size"], found["sym"], found["modules_in_block_to_quantize"]
        (4, -1, True, [['mlp.up_proj']])

    Chapter: none (file format)
    """
    weights = {name: _weight(layer, name) for name, layer in layers.items()}
    grids = {name: _grid(weight.spec) for name, weight in weights.items()}
    usual = Counter(tuple(grid.items()) for grid in grids.values()).most_common(1)[0][0]
    found = {
        "quant_method": "gptq",
        **dict(usual),
        "desc_act": any(weight.group_index is not None for weight in weights.values()),
        "checkpoint_format": "gptq_v2" if any(_has_zero(weight) for weight in weights.values()) else "gptq",
        "lm_head": "lm_head" in layers,
        "pack_dtype": "int32",
        "meta": {"quantizer": [f"model-compression-reference:{__version__}"]},
    }
    in_blocks = {_template(name).partition(r"\d+")[0] for name in layers if r"\d+" in _template(name)}
    left_out = [name for name in float_linears if any(re.match(prefix, name) for prefix in in_blocks)]
    rules: dict[str, dict | None] = {name: grid for name, grid in grids.items() if tuple(grid.items()) != usual}
    rules |= dict.fromkeys(left_out)
    if rules:
        found["dynamic"] = _dynamic(rules, [*layers, *left_out])
    if left_out:
        found["modules_in_block_to_quantize"] = _kept([name for name in layers if name != "lm_head"], left_out)
    return found


def _weight(layer: nn.Module, name: str) -> QuantizedTensor:
    """The weight of a layer that the format can hold."""
    if not isinstance(layer, QuantizedLinear):
        raise ValueError(
            f"{name} has quantised inputs; the gptq format can hold weights only. Write compressed-tensors"
        )
    weight = layer.tensor
    if weight.spec.bits not in BITS:
        raise ValueError(f"{name} has {weight.spec.bits} bits; the gptq format holds 2, 3, 4 and 8")
    if weight.shape[0] % 32 or weight.shape[1] % 32:
        raise ValueError(
            f"{name} is {weight.shape[0]} × {weight.shape[1]}; both sizes must be multiples of 32 in the gptq format. "
            "Leave the layer in float, or write compressed-tensors"
        )
    return weight


def _grid(spec: QuantizationSpec) -> dict:
    return {"bits": spec.bits, "group_size": spec.group_size or -1, "sym": spec.symmetric}


def _has_zero(weight: QuantizedTensor) -> bool:
    return weight.packed_zero_point is not None and bool((weight.zero_point == 0).any())


def _template(name: str) -> str:
    """A pattern for the layers at the same place of all blocks."""
    return re.sub(r"\\\.\d+(?=\\\.)", r"\\.\\d+", re.escape(name))


def _dynamic(rules: dict[str, dict | None], names: list[str]) -> dict[str, dict]:
    """Patterns for single layers, joined where a whole place of the blocks has one rule."""

    def uniform(alike: list[str]) -> bool:
        return all(other in rules and rules[other] == rules[alike[0]] for other in alike)

    found: dict[str, dict] = {}
    for name, rule in rules.items():
        alike = [other for other in names if _template(other) == _template(name)]
        place = _template(name) if uniform(alike) else re.escape(name)
        parent, _, last = name.rpartition(".")
        for fused, parts in FUSED.items():
            if last in parts and uniform([f"{parent}.{part}" for part in parts]):
                place = place.removesuffix(re.escape(last)) + f"(?:{'|'.join((*parts, fused))})"
        found[f"{'-' if rule is None else '+'}:{place}$"] = rule or {}
    return found


def _kept(names: list[str], left_out: list[str]) -> list[list[str]]:
    """Names, relative to a block where that is not ambiguous, of the layers that are quantised."""
    mixed = {_template(name) for name in left_out}

    def short(name: str) -> str:
        block = re.match(r".*?\.\d+\.", name)
        return name if block is None or _template(name) in mixed else name[block.end() :]

    return [[name] for name in dict.fromkeys(map(short, names))]


def tensors(layer: nn.Module, name: str, configuration: dict) -> dict[str, Tensor]:
    """What the file holds for one layer, by suffix.

    Args:
        layer: a :class:`~reference.layers.QuantizedLinear`.
        name: what to call it in an error.
        configuration: of :func:`configuration`; its ``checkpoint_format`` says how zero points are stored.

    Returns:
        ``qweight`` int32 ``[in · bits / 32, out]``, ``qzeros`` int32 ``[groups, out · bits / 32]``, ``scales`` float16
        ``[groups, out]``, ``g_idx`` int32 ``[in]``, the group of each input.

    Raises:
        ValueError: the layer does not fit the format, by name.

    Example:
        >>> from reference.quantization.round_to_nearest import quantize_layer
        >>> spec = QuantizationSpec(4, symmetric=True, group_size=32)
        >>> layer = QuantizedLinear(quantize_layer(torch.ones(32, 64), spec))
        >>> found = tensors(layer, "up_proj", {"checkpoint_format": "gptq"})
        >>> {suffix: tuple(tensor.shape) for suffix, tensor in found.items()}  # inputs come first
        {'qweight': (8, 32), 'qzeros': (2, 4), 'scales': (2, 32), 'g_idx': (64,)}
        >>> hex(found["qzeros"][0, 0].item())  # zero points of 8, stored less one
        '0x77777777'

    Chapter: none (file format)
    """
    weight = _weight(layer, name)
    bits, (out_features, in_features) = weight.spec.bits, weight.shape
    zero_point, scale = (t.expand(out_features, -1).T for t in (weight.zero_point, weight.scale))
    if configuration["checkpoint_format"] == "gptq":
        zero_point = (zero_point - 1) % 2**bits
    group_index = weight.group_index
    if group_index is None:
        group_index = _consecutive(in_features, weight.spec)
    return {
        "qweight": weight.packed.T.contiguous(),
        "qzeros": pack(zero_point, bits),
        "scales": float16_scale(scale, name, "gptq").contiguous(),
        "g_idx": group_index.to(torch.int32),
    }


def _consecutive(in_features: int, spec: QuantizationSpec) -> Tensor:
    return (torch.arange(in_features) // (spec.group_size or in_features)).to(torch.int32)


class Reader:
    """The quantised layers of a folder, as its ``quantization_config`` describes them.

    Which layers are quantised is seen from the file: a layer with a ``qweight`` is.

    Args:
        configuration: the dictionary in config.json, or in an older ``quantize_config.json``.

    Raises:
        ValueError: bits or group size are missing, or the variant of the format is not known here.

    Example:
        >>> from reference.quantization.round_to_nearest import quantize_layer
        >>> layer = QuantizedLinear(quantize_layer(torch.eye(32, 64), QuantizationSpec(4, group_size=32)))
        >>> settings = configuration({"up_proj": layer}, [])
        >>> stored = {f"up_proj.{suffix}": tensor for suffix, tensor in tensors(layer, "up_proj", settings).items()}
        >>> again = Reader(settings).take(stored, "up_proj", nn.Linear(64, 32))
        >>> torch.equal(again.tensor.codes, layer.tensor.codes), stored  # nothing is left over
        (True, {})

    Chapter: none (file format)
    """

    def __init__(self, configuration: dict) -> None:
        for key in ("bits", "group_size"):
            if not isinstance(configuration.get(key), int):
                raise ValueError(f"quantization_config has {key} {configuration.get(key)!r}; the gptq format needs it")
        variant = configuration.get("checkpoint_format") or configuration.get("format") or "gptq"
        if variant not in ("gptq", "gptq_v2"):
            raise ValueError(f"quantised with 'gptq', format {variant!r}; read here are gptq and gptq_v2")
        self.offset = 1 if variant == "gptq" else 0
        self.configuration = configuration
        self.title = variant

    def spec(self, name: str, suffixes: set[str]) -> QuantizationSpec | None:
        """Grid of the layer ``name``, None if it is float.

        Args:
            suffixes: names of the layer's tensors.
        """
        if "qweight" not in suffixes:
            return None
        found = dict(self.configuration)
        for pattern, rule in (self.configuration.get("dynamic") or {}).items():
            if re.match(pattern.removeprefix("-:").removeprefix("+:"), name):
                found |= rule or {}
                break
        group_size = None if found["group_size"] == -1 else found["group_size"]
        return QuantizationSpec(found["bits"], symmetric=found.get("sym", True), group_size=group_size)

    def take(self, stored: dict[str, Tensor], name: str, linear: nn.Linear) -> nn.Module | None:
        """Remove one layer's tensors from ``stored`` and make the layer of them; None if it is float.

        AutoGPTQ writes a bias for each layer, of zeros where the model has none: such a one is dropped.

        Raises:
            ValueError: a tensor is missing, misshapen, or contradicts the configuration.
        """
        spec = self.spec(name, {"qweight"} if f"{name}.qweight" in stored else set())
        if spec is None:
            return None
        bits, out_features, in_features = spec.bits, linear.out_features, linear.in_features
        if bits not in BITS or out_features * bits % 32 or in_features * bits % 32:
            raise ValueError(f"{name} with {bits} bits, {out_features} × {in_features}, does not fit the gptq format")
        groups, rest = divmod(in_features, spec.group_size or in_features)
        if rest:
            raise ValueError(f"{name} has {in_features} inputs, which groups of {spec.group_size} do not divide")
        qweight, qzeros, scale = (pop(stored, name, suffix) for suffix in ("qweight", "qzeros", "scales"))
        check(name, "qweight", qweight, (in_features * bits // 32, out_features))
        check(name, "qzeros", qzeros, (groups, out_features * bits // 32))
        check(name, "scales", scale, (groups, out_features), floating=True)
        zero_point = (unpack(qzeros, bits, out_features).int() + self.offset) % 2**bits
        if spec.symmetric and (zero_point != spec.middle).any():
            raise ValueError(
                f"{name} has zero points other than {spec.middle}, but config.json says that the grid is symmetric; "
                "is checkpoint_format right?"
            )
        packed_zero_point = None if spec.symmetric else pack(zero_point, bits).T.contiguous()
        group_index = stored.pop(f"{name}.g_idx", None)
        if group_index is None:
            if groups > 1 and self.configuration.get("desc_act") and not self.configuration.get("static_groups"):
                raise ValueError(f"{name}.g_idx is missing from the checkpoint, whose groups moved (desc_act)")
        else:
            check(name, "g_idx", group_index, (in_features,))
            if int(group_index.min()) < 0 or int(group_index.max()) >= groups:
                raise ValueError(f"{name}.g_idx runs to {int(group_index.max())}; there are {groups} groups")
            if torch.equal(group_index, _consecutive(in_features, spec)):
                group_index = None
        if linear.bias is None and (bias := stored.pop(f"{name}.bias", None)) is not None:
            check(name, "bias", bias, (out_features,), floating=True)
            if bias.any():
                raise ValueError(f"{name}.bias holds other values than 0, and the model has no bias there")
        weight = QuantizedTensor(
            qweight.T.contiguous(), scale.T.contiguous(), packed_zero_point, (out_features, in_features), spec,
            group_index,
        )  # fmt: skip
        return QuantizedLinear.from_linear(linear, weight)
