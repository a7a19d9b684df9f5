"""One training run in one process, in two, and interrupted: the same losses."""

from collections.abc import Callable
from pathlib import Path

import pytest
from training_processes import goes_on_as_if_unbroken, losses, starter, two_processes_lose_what_one_does

RUN = """
from transformers import LlamaConfig, LlamaForCausalLM
from reference.quantization.grid import QuantizationSpec
from reference.quantization.recovery import objective, parameter_groups
from reference.quantization.preparation import prepare
from reference.training import my_rows, train


def tiny():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                                        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64))


model = prepare(tiny(), QuantizationSpec(2, group_size=16))
optimizer = torch.optim.AdamW(parameter_groups(model, 3e-3))
model, optimizer = accelerator.prepare(model, optimizer)
loss = objective(model, "distillation", tiny())


def loss_of_step(step):
    windows = torch.randint(96, (8, 16), generator=torch.Generator().manual_seed(step))
    with torch.autocast("cpu", torch.bfloat16, enabled=option == "half"):
        return loss(my_rows(windows, accelerator))


rows = train(model, loss_of_step, [optimizer], steps=8, warmup=2, decay=0.5, checkpoint=checkpoint, every=2,
             accelerator=accelerator)
"""


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., list[dict]]:
    return starter(tmp_path, RUN, torchrun=True)


def test_two_processes_lose_what_one_does(start) -> None:
    two_processes_lose_what_one_does(start)


@pytest.mark.parametrize("precision", ["float", "half"])
def test_a_resumed_run_has_the_curve_of_an_unbroken_one(start, precision: str) -> None:
    goes_on_as_if_unbroken(start, losses(start("unbroken", option=precision)), precision)
