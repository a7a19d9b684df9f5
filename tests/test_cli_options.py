"""Every option of every command: given, it changes what comes out, or it is refused; paths may begin with ``~``."""

import ast
import json
import re
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import typer
from command_line import intercepted, refused
from transformers import LlamaConfig, LlamaForCausalLM

from reference import cli, cli_options
from reference.practice import pruning, quantization

BIG = 10**9
OTHER_TEXT = "~/other.txt"
#: For the commands that end in a moment: of each option another value, after what makes it do something.
EFFECTS: dict[str, dict[str, list]] = {
    "quantize": {
        "output": ["--output=~/other"],
        "method": ["--method", "gptq"],
        "bits": ["--bits", 3],
        "group_size": ["--group-size", -1],
        "symmetric": ["--affine"],
        "clip_search": ["--clip-search"],
        "activations": ["--activations", "per_token"],
        "calibration": ["--method", "gptq", ["--calibration=" + OTHER_TEXT]],
        "sequences": ["--method", "gptq", ["--sequences", 4]],
        "damping": ["--method", "awq+gptq", ["--damping", 0.5]],
        "act_order": ["--method", "gptq", ["--act-order"]],
        "static_groups": ["--method", "gptq", "--act-order", "--format", "gptq", ["--moving-groups"]],
        "alpha": ["--method", "smoothquant", ["--alpha", 0.9]],
        "format": ["--format", "gptq"],
        "bits_for": ["--bits-for", "*.down_proj=8"],
        "average_bits": ["--average-bits", 4],
        "skip": ["--skip", "*.down_proj"],
        "evaluate": ["--no-evaluate"],
        "text": ["--text", OTHER_TEXT],
        "tokens": ["--tokens", 30],
        "window": ["--window", 8],
        "stride": ["--stride", 3],
        "as_json": ["--json"],
    },
    "prune": {
        "output": ["--output=~/other"],
        "method": ["--method", "magnitude"],
        "sparsity": ["--sparsity", 0.25],
        "pattern": ["--pattern", "1:4"],
        "bits": ["--bits", 4, "--group-size", 16],
        "group_size": ["--bits", 4, "--group-size", 16, ["--group-size", 32]],
        "symmetric": ["--bits", 4, "--group-size", 16, ["--affine"]],
        "format": ["--bits", 4, "--group-size", 16, ["--format", "gptq"]],
        "skip": ["--skip", "*.down_proj"],
        "calibration": ["--calibration", OTHER_TEXT],
        "sequences": ["--sequences", 4],
        "damping": ["--damping", 0.5],
        "evaluate": ["--no-evaluate"],
        "text": ["--text", OTHER_TEXT],
        "tokens": ["--tokens", 30],
        "window": ["--window", 8],
        "stride": ["--stride", 3],
        "as_json": ["--json"],
    },
    "evaluate": {
        "against": ["--against=~/model"],
        "text": ["--text", OTHER_TEXT],
        "tokens": ["--tokens", 30],
        "window": ["--window", 8],
        "stride": ["--stride", 3],
        "device": ["--device", "nowhere"],
        "as_json": ["--json"],
    },
    "compress": {
        "sparsity": ["--sparsity", 0.5],
        "bits": ["--bits", 3],
        "skip": ["--skip", "*.down_proj.weight"],
        "lossless": ["--lossless"],
        "as_json": ["--json"],
    },
    "decompress": {"as_json": ["--json"]},
    "inspect": {"as_json": ["--json"]},
}  # fmt: skip
#: Where an option does nothing: what makes it so, and what is then given in vain.
IDLE: dict[str, list[tuple[list, list[list]]]] = {
    "quantize": [
        ([], [["--calibration", OTHER_TEXT], ["--sequences", 4], ["--damping", 0.5], ["--act-order"], ["--moving-groups"],
              ["--static-groups"], ["--alpha", 0.9]]),
        (["--no-evaluate"], [["--text", OTHER_TEXT], ["--tokens", 30], ["--stride", 3], ["--window", 8]]),
        (["--average-bits", 4], [["--bits", 5], ["--sequences", 4]]),
        (["--activations", "static"], [["--damping", 0.5], ["--alpha", 0.9]]),
        (["--method", "gptq"], [["--moving-groups"], ["--alpha", 0.9]]),
        (["--method", "gptq", "--act-order", "--group-size", -1, "--format", "gptq"], [["--moving-groups"]]),
        (["--method", "awq"], [["--damping", 0.5], ["--act-order"], ["--alpha", 0.9]]),
        (["--method", "smoothquant"], [["--damping", 0.5], ["--act-order"]]),
    ],
    "prune": [
        ([], [["--group-size", 16], ["--affine"], ["--symmetric"], ["--format", "gptq"]]),
        (["--method", "magnitude"], [["--calibration", OTHER_TEXT], ["--sequences", 4], ["--damping", 0.5]]),
        (["--method", "wanda"], [["--damping", 0.5]]),
        (["--method", "magnitude", "--no-evaluate"], [["--text", OTHER_TEXT], ["--tokens", 30], ["--stride", 3], ["--window", 8]]),
    ],
    "compress": [(["--lossless"], [["--sparsity", 0.5], ["--bits", 4], ["--skip", "*.down_proj.weight"]])],
    "workflow quantize": [
        (["--bits", 8], [["--group-size", 32]]),
        (["--method", "round_to_nearest"], [["--sequences", 4]]),
        (["--method", "round_to_nearest", "--steps", 0], [["--calibration", OTHER_TEXT], ["--seed", 1]]),
        (["--steps", 0], [["--batch", 2], ["--rate", 0.1]]),
        (["--method", "awq", "--method", "awq+gptq"], [["--steps", 3], ["--batch", 2], ["--rate", 0.1]]),
    ],
    "workflow prune": [([*size], [["--most", 0.3]]) for size in (["--sparsity", 0.2], ["--min-ratio", 1.2], ["--max-bytes", "9kB"])],
}  # fmt: skip
#: Options that the workflows hand on, by what these are called there.
HANDED = {
    "workflow quantize": {
        "output": ["--output=~/other"], "max_loss": ["--max-loss", "4%"], "max_bytes": ["--max-bytes", "9MB"],
        "min_ratio": ["--min-ratio", 2.5], "bits": ["--bits", 5], "method": ["--method", "gptq"],
        "group_size": ["--group-size", 32], "text": ["--text", OTHER_TEXT], "calibration": ["--calibration", OTHER_TEXT],
        "tokens": ["--tokens", 9], "window": ["--window", 8], "sequences": ["--sequences", 4], "steps": ["--steps", 3],
        "batch": ["--batch", 2], "rate": ["--rate", 0.1], "seed": ["--seed", 1], "as_json": ["--json"],
    },
    "workflow prune": {
        "output": ["--output=~/other"], "max_loss": ["--max-loss", "4%"], "max_bytes": ["--max-bytes", "9MB"],
        "min_ratio": ["--min-ratio", 2.5], "sparsity": ["--sparsity", 0.2], "rounds": ["--rounds", 2],
        "most": ["--max-bytes", BIG, ["--most", 0.3]], "multiple": ["--multiple", 4], "text": ["--text", OTHER_TEXT],
        "calibration": ["--calibration", OTHER_TEXT], "tokens": ["--tokens", 9], "window": ["--window", 8],
        "sequences": ["--sequences", 4], "steps": ["--steps", 3], "final_steps": ["--final-steps", 5],
        "batch": ["--batch", 2], "rate": ["--rate", 0.1], "seed": ["--seed", 1], "as_json": ["--json"],
    },
}  # fmt: skip


def commands(group: Any = None, before: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in (group or typer.main.get_command(cli.app)).commands.items():
        yield from commands(command, f"{before}{name} ") if hasattr(command, "commands") else [(before + name, command)]


COMMANDS = dict(commands())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder with a model, its container, and two texts."""
    folder = tmp_path_factory.mktemp("home")
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(**sizes, vocab_size=256, max_position_embeddings=64, initializer_range=0.1)
    tiny_models.torch.manual_seed(0)
    tiny_models.save(LlamaForCausalLM(config), folder / "model")
    (folder / "mine.txt").write_text("It is a truth, universally acknowledged. " * 9)
    (folder / "other.txt").write_text("Call me Ishmael; some years ago, never mind how long. " * 9)
    cli.main(["compress", str(folder / "model"), str(folder / "model.dcz")])
    return folder


@pytest.fixture
def result(run: Callable, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Run a command in the home folder with small settings of its own, those that ``more`` gives aside, for what came out."""
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    for path in home.iterdir():
        (tmp_path / path.name).symlink_to(path)
    before = {path.name for path in tmp_path.iterdir()}
    usual = {
        "quantize": {"--group-size": 16, "--text": "~/mine.txt", "--window": 16, "--output": "~/out"},
        "prune": {"--text": "~/mine.txt", "--window": 16, "--output": "~/out"},
        "evaluate": {"--text": "~/mine.txt", "--window": 16},
        "workflow": {"--max-loss": "3%", "--output": "~/out"},
    }  # fmt: skip

    def call(command: str, more: list) -> tuple:
        words = [str(word).partition("=")[0] for word in more]
        method = (
            words[words.index("--method") + 1]
            if "--method" in words
            else {"prune": "sparsegpt"}.get(command, "round_to_nearest")
        )
        settings = dict(usual.get(command.split()[0], {}))
        if command in ("quantize", "prune"):
            solved = method not in ("round_to_nearest", "magnitude") or "static" in words
            if solved or "--average-bits" in words:
                settings["--calibration"] = "~/mine.txt"
            if solved:
                settings["--sequences"] = 2
            if "--no-evaluate" in words:
                del settings["--text"]
                if not solved:
                    del settings["--window"]
        given = [part for key, value in settings.items() if key not in words for part in (key, value)]
        place = {"decompress": ["~/model.dcz", "~/out"], "compress": ["~/model", "~/out"]}.get(command, ["~/model"])
        found = run(*command.split(), *place, *given, *more)
        files = {}
        for path in sorted(tmp_path.rglob("*")):
            if path.relative_to(tmp_path).parts[0] not in before and path.is_file():
                content = path.read_bytes()
                if path.name == "compression.json":  # with the options themselves
                    content = json.loads(content)["layers"]
                files[str(path.relative_to(tmp_path))] = content
                path.unlink()
        return found, files

    return call


def without_times(found: tuple) -> tuple:
    result, files = found
    out = [line for line in result.out.splitlines() if "MB/s" not in line]
    return result.code, out, result.err, files


def flat(more: list) -> tuple[list, list]:
    """What makes an option do something, and that option."""
    return (more[:-1], more[-1]) if isinstance(more[-1], list) else ([], more)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_option_is_forgotten_here(command: str) -> None:
    options = {one.name for one in COMMANDS[command].params if one.param_type_name == "option"} - {"help"}
    assert options == (EFFECTS | HANDED)[command].keys()
    assert cli_options.NEEDS.get(command, {}).keys() <= options
    tried = {word for _, idle in IDLE.get(command, []) for one in idle for word in one}
    for name in cli_options.NEEDS.get(command, {}):
        option = next(one for one in COMMANDS[command].params if one.name == name)
        assert tried & {*option.opts, *option.secondary_opts}, f"{name} has needs, and no test of them"


@pytest.mark.parametrize(("command", "option"), [(c, o) for c, options in EFFECTS.items() for o in options])
def test_an_option_changes_what_comes_out(result: Callable, command: str, option: str) -> None:
    mode, more = flat(EFFECTS[command][option])
    before, after = (without_times(result(command, given)) for given in (mode, [*mode, *more]))
    assert before[0] == 0, before[2]
    assert after[0] == (2 if option == "device" else 0), after[2]
    assert "no effect" not in after[2]
    assert before != after


@pytest.mark.parametrize(("command", "option"), [(c, o) for c, options in HANDED.items() for o in options])
def test_an_option_is_handed_to_the_workflow(
    result: Callable, monkeypatch: pytest.MonkeyPatch, command: str, option: str
) -> None:
    seen = intercepted(monkeypatch, {"quantize": quantization, "prune": pruning}[command.split()[1]], "run")
    mode, more = flat(HANDED[command][option])
    before, after = [(result(command, given), repr(seen))[1] for given in (mode, [*mode, *more])]
    assert seen, "refused"
    assert (before == after) == (option == "as_json")


@pytest.mark.parametrize(
    ("command", "mode", "idle"),
    [pytest.param(c, *case, id=" ".join(map(str, [c, *case[0]]))) for c, cases in IDLE.items() for case in cases],
)
def test_an_option_that_would_do_nothing_is_refused(
    result: Callable, monkeypatch: pytest.MonkeyPatch, command: str, mode: list, idle: list
) -> None:
    for option in idle:
        found, files = result(command, [*mode, *option])
        refused(found, f"{option[0]} has no effect ")
        assert not files
    if command.startswith("workflow"):
        return
    before = without_times(result(command, mode))
    assert before[0] == 0, before[2]
    monkeypatch.setattr(cli_options, "NEEDS", {})  # and indeed
    together = [word for option in idle for word in option]
    assert without_times(result(command, [*mode, *together])) == before


@pytest.mark.parametrize("option", [["--evaluate"], ["--text", "~/mine.txt"], ["--tokens", 30], ["--stride", 3]])
@pytest.mark.parametrize("command", ["quantize", "prune"])
def test_an_encoder_is_not_measured(run: Callable, tmp_path: Path, command: str, option: list) -> None:
    tiny_models.save(tiny_models.build("bert"), tmp_path / "bert")
    method = ["--method", "magnitude"] if command == "prune" else ["--group-size", 32]
    found = run(command, tmp_path / "bert", *method, "--output", tmp_path / "out", *option)
    refused(found, f"{option[0]} has no effect on '{tmp_path / 'bert'}', which predicts no tokens")
    assert [path.name for path in tmp_path.iterdir()] == ["bert"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_path_may_begin_with_the_home_folder(command: str) -> None:
    """What is typed as a path, or as text that a path may stand for, is in the list of those; numbers and words are not."""
    words = {
        "method",
        "activations",
        "alpha",
        "format",
        "bits_for",
        "skip",
        "pattern",
        "device",
        "max_loss",
        "max_bytes",
    }
    for name, kind in typing.get_type_hints(COMMANDS[command].callback).items():
        if str in typing.get_args(kind) or kind in (str, Path, list[str]):
            assert (name in cli_options.PATHS) != (name in words), name


def test_the_home_folder_of_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert cli_options.expanded(Path("~/out")) == Path("/home/me/out")
    assert cli_options.expanded("~root/out") == str(Path("~root").expanduser() / "out")
    assert cli_options.expanded(["code", "~/a~b", "./~"]) == ["code", "/home/me/a~b", "./~"]
    assert cli_options.expanded("~nobody-of-this-name/out") == "~nobody-of-this-name/out"
    assert cli_options.expanded(None) is None


def test_the_library_names_its_arguments_in_errors_and_not_the_options_of_its_command_line() -> None:
    said = {}
    for path in Path(cli.__file__).parent.rglob("*.py"):
        if path.name.startswith("cli") or path.parent.name == "figures":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise):
                words = " ".join(
                    one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str)
                )
                if options := set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", words)) - {"--no-deps"}:  # pip's
                    said[path.name] = options
    assert said == {}
