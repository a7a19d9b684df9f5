"""What both workflows begin with, measure by and end with; what lies between is their own."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from reference.evaluation import size_on_disk
from reference.files import held
from reference.job import kept
from reference.models import loading
from reference.practice import measurement, report
from reference.practice.targets import Measured, make_target
from reference.practice.work import Progress, Row, Step, Work, fingerprint, machine


class Answer(Measured, Protocol):
    """A model that a workflow may end with.

    Example:
        >>> from reference.practice.candidates import Candidate
        >>> from reference.practice.quantization_steps import Tried
        >>> answer = Tried(Candidate(4, "gptq"), bytes=480, rise=0.015, error=0.001, seconds=2.0)
        >>> answer.name, answer.rise + 2 * answer.error < 0.02  # what a report says of it
        ('W4A16 gptq', True)

    Chapter: none (an interface)
    """

    @property
    def name(self) -> str:
        """What the report calls it."""

    @property
    def error(self) -> float:
        """Standard error of the rise."""


class Bench:
    """A model, what is asked of it, the texts that judge it, and the folder of what has been found.

    Args:
        model: a name or folder, as :func:`reference.models.loading.resolve`.
        settings: of the workflow.
        progress: gives a progress bar for a label.
        max_loss, max_bytes, min_ratio: as :func:`reference.practice.targets.make_target`.

    Attributes:
        dense: bytes of the model as it came.
        before: losses of each text's tokens under it; the baseline sets them.

    Raises:
        ValueError: a model that cannot be measured, or a target that does not fit.

    Example:
        >>> from reference.practice.quantization_steps import Settings
        >>> from reference.practice.work import quiet
        >>> bench = Bench("tutorial", Settings(), quiet, max_loss=0.02, max_bytes=None, min_ratio=4.0)
        >>> bench.target.max_bytes == bench.dense / 4
        True

    Chapter: none (plumbing of the workflows)
    """

    work: Work
    texts: dict[str, Tensor]
    calibration: dict[str, Tensor]

    def __init__(
        self, model: str, settings: Any, progress: Progress, *, max_loss: float, max_bytes: float | None,
        min_ratio: float | None,
    ) -> None:  # fmt: skip
        self.model, self.settings, self.progress = model, settings, progress
        self.folder = loading.resolve(model)
        self.tokenizer = measurement.checked_model(self.folder)
        self.dense = size_on_disk(self.folder)["total"]
        self.target = make_target(max_loss, self.dense, max_bytes=max_bytes, min_ratio=min_ratio)
        self.before: dict[str, Tensor] = {}

    def open(self, output: Path, asked: object, least: int) -> Row | None:
        """Read the texts, and open the work that has been done.

        Args:
            output: folder that will be written; new or empty.
            asked: what the results depend on, beside model and texts; its ``repr`` tells all.
            least: tokens of a window of training, 0 where nothing is trained.

        Returns:
            The report of an earlier run that had come to its end; None where there is something to do.

        Raises:
            ValueError: a text is not known or too short.
            FileExistsError: ``output`` holds something.
        """
        settings = self.settings
        self.texts = measurement.read_texts(settings.texts, self.tokenizer, limit=settings.tokens)
        self.calibration = measurement.read_texts(settings.calibration, self.tokenizer, part="calibration")
        measurement.check_window(self.folder, settings.window, self.texts, self.calibration, least)
        read = self.texts | {f"calibration {name}": ids for name, ids in self.calibration.items()}
        self.work = Work(output, fingerprint(self.folder, read, asked))
        return self.work.finished

    @contextmanager
    def tidied(self) -> Iterator[None]:
        """After wrong input, which would be wrong again, nothing is left behind. One process at a time works."""
        with held(self.work.folder):
            try:
                yield
            except (ValueError, TypeError):
                self.work.discard()
                raise
            except KeyboardInterrupt as error:
                error.args = (kept(self.work.folder),)
                raise

    # ---- measuring

    def windows(self) -> list[Tensor]:
        """Calibration batches."""
        return measurement.draw(self.calibration, self.settings.sequences, self.settings.window, self.settings.seed)

    def losses(self, model: Any, label: str = "measuring") -> dict[str, Tensor]:
        """Nats of each text's tokens."""
        return measurement.nats(model, self.texts, self.settings.window, self.progress(label))

    def quality(self, model: nn.Module) -> Row:
        """Rise of the perplexity on the text where it rises most."""
        return measurement.worst(self.before, self.losses(model))

    def perplexities(self) -> list[Row]:
        """The baseline's rows."""
        return [
            {"text": name, "perplexity": losses.double().mean().exp().item(), "tokens": len(losses)}
            for name, losses in sorted(self.before.items())
        ]

    # ---- the end

    def deliver(
        self, workflow: str, chosen: Answer, steps: list[Step], checkpoint: Path, met: bool, **more: Row
    ) -> Row:
        """Write a checkpoint and the two reports, and forget the rest.

        Args:
            workflow: its name.
            chosen: the answer.
            steps: what was decided.
            checkpoint: folder of the answer.
            met: whether the target is.
            more: entries that only this workflow's ``target`` and ``found`` have.
        """
        target = self.target
        found: Row = {
            "workflow": workflow, "model": self.model, "output": str(self.work.output), "met": met, "answer": chosen.name,
            "target": {"max_loss": target.max_loss, "max_bytes": None if math.isinf(target.max_bytes) else int(target.max_bytes)}
            | more.get("target", {}),
            "found": {"rise": chosen.rise, "error": chosen.error, "bytes": chosen.bytes, "ratio": self.dense / chosen.bytes}
            | more.get("found", {}),
            "steps": [step._asdict() for step in steps], "machine": machine(), "fingerprint": self.work.fingerprint,
        }  # fmt: skip
        self.work.deliver(checkpoint, found, report.page(found))
        return found
