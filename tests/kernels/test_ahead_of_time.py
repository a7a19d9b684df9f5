"""The compiled kernels, read without a GPU: no spills, 16-byte loads, matrix instructions, instructions per weight.

Bounds, not equalities: Triton's versions differ by a few per cent.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="compiling the kernels takes Triton, which is not installed")

pytestmark = pytest.mark.xdist_group("ahead_of_time")  # one worker compiles for all tests below

ROOT = Path(__file__).resolve().parents[2]
SHARED_LIMIT = {80: 166_912, 90: 232_448}  # bytes that one program may take, CUDA C++ programming guide


@pytest.fixture(scope="module")
def variants(tmp_path_factory) -> list[dict]:
    if not (Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump").exists():
        pytest.skip("this Triton comes without cuobjdump")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")), "PYTHONPATH": str(ROOT)}
    script = Path(__file__).with_name("ahead_of_time.py")
    done = subprocess.run(
        [sys.executable, script, "80", "90"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_nothing_spills(variants) -> None:
    for v in variants:
        assert (v["stack"], v["spills"]) == (0, 0), v


def test_shared_memory_fits(variants) -> None:
    for v in variants:
        assert v["shared"] <= SHARED_LIMIT[v["capability"]], v


def test_weights_arrive_sixteen_bytes_at_a_time(variants) -> None:
    for v in variants:
        assert v["loads_16_bytes"] >= v["weight_loads_16_bytes"], v
    assert sum(v["weight_loads_16_bytes"] > 0 for v in variants) > 20


def test_products_use_the_matrix_unit(variants) -> None:
    for v in variants:
        if v["expected"] == "":
            assert v["matrix"] == [], v
        elif v["expected"]:
            assert v["matrix"], v
            assert all(instruction.startswith(v["expected"]) for instruction in v["matrix"]), v


def test_few_rows_take_few_enough_instructions_to_follow_the_memory(variants) -> None:
    """An H100 that reads 3.0 TB/s has time for 5.2 to 5.9 instructions per weight, an A100 at 1.9 TB/s for 5.1."""
    counted = [v for v in variants if v["most_instructions"]]
    for v in counted:
        assert v["instructions_per_weight"] <= v["most_instructions"], v
    for capability in (80, 90):
        one_row = [
            v for v in counted if v["capability"] == capability and "few" in v["name"] and "one row" in v["name"]
        ]
        assert len(one_row) >= 5
        assert all(v["instructions_per_weight"] <= 3.5 for v in one_row)
