"""Fixtures of the kernels' tests: fresh random inputs whose seed a failure prints, and a record of what is touched."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch


@pytest.fixture
def generator() -> torch.Generator:
    """Inputs that no run has seen before; the seed is in the output of a test that fails."""
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="session")
def of_all_workers(tmp_path_factory) -> Path:
    """A folder of this run of the tests that its workers share: what Triton compiles is kept there."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture
def touched(monkeypatch) -> list[np.ndarray]:
    """First byte of each value that a kernel reads or writes, launch by launch, as the interpreter computes them."""
    from triton.runtime import interpreter

    seen: list[np.ndarray] = []
    builder = interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store

    def recorded_load(self, pointers, mask, *rest):
        seen.append(pointers.data[mask.data])
        return load(self, pointers, mask, *rest)

    def recorded_store(self, pointers, values, mask, *rest):
        seen.append(pointers.data[mask.data])
        return store(self, pointers, values, mask, *rest)

    monkeypatch.setattr(builder, "create_masked_load", recorded_load)
    monkeypatch.setattr(builder, "create_masked_store", recorded_store)
    return seen


@pytest.fixture
def assert_inside(touched):
    """Call with tensors: every address that was touched lies in one of them, and each one's first and last was."""

    def check(*tensors: torch.Tensor) -> None:
        addresses = np.unique(np.concatenate([a.reshape(-1) for a in touched]))
        outside = np.ones(len(addresses), dtype=bool)
        for tensor in tensors:
            last = tuple(n - 1 for n in tensor.shape)
            ends = tensor.data_ptr(), tensor[last].data_ptr()
            assert np.isin(ends, addresses).all()
            outside &= (addresses < ends[0]) | (addresses >= ends[1] + tensor.element_size())
        assert not outside.any()

    return check
