"""A short training run that ends where its text and its steps say, also after a kill."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reference.quantization.recovery import objective, parameter_groups
from reference.training import random_windows, train


class Recipe(NamedTuple):
    """How long, on what and how fast to train.

    ``steps`` of ``batch`` windows of ``window`` tokens; ``rate`` is the peak of AdamW for matrices, ``rest_rate`` for
    embeddings, norms and biases, 0 to freeze them and a third of ``rate`` if None.

    Example:
        >>> recipe = Recipe(steps=200)
        >>> recipe.steps * recipe.batch * recipe.window  # tokens that the model sees
        409600
        >>> round(recipe._replace(rate=3e-3).rest, 6)  # of embeddings, norms and biases: a third
        0.001

    Chapter: practice/pruning_pipeline
    """

    steps: int
    batch: int = 8
    window: int = 256
    rate: float = 5e-4
    rest_rate: float | None = None

    @property
    def rest(self) -> float:
        """Peak rate of embeddings, norms and biases."""
        return self.rate / 3 if self.rest_rate is None else self.rest_rate


def retrain(
    model: nn.Module,
    teacher: nn.Module,
    texts: Mapping[str, Tensor],
    recipe: Recipe,
    *,
    checkpoint: Path | None = None,
    every: int = 20,
    seed: int = 0,
    progress: Callable[[list], Iterable] = iter,
) -> list[float]:
    """Train a compressed model to predict what the original predicts, in place.

    The teacher's whole distribution at every position says more than the text's next token, and little text goes far.

    Args:
        model: in float32; quantised layers prepared, pruned ones cut.
        teacher: the original, in float32.
        texts: token ids of each text; windows are drawn from all alike.
        recipe: see :class:`Recipe`.
        checkpoint: folder that the run resumes from and saves to; None keeps nothing.
        every: steps between two saved states.
        seed: of the draw.
        progress: wraps the list of remaining steps.

    Returns:
        The loss of each step that was taken now, nats a position; none where the run had come to its end before.

    Raises:
        ValueError: a text is shorter than a window, or the loss is not finite.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, initializer_range=0.5,
        ...                      num_hidden_layers=1, num_attention_heads=2)
        >>> teacher, student, text = LlamaForCausalLM(config), LlamaForCausalLM(config), torch.arange(64) % 8
        >>> recipe = Recipe(steps=10, batch=2, window=8, rate=0.01, rest_rate=0.01)
        >>> losses = retrain(student, teacher, {"mine": text}, recipe)
        >>> len(losses), losses[-1] < losses[0]
        (10, True)

    Chapter: practice/pruning_pipeline
    """
    for name, ids in texts.items():
        if len(ids) < recipe.window:
            raise ValueError(f"text {name!r} has {len(ids)} tokens; training draws windows of {recipe.window} from it")
    tokens, share = [ids.numpy() for ids in texts.values()], [1 / len(texts)] * len(texts)
    loss = objective(model, "distillation", teacher)
    groups = parameter_groups(model, recipe.rate, rest_rate=recipe.rest)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))

    def loss_of_step(step: int) -> Tensor:
        return loss(random_windows(tokens, share, batch=recipe.batch, length=recipe.window, seed=seed, step=step))

    with torch.enable_grad():
        run = train(
            model, loss_of_step, [optimizer], steps=recipe.steps, warmup=max(1, recipe.steps // 10), decay=0.5,
            checkpoint=checkpoint, every=every,
        )  # fmt: skip
        losses = []
        for _ in progress(list(range(recipe.steps))):
            taken = next(run, None)
            if taken is None:
                break
            losses.append(taken["loss"])
            if not losses[-1] < float("inf"):
                raise ValueError(f"the training loss became {losses[-1]} at step {taken['step']}; take a smaller rate")
    model.eval()
    return losses
