"""The lesson's kernels against float64, and the order of their instruction counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton", reason="the kernels run with Triton, which is not installed")

from reference.kernels import _triton  # noqa: E402
from reference.kernels.w4a16_steps import STEPS, ladder, step  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
ROUNDING = {torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8}
interpreted = pytest.mark.skipif(
    not _triton.INTERPRETED.value, reason="TRITON_INTERPRET=1 was not set when the kernels were imported"
)


def case(outputs: int, columns: int, group_size: int):
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (outputs, columns), generator=generator)
    words = (codes.reshape(outputs, -1, 8) << (4 * torch.arange(8))).sum(-1)
    packed = torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)
    scale = (torch.rand((outputs, columns // group_size), generator=generator) + 0.01).bfloat16()
    zero_point = torch.randint(0, 16, scale.shape, dtype=torch.uint8, generator=generator)
    x = torch.randn((1, columns), generator=generator)
    spread = [t.double().repeat_interleave(group_size, 1) for t in (scale, zero_point)]
    return x, packed, scale, zero_point, spread[0] * (codes.double() - spread[1])


@interpreted
@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_step_computes_the_same_product(number, dtype) -> None:
    x, packed, scale, zero_point, weight = case(32, 4096, 128)  # two turns of the widest loop, two programs
    x = x.to(dtype)
    y = step(number, x, packed, scale, zero_point, group_size=128)
    expected = x.double() @ weight.T
    assert y.dtype == dtype
    assert (y.double() - expected).norm() / expected.norm() <= ROUNDING[dtype] + 2e-6


@interpreted
@pytest.mark.parametrize("group_size", [32, 512, 2048])
def test_groups_of_other_sizes(group_size) -> None:
    x, packed, scale, zero_point, weight = case(16, 2048, group_size)
    expected = x.double() @ weight.T
    for number, call in ladder(x, packed, scale, zero_point, group_size=group_size).items():
        assert (call().double() - expected).norm() / expected.norm() < 3e-6, number


@interpreted
def test_refusals() -> None:
    x, packed, scale, zero_point, _ = case(16, 2048, 128)
    with pytest.raises(ValueError, match="number is 6; it may be 1 to 5"):
        step(6, x, packed, scale, zero_point, group_size=128)
    with pytest.raises(ValueError, match="x had 2 rows, may have 1"):
        step(1, x.repeat(2, 1), packed, scale, zero_point, group_size=128)
    with pytest.raises(ValueError, match="they may be multiples of 16, 2048 and 32 in step 4"):
        step(4, x[:, :1024], packed[:, :128], scale[:, :8], zero_point[:, :8], group_size=128)


def test_each_step_takes_fewer_instructions_and_wide_loads_begin_at_the_second(of_all_workers) -> None:
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tools.exists():
        pytest.skip("this Triton comes without cuobjdump")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(of_all_workers / "triton"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, ROOT / "benchmarks" / "w4a16_steps.py", "--capabilities", "90"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {row["step"]: row for row in json.loads(done.stdout)["values"]["rows"]}
    steps = [found[str(number)] for number in (1, 2, 3, 4, 5)]
    counts = [row["instructions_per_weight"] for row in steps]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 2 * counts[1]
    assert counts[3] < 5
    assert counts[4] < 3.5
    for row in steps:
        assert (row["stack"], row["spills"]) == (0, 0), row
        assert (row["loads_16_bytes"] > 0) == (row["step"] != "1"), row
    narrow = found["step 4, words a row not known to be a multiple of 16"]
    assert narrow["loads_16_bytes"] < narrow["weight_loads_16_bytes"]
    assert found["step 4, one warp a program"]["spills"] > 0
    recorded = json.loads((ROOT / "book" / "data" / "w4a16_steps_compiled.json").read_text())["values"]["rows"]
    assert len(recorded) == 2 * len(found) == 2 * (len(STEPS) + 3)
    for row in recorded:  # compilers differ by a few per cent
        if row["capability"] == 90:
            assert row["instructions_per_weight"] == pytest.approx(
                found[row["step"]]["instructions_per_weight"], rel=0.15
            )
