"""The ``pack-quantized`` format of compressed-tensors: names, shapes and configuration.

Per layer ``weight_packed`` (int32 ``[out, ceil(in·b/32)]``), ``weight_scale`` (16 bits,
``[out, groups]``), ``weight_shape`` (int64 ``[2]``) and, for affine grids, ``weight_zero_point``
(int32 ``[ceil(out·b/32), groups]``). The format's codes are signed, offset by 2^(b−1) when
packed, so the packed bits are our unsigned codes.
"""

import re

import torch
from torch import Tensor

from reference.quantization.grid import QuantizationSpec
from reference.tensors import QuantizedTensor


def configuration(specs: dict[str, QuantizationSpec], float_linears: list[str]) -> dict:
    """The ``quantization_config`` of config.json.

    Args:
        specs: grid of each quantised layer, by name.
        float_linears: names of the linear layers left in float.

    Returns:
        A JSON-ready dictionary; one config group a distinct grid.

    Raises:
        ValueError: affine grids of several kinds in one model, which no CPU loader reads.

    Chapter: none (file format)
    """
    by_grid: dict[tuple, list[str]] = {}
    for name, spec in specs.items():
        by_grid.setdefault(tuple(_weights(spec).items()), []).append(name)
    if len(by_grid) > 1 and not all(spec.symmetric for spec in specs.values()):
        raise ValueError(
            "layers have different grids and some are affine: transformers cannot load that mixture; "
            "make all grids symmetric, or all the same"
        )
    groups = {
        f"group_{number}": {
            # One grid for all: name the class, so that fused layers of a server match too.
            "targets": ["Linear"] if len(by_grid) == 1 else names,
            "format": "pack-quantized",
            "weights": dict(weights),
            "input_activations": None,
            "output_activations": None,
        }
        for number, (weights, names) in enumerate(by_grid.items())
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": float_linears,
        "kv_cache_scheme": None,
    }


def _weights(spec: QuantizationSpec) -> dict:
    if spec.per_tensor:
        grouping: dict = {"strategy": "tensor"}
    elif spec.group_size is None:
        grouping = {"strategy": "channel"}
    else:
        grouping = {"strategy": "group", "group_size": spec.group_size}
    return {"num_bits": spec.bits, "type": "int", "symmetric": spec.symmetric, "dynamic": False, **grouping}


def tensors(weight: QuantizedTensor, name: str) -> dict[str, Tensor]:
    """What the file holds for one layer, by suffix.

    Raises:
        ValueError: the layer has a group index, or is affine per tensor: the format has neither.

    Chapter: none (file format)
    """
    if weight.group_index is not None:
        raise ValueError(f"{name} has groups out of order (act-order); compressed-tensors cannot hold a group index")
    if weight.spec.per_tensor and not weight.spec.symmetric:
        raise ValueError(f"{name} is affine with one scale per tensor; use symmetric, or one scale per output channel")
    stored = {
        "weight_packed": weight.packed,
        "weight_scale": weight.scale.reshape(1) if weight.spec.per_tensor else weight.scale,
        "weight_shape": torch.tensor(weight.shape, dtype=torch.int64),
    }
    if weight.packed_zero_point is not None:
        stored["weight_zero_point"] = weight.packed_zero_point
    return stored


def take(stored: dict[str, Tensor], name: str, spec: QuantizationSpec) -> QuantizedTensor:
    """Remove one layer's tensors from ``stored`` and make the compressed weight of them.

    Raises:
        ValueError: a tensor is missing or has another shape than the others and the grid ask for.

    Chapter: none (file format)
    """

    def pop(suffix: str) -> Tensor:
        if f"{name}.{suffix}" not in stored:
            raise ValueError(f"{name}.{suffix} is missing from the checkpoint")
        return stored.pop(f"{name}.{suffix}")

    shape = pop("weight_shape")
    if shape.numel() != 2 or (shape <= 0).any():
        raise ValueError(f"{name}.weight_shape is {shape.tolist()}; it should be [out_features, in_features]")
    out_features, in_features = (int(size) for size in shape)
    groups = 1 if spec.per_tensor else in_features // (spec.group_size or in_features)
    rows = 1 if spec.per_tensor else out_features
    scale, packed = pop("weight_scale"), pop("weight_packed")
    if spec.per_tensor and scale.numel() == 1:
        scale = scale.reshape(1, 1)
    zero_point = None if spec.symmetric else pop("weight_zero_point")
    expected = {
        "weight_scale": (scale, (rows, groups)),
        "weight_packed": (packed, (out_features, _words(in_features, spec))),
    }
    if zero_point is not None:
        expected["weight_zero_point"] = (zero_point, (_words(rows, spec), groups))
    for suffix, (tensor, wanted) in expected.items():
        if tuple(tensor.shape) != wanted:
            raise ValueError(f"{name}.{suffix} has shape {tuple(tensor.shape)}; it should be {wanted}")
        if tensor.is_floating_point() != (suffix == "weight_scale"):
            raise ValueError(f"{name}.{suffix} has type {tensor.dtype}")
    return QuantizedTensor(packed, scale, zero_point, (out_features, in_features), spec)


def _words(values: int, spec: QuantizationSpec) -> int:
    return -(-values * spec.bits // 32)


class Rules:
    """Which layer has which grid, as a ``quantization_config`` says.

    Args:
        configuration: the dictionary in config.json.

    Raises:
        ValueError: not weight-only integer ``pack-quantized`` compressed-tensors.

    Chapter: none (file format)
    """

    def __init__(self, configuration: dict) -> None:
        method, layout = configuration.get("quant_method"), configuration.get("format")
        if method != "compressed-tensors" or layout != "pack-quantized":
            raise ValueError(
                f"quantised with {method!r}, format {layout!r}; read here is compressed-tensors, pack-quantized"
            )
        self.ignore = list(configuration.get("ignore") or ())
        try:
            self.groups = [(group["targets"], _spec(group)) for group in configuration["config_groups"].values()]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"quantization_config in config.json is incomplete: {error!r}") from error

    def spec(self, name: str, kind: str) -> QuantizationSpec | None:
        """Grid of the layer ``name`` of class ``kind``, None if it is float."""
        if _matches(self.ignore, name, kind):
            return None
        return next((spec for targets, spec in self.groups if _matches(targets, name, kind)), None)


def _matches(patterns: list[str], name: str, kind: str) -> bool:
    return any(
        re.match(pattern[3:], name) is not None if pattern.startswith("re:") else pattern in (name, kind)
        for pattern in patterns
    )


def _spec(group: dict) -> QuantizationSpec:
    weights = group["weights"]
    if weights.get("type", "int") != "int" or group.get("input_activations"):
        raise ValueError(
            "the checkpoint quantises activations or uses a float grid; read here are integer weights only"
        )
    if weights.get("strategy") not in ("tensor", "channel", "group"):
        raise ValueError(f"strategy {weights.get('strategy')!r} is not read here; tensor, channel and group are")
    return QuantizationSpec(
        weights["num_bits"],
        symmetric=weights["symmetric"],
        group_size=weights.get("group_size") if weights["strategy"] == "group" else None,
        per_tensor=weights["strategy"] == "tensor",
    )
