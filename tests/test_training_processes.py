"""One training run in one process, in two, and interrupted: the same losses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]

SCRIPT = """
import json, sys
from pathlib import Path
import torch
from accelerate import Accelerator
from transformers import LlamaConfig, LlamaForCausalLM
from reference.quantization.grid import QuantizationSpec
from reference.quantization.recovery import objective, parameter_groups
from reference.quantization.preparation import prepare
from reference.training import my_rows, train

torch.set_num_threads(1)
curve, checkpoint, last, half = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "half"


def tiny():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                                        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64))


accelerator = Accelerator(cpu=True)
model = prepare(tiny(), QuantizationSpec(2, group_size=16))
optimizer = torch.optim.AdamW(parameter_groups(model, 3e-3))
model, optimizer = accelerator.prepare(model, optimizer)
loss = objective(model, "distillation", tiny())


def loss_of_step(step):
    windows = torch.randint(96, (8, 16), generator=torch.Generator().manual_seed(step))
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        return loss(my_rows(windows, accelerator))


for row in train(model, loss_of_step, [optimizer], steps=8, warmup=2, decay=0.5, checkpoint=checkpoint, every=2,
                 accelerator=accelerator):
    if accelerator.is_main_process:
        with curve.open("a") as file:
            file.write(json.dumps(row) + "\\n")
    if row["step"] == last:
        break
accelerator.end_training()
"""


@pytest.fixture
def start(tmp_path: Path):
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)

    def run(name: str, *head: str, last: int = 8, precision: str = "float") -> list[dict]:
        curve = tmp_path / f"{name}.jsonl"
        done = subprocess.run(
            [sys.executable, *head, str(script), str(curve), str(tmp_path / name), str(last), precision],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in curve.read_text().splitlines()]

    return run


def losses(rows: list[dict]) -> torch.Tensor:
    assert [row["step"] for row in rows] == list(range(1, 9))
    return torch.tensor([row["loss"] for row in rows])


def test_two_processes_lose_what_one_does(start) -> None:
    one = losses(start("one"))
    two = losses(start("two", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"))
    assert one[-1] != one[0]
    assert torch.allclose(one, two, rtol=1e-3)


@pytest.mark.parametrize("precision", ["float", "half"])
def test_a_resumed_run_has_the_curve_of_an_unbroken_one(start, precision: str) -> None:
    unbroken = start("unbroken", precision=precision)
    start("broken", last=5, precision=precision)  # the state of step 4 is kept
    rows = start("broken", precision=precision)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 5, 6, 7, 8]
    assert torch.equal(losses(rows[:4] + rows[5:]), losses(unbroken))
