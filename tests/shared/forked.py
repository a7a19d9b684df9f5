"""Processes that begin with the imports done: the command line and scripts, each in a process of its own.

Importing a model of transformers takes seven seconds, more than most of these tests work. A server (Python's ``forkserver``)
imports once for all tests of a worker, and forks a process for each that is asked for, with signals, streams, variables
and an exit code of its own. Of each way to start something one test at least starts a fresh interpreter.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import runpy
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple


@functools.cache
def _server() -> Any:
    context = multiprocessing.get_context("forkserver")  # not before a test asks: Windows has none
    context.set_forkserver_preload(
        [
            *("reference.cli", "reference.pipeline", "reference.practice.quantization", "reference.practice.pruning"),
            *("reference.distillation.train", "transformers.models.llama.modeling_llama", "transformers.models.auto"),
            *("accelerate", "torch.distributed"),
        ]
    )
    return context


class Ended(NamedTuple):
    """Exit code and streams."""

    code: int
    out: str
    err: str


class Forked:
    """A process that runs ``python FILE ARGUMENTS``, or ``python -m reference ARGUMENTS`` where ``file`` is None.

    Args:
        environment: changes to the variables of this process.
    """

    def __init__(self, file: Path | None, *arguments: object, **environment: str) -> None:
        self._said = tempfile.TemporaryDirectory()
        self._out, self._err = (Path(self._said.name) / name for name in ("out", "err"))
        self._process = _server().Process(
            target=_begin,
            args=(file, [str(a) for a in arguments], dict(os.environ) | environment, os.getcwd(), self._out, self._err),
            daemon=True,
        )
        self._process.start()

    def poll(self) -> int | None:
        """The exit code, minus the signal that ended it; None while it runs."""
        return self._process.exitcode

    def kill(self) -> None:
        """SIGKILL; returns when the process is gone."""
        self._process.kill()
        self._process.join()

    def wait(self, seconds: float = 300) -> Ended:
        """What it ended with.

        Raises:
            TimeoutError: it runs on; it is killed.
        """
        self._process.join(seconds)
        code = self.poll()
        if code is None:
            self.kill()
            raise TimeoutError(f"after {seconds} s it still ran: {self._err.read_text()}")
        return Ended(code, self._out.read_text(), self._err.read_text())


def _begin(
    file: Path | None, arguments: list[str], environment: dict[str, str], cwd: str, out: Path, err: Path
) -> None:
    """In the new process: its streams, variables and arguments, then its work."""
    for number, path in ((1, out), (2, err)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    if file is None:
        from reference import __main__

        sys.argv = ["reference", *arguments]
        __main__.main()
    else:
        sys.argv = [str(file), *arguments]
        sys.path.insert(0, str(file.parent))
        runpy.run_path(str(file), run_name="__main__")


def together(count: int, file: Path, *arguments: object, seconds: float = 300) -> None:
    """Run a script as so many ranks, with the variables and the store that ``torchrun`` gives them.

    Raises:
        RuntimeError: a rank failed; the others are killed.
        TimeoutError: one runs on.
    """
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    common |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    running = [Forked(file, *arguments, **common, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(count)]
    end = time.monotonic() + seconds
    try:
        while any(process.poll() is None for process in running):
            if time.monotonic() > end:
                raise TimeoutError(f"after {seconds} s {count} ranks of {file} still ran")
            if any(process.poll() for process in running):
                break
            time.sleep(0.02)
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
    for rank, process in enumerate(running):
        code, _, err = process.wait()
        if code:
            raise RuntimeError(f"rank {rank} ended with {code}: {err}")
