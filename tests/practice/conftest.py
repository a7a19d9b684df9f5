"""Models that a workflow ends with in seconds, and how it is called."""

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
import torch
from command_line import Result

TEXT = "It is a truth – universally – acknowledged. "


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama that has learned a sentence, so that compressing it costs something."""
    model = tiny_models.build("llama")
    ids = torch.tensor(tiny_models.tokenizer()(TEXT * 20)["input_ids"])
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(30):
        rows = torch.stack([ids[start : start + 64] for start in range(7 * step % 40, 400, 50)])
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return tiny_models.save(model, tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def opt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny OPT of random weights."""
    return tiny_models.save(tiny_models.build("opt"), tmp_path_factory.mktemp("models") / "opt")


@pytest.fixture(scope="session")
def sentence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("texts") / "<b>mine & yours.txt"
    file.write_text(TEXT * 20, encoding="utf-8")
    return file


@pytest.fixture
def run(run: Callable[..., Result], sentence: Path) -> Callable[..., Result]:
    """A workflow on the sentence, in this process; anything but SystemExit that escapes fails the test."""

    def call(workflow: str, model: object, *arguments: object) -> Result:
        steps = [arguments[place + 1] for place, word in enumerate(arguments) if word == "--steps"]
        trained = not steps or steps[-1] > 0  # the last one counts
        texts = ["--text", sentence, "--calibration", sentence, "--window", 32, *(["--batch", 4] if trained else [])]
        return run("workflow", workflow, model, *texts, *arguments)

    return call
