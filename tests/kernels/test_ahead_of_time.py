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


def of(variants: list[dict], **wanted) -> list[dict]:
    found = [v for v in variants if all(v[name] == value for name, value in wanted.items())]
    assert found, f"no variant with {wanted}"
    return found


def test_nothing_spills(variants) -> None:
    for v in variants:
        assert (v["stack"], v["spills"]) == (0, 0), v


def test_shared_memory_fits(variants) -> None:
    for v in variants:
        assert v["shared"] <= SHARED_LIMIT[v["capability"]], v


def test_weights_arrive_sixteen_bytes_at_a_time(variants) -> None:
    for v in variants:
        assert v["loads_16_bytes"] >= v["weight_loads_16_bytes"], v
        # With 32 columns a block, a lane's share of x is 8 bytes; scales and zero points are single values.
        assert v["loads_4_or_8_bytes"] == (1 if v["group_size"] == 32 else 0), v


@pytest.mark.parametrize(("capability", "instruction"), [(80, "mma.sync.aligned.m16n8k16"), (90, "wgmma.mma_async")])
def test_many_rows_use_the_matrix_unit(variants, capability, instruction) -> None:
    for dtype, name in (("bfloat16", "bf16"), ("float16", "f16")):
        for v in of(variants, capability=capability, dtype=dtype):
            if v["rows"] == 1:
                assert v["matrix"] == [], v
            else:
                assert len(v["matrix"]) == 1, v
                assert v["matrix"][0].startswith(instruction), v
                assert f".f32.{name}.{name}" in v["matrix"][0], v


@pytest.mark.parametrize("capability", [80, 90])
def test_one_row_takes_few_enough_instructions_to_follow_the_memory(variants, capability) -> None:
    """An H100 that reads 3.0 TB/s has time for 5.2 to 5.9 instructions per weight, an A100 at 1.9 TB/s for 5.1."""
    for v in of(variants, capability=capability, rows=1):
        assert v["instructions_per_weight"] <= 4.6, v
    for v in of(variants, capability=capability, rows=16, dtype="bfloat16", group_size=128, zeros=True):
        assert v["instructions_per_weight"] <= 5.0, v
