"""`benchmarks/kernels.py` runs where there is no GPU: every kernel's case is built and checked, interpreted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
    done = run("--output", str(tmp_path / "rows.jsonl"))
    assert done.returncode == 1
    assert "needs an NVIDIA GPU" in done.stderr
