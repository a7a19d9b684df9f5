"""The lesson and its loop: the teacher stays as it is, parts of the loss add up, processes and interruptions do not show."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import training_processes
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from reference.distillation.losses import attention_loss, hidden_loss, logits_loss, next_token_loss
from reference.distillation.student import from_layers
from reference.distillation.train import Lesson, Recipe, distill

ALL = Recipe(share=0.75, temperature=2.0, hidden=0.5, attention=0.25, layers=((1, 2), (2, 4)))


def teacher(seed: int = 0, **options: object) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
             "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**(sizes | options), attn_implementation="eager"))


def windows(step: int) -> Tensor:
    return torch.randint(96, (8, 16), generator=torch.Generator().manual_seed(step))


def test_the_loss_is_the_weighted_sum_of_its_parts() -> None:
    big = teacher()
    small = from_layers(big, (0, 2))
    lesson, ids = Lesson(small, big, ALL), windows(0)
    with torch.no_grad():
        ours, theirs = (m(input_ids=ids, output_hidden_states=True, output_attentions=True) for m in (small, big))
        expected = (
            0.75 * logits_loss(ours.logits, theirs.logits, 2.0)
            + 0.25 * next_token_loss(ours.logits, ids)
            + 0.25 * hidden_loss(ours.hidden_states[1], theirs.hidden_states[2])
            + 0.25 * hidden_loss(ours.hidden_states[2], theirs.hidden_states[4])
            + 0.125 * attention_loss(ours.attentions[0], theirs.attentions[1])
            + 0.125 * attention_loss(ours.attentions[1], theirs.attentions[3])
        )
        torch.testing.assert_close(lesson(ids), expected)


def test_padding_changes_neither_loss_nor_gradient() -> None:
    big = teacher()
    recipe = replace(ALL, hidden_kind="cosine")
    results = []
    for filler in (5, 90):
        ids, real = windows(0)[:2].clone(), torch.ones(2, 16, dtype=torch.bool)
        real[0, 9:] = False
        ids[0, 9:] = filler
        small = from_layers(big, (0, 2))
        loss = Lesson(small, big, recipe)(ids, real)
        loss.backward()
        results.append([loss.detach(), small.model.layers[0].mlp.up_proj.weight.grad])
    torch.testing.assert_close(results[0], results[1])


def test_the_teacher_is_evaluated_without_gradient_and_stays_as_it_was() -> None:
    big = teacher(attention_dropout=0.5).train()
    before = {name: value.clone() for name, value in big.state_dict().items()}
    lesson = Lesson(from_layers(big, (0, 2)), big, ALL)
    for _ in distill(lesson, windows, steps=3, rate=1e-2):
        assert not big.training
        assert lesson.student.training
    assert all(torch.equal(value, before[name]) for name, value in big.state_dict().items())
    assert all(p.grad is None for p in big.parameters())
    assert not any("teacher" in name for name, _ in lesson.named_parameters())


def test_a_student_cut_from_a_frozen_teacher_is_not_frozen() -> None:
    big = teacher().requires_grad_(False)
    lesson = Lesson(from_layers(big, (0, 2)), big, Recipe())
    assert all(p.requires_grad for p in lesson.parameters())
    assert not any(p.requires_grad for p in big.parameters())


def test_a_copy_of_the_teacher_has_nothing_to_learn() -> None:
    big = teacher()
    loss = Lesson(from_layers(big, range(4)), big, Recipe(temperature=3.0, hidden=1.0, layers=((2, 2),)))(windows(0))
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(share=0.0), replace(ALL, attention=0.0)])
def test_a_student_learns(recipe: Recipe) -> None:
    big = teacher()
    lesson = Lesson(from_layers(big, (0, 2)), big, recipe)
    losses = [row["loss"] for row in distill(lesson, lambda _: windows(0), steps=30, rate=5e-3, warmup=3)]
    assert losses[-1] < 0.7 * losses[0]


def test_projections_are_trained_with_the_student_and_widths_may_differ() -> None:
    small = teacher(1, hidden_size=16, num_hidden_layers=2)
    lesson = Lesson(small, teacher(), Recipe(hidden=1.0, layers=((2, 4),)))
    start = lesson.projections[0].weight.detach().clone()
    assert tuple(start.shape) == (32, 16)
    list(distill(lesson, windows, steps=2, rate=1e-2))
    assert not torch.equal(lesson.projections[0].weight, start)


def test_half_precision_computes_about_the_same_loss_and_keeps_float_weights() -> None:
    losses = {}
    for half in (False, True):
        big = teacher()
        lesson = Lesson(from_layers(big, (0, 2)), big, Recipe())
        losses[half] = [row["loss"] for row in distill(lesson, windows, steps=4, rate=1e-3, half=half)]
        assert lesson.student.lm_head.weight.dtype == torch.float32
    assert losses[True] == pytest.approx(losses[False], rel=0.05)
    assert losses[True] != losses[False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 1.5}, "share is 1.5"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"hidden": -1.0}, "hidden is -1.0"),
        ({"hidden": 1.0}, "layers is empty"),
    ],
)
def test_weights_out_of_range_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**options)


def test_a_lesson_that_cannot_be_given_is_refused() -> None:
    with pytest.raises(ValueError, match="teacher is None"):
        Lesson(teacher(), None, Recipe())
    with pytest.raises(ValueError, match="96 tokens, teacher 64"):
        Lesson(teacher(), teacher(vocab_size=64), Recipe())
    with pytest.raises(ValueError, match=r"\(2, 5\)"):
        Lesson(teacher(), teacher(), Recipe(hidden=1.0, layers=((2, 5),)))
    with pytest.raises(ValueError, match=r"\(0, 1\)"):
        Lesson(teacher(), teacher(), Recipe(attention=1.0, layers=((0, 1),)))
    silent = teacher()
    silent.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="eager"):
        Lesson(silent, teacher(), Recipe(attention=1.0, layers=((1, 1),)))


RUN = """
from test_train import Lesson, Recipe, distill, from_layers, teacher, windows

big = teacher()
lesson = Lesson(from_layers(big, (0, 2)), big, Recipe(share=0.5, hidden=1.0, layers=((1, 2),)))
rows = distill(lesson, windows, steps=8, rate=3e-3, warmup=2, checkpoint=checkpoint, every=2, accelerator=accelerator)
"""


def test_two_processes_lose_what_one_does_and_a_resumed_run_what_an_unbroken_one_does(tmp_path: Path) -> None:
    folder = Path(__file__).parent
    start = training_processes.starter(tmp_path, RUN, folder, folder.parent / "shared")
    unbroken = training_processes.two_processes_lose_what_one_does(start)
    training_processes.goes_on_as_if_unbroken(start, unbroken)  # projections are saved with the rest
