"""The pruning workflow: cut whole units step by step, train in between, and ask whether single zeros would pay.

step                  decides
===================== ==========================================================================
baseline measurement  what everything after it is compared with
gradual pruning       how far the rounds go: to the size asked for, or to the first that loses too much
structured focus      in each round, neurons or attention heads
fine-tuning           whether a longer training brings the last round within the limit
sparse library check  whether a kernel on this machine makes further, unstructured zeros faster
"""

import math
from pathlib import Path

from reference.evaluation import tensor_bytes
from reference.models.families import block_linears
from reference.models.streaming import StreamedModel
from reference.practice.pruning_steps import Settings, Steps
from reference.practice.targets import Target
from reference.practice.work import Progress, Row, quiet
from reference.pruning import blocks


def run(
    model: str,
    output: Path,
    *,
    max_loss: float,
    max_bytes: float | None = None,
    min_ratio: float | None = None,
    sparsity: float | None = None,
    settings: Settings | None = None,
    progress: Progress = quiet,
) -> Row:
    """Take the steps and write a smaller dense checkpoint with ``report.json`` and ``report.html``.

    With a size asked for, the rounds lead exactly there, and the model is fine-tuned at the end. Without one they go on until
    one loses too much after its training; that one is fine-tuned, and the answer is the last that keeps the limit. Where
    the target is missed, the best found is written, and the report's ``met`` is False.

    Args:
        model: a name or folder, as :func:`reference.models.loading.resolve`.
        output: folder to create; new or empty.
        max_loss, max_bytes, min_ratio: as :func:`reference.practice.targets.make_target`.
        sparsity: share of the blocks' weights to remove, another way to ask for a size; above 0 and below 1.
        settings: how; the defaults of :class:`Settings` if None.
        progress: gives a progress bar for a label.

    Returns:
        The report, as in ``report.json``.

    Raises:
        ValueError: an argument that does not fit, or a size that no cut in the blocks reaches; nothing is left behind then.
        FileExistsError: ``output`` holds something.

    Example:
        >>> run("tutorial", Path("small"), max_loss=0.02, sparsity=1.5)  # refused before any work
        Traceback (most recent call last):
            ...
        ValueError: sparsity is 1.5; it may be above 0 and below 1
        >>> Path("small").exists()
        False

    Chapter: practice/pruning_pipeline
    """
    settings = settings or Settings()
    run = Steps(model, settings, progress, max_loss=max_loss, max_bytes=max_bytes, min_ratio=min_ratio)
    run.goal = goal = _goal(run.folder, run.dense, run.target, sparsity)
    if settings.rounds < 1 or not 0 < settings.most < 1:
        raise ValueError(f"rounds is {settings.rounds} and most is {settings.most}; 1 or more, and between 0 and 1")
    if (finished := run.open(output, (run.target, sparsity, settings), settings.recipe.window)) is not None:
        return finished
    with run.tidied():
        chosen, steps = run.steps()
        met = run.target.met(chosen) and (goal is None or chosen.removed >= goal - 1e-9)
        return run.deliver("prune", chosen, steps, run.work.place(chosen.slug), met, target={"sparsity": sparsity},
                           found={"removed": chosen.removed})  # fmt: skip


def _goal(folder: Path, dense: int, target: Target, sparsity: float | None) -> float | None:
    """Share of the blocks' weights that must go for the size asked for; None where none is, or it is met."""
    if sparsity is not None and not 0 < sparsity < 1:
        raise ValueError(f"sparsity is {sparsity}; it may be above 0 and below 1")
    meta = StreamedModel(folder).model
    blocks.neurons(meta)  # refuses a family whose units are not known
    sizes = tensor_bytes(folder)
    linear = sum(sizes[f"{name}.weight"] for name, _ in block_linears(meta))
    wanted = 0.0 if math.isinf(target.max_bytes) else (dense - target.max_bytes) / linear
    if wanted >= 0.98:
        raise ValueError(
            f"the target of {target.max_bytes:,.0f} bytes leaves nothing of the blocks: they are {linear:,} of {dense:,} bytes, "
            "and embeddings are not pruned. Ask for less"
        )
    goals = [goal for goal in (sparsity, wanted) if goal and goal > 0]  # a size that is met already asks for nothing
    return max(goals) if goals else None
