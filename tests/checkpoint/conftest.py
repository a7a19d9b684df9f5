"""A folder that several files of this room read."""

from pathlib import Path

import pytest
from checkpoints import tiny_llama

from reference import checkpoint, workflow
from reference.quantization.grid import QuantizationSpec


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    model = tiny_llama()
    workflow.quantize(model, QuantizationSpec(4, group_size=64))
    checkpoint.save(model, folder)
    return folder
