"""A training run as a script of its own: in one process, in two, broken off and begun again."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]

#: What every run does around the part that a test gives: that part makes ``rows``, one a step, for a run of 8 steps.
AROUND = """
import json, sys
from pathlib import Path
import torch
from accelerate import Accelerator

torch.set_num_threads(1)
curve, checkpoint, last, option = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
accelerator = Accelerator(cpu=True)
{part}
for row in rows:
    if accelerator.is_main_process:
        with curve.open("a") as file:
            file.write(json.dumps(row) + "\\n")
    if row["step"] == last:
        break
accelerator.end_training()
"""


def starter(tmp_path: Path, part: str, *folders: Path) -> Callable[..., list[dict]]:
    """A function that runs the script under a name, and gives all rows that runs of this name have reported.

    ``part`` knows ``accelerator``, ``checkpoint`` and ``option``, and imports from ``folders`` too.
    """
    script = tmp_path / "run.py"
    script.write_text(AROUND.format(part=part))

    def run(name: str, *, processes: int = 1, last: int = 8, option: str = "") -> list[dict]:
        several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        curve = tmp_path / f"{name}.jsonl"
        done = subprocess.run(
            [sys.executable, *(several if processes > 1 else []), str(script), str(curve), str(tmp_path / name), str(last), option],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, (ROOT, *folders)))},
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in curve.read_text().splitlines()]

    return run


def losses(rows: list[dict]) -> torch.Tensor:
    """Of a whole run; refuses one with a step missing or twice."""
    assert [row["step"] for row in rows] == list(range(1, 9))
    return torch.tensor([row["loss"] for row in rows])


def two_processes_lose_what_one_does(start: Callable[..., list[dict]]) -> torch.Tensor:
    """Check it; the losses of the one process."""
    one, two = losses(start("one")), losses(start("two", processes=2))
    assert one[-1] != one[0]
    assert torch.allclose(one, two, rtol=1e-3)
    return one


def goes_on_as_if_unbroken(start: Callable[..., list[dict]], unbroken: torch.Tensor, option: str = "") -> None:
    """A run that ends after step 5 of which step 4 was saved, given again, has the losses of the unbroken one."""
    start("broken", last=5, option=option)
    rows = start("broken", option=option)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 5, 6, 7, 8]
    assert torch.equal(losses(rows[:4] + rows[5:]), unbroken)
