"""A checkpoint behind a real server on this machine, and what it does under load.

The server is ``transformers serve``, OpenAI-compatible, in a process of its own. It listens to this machine only.
"""

import importlib.util
import json
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError
from urllib.request import urlopen

from .load import SILENCE, Answer

HOST = "127.0.0.1"
#: What ``transformers serve`` imports beyond transformers, by import name.
NEEDS = ("compressed_tensors", "fastapi", "openai", "pydantic", "uvicorn")
#: Cache pages and tokens of a step for the server that batches; enough for sixteen small requests.
BATCHING = ("--continuous-batching", "--cb-block-size", "32", "--cb-num-blocks", "128", "--cb-max-batch-tokens", "512")


@dataclass(frozen=True)
class Server:
    """A running server: where it listens, what it calls the model, its process and its log.

    Example:
        >>> process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
        >>> server = Server("http://127.0.0.1:8000", "model", process, Path("server.log"))
        >>> peak, now = server.memory() or (1, 1)  # None where there is no /proc
        >>> peak >= now > 0
        True
        >>> _ = process.communicate()

    Chapter: deployment/production
    """

    address: str
    model: str
    process: subprocess.Popen
    log: Path

    def memory(self) -> tuple[int, int] | None:
        """Bytes of the process: the most that it ever held, and now; None where the system does not tell (not Linux)."""
        file = Path(f"/proc/{self.process.pid}/status")
        if not file.is_file():
            return None
        fields = dict(line.split(":", 1) for line in file.read_text().splitlines())
        peak, now = (int(fields[name].split()[0]) * 1024 for name in ("VmHWM", "VmRSS"))
        return peak, now

    def processor_seconds(self) -> float:
        """Seconds that processors have worked for the process: other jobs hardly change it. NaN where not on Linux."""
        file = Path(f"/proc/{self.process.pid}/stat")
        if not file.is_file():
            return math.nan
        fields = file.read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # user and system


@contextmanager
def serve(
    directory: str | os.PathLike,
    *,
    log: str | os.PathLike,
    packed: bool = False,
    batching: bool = False,
    threads: int = 1,
    patience: float = 120.0,
) -> Iterator[Server]:
    """Serve a checkpoint inside the block; the server is gone after it, and also if this process is killed.

    Args:
        directory: folder with the model and its tokenizer.
        log: file for what the server prints.
        packed: compute with packed weights (:func:`reference.deployment.launch.keep_packed`) instead of what
            transformers makes of them.
        batching: compute the tokens of several requests together (continuous batching), instead of one after another.
        threads: of its computation.
        patience: seconds until it must answer.

    Yields:
        The server, ready: it has loaded the model and answered a health check.

    Raises:
        ModuleNotFoundError: a package that the server needs is missing, named.
        ValueError: ``directory`` holds no ``config.json``.
        RuntimeError: the server ended, with the end of its log.
        TimeoutError: it is not ready in time.

    Example:
        >>> with serve("/no/such/folder", log="server.log") as server:  # inside the block it listens at server.address
        ...     pass
        Traceback (most recent call last):
            ...
        ValueError: directory is '/no/such/folder', which holds no config.json; it may be a checkpoint

    Chapter: deployment/production
    """
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"the server needs {', '.join(missing)}: pip install 'model-compression-reference[serving]'"
        )
    folder = Path(directory).resolve()
    if not (folder / "config.json").is_file():
        raise ValueError(f"directory is {str(directory)!r}, which holds no config.json; it may be a checkpoint")
    port = _free_port()
    command = [sys.executable, "-m", "reference.deployment.launch", *(["--packed"] if packed else [])]
    command += [str(folder), "--device", "cpu", "--host", HOST, "--port", str(port), *(BATCHING if batching else ())]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    environment.pop("TQDM_DISABLE", None)  # its progress goes to the log, and tells what it does with the weights
    with Path(log).open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT
        )
    server = Server(f"http://{HOST}:{port}", str(folder), process, Path(log))
    try:
        _wait(server, patience)
        yield server
    finally:
        _stop(process)


def _free_port() -> int:
    """A port that nobody listens to now; should another process take it before the server does, the server ends."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def _wait(server: Server, patience: float) -> None:
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if server.process.poll() is not None:
            tail = server.log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"the server ended with code {server.process.returncode}; its log ends:\n{tail}")
        try:
            with urlopen(f"{server.address}/health", timeout=5) as response:
                if response.status == 200:
                    return
        except (URLError, OSError):
            time.sleep(0.1)
    raise TimeoutError(f"the server did not answer within {patience:g} s; its log is {str(server.log)!r}")


def _stop(process: subprocess.Popen, patience: float = 10.0) -> None:
    """Ask first, insist after ``patience`` seconds; either way the process is gone."""
    process.terminate()
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    assert process.stdin is not None
    process.stdin.close()


class Percentiles(NamedTuple):
    """Nearest-rank percentiles of measured seconds: half, nine tenths and all are at most so large.

    Example:
        >>> wait = Percentiles(p50=0.2, p90=0.5, worst=3.0)
        >>> wait.worst / wait.p50  # the unluckiest request waits fifteen times as long as the usual one
        15.0

    Chapter: deployment/production
    """

    p50: float
    p90: float
    worst: float


def percentiles(seconds: Sequence[float]) -> Percentiles:
    """The smallest of the values that at least 50 %, 90 % and 100 % of them do not exceed.

    Args:
        seconds: one or more, in any order.

    Raises:
        ValueError: ``seconds`` is empty.

    Example:
        >>> percentiles([0.5, 0.1, 0.3, 0.2, 0.4, 0.6, 0.8, 0.7, 0.9, 9.0])
        Percentiles(p50=0.5, p90=0.9, worst=9.0)

    Chapter: deployment/production
    """
    if not seconds:
        raise ValueError("seconds is empty; it may have one entry or more")
    ordered = sorted(seconds)
    return Percentiles(*(ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.9, 1.0)))


class Load(NamedTuple):
    """What a server did under load.

    ``first`` to the first token of an answer, ``between`` tokens, ``total`` for the answer; ``answers`` that came,
    ``failed`` with what was said, ``tokens`` in all answers, ``seconds`` from the first request to the last answer,
    ``processor`` seconds that the server worked meanwhile (NaN where the system does not tell).

    Example:
        >>> answers = (Answer("a", tokens=3), Answer("b", tokens=5))
        >>> wait = Percentiles(0.1, 0.1, 0.1)
        >>> Load(answers, (), seconds=2.0, first=wait, between=wait, total=wait).tokens_per_second
        4.0

    Chapter: deployment/production
    """

    answers: tuple[Answer, ...]
    failed: tuple[str, ...]
    seconds: float
    first: Percentiles
    between: Percentiles
    total: Percentiles
    processor: float = math.nan

    @property
    def tokens(self) -> int:
        """Tokens of all answers, as the server counted them."""
        return sum(answer.tokens for answer in self.answers)

    @property
    def tokens_per_second(self) -> float:
        """Throughput: tokens of all answers over the seconds of the run."""
        return self.tokens / self.seconds


def measure(
    server: Server, prompts: Sequence[str], *, tokens: int = 32, concurrency: int = 1, seconds: float = 60.0
) -> Load:
    """Load the server from a second process and summarise.

    Args:
        server: of :func:`serve`, or another with an address and a model's name.
        prompts: one request each.
        tokens: of an answer, at most; at least 2, so that there is a time between tokens.
        concurrency: requests under way at the same time.
        seconds: after which no further request is sent.

    Raises:
        ValueError: there are no prompts, or ``tokens`` or ``concurrency`` is too small.
        RuntimeError: the load generator failed, or no request was answered; with the reason.

    Example:
        >>> process = subprocess.Popen([sys.executable, "-c", ""])
        >>> server = Server("http://127.0.0.1:1", "model", process, Path("server.log"))  # nobody listens there
        >>> _ = process.wait()
        >>> measure(server, ["Once upon a time"])
        Traceback (most recent call last):
            ...
        RuntimeError: of 1 requests none was answered in two parts or more; errors: ('ConnectionRefusedError: ...

    Chapter: deployment/production
    """
    if not prompts or tokens < 2 or concurrency < 1:
        raise ValueError(
            f"there are {len(prompts)} prompts, tokens is {tokens}, concurrency {concurrency}; "
            "they may be 1, 2 and 1 or more"
        )
    plan = {
        "address": server.address, "model": server.model, "prompts": list(prompts), "tokens": tokens,
        "concurrency": concurrency, "seconds": seconds,
    }  # fmt: skip
    before = server.processor_seconds()
    outcome = subprocess.run(
        [sys.executable, "-m", "reference.deployment.load"],
        input=json.dumps(plan), capture_output=True, text=True, timeout=seconds + 2 * SILENCE,
    )  # fmt: skip
    if outcome.returncode:
        raise RuntimeError(f"the load generator ended with code {outcome.returncode}: {outcome.stderr[-2000:]}")
    found = json.loads(outcome.stdout)
    load = summarise([Answer(**answer) for answer in found["answers"]], found["seconds"])
    return load._replace(processor=server.processor_seconds() - before)


def summarise(answers: Sequence[Answer], seconds: float) -> Load:
    """Percentiles of the answers of a run that took so many seconds.

    Args:
        answers: those with an ``error`` count as failed.
        seconds: from the first request to the last answer.

    Raises:
        RuntimeError: no request was answered, or none with two parts; with what was said.

    Example:
        >>> good = Answer("a b", tokens=2, first=0.5, gaps=(0.25,), total=0.75)
        >>> load = summarise([good, Answer(error="TimeoutError")], seconds=1.5)
        >>> load.tokens, load.failed, load.first.p50
        (2, ('TimeoutError',), 0.5)

    Chapter: deployment/production
    """
    good = tuple(answer for answer in answers if not answer.error)
    failed = tuple(answer.error for answer in answers if answer.error)
    gaps = [gap for answer in good for gap in answer.gaps]
    if not gaps:
        raise RuntimeError(f"of {len(answers)} requests none was answered in two parts or more; errors: {failed[:3]}")
    return Load(
        good, failed, seconds, percentiles([answer.first for answer in good]), percentiles(gaps),
        percentiles([answer.total for answer in good]),
    )  # fmt: skip
