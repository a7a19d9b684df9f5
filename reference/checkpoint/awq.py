"""The AWQ format in its "gemm" version: names, shapes and configuration, as AutoAWQ, transformers and vLLM read it.

    ========== ======= =========== ==============================================================
    qweight    int32   [in, out/8] codes of 4 bits: word c holds outputs 8c + ORDER[k] at bits 4k
    qzeros     int32   [g, out/8]  zero points in the same order, as they are
    scales     float16 [g, out]    weight[o, i] = scales[k, o] · (code[o, i] − zero[k, o]), k = i // g
    ========== ======= =========== ==============================================================

AWQ's channel scales are folded into the weights and what comes before them: the file knows
nothing of them, and any 4-bit weight may be stored, whatever solved it.
"""

import torch
from torch import Tensor, nn

from reference.checkpoint.stored import check, float16_scale, pop
from reference.layers import QuantizedLinear
from reference.quantization.grid import QuantizationSpec
from reference.tensors import QuantizedTensor, pack, unpack

#: Outputs of eight in the order in which the format's kernels want the nibbles of a word.
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def configuration(layers: dict[str, nn.Module], float_linears: list[str]) -> dict:
    """The ``quantization_config`` of config.json.

    Args:
        layers: the quantised layers by name.
        float_linears: names of the linear layers left in float.

    Returns:
        A JSON-ready dictionary.

    Raises:
        ValueError: a layer that the format cannot hold, or group sizes that differ, named.

    Example:
        >>> from reference.quantization.round_to_nearest import quantize_layer
        >>> layer = QuantizedLinear(quantize_layer(torch.ones(8, 32), QuantizationSpec(4, group_size=32)))
        >>> found = configuration({"up_proj": layer}, ["lm_head"])
        >>> found["version"], found["group_size"], found["modules_to_not_convert"]
        ('gemm', 32, ['lm_head'])

    Chapter: none (file format)
    """
    sizes = {name: _weight(layer, name).spec.group_size or -1 for name, layer in layers.items()}
    first, size = next(iter(sizes.items()))
    for name, other in sizes.items():
        if other != size:
            raise ValueError(
                f"{name} has group size {other} and {first} has {size}; the awq format has one for all layers. "
                "Write compressed-tensors or gptq"
            )
    return {
        "quant_method": "awq",
        "bits": 4,
        "group_size": size,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": float_linears or None,
    }


def _weight(layer: nn.Module, name: str) -> QuantizedTensor:
    """The weight of a layer that the format can hold."""
    if not isinstance(layer, QuantizedLinear):
        raise ValueError(f"{name} has quantised inputs; the awq format can hold weights only. Write compressed-tensors")
    weight = layer.tensor
    if weight.spec.bits != 4:
        raise ValueError(
            f"{name} has {weight.spec.bits} bits; the awq format holds 4. Write compressed-tensors or gptq"
        )
    if weight.group_index is not None:
        raise ValueError(f"{name} has groups out of order (act-order), which only the gptq format can hold")
    if weight.shape[0] % 8:
        raise ValueError(
            f"{name} has {weight.shape[0]} outputs; the awq format needs a multiple of 8. Leave the layer in float, "
            "or write compressed-tensors"
        )
    return weight


def interleave(values: Tensor) -> Tensor:
    """Codes ``[rows, out]``, each below 16, as words ``[rows, out / 8]`` in the format's order.

    Args:
        values: uint8 or int32 ``[rows, out]``, 0 to 15; ``out`` a multiple of 8.

    Returns:
        int32 ``[rows, out / 8]``: eight codes of 4 bits a word, in the order 0, 2, 4, 6, 1, 3, 5, 7 from the lowest bits.

    Example:
        >>> hex(interleave(torch.arange(8, dtype=torch.uint8)[None]).item())  # even codes from the right, then odd
        '0x75316420'

    Chapter: none (file format)
    """
    rows, columns = values.shape
    return pack(values.reshape(rows, columns // 8, 8)[..., list(ORDER)].reshape(rows, columns), 4)


def deinterleave(words: Tensor, columns: int) -> Tensor:
    """Undo :func:`interleave`: uint8 ``[rows, columns]``.

    Args:
        words: int32 ``[rows, columns / 8]``.
        columns: codes a row.

    Example:
        >>> deinterleave(torch.tensor([[0x75316420]], dtype=torch.int32), 8)
        tensor([[0, 1, 2, 3, 4, 5, 6, 7]], dtype=torch.uint8)

    Chapter: none (file format)
    """
    back = sorted(range(8), key=ORDER.__getitem__)
    return unpack(words, 4, columns).reshape(len(words), columns // 8, 8)[..., back].reshape(len(words), columns)


def tensors(layer: nn.Module, name: str, configuration: dict) -> dict[str, Tensor]:
    """What the file holds for one layer, by suffix. A symmetric grid has zero points of 8 everywhere.

    Args:
        layer: a :class:`~reference.layers.QuantizedLinear` of 4 bits.
        name: what to call it in an error.
        configuration: of :func:`configuration`; not looked at.

    Returns:
        ``qweight`` int32 ``[in, out / 8]``, ``qzeros`` int32 ``[groups, out / 8]``, ``scales`` float16 ``[groups, out]``.

    Raises:
        ValueError: the layer does not fit the format, by name.

    Example:
        >>> from reference.quantization.round_to_nearest import quantize_layer
        >>> layer = QuantizedLinear(quantize_layer(torch.ones(16, 32), QuantizationSpec(4, group_size=32)))
        >>> {suffix: tuple(t.shape) for suffix, t in tensors(layer, "up_proj", {}).items()}  # inputs come first
        {'qweight': (32, 2), 'qzeros': (1, 2), 'scales': (1, 16)}

    Chapter: none (file format)
    """
    weight = _weight(layer, name)
    zero_point, scale = (t.expand(weight.shape[0], -1).T for t in (weight.zero_point, weight.scale))
    return {
        "qweight": interleave(weight.codes.T),
        "qzeros": interleave(zero_point),
        "scales": float16_scale(scale, name, "awq").contiguous(),
    }


class Reader:
    """The quantised layers of a folder, as its ``quantization_config`` describes them.

    Which layers are quantised is seen from the file: a layer with a ``qweight`` is.

    Args:
        configuration: the dictionary in config.json.

    Raises:
        ValueError: not 4 bits with zero points in the gemm version.

    Example:
        >>> from reference.quantization.round_to_nearest import quantize_layer
        >>> layer = QuantizedLinear(quantize_layer(torch.eye(8, 32), QuantizationSpec(4, group_size=32)))
        >>> stored = {f"up_proj.{suffix}": tensor for suffix, tensor in tensors(layer, "up_proj", {}).items()}
        >>> again = Reader({"bits": 4, "group_size": 32}).take(stored, "up_proj", nn.Linear(32, 8))
        >>> torch.equal(again.tensor.codes, layer.tensor.codes), stored  # nothing is left over
        (True, {})

    Chapter: none (file format)
    """

    def __init__(self, configuration: dict) -> None:
        version = str(configuration.get("version") or configuration.get("format") or "gemm").lower()
        bits, size = configuration.get("bits", 4), configuration.get("group_size", 128)
        if version != "gemm" or bits != 4 or not configuration.get("zero_point", True):
            raise ValueError(
                f"quantised with 'awq', version {version!r}, {bits} bits, zero_point "
                f"{configuration.get('zero_point', True)}; read here is gemm of 4 bits with zero points"
            )
        self.group_size = None if size == -1 else size
        self.title = "awq gemm"

    def spec(self, name: str, suffixes: set[str]) -> QuantizationSpec | None:
        """Grid of the layer ``name``, None if it is float.

        Args:
            suffixes: names of the layer's tensors.
        """
        return QuantizationSpec(4, group_size=self.group_size) if "qweight" in suffixes else None

    def take(self, stored: dict[str, Tensor], name: str, linear: nn.Linear) -> nn.Module | None:
        """Remove one layer's tensors from ``stored`` and make the layer of them; None if it is float.

        A layer whose zero points are all 8 becomes a symmetric one, which computes the same.

        Raises:
            ValueError: a tensor is missing or misshapen.
        """
        spec = self.spec(name, {"qweight"} if f"{name}.qweight" in stored else set())
        if spec is None:
            return None
        out_features, in_features = linear.out_features, linear.in_features
        groups, rest = divmod(in_features, spec.group_size or in_features)
        if rest or out_features % 8:
            raise ValueError(
                f"{name} is {out_features} × {in_features}; the awq format needs a multiple of 8 outputs and of "
                f"{spec.group_size} inputs"
            )
        qweight, qzeros, scale = (pop(stored, name, suffix) for suffix in ("qweight", "qzeros", "scales"))
        check(name, "qweight", qweight, (in_features, out_features // 8))
        check(name, "qzeros", qzeros, (groups, out_features // 8))
        check(name, "scales", scale, (groups, out_features), floating=True)
        codes, zero_point = (deinterleave(words, out_features).T for words in (qweight, qzeros))
        if bool((zero_point == 8).all()):
            spec = QuantizationSpec(4, symmetric=True, group_size=self.group_size)
        weight = QuantizedTensor.from_codes(codes, scale.T, zero_point.to(torch.int32), spec)
        return QuantizedLinear.from_linear(linear, weight)
