"""A workflow's folder: what it has found so far, and how it ends."""

import json
import platform
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor

from reference.files import atomic_directory, check_target
from reference.job import Job, digest

REPORT, PAGE = "report.json", "report.html"
Row = dict[str, Any]
Progress = Callable[[str], Callable[[list], Iterable]]


class Step(NamedTuple):
    """One step of a workflow as the report tells it.

    ``title``: of the step. ``decision``: what was decided, with the numbers, in a sentence or two. ``rows``: what it was decided
    on, a table of dictionaries with the same keys.

    Example:
        >>> step = Step("Calibration check", "It holds.", [{"calibration": "another draw", "rise": 0.01}])
        >>> step.rows[0]["rise"]
        0.01

    Chapter: practice/quantization_workflow
    """

    title: str
    decision: str
    rows: list[Row]


class Work:
    """What a workflow has finished, kept beside its output until that is whole.

    Args:
        output: folder that will be written; new or empty.
        fingerprint: what all results depend on, JSON-ready.

    Raises:
        FileExistsError: ``output`` holds something.
        ValueError: an unfinished run with other arguments is in the way.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     output = Path(folder, "out")
        ...     first = Work(output, {"seed": 0}).once("count", lambda: ({}, {"answer": 42}))
        ...     # After a kill: what was finished is not computed again.
        ...     Work(output, {"seed": 0}).once("count", lambda: 1 / 0) == first
        True

    Chapter: none (plumbing: resumes a workflow)
    """

    def __init__(self, output: Path, fingerprint: Row) -> None:
        self.output = output
        self.fingerprint = fingerprint
        self.folder = unfinished(output)
        self.finished = _finished(output, fingerprint)
        if self.finished is None:
            check_target(output)
            self.fresh = not self.folder.exists()
            self.job = Job(self.folder, fingerprint)
        else:  # killed between the last rename and the end of the process
            shutil.rmtree(self.folder, ignore_errors=True)

    def once(self, step: str, compute: Callable[[], tuple[dict[str, Tensor], Row]]) -> tuple[dict[str, Tensor], Row]:
        """What ``compute`` gave when it was first called for this step, now or before a kill."""
        found = self.job.get(step)
        if found is None:
            self.job.put(step, *compute())
            found = self.job.get(step)
            assert found is not None
        return found

    def place(self, name: str) -> Path:
        """A folder for a step's own files."""
        folder = self.folder / name
        folder.parent.mkdir(parents=True, exist_ok=True)
        return folder

    def keep(self, names: Iterable[str], kept: str) -> None:
        """Remove the folders of steps that will not be written."""
        for name in set(names) - {kept}:
            shutil.rmtree(self.place(name), ignore_errors=True)

    def discard(self) -> None:
        """After an error that would come again: leave nothing behind, unless an earlier run had begun."""
        if self.fresh:
            self.job.remove()

    def deliver(self, checkpoint: Path, report: Row, page: str) -> None:
        """Copy a checkpoint and its reports to the output, all at once, and forget the rest."""
        needs = sum(path.stat().st_size for path in checkpoint.iterdir())
        with atomic_directory(self.output, needs=needs) as folder:
            for path in sorted(checkpoint.iterdir()):
                shutil.copy(path, folder / path.name)
            (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
            (folder / PAGE).write_text(page, encoding="utf-8")
        self.job.remove()


def unfinished(output: Path) -> Path:
    """Where a workflow that was killed keeps what it has found.

    Args:
        output: folder that the workflow will write.

    Example:
        >>> unfinished(Path("models/small")).name
        '.small.unfinished'

    Chapter: none (plumbing)
    """
    return output.resolve().parent / f".{output.resolve().name}.unfinished"


def fingerprint(folder: Path, texts: Mapping[str, Tensor], options: object) -> Row:
    """What the results of a workflow depend on.

    Args:
        folder: of the model.
        texts: all token ids that are read.
        options: with a ``repr`` that tells all.

    Example:
        >>> from reference.models.tutorial import PATH
        >>> texts = {"mine": torch.arange(8)}
        >>> one, other = (fingerprint(PATH, texts, options) for options in ("4 bits", "3 bits"))
        >>> one["model"] == other["model"], one == other
        (True, False)

    Chapter: none (plumbing)
    """
    return {
        "model": digest(folder / "config.json", *sorted(folder.glob("*.safetensors"))),
        "text": digest(*[part for name, ids in texts.items() for part in (name.encode(), ids)]),
        "options": repr(options),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def machine() -> Row:
    """Where the numbers of a report were measured.

    Example:
        >>> list(machine())
        ['processor', 'threads', 'python', 'torch', 'transformers']

    Chapter: none (plumbing)
    """
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _finished(output: Path, fingerprint: Row) -> Row | None:
    """The report of a run that came to its end but could not clean up."""
    if not unfinished(output).is_dir():
        return None
    with suppress(OSError, ValueError, TypeError, KeyError):
        report = json.loads((output / REPORT).read_text(encoding="utf-8"))
        if report["fingerprint"] == fingerprint:
            return report
    return None


def quiet(label: str) -> Callable[[list], Iterable]:
    """No progress bar.

    Args:
        label: of the bar that is not drawn.

    Example:
        >>> progress = quiet("measuring")
        >>> [block for block in progress([1, 2, 3])]
        [1, 2, 3]

    Chapter: none (plumbing)
    """
    return iter
