"""The command prune: what it writes, that others load it, that it resumes, and how it refuses."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line import goes_on_after_sigkill, intercepted, refused
from forked import together
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    CompressedTensorsConfig,
    GPT2Config,
    GPT2LMHeadModel,
)

from reference import checkpoint, evaluation, pipeline
from reference.layers import QuantizedLinear
from reference.models import loading
from reference.models.families import block_linears
from reference.quantization.grid import QuantizationSpec


def options(text: Path, output: Path, *, measured: bool = True, calibrated: bool = True) -> list[object]:
    measure = ["--text", text] if measured else ["--no-evaluate"]
    return [
        "--output",
        output,
        "--window",
        64,
        *measure,
        *(["--calibration", text, "--sequences", 8] if calibrated else []),
    ]


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_prune_writes_zeros_that_transformers_loads(
    run: Callable, model: Path, text: Path, tmp_path: Path, method: str
) -> None:  # fmt: skip
    out = tmp_path / "out"
    result = run(
        "prune",
        model,
        "--method",
        method,
        "--sparsity",
        0.75,
        *options(text, out, calibrated=method != "magnitude"),
        "--json",
    )
    assert result.code == 0
    report = result.json
    assert (report["method"], report["sparsity"], report["pattern"], report["spec"]) == (method, 0.75, None, None)
    loaded, found = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(found.values())
    dense = loading.load_float(model)
    for name, linear in block_linears(loaded):
        zeros = float((linear.weight == 0).double().mean())
        assert zeros == pytest.approx(0.75, abs=1e-3)
        assert report["errors"][name]["removed"] == pytest.approx(zeros, abs=1e-3)
        assert json.loads((out / checkpoint.REPORT).read_text())["layers"][name]["removed"] == pytest.approx(zeros)
        stay = linear.weight != 0
        moved = bool((linear.weight != dense.get_submodule(name).weight)[stay].any())
        assert moved is (method == "sparsegpt")
    # Untouched: everything else. As large as before: zeros are stored.
    assert torch.equal(loaded.get_input_embeddings().weight, dense.get_input_embeddings().weight)
    assert report["after"]["bytes"] == evaluation.size_on_disk(out)
    assert report["after"]["bytes"]["weights"] == report["before"]["bytes"]["weights"]
    before, after = (report[side]["quality"][str(text)]["nats_per_token"] for side in ("before", "after"))
    evaluated = run("evaluate", out, "--text", text, "--window", 64, "--json").json
    assert evaluated["quality"][str(text)]["nats_per_token"] == pytest.approx(after, rel=1e-6)
    assert before != after
    assert not list(tmp_path.glob(".*.unfinished"))


@pytest.mark.parametrize("grid", ["--symmetric", "--affine"])
def test_pattern_and_bits_leave_codes_of_zero(
    run: Callable, model: Path, text: Path, tmp_path: Path, grid: str
) -> None:  # fmt: skip
    out = tmp_path / "out"
    command = [
        "prune",
        model,
        "--pattern",
        "2:4",
        "--bits",
        4,
        "--group-size",
        32,
        grid,
        *options(text, out, measured=False),
    ]
    assert run(*command).code == 0
    ours = checkpoint.load(out)
    layers = [(name, layer) for name, layer in block_linears(ours) if isinstance(layer, QuantizedLinear)]
    assert len(layers) == 14
    for _, layer in layers:
        weight = layer.tensor.dequantize()
        assert int((weight.view(len(weight), -1, 4) != 0).sum(-1).max()) <= 2
    config = CompressedTensorsConfig(dequantize=True)
    theirs, found = AutoModelForCausalLM.from_pretrained(out, quantization_config=config, output_loading_info=True)
    assert not any(found.values())
    for name, layer in layers:
        assert torch.equal(theirs.get_submodule(name).weight.float(), layer.tensor.dequantize().float())
    rows = run("inspect", out, "--json").json["layers"]
    assert all(rows[name]["removed"] == 0.5 for name, _ in layers)
    shown = run("inspect", out).out
    assert "4 bits" in shown
    assert "removed" in shown
    assert "of output" in shown


def test_gpt2_keeps_its_transposed_layers(run: Callable, text: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    result = run(
        "prune", tmp_path / "model", "--method", "magnitude", "--pattern", "4:8", "--output", tmp_path / "out",
        "--no-evaluate",
    )  # fmt: skip
    assert result.code == 0
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    weight = loaded.transformer.h[1].mlp.c_fc.weight  # [in, out]
    assert (weight.T.reshape(len(weight.T), -1, 8) == 0).sum(-1).unique().tolist() == [4]


def test_skipped_layers_stay(run: Callable, model: Path, tmp_path: Path) -> None:
    arguments = ["prune", model, "--method", "magnitude", "--skip", "*.layers.0.*", "--no-evaluate", "--json"]
    report = run(*arguments, "--output", tmp_path / "out").json
    assert len(report["errors"]) == 7
    assert report["sparsity"] == 0.5
    loaded = loading.load_float(tmp_path / "out")
    zeros = {name: bool((linear.weight == 0).any()) for name, linear in block_linears(loaded)}
    assert {name for name, any_zero in zeros.items() if any_zero} == set(report["errors"])


@pytest.mark.parametrize("given", [True, False])
def test_every_option_of_prune_arrives(
    run: Callable, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    seen = intercepted(monkeypatch, pipeline, "prune_folder")
    more = [
        "--method", "wanda", "--pattern", "2:4", "--bits", 3, "--group-size", -1, "--affine", "--format", "gptq",
        "--skip", "*.o_proj",
    ]  # fmt: skip
    usual = options(text, tmp_path / "out", measured=not given)
    assert run("prune", model, *usual, *(more if given else [])).code == 130
    spec = QuantizationSpec(3, symmetric=False, group_size=None)
    assert seen["arguments"] == (model, tmp_path / "out", None if given else 0.5)
    names = ("pattern", "method", "spec", "skip", "format")
    default = (None, "sparsegpt", None, (), "compressed-tensors")
    wanted = ((2, 4), "wanda", spec, ("*.o_proj",), "gptq") if given else default
    assert tuple(seen[name] for name in names) == wanted
    assert (seen["measure"] is None) == given
    assert [tuple(ids.shape) for ids in seen["calibration"]] == [(8, 64)]
    assert run("prune", model, *usual, *(["--damping", 0.25] if given else [])).code == 130
    assert seen["damping"] == (0.25 if given else 0.01)


@pytest.mark.parametrize(
    ("given", "sparsity", "pattern"),
    [(["--sparsity", 0], 0, None), (["--sparsity", 0.99], 0.99, None), (["--pattern", "4:4"], None, (4, 4))],
)
def test_the_ends_of_a_range_are_allowed(
    run: Callable,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: list,
    sparsity: float,
    pattern: tuple,
) -> None:
    seen = intercepted(monkeypatch, pipeline, "prune_folder")
    assert (
        run("prune", model, "--method", "magnitude", "--no-evaluate", "--output", tmp_path / "out", *given).code == 130
    )
    assert (seen["arguments"][2], seen["pattern"]) == (sparsity, pattern)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "magic"], "--method is 'magic'; it may be magnitude, wanda, sparsegpt"),
        (["--sparsity", 1], "--sparsity is 1.0; it may be 0 or more and below 1"),
        (["--sparsity", -0.1], "--sparsity is -0.1; it may be 0 or more and below 1"),
        (["--sparsity", 0.5, "--pattern", "2:4"], "--sparsity and --pattern exclude each other"),
        (["--pattern", "5:4"], "--pattern is '5:4'; it may be N:M with 1 <= N <= M, such as 2:4"),
        (["--pattern", "²:4"], "--pattern is '²:4'; it may be N:M"),
        (["--damping", -1], "damping is -1.0; it may be 0 or more and below 1000"),
        (["--bits", 3, "--group-size", 64, "--format", "awq"], "q_proj has 3 bits; the awq format holds 4"),
        (["--pattern", "half"], "--pattern is 'half'; it may be N:M"),
        (["--pattern", "2:3"], "pattern is 2:3; it may be n:m with 1 <= n <= m, and sparsegpt needs an m that divides"),
        (["--pattern", "64:128"], "128 does not divide the 64 inputs of model.layers.0.self_attn.q_proj"),
        (["--bits", 1], "bits is 1; it may be an integer from 2 to 8"),
        (["--bits", 4, "--group-size", 48], "group_size 48 does not divide the 64 inputs of"),
        (["--bits", 4, "--format", "zip"], "--format is 'zip'; it may be"),
        (["--skip", "*"], "skip leaves all 14 linear layers as they are"),
        (["--skip", "*.nothing"], "pattern '*.nothing' fits no layer"),
    ],
)
def test_wrong_options_end_with_one_line_and_leave_nothing(
    run: Callable, model: Path, text: Path, tmp_path: Path, arguments: list, message: str
) -> None:  # fmt: skip
    refused(run("prune", model, *options(text, tmp_path / "new" / "out", measured=False), *arguments), message)
    assert list(tmp_path.iterdir()) == []


def test_what_is_quantised_is_not_pruned(run: Callable, model: Path, tmp_path: Path) -> None:
    assert run("quantize", model, "--output", tmp_path / "q", "--group-size", 64, "--no-evaluate").code == 0
    result = run("prune", tmp_path / "q", "--method", "magnitude", "--output", tmp_path / "out", "--no-evaluate")
    refused(result, "is quantised already; start from the float model")


def test_help_teaches(run: Callable) -> None:
    words = " ".join(run("prune", "--help").out.split())
    assert "Example: python -m reference prune tutorial --method sparsegpt --sparsity 0.5" in words
    assert all(word in words for word in ("magnitude", "wanda", "2:4", "as large as before", "goes on where it was"))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a signal that cannot be caught")
def test_it_goes_on_after_sigkill_to_the_same_files(tmp_path: Path) -> None:
    arguments = [
        "prune",
        "tutorial",
        "--pattern",
        "2:4",
        "--bits",
        "4",
        "--no-evaluate",
        "--sequences",
        "8",
        "--window",
        "128",
    ]
    goes_on_after_sigkill(tmp_path, arguments, "sparsegpt.*")


RANKS = """
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from reference import pipeline, ranks

folder, out, method, batches = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], list(load_file(sys.argv[4])["tokens"])
torch.set_num_threads(1)
group = ranks.start()
pipeline.prune_folder(folder, out, 0.6, method=method, calibration=batches, ranks=group)
ranks.stop()
"""


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_two_processes_write_the_bytes_of_one(model: Path, tmp_path: Path, method: str) -> None:
    script, drawn = tmp_path / "run.py", tmp_path / "tokens.safetensors"
    script.write_text(RANKS)
    save_file({"tokens": torch.randint(0, 256, (4, 3, 32), generator=torch.Generator().manual_seed(1))}, drawn)
    for count, output in ((1, "one"), (2, "two")):
        together(count, script, model, tmp_path / output, method, drawn)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name
