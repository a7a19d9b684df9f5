"""The quantisation workflow: measure, try from small to large, check the calibration, train if need be, validate.

step                         decides
============================ =================================================================
baseline measurement         what everything after it is compared with
post-training sweep          the smallest candidate that meets the target
calibration check            whether that holds on another draw of the text; else the sweep goes on
quantization-aware training  where the sweep missed: whether a short training meets the target
hardware validation          whether what was written serves as it was measured, and how fast
"""

from pathlib import Path

from reference.models.streaming import StreamedModel
from reference.practice.candidates import ladder
from reference.practice.quantization_steps import Settings, Steps
from reference.practice.work import Progress, Row, quiet


def run(
    model: str,
    output: Path,
    *,
    max_loss: float,
    max_bytes: float | None = None,
    min_ratio: float | None = None,
    settings: Settings | None = None,
    progress: Progress = quiet,
) -> Row:
    """Take the five steps and write a checkpoint with ``report.json`` and ``report.html``.

    The sweep goes from the smallest candidate to the largest, within one size from the cheapest solver to the dearest, and
    stops at the first that meets the target: nothing smaller did, and of its size nothing cheaper. A limit on the size
    leaves out what is larger. Where all miss, training starts from the best. Where that misses too, the best found is
    written, and the report's ``met`` is False.

    Args:
        model: a name or folder, as :func:`reference.models.loading.resolve`.
        output: folder to create; new or empty.
        max_loss, max_bytes, min_ratio: as :func:`reference.practice.targets.make_target`.
        settings: what may be tried; the defaults of :class:`Settings` if None.
        progress: gives a progress bar for a label.

    Returns:
        The report, as in ``report.json``.

    Raises:
        ValueError: an argument that does not fit; nothing is left behind then.
        FileExistsError: ``output`` holds something.

    Example:
        >>> run("tutorial", Path("small"), max_loss=0.02, min_ratio=0.5)  # refused before any work
        Traceback (most recent call last):
            ...
        ValueError: min_ratio is 0.5; it may be any number above 1
        >>> Path("small").exists()
        False

    Chapter: practice/quantization_workflow
    """
    settings = settings or Settings()
    run = Steps(model, settings, progress, max_loss=max_loss, max_bytes=max_bytes, min_ratio=min_ratio)
    rungs = ladder(StreamedModel(run.folder).model, settings.bits, settings.methods, settings.group_size)
    least = settings.recipe.window if settings.recipe.steps else 0
    if (finished := run.open(output, (run.target, settings), least)) is not None:
        return finished
    with run.tidied():
        chosen, steps = run.steps(rungs)
        return run.deliver("quantize", chosen, steps, run.made(chosen), run.target.met(chosen))
