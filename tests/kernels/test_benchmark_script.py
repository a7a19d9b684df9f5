"""`benchmarks/kernels.py` runs where there is no GPU: every kernel's case is built and checked, interpreted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from forked import Forked

pytest.importorskip("triton", reason="the kernels run with Triton, which is not installed")

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "1"}
    command = [sys.executable, ROOT / "benchmarks" / "kernels.py", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_every_case_passes_its_check(tmp_path) -> None:
    output = tmp_path / "rows.jsonl"
    done = run("--dry-run", "--output", str(output), "--wheels", str(tmp_path))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    checked = [row for row in rows if row["ok"]]
    assert {"w4a16", "w8a8", "quantize_activations", "fp8", "mxfp4"} <= {row["check"].split()[0] for row in checked}
    assert all(row["error"] <= row["bound"] for row in checked)
    missing = {row["call"] for row in rows if row["ok"] is None}
    assert {"int4pack_mm", "gemlite"} <= missing  # peers that need a GPU say so and are left out


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = Forked(ROOT / "benchmarks" / "kernels.py", "--output", tmp_path / "rows.jsonl").wait()
    assert done.code == 1
    assert "needs an NVIDIA GPU" in done.err


def test_tables_that_the_tuner_writes_are_used(tmp_path) -> None:
    """Each plan of each contest survives the way through JSON, and is the one that the kernel then takes."""
    script = tmp_path / "plans.py"
    script.write_text(f"import sys\nsys.path[:0] = {[str(ROOT / 'benchmarks'), str(ROOT)]}\n" + PLANS)
    done = Forked(script, tmp_path / "tables.json").wait()
    assert done.code == 0, done.err


PLANS = """
import json
from pathlib import Path
import tables, tune_kernels
from reference.kernels import codebook, w4a16
found = {}
for contest in tune_kernels.contests():
    for plan in contest.plans.values():
        assert tables.plan_of(sys.modules[type(plan).__module__], tables.stored(plan)) == plan
    last = list(contest.plans.values())[-1]
    found.setdefault(contest.slot.table, []).append([list(contest.slot.limits), tables.stored(last)])
Path(sys.argv[1]).write_text(json.dumps({"tables": found}))
tables.install(Path(sys.argv[1]))
first = found["w4a16.FEW_ROWS"][0]
assert w4a16.plan_for(1, first[0][1], 4096, 128, w4a16.torch.bfloat16) == tables.plan_of(w4a16, first[1])
assert codebook.ONE_ROW == tables.plan_of(codebook, found["codebook.ONE_ROW"][0][1])
assert "(1, 6144, OneRow(" in tables.source(found)
tasks = tune_kernels.tasks(3)
assert {case.kernel for cases in tasks for case in cases} == {"w4a16", "w8a8", "codebook", "sparse_24"}
assert tune_kernels.winner({"a": {"p": 1.0, "q": 4.0, "r": 0.1}, "b": {"p": 3.0, "q": 1.0}}) == "p"
"""
