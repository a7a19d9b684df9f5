"""Which release is in service: one small file that is replaced whole, so that a switch happens or does not.

ROOT/v1/…  ROOT/v2/…    checkpoints, never changed once they are there
ROOT/releases.json      their names in the order of promotion; the last one is in service
"""

import json
import os
from pathlib import Path

from reference.evaluation import tensor_bytes
from reference.files import atomic_write

POINTER = "releases.json"


def history(root: str | os.PathLike) -> list[str]:
    """Names of the releases, oldest first; the last is in service. Empty before the first promotion.

    Args:
        root: folder that holds the releases.

    Raises:
        ValueError: the file is not what :func:`promote` writes.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     before = history(root)
        ...     _ = Path(root, POINTER).write_text('{"history": ["v1", "v2"]}')
        ...     before, history(root)
        ([], ['v1', 'v2'])

    Chapter: deployment/production
    """
    file = Path(root) / POINTER
    if not file.is_file():
        return []
    try:
        names = json.loads(file.read_text(encoding="utf-8"))["history"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(file)!r} is damaged: {error!r}") from error
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{str(file)!r} is damaged: history is {names!r}; it may be a list of names")
    return names


def current(root: str | os.PathLike) -> Path:
    """Folder of the release in service.

    Args:
        root: folder that holds the releases.

    Raises:
        ValueError: nothing was promoted, or the file is damaged.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     _ = Path(root, POINTER).write_text('{"history": ["v1", "v2"]}')
        ...     current(root).name
        'v2'

    Chapter: deployment/production
    """
    names = history(root)
    if not names:
        raise ValueError(f"{str(root)!r} has no release in service; promote one first")
    return Path(root) / names[-1]


def promote(root: str | os.PathLike, name: str) -> Path:
    """Put a release into service. Whoever reads meanwhile finds the old one or the new one.

    A release that is in service already stays there, and is not noted a second time: :func:`rollback` still leads away
    from it.

    Args:
        root: folder that holds the releases.
        name: of a folder directly below it, a checkpoint whose files are whole.

    Returns:
        The release's folder.

    Raises:
        ValueError: ``name`` is no such folder; what is in service stays there.

    Example:
        >>> import tempfile, torch
        >>> from safetensors.torch import save_file
        >>> with tempfile.TemporaryDirectory() as root:
        ...     Path(root, "v1").mkdir()
        ...     _ = Path(root, "v1", "config.json").write_text("{}")
        ...     save_file({"weight": torch.zeros(2)}, Path(root, "v1", "model.safetensors"))
        ...     promote(root, "v1").name, current(root).name
        ('v1', 'v1')

    Chapter: deployment/production
    """
    folder = Path(root) / name
    if Path(name).name != name or name == ".." or not (folder / "config.json").is_file():
        raise ValueError(f"name is {name!r}; it may be a folder below {str(root)!r} with a config.json")
    tensor_bytes(folder)  # refuses files that are cut short in their header, and a folder without any
    names = history(root)
    if names[-1:] != [name]:
        _point(root, [*names, name])
    return folder


def rollback(root: str | os.PathLike) -> Path:
    """Put the release that was in service before back into service; it needs no file but the pointer.

    Args:
        root: folder that holds the releases.

    Returns:
        The folder that is in service now.

    Raises:
        ValueError: there is no earlier release.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     _ = Path(root, POINTER).write_text('{"history": ["v1", "v2"]}')
        ...     rollback(root).name, history(root)
        ('v1', ['v1'])

    Chapter: deployment/production
    """
    names = history(root)
    if len(names) < 2:
        raise ValueError(f"history is {names}; there is no earlier release to go back to")
    _point(root, names[:-1])
    return Path(root) / names[-2]


def _point(root: str | os.PathLike, names: list[str]) -> None:
    atomic_write(Path(root) / POINTER, (json.dumps({"history": names}) + "\n").encode())
