"""The ``pack-quantized`` and ``int-quantized`` formats of compressed-tensors: names, shapes and configuration.

Per layer ``weight_packed`` (int32 ``[out, ceil(in·b/32)]``), ``weight_scale`` (16 bits,
``[out, groups]``), ``weight_shape`` (int64 ``[2]``) and, for affine grids, ``weight_zero_point``
(int32 ``[ceil(out·b/32), groups]``). The format's codes are signed, offset by 2^(b−1) when
packed, so the packed bits are our unsigned codes.

Layers with quantised activations: weights of 8 bits are ``int-quantized``, ``weight`` int8 ``[out, in]`` and
``weight_scale``; of fewer bits, packed as above (read are both for any bits). Static activations add ``input_scale`` ``[1]``.
"""

import re

import torch
from torch import Tensor, nn

from reference.checkpoint.stored import check, pop
from reference.layers import Int8Linear, QuantizedLinear
from reference.quantization.activations import ActivationSpec
from reference.quantization.grid import QuantizationSpec
from reference.tensors import QuantizedTensor


def configuration(layers: dict[str, nn.Module], float_linears: list[str]) -> dict:
    """The ``quantization_config`` of config.json.

    Args:
        layers: the quantised layers by name.
        float_linears: names of the linear layers left in float.

    Returns:
        A JSON-ready dictionary; one config group a distinct grid.

    Raises:
        ValueError: a layer that the format cannot hold, named; or affine grids of several kinds in one model, which
            no CPU loader reads.

    Example:
        >>> from reference.quantization.round_to_nearest import quantize_layer
        >>> layer = QuantizedLinear(quantize_layer(torch.ones(8, 32), QuantizationSpec(4, group_size=32)))
        >>> found = configuration({"up_proj": layer}, ["lm_head"])
        >>> found["format"], found["ignore"], found["config_groups"]["group_0"]["weights"]["num_bits"]
        ('pack-quantized', ['lm_head'], 4)

    Chapter: none (file format)
    """
    by_grid: dict[tuple, list[str]] = {}
    for name, layer in layers.items():
        spec, activations = _check(layer, name).spec, _activations(layer, name)
        key = (*_weights(spec).items(), None if activations is None else tuple(activations.items()))
        by_grid.setdefault(key, []).append(name)
    if len(by_grid) > 1 and not all(layer.spec.symmetric for layer in layers.values()):  # type: ignore[union-attr]
        raise ValueError(
            "layers have different grids and some are affine: transformers cannot load that mixture; "
            "make all grids symmetric, or all the same"
        )
    groups = {
        f"group_{number}": {
            # One grid for all: name the class, so that fused layers of a server match too.
            "targets": ["Linear"] if len(by_grid) == 1 else names,
            "format": _format(dict(weights), activations),
            "weights": dict(weights),
            "input_activations": None if activations is None else dict(activations),
            "output_activations": None,
        }
        for number, ((*weights, activations), names) in enumerate(by_grid.items())
    }
    formats = {group["format"] for group in groups.values()}
    return {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": float_linears,
        "kv_cache_scheme": None,
    }


def _check(layer: nn.Module, name: str) -> QuantizedLinear | Int8Linear:
    """Refuse a layer that the format cannot hold."""
    assert isinstance(layer, QuantizedLinear | Int8Linear)
    if isinstance(layer, QuantizedLinear) and layer.group_index is not None:
        raise ValueError(
            f"{name} has groups out of order (act-order); compressed-tensors cannot hold a group index. "
            "Write format 'gptq', or solve with static groups"
        )
    if layer.spec.per_tensor and not layer.spec.symmetric:
        raise ValueError(f"{name} is affine with one scale per tensor; use symmetric, or one scale per output channel")
    return layer


def _format(weights: dict, activations: tuple | None) -> str:
    return "pack-quantized" if activations is None or weights["num_bits"] < 8 else "int-quantized"


def _activations(layer: nn.Module, name: str) -> dict | None:
    """The format's words for a layer's activations, None if they stay in float."""
    if not isinstance(layer, Int8Linear):
        return None
    if layer.channel_scale is not None:
        raise ValueError(f"{name} divides its input by a channel scale, for which compressed-tensors has no place")
    if layer.hadamard:
        raise ValueError(
            f"{name} rotates its input, which the loaders of this format here do not know; keep it in memory"
        )
    if layer.activations.restricted:
        raise ValueError(f"{name} has a restricted activation grid; loaders compute with steps of absmax / 127.5")
    dynamic = layer.activations.granularity != "static"
    strategy = "token" if layer.activations.granularity == "per_token" else "tensor"
    bits = layer.activations.bits
    return {"num_bits": bits, "type": "int", "symmetric": True, "strategy": strategy, "dynamic": dynamic}


def _weights(spec: QuantizationSpec) -> dict:
    if spec.per_tensor:
        grouping: dict = {"strategy": "tensor"}
    elif spec.group_size is None:
        grouping = {"strategy": "channel"}
    else:
        grouping = {"strategy": "group", "group_size": spec.group_size}
    return {"num_bits": spec.bits, "type": "int", "symmetric": spec.symmetric, "dynamic": False, **grouping}


def tensors(layer: nn.Module, name: str, configuration: dict) -> dict[str, Tensor]:
    """What the file holds for one layer, by suffix.

    Args:
        layer: a :class:`~reference.layers.QuantizedLinear` or :class:`~reference.layers.Int8Linear`.
        name: what to call it in an error.
        configuration: of :func:`configuration`; not looked at.

    Returns:
        ``weight_packed`` int32 ``[out, words]`` with ``weight_shape`` (or ``weight`` int8 ``[out, in]``), ``weight_scale``
        ``[out, groups]`` or ``[1]``, and where there are such, ``weight_zero_point`` and ``input_scale``.

    Raises:
        ValueError: the layer has a group index, or is affine per tensor: the format has neither.

    Example:
        >>> from reference.quantization.round_to_nearest import quantize_layer
        >>> layer = QuantizedLinear(quantize_layer(torch.ones(8, 64), QuantizationSpec(4, group_size=32)))
        >>> {suffix: tuple(t.shape) for suffix, t in tensors(layer, "up_proj", {}).items()}  # 64 codes in 8 words
        {'weight_scale': (8, 2), 'weight_packed': (8, 8), 'weight_shape': (2,), 'weight_zero_point': (1, 2)}

    Chapter: none (file format)
    """
    layer = _check(layer, name)
    weight = layer.tensor
    stored: dict[str, Tensor] = {"weight_scale": weight.scale.reshape(1) if weight.spec.per_tensor else weight.scale}
    if isinstance(layer, Int8Linear) and weight.spec.bits == 8:
        stored["weight"] = layer.weight
    else:
        stored |= {"weight_packed": weight.packed, "weight_shape": torch.tensor(weight.shape, dtype=torch.int64)}
    if isinstance(layer, Int8Linear) and layer.input_scale is not None:
        stored["input_scale"] = layer.input_scale
    if weight.packed_zero_point is not None:
        stored["weight_zero_point"] = weight.packed_zero_point
    return stored


class Reader:
    """The quantised layers of a folder, as its ``quantization_config`` describes them.

    Args:
        configuration: the dictionary in config.json.

    Raises:
        ValueError: not integer ``pack-quantized`` or ``int-quantized`` compressed-tensors.

    Example:
        >>> from reference.quantization.round_to_nearest import quantize_layer
        >>> layer = QuantizedLinear(quantize_layer(torch.eye(8, 64), QuantizationSpec(4, group_size=32)))
        >>> stored = {f"up_proj.{suffix}": tensor for suffix, tensor in tensors(layer, "up_proj", {}).items()}
        >>> again = Reader(configuration({"up_proj": layer}, [])).take(stored, "up_proj", nn.Linear(64, 8))
        >>> torch.equal(again.tensor.codes, layer.tensor.codes), stored  # nothing is left over
        (True, {})

    Chapter: none (file format)
    """

    def __init__(self, configuration: dict) -> None:
        method, layout = configuration.get("quant_method"), configuration.get("format")
        if method != "compressed-tensors" or layout not in ("pack-quantized", "int-quantized", "mixed-precision"):
            raise ValueError(
                f"quantised with {method!r}, format {layout!r}; read here is compressed-tensors, pack-quantized and "
                "int-quantized"
            )
        self.configuration = configuration
        self.title = "compressed-tensors"
        self.ignore = list(configuration.get("ignore") or ())
        try:
            self.groups = [(group["targets"], *_spec(group)) for group in configuration["config_groups"].values()]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"quantization_config in config.json is incomplete: {error!r}") from error

    def spec(self, name: str, suffixes: set[str]) -> QuantizationSpec | None:
        """Grid of the linear layer ``name``, None if it is float.

        Args:
            suffixes: names of the layer's tensors.
        """
        rule = self._rule(name) if suffixes & {"weight_packed", "weight_scale"} else None
        return None if rule is None else rule[0]

    def take(self, stored: dict[str, Tensor], name: str, linear: nn.Linear) -> nn.Module | None:
        """Remove one layer's tensors from ``stored`` and make the layer of them; None if it is float.

        Raises:
            ValueError: a tensor is missing or has another shape than the others and the grid ask for; or the checkpoint
                also quantises the key-value cache, or rotates activations in the call.
        """
        _refuse_more_than_layers(self.configuration)
        rule = self._rule(name)
        if rule is None:
            return None
        spec, activations = rule
        if activations is None:
            return QuantizedLinear.from_linear(linear, _take(stored, name, spec))
        step = pop(stored, name, "input_scale") if activations.granularity == "static" else None
        if step is not None:
            check(name, "input_scale", step, (1,), floating=True)
        packed = f"{name}.weight_packed" in stored
        weight = _take(stored, name, spec) if packed else _take_int8(stored, name, spec, linear)
        return Int8Linear.from_linear(linear, weight, activations, input_scale=step)

    def _rule(self, name: str) -> tuple[QuantizationSpec, ActivationSpec | None] | None:
        if _matches(self.ignore, name, "Linear"):
            return None
        return next((rule for targets, *rule in self.groups if _matches(targets, name, "Linear")), None)  # type: ignore[return-value]


def _refuse_more_than_layers(configuration: dict) -> None:
    """Refuse what the configuration asks for beside the layers: without it the model would compute something else."""
    if cache := configuration.get("kv_cache_scheme"):
        raise ValueError(
            f"the checkpoint quantises keys and values of the cache ({cache.get('type', 'int')} of "
            f"{cache.get('num_bits', 8)} bits), which is not read here"
        )
    schemes = (configuration.get("transform_config") or {}).get("config_groups") or {}
    for name, scheme in schemes.items():
        if not all(str(place.get("location")).startswith("weight_") for place in scheme.get("apply", ())):
            raise ValueError(
                f"the checkpoint rotates activations in the call ({name}), which is not read here; rotations that are "
                "folded into the weights are"
            )


def _take(stored: dict[str, Tensor], name: str, spec: QuantizationSpec) -> QuantizedTensor:
    """The compressed weight of one layer."""
    shape = pop(stored, name, "weight_shape")
    if shape.numel() != 2 or (shape <= 0).any():
        raise ValueError(f"{name}.weight_shape is {shape.tolist()}; it should be [out_features, in_features]")
    out_features, in_features = (int(size) for size in shape)
    groups = 1 if spec.per_tensor else in_features // (spec.group_size or in_features)
    rows = 1 if spec.per_tensor else out_features
    scale, packed = pop(stored, name, "weight_scale"), pop(stored, name, "weight_packed")
    if spec.per_tensor and scale.numel() == 1:
        scale = scale.reshape(1, 1)
    zero_point = None if spec.symmetric else pop(stored, name, "weight_zero_point")
    check(name, "weight_scale", scale, (rows, groups), floating=True)
    check(name, "weight_packed", packed, (out_features, _words(in_features, spec)))
    if zero_point is not None:
        check(name, "weight_zero_point", zero_point, (_words(rows, spec), groups))
    return QuantizedTensor(packed, scale, zero_point, (out_features, in_features), spec)


def _take_int8(stored: dict[str, Tensor], name: str, spec: QuantizationSpec, linear: nn.Linear) -> QuantizedTensor:
    """The compressed weight of one layer of the ``int-quantized`` format: one code a byte, whatever the bits."""
    codes, scale = pop(stored, name, "weight"), pop(stored, name, "weight_scale")
    if spec.per_tensor and scale.numel() == 1:
        scale = scale.reshape(1, 1)
    check(name, "weight", codes, (linear.out_features, linear.in_features))
    groups = linear.in_features // (spec.group_size or linear.in_features)
    check(name, "weight_scale", scale, (1, 1) if spec.per_tensor else (linear.out_features, groups), floating=True)
    low, high = int(codes.min()), int(codes.max())
    if low < -spec.middle or high >= spec.middle:
        raise ValueError(f"{name}.weight holds codes from {low} to {high}; {spec.bits} bits hold fewer")
    unsigned = (codes.to(torch.int16) + spec.middle).to(torch.uint8)
    zero_point = torch.full_like(scale, spec.middle, dtype=torch.int32)
    return QuantizedTensor.from_codes(unsigned, scale, zero_point, spec)


def _words(values: int, spec: QuantizationSpec) -> int:
    return -(-values * spec.bits // 32)


def _matches(patterns: list[str], name: str, kind: str) -> bool:
    return any(
        re.match(pattern[3:], name) is not None if pattern.startswith("re:") else pattern in (name, kind)
        for pattern in patterns
    )


def _spec(group: dict) -> tuple[QuantizationSpec, ActivationSpec | None]:
    weights, inputs = group["weights"], group.get("input_activations")
    if weights.get("type", "int") != "int" or group.get("output_activations"):
        raise ValueError("the checkpoint quantises outputs or uses a float grid; read here are integers only")
    if weights.get("strategy") not in ("tensor", "channel", "group"):
        raise ValueError(f"strategy {weights.get('strategy')!r} is not read here; tensor, channel and group are")
    spec = QuantizationSpec(
        weights["num_bits"],
        symmetric=weights["symmetric"],
        group_size=weights.get("group_size") if weights["strategy"] == "group" else None,
        per_tensor=weights["strategy"] == "tensor",
    )
    if not inputs:
        return spec, None
    strategy, dynamic = inputs.get("strategy"), inputs.get("dynamic", False)
    granularity = {("token", True): "per_token", ("tensor", True): "per_tensor", ("tensor", False): "static"}
    if (
        inputs.get("type", "int") != "int"
        or not inputs.get("symmetric", True)
        or (strategy, dynamic) not in granularity
    ):
        raise ValueError(
            f"activations with strategy {strategy!r}, dynamic {dynamic}, are not read here; symmetric integers for each "
            "token (dynamic) or for the tensor are"
        )
    return spec, ActivationSpec(granularity[strategy, dynamic], inputs["num_bits"])
