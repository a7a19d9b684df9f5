"""The command line refuses wrong input with one line, before any work, and leaves nothing behind."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
from command_line import calibrated, quantize_options, refused
from transformers import GPT2Config, GPT2LMHeadModel

from reference import checkpoint, cli_look, workflow
from reference.models import loading


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


def drop_vocabulary(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')


def leave_only_sentencepiece(folder: Path) -> None:
    drop_vocabulary(folder)
    (folder / "tokenizer.model").write_bytes(b"read by a package that our environments do not hold")


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--group-size", 48],
            "group_size 48 does not divide the 64 inputs of model.layers.0.self_attn.q_proj; 32, 64",
        ),
        (["--group-size", 0], "group_size is 0; it may be a positive integer, or -1 for one scale a row"),
        (["--bits", 9], "bits is 9; it may be an integer from 2 to 8"),
        (["--group-size", 24], "--group-size -1 (one scale per output channel) always fits"),
        (["--bits", "four"], "Invalid value for '--bits'"),
        (["--activations", "int8"], "--activations is 'int8'; it may be float, per_token, per_tensor, static"),
        (
            ["--act-order"],
            "--act-order has no effect unless --method is gptq, awq+gptq or smoothquant+gptq; leave it out",
        ),
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
        (edit(architectures=["BertModel"]), "could not be loaded as BertModel: "),
        (edit(architectures=["AutoTokenizer"]), "could not be loaded as AutoTokenizer: "),
        (edit(quantization_config=5), "is damaged: its quantization_config is no JSON object"),
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
        (drop_vocabulary, "has a tokenizer_config.json and no vocabulary; add the file that the model comes with"),
        (leave_only_sentencepiece, "transformers needs two packages: pip install sentencepiece protobuf"),
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
        (
            ["--method", "smoothquant", "--alpha", "auto"],
            "--alpha is auto; a search compares integer blocks and needs quantised activations (--activations)",
        ),
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
    refused(run("evaluate", tmp_path / "out", "--text", text, "--window", 64), "model.safetensors' is damaged")
    refused(run("inspect", tmp_path / "out"), "model.safetensors' is not a safetensors file")
    edit(quantization_config={"quant_method": "compressed-tensors"})(tmp_path / "out")
    refused(
        run("evaluate", tmp_path / "out", "--text", text, "--window", 64),
        "quantised with 'compressed-tensors', format None",
    )
    refused(run("inspect", tmp_path / "out"), "quantised with 'compressed-tensors', format None")


@pytest.mark.parametrize(
    "report", ["[]", '{"layers": []}', '{"layers": {"lm_head": 5}}', '{"layers": {"lm_head": {"error": 0.5}}}',
               '{"layers": {"lm_head": {"error": null, "error_of": "weight"}}}', '{"layers": {"lm_head":'],
)  # fmt: skip
def test_a_report_that_is_not_ours_is_not_shown(run: Callable, model: Path, tmp_path: Path, report: str) -> None:
    shutil.copytree(model, tmp_path / "model")
    plain = run("inspect", tmp_path / "model")
    (tmp_path / "model" / checkpoint.REPORT).write_text(report)
    assert run("inspect", tmp_path / "model") == plain
    assert (plain.code, plain.err) == (0, "")


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


def texts_for(command: list, text: Path, output: Path) -> list[object]:
    """The texts that a command reads, and where it writes."""
    if command[0] == "evaluate":
        return ["--text", text]
    solved = {"gptq", "wanda"} & set(command) or (command[0] == "prune" and "magnitude" not in command)
    measure = [] if "--no-evaluate" in command else ["--text", text]
    if solved:
        return [*measure, *calibrated(text, output)]
    return [*measure, "--output", output, *(["--calibration", text] if "--average-bits" in command else [])]


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
    result = run(command[0], model, *command[1:], *texts_for(command, text, tmp_path / "out"), "--window", 65)
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
    model.resize_token_embeddings(241)
    tiny_models.save(model, tmp_path / "llama")
    command = [*command, "--no-evaluate", "--window", 64]
    result = run(command[0], tmp_path / "llama", *command[1:], *texts_for(command, text, tmp_path / "out"))
    refused(result, f"makes id 241, and the model in '{tmp_path / 'llama'}' knows 241 tokens: is it another model's?")
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


def test_against_a_smaller_model_is_refused_before_any_work(
    run: Callable, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Of fewer tokens or fewer positions than the text asks for: not an IndexError after the first model was measured."""
    narrow = tiny_models.build("llama")
    narrow.resize_token_embeddings(64)
    tiny_models.save(narrow, tmp_path / "narrow")
    tiny_models.save(tiny_models.build("opt", positions=32), tmp_path / "short")
    monkeypatch.setattr(cli_look, "_load_any", lambda *_, **__: pytest.fail("loaded first"))
    options = ("--text", text, "--tokens", 100, "--window", 64, "--against")
    known = f"the model in '{tmp_path / 'narrow'}' knows 64 tokens"
    refused(run("evaluate", model, *options, tmp_path / "narrow"), known)
    positions = f"it may be 2 to 32, the model's positions ('{tmp_path / 'short'}')"
    refused(run("evaluate", model, *options, tmp_path / "short"), positions)


def test_an_encoder_has_no_perplexity(run: Callable, text: Path, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    BertModel(config).save_pretrained(tmp_path / "bert")
    refused(run("evaluate", tmp_path / "bert", "--text", text), "does not predict tokens (an encoder?)")
    result = run("quantize", tmp_path / "bert", "--output", tmp_path / "out", "--group-size", 32, "--json")
    assert result.code == 0
    assert result.json["after"]["quality"] == {}
    assert result.json["after"]["bytes"]["scales"] > 0
