"""What tests of several commands share: a command's result, and one that is killed and given again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from forked import Forked


class Result(NamedTuple):
    """Exit code and streams of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        return json.loads(self.out)

    @property
    def steps(self) -> dict[str, dict]:
        """A workflow's steps, by title."""
        return {step["title"]: step for step in self.json["steps"]}


def goes_on_after_sigkill(tmp_path: Path, arguments: list[str], finished: str) -> None:
    """Kill a command once two files of its unfinished run match ``finished``; given again it ends with the bytes of an
    unbroken run, which is started as a program, and with another ``--damping`` it is refused."""

    def start(output: str, *more: str) -> Forked:
        return Forked(None, *arguments, "--output", tmp_path / output, *more)

    program = [sys.executable, "-m", "reference", *arguments, "--output", str(tmp_path / "whole")]
    subprocess.run(program, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)
    process = start("cut")
    unfinished = tmp_path / ".cut.unfinished"
    until = time.monotonic() + 120
    while len(list(unfinished.glob(finished))) < 2 and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    process.kill()
    assert process.poll() == -signal.SIGKILL, "it had ended before"
    assert unfinished.is_dir()
    assert not (tmp_path / "cut").exists()
    other = start("cut", "--damping", "0.02").wait()
    assert other.code == 2
    assert "holds an unfinished run that differs in options" in other.err
    resumed = start("cut").wait()
    assert resumed.code == 0, resumed.err
    assert not unfinished.exists()
    files = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "cut").iterdir())
    for name in files:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes(), name


def intercepted(monkeypatch: pytest.MonkeyPatch, module: ModuleType, function: str) -> dict[str, Any]:
    """What a command calls a function of the library with: its options by name, and ``arguments``. It is stopped there."""
    seen: dict[str, Any] = {}

    def called(*arguments: object, **options: object) -> None:
        seen.update(options, arguments=arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, function, called)
    return seen


def quantize_options(text: Path, output: Path) -> list[object]:
    return ["--output", output, "--group-size", 64, "--text", text, "--window", 64]


def calibrated(text: Path, output: Path) -> list[object]:
    return ["--calibration", text, "--sequences", 4, "--output", output]


def refused(result: Result, message: str) -> None:
    """Wrong input ends with one line, exit code 2 and nothing on the output."""
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1, result.err
    assert message in result.err
