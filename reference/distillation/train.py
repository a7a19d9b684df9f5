"""Teach a student: the loss of a batch of windows, and the loop around it.

part of the loss        weight          compares
======================= =============== ====================================================
predictions             ``share``       softened distributions, times :math:`T^2`
the text's next token   1 − ``share``   the student's distribution with the token that came
hidden states           ``hidden``      chosen pairs of layers, through learned projections
attention               ``attention``   the maps of the same pairs of layers
======================= =============== ====================================================
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from reference.distillation.losses import attention_loss, hidden_loss, logits_loss, next_token_loss
from reference.training import my_rows, train


@dataclass(frozen=True)
class Recipe:
    """Weights of the parts of the loss.

    Args:
        share: of the teacher's predictions, 0 to 1; the rest is the text's next token. 0 needs no teacher.
        temperature: of the predictions, positive.
        hidden: weight of the hidden states, 0 or more.
        hidden_kind: see :func:`reference.distillation.losses.hidden_loss`.
        attention: weight of the attention maps, 0 or more.
        layers: pairs (layer of the student, layer of the teacher), from 1; 0 is the embedding, for hidden states only.
            The last layer's hidden states lie behind the final norm in most models: pair it with the teacher's last.

    Raises:
        ValueError: a weight is out of range, or hidden states or attention are weighed and no pair is named.

    Example:
        >>> Recipe(share=0.5, temperature=2.0).taught, Recipe(share=0.0).taught
        (True, False)
        >>> Recipe(hidden=1.0)
        Traceback (most recent call last):
            ...
        ValueError: layers is empty; hidden states and attention need pairs of layers to compare

    Chapter: advanced/distillation
    """

    share: float = 1.0
    temperature: float = 1.0
    hidden: float = 0.0
    hidden_kind: str = "mse"
    attention: float = 0.0
    layers: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share is {self.share}; it may be 0 to 1")
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}; it must be positive")
        if self.hidden < 0 or self.attention < 0:
            raise ValueError(f"hidden is {self.hidden} and attention {self.attention}; they may be 0 or more")
        if (self.hidden or self.attention) and not self.layers:
            raise ValueError("layers is empty; hidden states and attention need pairs of layers to compare")

    @property
    def taught(self) -> bool:
        """Whether a teacher is needed."""
        return bool(self.share or self.hidden or self.attention)


class Lesson(nn.Module):
    """A student with the loss that it is taught by: token ids in, a scalar out.

    The teacher is put in evaluation mode, gets no gradient, and is not a submodule: what is trained, saved or shared
    between processes is the student and its projections.

    Args:
        student: a causal language model of transformers, trained in place, all of it.
        teacher: another with the same vocabulary; None where the recipe needs none.
        recipe: the parts of the loss.

    Attributes:
        projections: one linear map for each pair of layers where hidden states are compared by squared error; it
            starts as the identity as far as the widths allow.

    Raises:
        ValueError: the recipe needs a teacher, vocabularies differ, a pair names a layer that is not there, or attention
            is to be compared that a model does not tell.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8,
        ...                      num_hidden_layers=1, num_attention_heads=2)
        >>> model, ids = LlamaForCausalLM(config), torch.tensor([[1, 2, 3]])
        >>> bool(Lesson(model, model, Recipe())(ids).abs() < 1e-6)  # nothing to learn from itself
        True

    Chapter: advanced/distillation
    """

    def __init__(self, student: PreTrainedModel, teacher: PreTrainedModel | None, recipe: Recipe) -> None:
        super().__init__()
        self.student = student.requires_grad_(True)  # cut from a frozen teacher, it is frozen
        self.recipe = recipe
        self.projections = nn.ModuleList()
        self._teacher = [teacher]  # in a list, so that torch does not register it
        if teacher is None:
            if recipe.taught:
                raise ValueError("teacher is None; only a recipe of share 0 without layers does without")
            return
        teacher.eval()
        ours, theirs = student.config, teacher.config
        if ours.vocab_size != theirs.vocab_size:
            raise ValueError(f"student knows {ours.vocab_size} tokens, teacher {theirs.vocab_size}; they must agree")
        if recipe.attention and {ours._attn_implementation, theirs._attn_implementation} != {"eager"}:
            raise ValueError("attention is compared, which only models of attn_implementation 'eager' tell")
        lowest = 1 if recipe.attention else 0
        for mine, its in recipe.layers:
            if not (
                lowest <= mine <= ours.num_hidden_layers and lowest <= its <= theirs.num_hidden_layers
            ):  # fmt: skip
                raise ValueError(
                    f"layers names ({mine}, {its}); it may go from {lowest} to {ours.num_hidden_layers} and "
                    f"{theirs.num_hidden_layers}"
                )
            if recipe.hidden and recipe.hidden_kind == "mse":
                projection = nn.Linear(ours.hidden_size, theirs.hidden_size, bias=False)
                nn.init.eye_(projection.weight)
                self.projections.append(projection)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Loss of windows ``[batch, length]``; ``mask`` is bool of that shape, False for padding."""
        recipe, teacher = self.recipe, self._teacher[0]
        inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False,
                  "output_hidden_states": bool(recipe.hidden),
                  "output_attentions": bool(recipe.attention)}  # fmt: skip
        ours = self.student(**inputs)
        loss = ours.logits.new_zeros((), dtype=torch.float32)
        if recipe.share < 1:
            loss = loss + (1 - recipe.share) * next_token_loss(ours.logits, ids, mask=mask)
        if teacher is None or not recipe.taught:
            return loss
        with torch.no_grad():
            theirs = teacher(**inputs)
        if recipe.share:
            loss = loss + recipe.share * logits_loss(ours.logits, theirs.logits, recipe.temperature, mask=mask)
        for number, (mine, its) in enumerate(recipe.layers):
            if recipe.hidden:
                projection = self.projections[number] if len(self.projections) else None
                loss = loss + recipe.hidden / len(recipe.layers) * hidden_loss(
                    ours.hidden_states[mine], theirs.hidden_states[its], kind=recipe.hidden_kind,
                    projection=projection, mask=mask,
                )  # fmt: skip
            if recipe.attention:
                loss = loss + recipe.attention / len(recipe.layers) * attention_loss(
                    ours.attentions[mine - 1], theirs.attentions[its - 1], mask=mask
                )
        return loss


def distill(
    lesson: Lesson,
    windows_of_step: Callable[[int], Tensor],
    *,
    steps: int,
    rate: float,
    warmup: int = 0,
    decay: float = 0.5,
    checkpoint: Path | None = None,
    every: int = 500,
    accelerator: Accelerator | None = None,
    half: bool = False,
) -> Iterator[dict]:
    """Train the student of a lesson by AdamW, yielding ``{"step", "loss", "rate"}`` after each step.

    Args:
        lesson: its student is trained in place.
        windows_of_step: maps a step to the windows ``[batch, length]`` of all processes together; a function of the
            step alone, so that a resumed run sees what an unbroken one would have seen.
        steps: of the whole run.
        rate: peak learning rate.
        warmup, decay: see :func:`reference.training.trapezoid`.
        checkpoint: folder to resume from and to save to.
        every: steps between two saved states.
        accelerator: for several processes or a GPU; each process computes the rows of its own.
        half: compute in bfloat16 where that is safe (autocast); weights stay as they are.

    Raises:
        ValueError: a batch does not divide by the processes.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, initializer_range=0.5,
        ...                      num_hidden_layers=1, num_attention_heads=2)
        >>> teacher, student = LlamaForCausalLM(config), LlamaForCausalLM(config)
        >>> lesson, windows = Lesson(student, teacher, Recipe()), torch.tensor([[1, 2, 3, 4]])
        >>> losses = [found["loss"] for found in distill(lesson, lambda step: windows, steps=10, rate=0.01)]
        >>> len(losses), bool(losses[-1] < losses[0])
        (10, True)

    Chapter: advanced/distillation
    """
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(lesson.parameters(), lr=rate, betas=(0.9, 0.95))
    model: nn.Module = lesson
    if accelerator:
        model, optimizer = accelerator.prepare(lesson, optimizer)
        if lesson._teacher[0] is not None:
            lesson._teacher[0].to(accelerator.device)

    def loss_of_step(step: int) -> Tensor:
        windows = windows_of_step(step)
        if accelerator:
            windows = my_rows(windows, accelerator)
        with torch.autocast(windows.device.type, torch.bfloat16, enabled=half):
            return model(windows)

    yield from train(
        model, loss_of_step, [optimizer], steps=steps, warmup=warmup, decay=decay, checkpoint=checkpoint, every=every,
        accelerator=accelerator,
    )  # fmt: skip
