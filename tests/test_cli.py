"""The command line: what it writes, what it prints, and how it teaches."""

import inspect
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
import torch
from command_line import intercepted, quantize_options, refused
from forked import Forked
from transformers import AutoModelForCausalLM

from reference import checkpoint, cli, cli_shared, evaluation, pipeline, workflow
from reference.models import families, loading
from reference.quantization import CalibrationWarning
from reference.quantization.activations import ActivationSpec
from reference.quantization.grid import QuantizationSpec

COMMANDS = ("quantize", "evaluate", "inspect")


# --- what it does ---------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", ["--symmetric", "--affine"])
def test_quantize_writes_a_checkpoint_and_reports_before_and_after(
    run: Callable, model: Path, text: Path, tmp_path: Path, grid: str
) -> None:
    result = run("quantize", model, *quantize_options(text, tmp_path / "out"), "--bits", 3, grid, "--json")
    assert (result.code, result.err) == (0, "")
    report = result.json
    assert report["method"] == "round_to_nearest"
    assert report["spec"] == {"bits": 3, "group_size": 64, "symmetric": grid == "--symmetric", "clip_search": False}
    for side, folder in (("before", model), ("after", tmp_path / "out")):
        assert report[side]["bytes"] == evaluation.size_on_disk(folder)
        quality = report[side]["quality"][str(text)]
        assert set(quality) == {"perplexity", "nats_per_token", "bits_per_byte", "tokens", "window", "stride"}
        assert (quality["window"], quality["stride"]) == (64, 32)
        assert quality["tokens"] == len(text.read_bytes()) - 1  # a token a byte, all but the first scored
        assert quality["perplexity"] == pytest.approx(math.exp(quality["nats_per_token"]))
        assert quality["bits_per_byte"] == pytest.approx(quality["nats_per_token"] / math.log(2), rel=1e-6)
    before, after = (report[side]["quality"][str(text)]["nats_per_token"] for side in ("before", "after"))
    assert before != after
    assert report["after"]["bytes"]["weights"] < 0.1 * report["before"]["bytes"]["weights"]
    # The reported numbers are those of what was written.
    ids = torch.tensor(list(range(60)))
    loaded, expected = checkpoint.load(tmp_path / "out"), loading.load_float(model)
    workflow.quantize(expected, QuantizationSpec(3, symmetric=grid == "--symmetric", group_size=64))
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids[None]).logits, expected(input_ids=ids[None]).logits)
    evaluated = run("evaluate", tmp_path / "out", "--text", text, "--window", 64, "--json").json
    assert evaluated["quality"][str(text)]["nats_per_token"] == pytest.approx(after, rel=1e-5)


def test_what_quantize_writes_is_complete_for_transformers(
    run: Callable, model: Path, text: Path, tmp_path: Path
) -> None:
    assert run("quantize", model, "--output", tmp_path / "out", "--group-size", -1, "--no-evaluate").code == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    _loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values())
    assert loading.load_tokenizer(tmp_path / "out")("truth")["input_ids"]


def test_without_json_it_prints_tables(run: Callable, model: Path, text: Path, tmp_path: Path) -> None:
    result = run("quantize", model, *quantize_options(text, tmp_path / "out"))
    assert (result.code, result.err) == (0, "")
    assert all(word in result.out for word in ("before", "after", "bits per byte", "zero points", "Written to"))
    result = run("evaluate", tmp_path / "out", "--text", text, "--window", 64, "--against", model)
    assert (result.code, result.err) == (0, "")
    assert all(word in result.out for word in ("perplexity", "top1_agreement", "kl"))


def test_evaluate_against_itself_agrees_fully(run: Callable, model: Path, text: Path) -> None:
    report = run("evaluate", model, "--text", text, "--window", 64, "--against", model, "--json").json
    quality = report["quality"][str(text)]
    assert (quality["top1_agreement"], quality["kl"]) == (1.0, 0.0)
    assert report["against"] == str(model)


def test_tokens_limits_the_text_and_stride_can_equal_the_window(run: Callable, model: Path, text: Path) -> None:
    options = ["--tokens", 130, "--window", 64, "--stride", 64, "--json"]
    quality = run("evaluate", model, "--text", text, *options).json["quality"][str(text)]
    assert quality["tokens"] == 130 - 3  # three windows, each without its first token
    # A token is a byte here. The bytes that are not scored are not free: these bits are compared with those of xz.
    assert quality["bits_per_byte"] == pytest.approx(quality["nats_per_token"] / math.log(2), rel=1e-6)


def test_inspect_names_the_grid_of_every_layer(run: Callable, model: Path, text: Path, tmp_path: Path) -> None:
    run("quantize", model, "--output", tmp_path / "out", "--group-size", 32, "--bits", 4, "--no-evaluate")
    report = run("inspect", tmp_path / "out", "--json").json
    assert report["architecture"] == "llama"
    assert report["bytes"] == evaluation.size_on_disk(tmp_path / "out")
    grids = {name: row["grid"] for name, row in report["layers"].items()}
    quantised = {name for name, grid in grids.items() if grid is not None}
    assert quantised == {name for name, _ in families.block_linears(loading.load_float(model))}
    assert {grids[name] for name in quantised} == {"4 bits, symmetric, groups of 32"}
    assert sum(row["bytes"] for row in report["layers"].values()) == sum(
        size for kind, size in report["bytes"].items() if kind != "total"
    )
    result = run("inspect", model)
    assert (result.code, result.err) == (0, "")
    assert "float" in result.out


@pytest.mark.parametrize("columns", ["40", "80"])
def test_inspect_shows_names_whole_in_a_narrow_terminal(
    run: Callable, model: Path, text: Path, tmp_path: Path, columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut after as many letters, query, key and value are one name."""
    run("quantize", model, "--output", tmp_path / "out", "--group-size", 64, "--no-evaluate")
    run("compress", model, tmp_path / "out.dcz")
    monkeypatch.setenv("COLUMNS", columns)
    for made in ("out", "out.dcz"):
        cells = [line.split("│")[1].strip() for line in run("inspect", tmp_path / made).out.splitlines() if "│" in line]
        for projection in ("q_proj", "k_proj", "v_proj", "o_proj"):
            assert f"model.layers.1.self_attn.{projection}" in "".join(cells)


def test_calibration_takes_as_many_windows_from_each_text_and_at_least_those_asked_for(
    text: Path, tmp_path: Path
) -> None:
    short = tmp_path / "short.txt"
    for tokens, count in ((40, 3), (20, 1)):  # the second is shorter than a window, so it holds one that is all of it
        short.write_text("a" * tokens)
        with pytest.warns(CalibrationWarning, match=f"has {tokens} tokens and 3 sequences of {min(tokens, 32)} are"):
            drawn = cli_shared.draw_calibration([str(text), str(short)], tiny_models.tokenizer(), 5, 32)
        assert [tuple(ids.shape) for ids in drawn] == [(3, 32), (count, min(tokens, 32))]


def test_a_loss_beyond_all_numbers_is_an_infinite_perplexity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "token_losses", lambda *_, **__: torch.full((9,), 710.0))
    (row,) = cli_shared.losses(None, {"text": (torch.zeros(10), 9)}, 8, None, "evaluating").values()
    assert (row["perplexity"], row["nats_per_token"], row["stride"]) == (math.inf, 710, 4)


def test_zero_tokens_are_all_of_a_text(run: Callable, model: Path, text: Path) -> None:
    scored = {}
    for tokens in (0, 100, 10**6):
        found = run("evaluate", model, "--text", text, "--window", 64, "--tokens", tokens, "--json")
        scored[tokens] = found.json["quality"][str(text)]["tokens"]
    whole = len(text.read_bytes())  # a token a byte, all but the first scored
    assert scored == {0: whole - 1, 100: 99, 10**6: whole - 1}


@pytest.mark.parametrize(
    ("device", "message"), [("cuda", None), ("cuda:0", None), ("cuda:1", "torch finds 1 CUDA devices here")]
)
def test_a_device_is_one_of_those_that_are_there(
    run: Callable, monkeypatch: pytest.MonkeyPatch, device: str, message: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(
        loading,
        "resolve",
        lambda model: pytest.fail("looked") if message else (_ for _ in ()).throw(ValueError("reached")),
    )
    refused(run("evaluate", "tutorial", "--device", device), message or "reached")


@pytest.mark.parametrize("given", [True, False])
def test_every_option_of_quantize_arrives(
    run: Callable, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    """And what is not given is what the library does by itself."""
    ours = inspect.signature(pipeline.quantize_folder).parameters
    seen = intercepted(monkeypatch, pipeline, "quantize_folder")
    options = [
        "--method", "smoothquant+gptq", "--bits", 3, "--group-size", 32, "--affine", "--clip-search", "--activations", "static",
        "--sequences", 6, "--damping", 0.25, "--act-order", "--moving-groups", "--alpha", 0.75, "--format", "gptq",
        "--bits-for", "*.up_proj=4", "--bits-for", "*=a=5", "--skip", "*.o_proj", "--no-evaluate",
        "--calibration", text,
    ]  # fmt: skip
    usual = ["--window", 32, "--output", tmp_path / "out"]
    assert run("quantize", model, *usual, *(options if given else ["--text", text])).code == 130
    spec = QuantizationSpec(3, symmetric=False, group_size=32, clip_search=True)
    assert seen["arguments"] == (
        model,
        tmp_path / "out",
        spec if given else QuantizationSpec(4, symmetric=True, group_size=128),
    )
    names = ("method", "damping", "act_order", "static_groups", "alpha", "format")
    default = tuple(ours[name].default for name in names)
    wanted = ("smoothquant+gptq", 0.25, True, False, 0.75, "gptq") if given else default
    assert tuple(seen[name] for name in names) == wanted
    assert seen["activations"] == (ActivationSpec(granularity="static") if given else None)
    assert (seen["bits"], seen["skip"]) == (({"*.up_proj": 4, "*=a": 5}, ("*.o_proj",)) if given else ({}, ()))
    assert (seen["measure"] is None) == given
    assert [tuple(ids.shape) for ids in seen["calibration"] or ()] == ([(6, 32)] if given else [])


# --- how it teaches -------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_that_parses(run: Callable, command: str) -> None:
    result = run(command, "--help")
    assert result.code == 0
    words = " ".join(result.out.split())
    assert f"Example: python -m reference {command} " in words
    assert "MODEL" in words


def test_help_of_the_program_names_the_commands_and_comes_without_arguments_too(run: Callable) -> None:
    result = run("--help")
    assert result.code == 0
    assert all(command in result.out for command in COMMANDS)
    empty = run()
    assert empty.code == 2
    assert empty.out == result.out
    group = run("workflow")
    assert (group.code, group.err) == (2, "")
    assert "prune" in group.out


# --- as a program ---------------------------------------------------------------------------------


def test_average_bits_are_shared_out_and_met(run: Callable, model: Path, text: Path, tmp_path: Path) -> None:
    options = [*quantize_options(text, tmp_path / "out"), "--calibration", text, "--average-bits", "4", "--json"]
    result = run("quantize", model, *options)
    assert result.code == 0, result.err
    chosen = result.json["bits_for"]
    assert len(chosen) == 14
    assert len(set(chosen.values())) > 1
    sizes = result.json["after"]["bytes"]
    weights = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128)
    assert 3.5 < 8 * (sizes["weights"] + sizes["scales"]) / weights <= 4
    grids = run("inspect", tmp_path / "out", "--json").json["layers"]
    assert all(grids[name]["grid"].startswith(f"{bits} bits") for name, bits in chosen.items())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.arange(20).view(1, 20)
    torch.testing.assert_close(loaded(ids).logits, checkpoint.load(tmp_path / "out")(ids).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--average-bits", "1.5"], "average_bits is 1.5"),
        (["--average-bits", "4", "--bits-for", "*q_proj=3"], "exclude each other"),
    ],
)
def test_average_bits_that_cannot_be_are_refused(
    run: Callable, model: Path, text: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    result = run("quantize", model, *quantize_options(text, tmp_path / "out"), "--calibration", text, *options)
    assert result.code == 2
    assert words in result.err
    assert list(tmp_path.iterdir()) == []


def test_as_a_program(model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["quantize", str(model), "--output", "out", "--json", "--group-size", "64"]
    command = [sys.executable, "-m", "reference", *arguments, "--text", str(text), "--window", "64"]
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parent.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["after"]["bytes"] == evaluation.size_on_disk(tmp_path / "out")
    again = Forked(None, *arguments).wait()
    assert again == (2, "", "error: output folder 'out' is not empty; name a new one or empty it first\n")


@pytest.mark.parametrize(
    ("method", "format"), [("awq", "awq"), ("smoothquant+gptq", "gptq"), ("awq+gptq", "compressed-tensors")]
)
def test_calibrated_methods_write_their_formats(
    run: Callable, model: Path, text: Path, tmp_path: Path, method: str, format: str
) -> None:
    options = ("--calibration", text, "--sequences", 4, "--window", 32, "--group-size", 64, "--no-evaluate")
    result = run("quantize", model, "--output", tmp_path / "out", "--method", method, "--format", format, *options)
    assert result.code == 0, result.err
    found = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["quant_method"]
    assert found == format
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".out")] == []
    shown = run("inspect", tmp_path / "out", "--json")
    grids = {row["grid"] for row in json.loads(shown.out)["layers"].values()}
    assert any(grid and grid.startswith("4 bits") for grid in grids)
    assert run("evaluate", tmp_path / "out", "--text", text, "--tokens", 200, "--window", 64).code == 0


def test_options_that_do_not_go_together_are_refused(run: Callable, model: Path, tmp_path: Path) -> None:
    moving = ("--method", "gptq", "--act-order", "--moving-groups")
    refused(run("quantize", model, "--output", tmp_path / "out", *moving), "--moving-groups needs --format gptq")
    refused(run("quantize", model, "--output", tmp_path / "out", "--format", "zip"), "--format is 'zip'; it may be")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("device", "words"),
    [("cuda", "torch finds 0 CUDA devices here"), ("gpu", "it may be cpu, cuda or cuda:1"), ("meta", "it may be cpu")],
)
def test_evaluate_refuses_devices_that_are_not_here(device, words, capsys, monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(SystemExit) as leave:
        cli.main(["evaluate", "tutorial", "--device", device])
    assert leave.value.code == 2
    assert words in capsys.readouterr().err
