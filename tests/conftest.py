"""What holds for every test: no network, one thread, Triton interpreted, examples that repeat; a model to give to commands."""

import os
from collections.abc import Callable
from pathlib import Path

# Before anything imports triton: kernels run on the CPU, interpreted.
os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # also for the processes that tests start
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import no_network
import pytest
from command_line import Result
from hypothesis import settings

no_network.block()

settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


# torch and transformers are imported by tests only: the process that hands tests to two workers would import them as well,
# while those wait.
@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a tokenizer of single bytes."""
    import tiny_models

    return tiny_models.save(tiny_models.build("llama"), tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("texts") / "mine.txt"
    file.write_text("It is a truth – universally – acknowledged. " * 40, encoding="utf-8")
    return file


@pytest.fixture
def run(capfd: pytest.CaptureFixture) -> Callable[..., Result]:
    """Call ``main`` in this process; anything but SystemExit that escapes fails the test."""
    from reference import cli

    def call(*arguments: object) -> Result:
        capfd.readouterr()
        code = 0
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return call
