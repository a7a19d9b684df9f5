"""A command that is stopped, meets another run, or has no room: one line, and nothing that was finished is lost."""

import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import calibrated, quantize_options, refused
from transformers import LlamaForCausalLM

from reference import checkpoint, cli_prune, cli_quantize, workflow


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


@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_stopped_in_its_first_imports_it_says_one_word(tmp_path: Path, number: int, word: str) -> None:
    (tmp_path / "typer.py").write_text(f"import os, time\nos.kill(os.getpid(), {int(number)})\ntime.sleep(60)\n")
    root = Path(cli_prune.__file__).parent.parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(root)])}
    command = [sys.executable, "-m", "reference", "inspect", "tutorial"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", f"{word}\n")


LAST = """
import os, signal, sys, threading, time
from reference import __main__, cli

def main(arguments):
    print("all is said")
    while_working = signal.getsignal(signal.{name})

    def download():  # what a library left to a thread
        while signal.getsignal(signal.{name}) == while_working:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.{name})
        time.sleep(60)

    threading.Thread(target=download).start()
    sys.exit(3)

cli.main = main
__main__.main()
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_stopped_while_the_interpreter_waits_for_a_thread_it_ends_with_its_own_code(name: str) -> None:
    """A second Ctrl-C, while what the first one broke off still waits for a download."""
    done = subprocess.run(
        [sys.executable, "-c", LAST.format(name=name)], capture_output=True, text=True, timeout=55, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "all is said\n", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("where", ["import", "finalizer"])
def test_what_others_would_swallow_stops_the_command_a_little_later(
    run: Callable, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, number: int
) -> None:
    (tmp_path / "stopping.py").write_text(
        f"import os\ntry:\n    os.kill(os.getpid(), {int(number)})\nexcept BaseException:\n    raise ImportError('half') from None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "stopping", raising=False)

    class Held:
        def __del__(self) -> None:
            os.kill(os.getpid(), number)

    def work(*_: object, **__: object) -> None:
        if where == "import":
            importlib.import_module("stopping")
        else:
            Held()
        time.sleep(60)  # ends as the signal comes
        pytest.fail("it went on")

    monkeypatch.setattr(workflow, "quantize", work)
    began = time.monotonic()
    result = run("quantize", model, *quantize_options(text, tmp_path / "out"))
    assert time.monotonic() - began < 50, "it slept on"
    word = "terminated" if number == signal.SIGTERM else "interrupted"
    assert (result.code, result.err) == (128 + number, f"{word}; nothing was written\n")


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
        for room in (cli_quantize, cli_prune):
            monkeypatch.setattr(room, work, lambda *_, **__: pytest.fail("worked before it looked"))
    texts = {"compress": [], "quantize": ["--text", text]}.get(command[0], ["--text", text, "--calibration", text])
    options = [folder / "out", *texts]
    where = command.index("quantize" if command[0] == "workflow" else command[0]) + 1
    result = run(*command[:where], model, *command[where:], *options)
    refused(result, f"'{folder / 'out'}' cannot be created: '{folder}' is not writable")
