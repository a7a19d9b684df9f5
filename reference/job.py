"""A long run that can be killed at any moment and goes on where it was."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from reference.files import atomic_write


class Job:
    """What a run has finished, in a folder: one safetensors file for each step, each whole or absent.

    Args:
        folder: made if it is not there.
        fingerprint: what the results depend on, JSON-ready. A folder that was begun with another one
            is refused, so results of two runs never mix.

    Raises:
        ValueError: the folder belongs to a run with another fingerprint (the message names what
            differs), or is no job's folder.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     job = Job(Path(folder, "run"), {"model": "tutorial", "bits": 4})
        ...     job.put("block 0", {"scale": torch.ones(2)}, {"loss": 0.5})
        ...     again = Job(Path(folder, "run"), {"model": "tutorial", "bits": 4})  # after a kill
        ...     again.get("block 0"), again.get("block 1")
        (({'scale': tensor([1., 1.])}, {'loss': 0.5}), None)

    Chapter: none (plumbing: resumes long runs)
    """

    def __init__(self, folder: Path, fingerprint: dict[str, Any]) -> None:
        self.folder = folder
        record = folder / "fingerprint.json"
        if record.is_file():
            begun = json.loads(record.read_text())
            differing = sorted(key for key in begun | fingerprint if begun.get(key) != fingerprint.get(key))
            if differing:
                was = ", ".join(f"{key} (was {begun.get(key)}, is {fingerprint.get(key)})" for key in differing[:3])
                raise ValueError(
                    f"{str(folder)!r} holds an unfinished run that differs in {was}; go on with the same model, text "
                    "and options, or delete that folder to start again"
                )
            return
        if folder.is_dir() and any(path for path in folder.iterdir() if ".tmp-" not in path.name):
            raise ValueError(f"{str(folder)!r} is in the way: it holds something else than an unfinished run")
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(record, json.dumps(fingerprint, indent=2, sort_keys=True).encode())

    def get(self, step: str, *, copy: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and notes of a finished step, None if it is still to do.

        Args:
            copy: False maps the tensors from the file; memory is taken when they are read.

        Raises:
            ValueError: the step's file is damaged, by name.
        """
        path = self.path(step)
        if not path.is_file():
            return None
        if not copy:
            _forget_pages(path)
        try:
            with safe_open(path, "pt") as file:
                notes = json.loads((file.metadata() or {}).get("notes", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return {name: tensor.clone() if copy else tensor for name, tensor in tensors.items()}, notes
        except SafetensorError as error:
            raise ValueError(f"{str(path)!r} is damaged: {error}; delete it, and its step is done again") from error

    def put(self, step: str, tensors: dict[str, Tensor], notes: dict[str, Any]) -> None:
        """Keep what a step found."""
        held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        atomic_write(self.path(step), save(held, {"format": "pt", "notes": json.dumps(notes)}))

    def path(self, step: str) -> Path:
        """File of a step."""
        return self.folder / f"{step}.safetensors"

    def remove(self) -> None:
        """Forget the run: its results are where they belong."""
        shutil.rmtree(self.folder, ignore_errors=True)


def kept(folder: Path) -> str:
    """What an interrupted run says of the work that it had done.

    Args:
        folder: of the run's :class:`Job`.

    Example:
        >>> kept(Path(".small.unfinished"))
        "what was finished is kept in '.small.unfinished'; the same command goes on there"

    Chapter: none (plumbing: resumes long runs)
    """
    return f"what was finished is kept in {str(folder)!r}; the same command goes on there"


def _forget_pages(path: Path) -> None:
    """Drop a file from the page cache: mapping what was just written would make all of it resident."""
    if hasattr(os, "posix_fadvise"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def digest(*parts: bytes | Path | Tensor) -> str:
    """A hash of bytes, files and tensors, in this order.

    Args:
        parts: tensors count with type and shape, files with their content.

    Returns:
        32 hexadecimal digits (BLAKE2b, 128 bits).

    Example:
        >>> digest(b"weights") == digest(b"wei", b"ghts"), len(digest())
        (True, 32)
        >>> digest(torch.zeros(2)) == digest(torch.zeros(2, 1))  # the same bytes in another shape
        False

    Chapter: none (plumbing)
    """
    total = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, Path):
            with part.open("rb") as file:
                while chunk := file.read(1 << 24):
                    total.update(chunk)
        elif isinstance(part, Tensor):
            total.update(str((part.dtype, tuple(part.shape))).encode())
            total.update(part.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            total.update(part)
    return total.hexdigest()
