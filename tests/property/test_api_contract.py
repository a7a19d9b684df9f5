"""Names and signatures that other code relies on: changing one must be a decision, not an accident."""

import importlib
import inspect

import pytest
import torch

from reference.quantization.grid import QuantizationSpec
from reference.quantization.round_to_nearest import quantize_layer

KEYWORD, POSITIONAL = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD

#: name → (positional parameters, keyword-only parameters that must exist).
SIGNATURES = {
    "reference.quantization.round_to_nearest.quantize_layer": (["weight", "spec"], []),
    "reference.evaluation.perplexity": (["model", "tokens"], ["window", "stride"]),
    "reference.evaluation.token_losses": (["model", "tokens"], ["window", "stride"]),
    "reference.evaluation.size_on_disk": (["directory"], []),
    "reference.checkpoint.save": (["model", "directory", "format"], []),
    "reference.checkpoint.load": (["directory"], []),
    "reference.models.tutorial.load": (["outliers", "dtype"], []),
    "reference.workflow.quantize": (["model", "spec"], ["method"]),
    "reference.tensors.pack": (["values", "bits"], []),
    "reference.tensors.unpack": (["packed", "bits", "n"], []),
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name: str) -> None:
    module, _, function = name.rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(module), function)).parameters
    positional, keywords = SIGNATURES[name]
    assert [key for key, value in parameters.items() if value.kind == POSITIONAL] == positional
    assert set(keywords) <= {key for key, value in parameters.items() if value.kind == KEYWORD}


def test_fields_of_a_spec_in_order_with_their_defaults() -> None:
    assert QuantizationSpec(4) == QuantizationSpec(
        bits=4, symmetric=False, group_size=None, per_tensor=False, clip_search=False, zero_in_range=True
    )
    spec = QuantizationSpec(3, True, 32, False, True, True)
    assert (spec.bits, spec.symmetric, spec.group_size, spec.per_tensor) == (3, True, 32, False)
    assert (spec.clip_search, spec.zero_in_range) == (True, True)


def test_the_default_format_is_compressed_tensors() -> None:
    from reference import checkpoint

    assert inspect.signature(checkpoint.save).parameters["format"].default == "compressed-tensors"


def test_a_quantized_tensor_has_what_others_read() -> None:
    tensor = quantize_layer(torch.randn(6, 64), QuantizationSpec(4, group_size=32))
    assert tensor.codes.shape == (6, 64)
    assert tensor.codes.dtype == torch.uint8
    assert tensor.scale.shape == tensor.zero_point.shape == (6, 2)
    assert tensor.group_index is None
    assert tensor.spec == QuantizationSpec(4, group_size=32)
    assert tensor.dequantize().shape == (6, 64)
    assert isinstance(tensor.nbytes, int)


def test_the_three_commands_exist() -> None:
    from reference.cli import app

    names = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert {"quantize", "evaluate", "inspect"} <= names
