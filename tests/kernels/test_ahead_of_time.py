"""The compiled kernels, read without a GPU: no spills, 16-byte loads, matrix instructions, instructions per weight.

Bounds, not equalities: Triton's versions differ by a few per cent.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="compiling the kernels takes Triton, which is not installed")

from reference.hardware.occupancy import occupancy  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
CAPABILITIES = (80, 90)
SHARED_LIMIT = {80: 166_912, 90: 232_448}  # bytes that one program may take, CUDA C++ programming guide


@pytest.fixture(scope="module")
def variants(of_all_workers) -> list[dict]:
    """Compiled once for all workers, by two processes; the first worker that comes here starts them."""
    if not (Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump").exists():
        pytest.skip("this Triton comes without cuobjdump")
    folder = of_all_workers
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(folder / "triton"), "PYTHONPATH": str(ROOT)}
    with (folder / "ahead_of_time.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = folder / "ahead_of_time.jsonl"
        if not result.exists():
            script = Path(__file__).with_name("ahead_of_time.py")
            running = [
                subprocess.Popen(
                    [sys.executable, script, str(capability)],
                    env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                )
                for capability in CAPABILITIES
            ]  # fmt: skip
            outputs = [process.communicate() for process in running]
            assert [process.returncode for process in running] == [0, 0], [errors[-2000:] for _, errors in outputs]
            result.write_text("".join(rows for rows, _ in outputs))
    return [json.loads(line) for line in result.read_text().splitlines()]


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


def test_words_go_straight_to_the_registers_and_are_asked_for_before_the_loop(variants) -> None:
    """The words of all turns ahead; with sixteen outputs nothing passes through shared memory, and no lane waits."""
    direct = [v for v in variants if v["name"].startswith("w4a16 direct")]
    assert len(direct) >= 8
    for v in direct:
        assert v["loads_16_bytes_before"] >= v["weight_loads_16_bytes"] > 0, v
        assert v["shared_steps"] == 0 or not v["name"].startswith("w4a16 direct 16"), v


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
    for capability in CAPABILITIES:
        one_row = [
            v for v in counted if v["capability"] == capability and "few" in v["name"] and "one row" in v["name"]
        ]
        assert len(one_row) >= 2
        assert all(v["instructions_per_weight"] <= 3.5 for v in one_row)


def test_the_recorded_table_is_of_these_kernels(variants) -> None:
    """`studies/kernels_compiled.py` writes it anew. Triton's versions differ by some per cent; a few registers more or
    less are rounded up to a multiple of 8."""
    recorded = json.loads((ROOT / "book/data/kernels_compiled.json").read_text())["values"]
    rows = {(row["name"], row["capability"]): row for row in recorded["rows"]}
    found = {(v["name"], v["capability"]): v for v in variants}
    assert rows.keys() == found.keys()
    assert {name for name, _ in rows} == set(recorded["elsewhere"])
    for key, row in rows.items():
        now = found[key]
        assert {name: row[name] for name in ("warps", "spills", "stack")} == {
            "warps": now["warps"],
            "spills": 0,
            "stack": 0,
        }
        assert abs(row["registers"] - now["registers"]) <= max(48, 0.3 * now["registers"]), (row, now)
        assert abs(row["shared"] - now["shared"]) <= max(8192, 0.3 * now["shared"]), (row, now)
        if "instructions_per_weight" in row:
            assert row["instructions_per_weight"] == pytest.approx(now["instructions_per_weight"], rel=0.15), row
        lives = occupancy(row["capability"], **{name: row[name] for name in ("warps", "registers", "shared")})
        assert row["resident"] == {"programs": lives.blocks, "warps": lives.warps, "limit": lives.limit}
        assert lives.blocks >= 1
