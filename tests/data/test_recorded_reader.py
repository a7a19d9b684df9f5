"""Recorded results as chapters read them."""

import json

import pytest

from reference.data import recorded

VALUES = {
    "ceilings": {"copy_gbps": 3000.0},
    "cases": {
        "w4a16 M=1 N=4096 K=4096 group=128 dtype=bfloat16": {"microseconds": {"w4a16": 3.1}, "of_copy": 0.9},
        "w4a16_steps M=1 N=8 K=8": {"microseconds": {"step 1": 9.0}, "of_copy": 0.1},
    },
}


def test_cases_of_one_kernel_with_their_sizes(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(recorded, "FOLDER", tmp_path)
    assert recorded.gpu_cases("w4a16") == []
    (tmp_path / "kernels.json").write_text(json.dumps({"values": VALUES}))
    (only,) = recorded.gpu_cases("w4a16")
    assert only == {
        "M": 1, "N": 4096, "K": 4096, "group": 128, "dtype": "bfloat16",
        "microseconds": {"w4a16": 3.1}, "of_copy": 0.9,
    }  # fmt: skip
    assert [row["N"] for row in recorded.gpu_cases("w4a16_steps")] == [8]
    with pytest.raises(FileNotFoundError, match="no recorded result 'other'; there are kernels"):
        recorded.read("other")


def test_where_a_result_comes_from() -> None:
    found = recorded.about("w4a16_steps_compiled")
    assert sorted(found) == ["command", "date", "device", "versions"]
    assert "benchmarks/w4a16_steps.py" in found["command"]
    with pytest.raises(FileNotFoundError, match="no recorded result 'missing'"):
        recorded.about("missing")
