"""A training run as a script of its own: in one process, in two, broken off and begun again."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import forked
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


def starter(tmp_path: Path, part: str, *folders: Path, torchrun: bool = False) -> Callable[..., list[dict]]:
    """A function that runs the script under a name, and gives all rows that runs of this name have reported.

    ``part`` knows ``accelerator``, ``checkpoint`` and ``option``, and imports from ``folders`` too. With ``torchrun`` it is that
    program which starts several processes.
    """
    script = tmp_path / "run.py"
    imports = f"import sys\nsys.path[:0] = {[str(ROOT), *map(str, folders)]}\n"
    script.write_text(imports + AROUND.format(part=part))

    def run(name: str, *, processes: int = 1, last: int = 8, option: str = "") -> list[dict]:
        curve = tmp_path / f"{name}.jsonl"
        arguments = [str(curve), str(tmp_path / name), str(last), option]
        if processes > 1 and torchrun:
            several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            command = [sys.executable, *several, str(script), *arguments]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
            assert done.returncode == 0, done.stderr
        else:
            forked.together(processes, script, *arguments)
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
