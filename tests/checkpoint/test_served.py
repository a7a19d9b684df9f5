"""What vLLM refuses, told before a long run; and bits shared out so that it need not."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models

from reference import checkpoint
from reference.checkpoint import gptq
from reference.checkpoint.served import refused
from reference.models.families import block_linears, input_groups
from reference.quantization import ServingWarning
from reference.quantization.activations import ActivationSpec
from reference.quantization.grid import QuantizationSpec

W4 = QuantizationSpec(4, symmetric=True, group_size=32)
AFFINE = QuantizationSpec(4, group_size=32)
W8 = QuantizationSpec(8, symmetric=True)
PER_TOKEN, PER_TENSOR, STATIC = (ActivationSpec(granularity=name) for name in ("per_token", "per_tensor", "static"))


@pytest.mark.parametrize(
    ("spec", "settings", "words"),
    [  # as vLLM 0.32.0 answered, or its source where no device of ours has the kernel
        (W4, {}, None),
        (AFFINE, {}, None),
        (AFFINE, {"format": "awq"}, None),
        (W4, {"format": "gptq"}, None),
        (W8, {"format": "gptq"}, None),
        (AFFINE, {"format": "gptq"}, "q_proj has an affine grid"),
        (QuantizationSpec(3, symmetric=True, group_size=32), {"format": "gptq"}, "it takes 4 and 8 in the gptq format"),
        (QuantizationSpec(3, symmetric=True, group_size=32), {}, None),
        (W4, {"format": "gptq", "moved_groups": True}, "groups that moved with the columns"),
        (QuantizationSpec(4, symmetric=True), {"format": "gptq", "moved_groups": True}, None),  # one group: none moves
        (W8, {"activations": PER_TOKEN}, None),
        (W8, {"activations": STATIC}, None),
        (W8, {"activations": PER_TENSOR}, "one step for the tensor, found anew each time"),
        (QuantizationSpec(8, symmetric=True, group_size=32), {"activations": PER_TOKEN}, "8 bits in groups"),
        (W4, {"activations": STATIC}, "static inputs and weights of 4 bits"),
        (W4, {"activations": PER_TOKEN}, None),
        (QuantizationSpec(8, symmetric=True, per_tensor=True), {"activations": STATIC}, None),
        (QuantizationSpec(8, symmetric=True, per_tensor=True), {"activations": PER_TOKEN}, None),
        (QuantizationSpec(4, symmetric=True, per_tensor=True), {"activations": PER_TOKEN}, "whole weight, and 4 bits"),
        (QuantizationSpec(8, symmetric=True, per_tensor=True), {}, "one scale for the whole weight"),
    ],
)
def test_what_vllm_refuses(spec: QuantizationSpec, settings: dict, words: str | None) -> None:
    model = tiny_models.build("llama")
    grids = {name: spec for name, _ in block_linears(model)}
    found = refused(model, grids, **settings)
    assert found is None if words is None else words in found
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        checkpoint.check(model, grids, **settings)  # which refuses nothing of that
    assert [str(one.message) for one in caught] == (
        [] if words is None else [f"vLLM will not load this folder: {found}"]
    )
    assert all(one.category is ServingWarning for one in caught)


@pytest.mark.parametrize("architecture", ["llama", "opt"])
def test_layers_computed_as_one_must_agree(architecture: str) -> None:
    model = tiny_models.build(architecture)
    grids = {name: W4 for name, _ in block_linears(model)}
    for group in input_groups(model):
        assert refused(model, grids | dict.fromkeys(group, W8)) is None
        assert refused(model, {name: spec for name, spec in grids.items() if name not in group}) is None
        for name in group if len(group) > 1 else ():
            assert group[0] in refused(model, grids | {name: W8})
            assert "float, which it computes as one layer" in refused(
                model, {other: spec for other, spec in grids.items() if other != group[-1]}
            )


def test_input_groups_are_the_layers_that_servers_join() -> None:
    model = tiny_models.build("llama")
    groups = input_groups(model)
    assert [name for group in groups for name in group] == [name for name, _ in block_linears(model)]
    joined = [tuple(name.rpartition(".")[2] for name in group) for group in groups if len(group) > 1]
    assert joined == list(gptq.FUSED.values()) * 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--bits-for", "*.q_proj=8"], "q_proj has 8 bits in groups of 32 and k_proj 4 bits in groups of 32"),
        (["--skip", "*.layers.0.mlp.up_proj"], "gate_proj has 4 bits in groups of 32 and up_proj float"),
        (["--bits-for", "*.down_proj=8", "--skip", "*.self_attn.*"], None),
    ],
)
def test_the_command_says_it_in_one_line(
    run: Callable, model: Path, tmp_path: Path, options: list[str], words: str | None
) -> None:
    result = run("quantize", model, "--output", tmp_path / "out", "--group-size", 32, "--no-evaluate", *options)
    assert result.code == 0
    lines = [line for line in result.err.splitlines() if line.startswith("warning:")]
    assert len(lines) == (words is not None)
    if words is not None:
        assert lines[0].startswith("warning: vLLM will not load this folder: model.layers.0.")
        assert words in lines[0]
    checkpoint.load(tmp_path / "out")
