"""The command line: what it writes, what it prints, and how it refuses."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
import torch
from command_line import Result
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from reference import checkpoint, cli, cli_prune, evaluation, workflow
from reference.models import families, loading

COMMANDS = ("quantize", "evaluate", "inspect")


def quantize_options(text: Path, output: Path) -> list[object]:
    return ["--output", output, "--group-size", 64, "--text", text, "--window", 64]


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
    from reference.quantization.grid import QuantizationSpec

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


# --- how it refuses -------------------------------------------------------------------------------


def copy_of(model: Path, target: Path, change: Callable[[Path], None]) -> Path:
    shutil.copytree(model, target)
    change(target)
    return target


def edit(**fields: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | fields))

    return change


def drop_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def truncate(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:40])


def drop_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.layers.0.mlp.up_proj.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def poison(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = math.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def refused(result: Result, message: str) -> None:
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1, result.err
    assert message in result.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--group-size", 48],
            "group_size 48 does not divide the 64 inputs of model.layers.0.self_attn.q_proj; 32, 64",
        ),
        (["--group-size", 0], "group_size is 0; it may be a positive integer"),
        (["--bits", 9], "bits is 9; it may be an integer from 2 to 8"),
        (["--bits", "four"], "Invalid value for '--bits'"),
        (["--method", "magic"], "--method is 'magic'; it may be round_to_nearest"),
        (["--text", "novel"], "text 'novel' is neither a file nor one of code, documentation"),
        (["--window", 64, "--stride", 65], "stride is 65; it may be 1 to window (64)"),
        (["--stride", 0], "Invalid value for '--stride'"),
        (["--window", 1], "Invalid value for '--window'"),
        (["--tokens", 1], "tokens has 1 entries; at least 2 are needed"),
        (["--colour", "red"], "No such option: --colour"),
    ],
)
def test_wrong_options_end_with_one_line_and_leave_nothing(
    run: Callable, model: Path, text: Path, tmp_path: Path, options: list, message: str
) -> None:
    base = quantize_options(text, tmp_path / "new" / "out")
    if "--text" in options:
        del base[base.index("--text") : base.index("--text") + 2]
    refused(run("quantize", model, *base, *options), message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit(model_type="mamba"), "architecture 'mamba' is not known here; supported are bert, gemma,"),
        (edit(architectures=["LlamaModel"]), "LlamaModel has no blocks at 'model.layers'"),
        (edit(hidden_size="wide"), "damaged"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": '), "config.json' is not JSON"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe{}"), "config.json' is not JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json' is no JSON object"),
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "could not be loaded"),
        (truncate("model.safetensors"), "could not be loaded"),
        (truncate("tokenizer.json"), "the tokenizer in"),
        (
            drop_tokenizer,
            "the model's folder has no tokenizer, so it cannot be evaluated; add one or use --no-evaluate",
        ),
        (drop_tensor, "is incomplete: 1 tensors are missing, the first model.layers.0.mlp.up_proj.weight"),
        (poison, "model.layers.1.mlp.up_proj holds 1 NaN and 0 infinite values"),
    ],
)
def test_damaged_models_end_with_one_line_and_leave_nothing(
    run: Callable, model: Path, text: Path, tmp_path: Path, change: Callable, message: str
) -> None:
    damaged = copy_of(model, tmp_path / "damaged", change)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    refused(run("quantize", damaged, *quantize_options(text, tmp_path / "out")), message)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "awq", "--bits", 3], "q_proj has 3 bits; the awq format holds 4"),
        (["--format", "awq", "--bits-for", "*.down_proj=8"], "down_proj has 8 bits; the awq format holds 4"),
        (["--format", "gptq", "--bits", 5], "q_proj has 5 bits; the gptq format holds 2, 3, 4 and 8"),
        (["--affine", "--bits-for", "*.down_proj=8"], "layers have different grids and some are affine"),
        (
            ["--format", "gptq", "--activations", "static"],
            "has quantised inputs; the gptq format can hold weights only",
        ),
        (["--damping", -1], "damping is -1.0; it may be 0 or more and below 1000"),
        (["--damping", "nan"], "damping is nan; it may be 0 or more and below 1000"),
        (["--method", "smoothquant", "--alpha", 2], "alpha is 2.0; it may be 0"),
        (["--method", "smoothquant", "--alpha", "auto"], "--alpha auto needs --activations"),
        (["--bits-for", "*=²"], "--bits-for is '*=²'; it should be PATTERN=BITS"),
    ],
)
def test_what_the_end_would_refuse_is_refused_before_any_work(
    run: Callable, model: Path, text: Path, tmp_path: Path, options: list, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(loading, "load_float", lambda folder: pytest.fail("measured first"))
    monkeypatch.setattr(workflow, "quantize", lambda *_, **__: pytest.fail("solved first"))
    command = ["quantize", model, *quantize_options(text, tmp_path / "out"), "--method", "gptq"]
    refused(run(*command, "--calibration", text, "--sequences", 8, *options), message)
    assert list(tmp_path.iterdir()) == []


def test_transposed_layers_are_refused_before_any_work(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=1, n_head=2)).save_pretrained(
        tmp_path / "gpt2"
    )
    monkeypatch.setattr(workflow, "quantize", lambda *_, **__: pytest.fail("solved first"))
    command = ["quantize", tmp_path / "gpt2", "--output", tmp_path / "out", "--group-size", 32, "--no-evaluate"]
    refused(run(*command), "GPT2LMHeadModel keeps its layers transposed (Conv1D)")


@pytest.mark.parametrize("command", [["inspect"], ["evaluate"], ["quantize", "--output", "never"]])
@pytest.mark.parametrize("name", ["no-such-model", "org/no-such-model", "a/b/c", "/no/such/folder", "with space"])
def test_no_such_model(
    run: Callable, command: list, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(run(command[0], name, *command[1:]), "no such model")
    assert list(tmp_path.iterdir()) == []


def test_what_is_quantised_already_is_not_quantised_again(
    run: Callable, model: Path, text: Path, tmp_path: Path
) -> None:
    run("quantize", model, "--output", tmp_path / "once", "--group-size", 64, "--no-evaluate")
    result = run("quantize", tmp_path / "once", "--output", tmp_path / "twice", "--no-evaluate")
    refused(result, "is quantised already; start from the float model")
    assert [path.name for path in tmp_path.iterdir()] == ["once"]


def test_a_damaged_quantised_model_is_refused_by_name(run: Callable, model: Path, text: Path, tmp_path: Path) -> None:
    run("quantize", model, "--output", tmp_path / "out", "--group-size", 64, "--no-evaluate")
    truncate("model.safetensors")(tmp_path / "out")
    refused(run("evaluate", tmp_path / "out", "--text", text), "model.safetensors' is damaged")
    refused(run("inspect", tmp_path / "out"), "model.safetensors' is not a safetensors file")
    edit(quantization_config={"quant_method": "compressed-tensors"})(tmp_path / "out")
    refused(run("evaluate", tmp_path / "out", "--text", text), "quantised with 'compressed-tensors', format None")
    refused(run("inspect", tmp_path / "out"), "quantised with 'compressed-tensors', format None")


def test_an_output_that_is_taken_is_refused_before_any_work(
    run: Callable, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    monkeypatch.setattr(loading, "load_float", lambda folder: pytest.fail("loaded first"))
    for output in (tmp_path / "full", tmp_path / "full" / "file"):
        refused(run("quantize", model, "--output", output), "output ")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full"]


def test_an_output_below_a_file_is_refused(run: Callable, model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run("quantize", model, "--output", tmp_path / "file" / "out", "--group-size", 64, "--no-evaluate")
    refused(result, "lies below 'file', which is a file; name a folder")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_said_with_its_numbers(
    run: Callable, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=500))
    result = run("quantize", model, "--output", tmp_path / "out", "--group-size", 64, "--no-evaluate")
    refused(result, "disk full: ")
    assert "bytes, and 500 are free" in result.err
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing_and_shows_no_traceback(
    run: Callable, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(workflow, "quantize", interrupt)
        result = run("quantize", model, *quantize_options(text, tmp_path / "out"))
    assert (result.code, result.out) == (130, "")
    assert result.err == "interrupted; nothing was written\n"
    monkeypatch.setattr(LlamaForCausalLM, "state_dict", interrupt)
    assert run("quantize", model, *quantize_options(text, tmp_path / "out")).code == 130
    assert list(tmp_path.iterdir()) == []


def calibrated_run(model: Path, text: Path, output: Path) -> list[object]:
    options = ["--method", "gptq", "--group-size", 64, "--window", 64, "--no-evaluate"]
    return ["quantize", model, *options, *calibrated(text, output)]


def test_sigterm_tidies_up_and_says_what_is_kept(
    run: Callable, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ``timeout``, a queue or a service manager sends in the middle of the writing; then the same command again."""
    before = signal.getsignal(signal.SIGTERM)
    original = checkpoint.save_torch_state_dict

    def terminate(*arguments: object, **options: object) -> None:
        original(*arguments, **options)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_torch_state_dict", terminate)
        result = run(*calibrated_run(model, text, tmp_path / "out"))
    assert (result.code, result.out) == (128 + signal.SIGTERM, ""), result.err
    kept = f"what was finished is kept in '{tmp_path / '.out.unfinished'}'; the same command goes on there"
    assert result.err.splitlines()[-1] == f"terminated; {kept}"
    assert [path.name for path in tmp_path.iterdir()] == [".out.unfinished"]  # and no temporary folder
    assert signal.getsignal(signal.SIGTERM) == before
    assert run(*calibrated_run(model, text, tmp_path / "out")).code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_second_run_on_the_same_output_is_refused_and_harms_nothing(
    run: Callable, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []

    def second(*arguments: object, **options: object) -> None:
        if not results:
            results.append(None)
            results[0] = run(*calibrated_run(model, text, tmp_path / "out"))
        original(*arguments, **options)

    original = checkpoint.save_torch_state_dict
    monkeypatch.setattr(checkpoint, "save_torch_state_dict", second)
    assert run(*calibrated_run(model, text, tmp_path / "out")).code == 0
    refused(results[0], f"another run is at work in '{tmp_path / '.out.unfinished'}'")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "command",
    [
        ["quantize", "--output"],
        ["prune", "--output"],
        ["compress"],
        ["workflow", "quantize", "--max-loss", "5%", "--group-size", 64, "--window", 64, "--steps", 0, "--output"],
    ],
)
def test_a_folder_that_cannot_be_written_is_refused_before_any_work(
    run: Callable, text: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list
) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o555)
    if os.access(folder, os.W_OK):  # this is root, who may write everywhere: ask the mode alone
        monkeypatch.setattr(os, "access", lambda path, mode: bool(os.stat(path).st_mode & 0o200))
    for work in ("draw_calibration", "read_texts", "losses"):
        monkeypatch.setattr(cli, work, lambda *_, **__: pytest.fail("worked before it looked"), raising=False)
        monkeypatch.setattr(cli_prune, work, lambda *_, **__: pytest.fail("worked before it looked"), raising=False)
    options = [folder / "out"] if command[0] == "compress" else [folder / "out", "--text", text, "--calibration", text]
    where = command.index("quantize" if command[0] == "workflow" else command[0]) + 1
    result = run(*command[:where], model, *command[where:], *options)
    refused(result, f"'{folder / 'out'}' cannot be created: '{folder}' is not writable")


def calibrated(text: Path, output: Path) -> list[object]:
    return ["--calibration", text, "--sequences", 4, "--output", output]


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate"],
        ["quantize", "--group-size", 32],
        ["quantize", "--group-size", 32, "--no-evaluate", "--method", "gptq"],
        ["quantize", "--group-size", 32, "--no-evaluate", "--average-bits", 4],
        ["prune", "--method", "magnitude"],
        ["prune", "--no-evaluate"],
    ],
)
def test_a_window_beyond_the_models_positions_is_refused(
    run: Callable, text: Path, tmp_path: Path, command: list
) -> None:  # fmt: skip
    model = tiny_models.save(tiny_models.build("opt", positions=64), tmp_path / "opt")
    texts = ["--text", text, *(calibrated(text, tmp_path / "out") if command[0] != "evaluate" else [])]
    result = run(command[0], model, *command[1:], *texts, "--window", 65)
    refused(result, "--window is 65; it may be 2 to 64, the model's positions")
    assert [path.name for path in tmp_path.iterdir()] == ["opt"]
    short = ["evaluate", model, "--text", text, "--window", 512, "--tokens", 64]  # no text is as long as the window
    assert run(*short).code == 0


@pytest.mark.parametrize(
    "command",
    [["quantize", "--method", "gptq"], ["quantize", "--average-bits", 4], ["prune"], ["prune", "--method", "wanda"]],
)
def test_a_tokenizer_that_knows_more_than_the_model_is_refused(
    run: Callable, text: Path, tmp_path: Path, command: list
) -> None:  # fmt: skip
    model = tiny_models.build("llama")
    model.resize_token_embeddings(64)
    tiny_models.save(model, tmp_path / "llama")
    result = run(
        *command[:1],
        tmp_path / "llama",
        *command[1:],
        "--no-evaluate",
        "--window",
        64,
        *calibrated(text, tmp_path / "out"),
    )
    refused(result, "makes id 241, and the model knows 64 tokens: is it another model's?")
    assert [path.name for path in tmp_path.iterdir()] == ["llama"]


def test_against_a_model_of_another_kind_is_refused(
    run: Callable, model: Path, text: Path, tmp_path: Path
) -> None:  # fmt: skip
    other = tiny_models.build("llama")
    other.resize_token_embeddings(300)
    tiny_models.save(other, tmp_path / "wider")
    tiny_models.save(tiny_models.build("bert"), tmp_path / "bert")
    options = ("--text", text, "--tokens", 100, "--window", 64, "--against")
    refused(run("evaluate", model, *options, tmp_path / "bert"), "bert' does not predict tokens (an encoder?)")
    refused(run("evaluate", model, *options, tmp_path / "wider"), "model predicts 256 tokens and original 300")


def test_an_encoder_has_no_perplexity(run: Callable, text: Path, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    BertModel(config).save_pretrained(tmp_path / "bert")
    refused(run("evaluate", tmp_path / "bert", "--text", text), "does not predict tokens (an encoder?)")
    result = run("quantize", tmp_path / "bert", "--output", tmp_path / "out", "--group-size", 32, "--json")
    assert result.code == 0
    assert result.json["after"]["quality"] == {}
    assert result.json["after"]["bytes"]["scales"] > 0


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


def test_as_a_program(model: Path, text: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "reference",
        "quantize",
        str(model),
        "--output",
        "out",
        "--json",
        "--group-size",
        "64",
    ]
    options = ["--text", str(text), "--window", "64"]
    root = Path(cli.__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        command + options, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["after"]["bytes"] == evaluation.size_on_disk(tmp_path / "out")
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: output folder 'out' is not empty; name a new one or empty it first\n"


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
