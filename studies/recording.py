"""How a study writes its result: one object with what the book's rules ask of a recorded number (CONTRIBUTING.md)."""

import datetime
import importlib.metadata
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reference.files import atomic_write

#: The device of a study that is held to one thread.
ONE_THREAD = f"{platform.machine()} CPU, one thread"


def write(
    path: Path,
    *,
    what: str,
    values: Any,
    command: str,
    device: str,
    seed: int | list[int],
    packages: tuple[str, ...] = (),
    indent: int | None = 1,
    **more: Any,
) -> dict:
    """Write the result at once or not at all, and return it; its name is the file's.

    Args:
        path: the JSON file, ``book/data/NAME.json``.
        what: what the values are, a sentence with units and settings.
        values: what was measured, as JSON can hold it.
        command: the command that gives it again, run in the repository's root.
        device: what it ran on.
        seed: of the random numbers; a list where the spread over seeds is given.
        packages: distributions, beside Python and torch, whose versions matter.
        indent: None for one line, where there are many numbers.
        more: ``cheap``, ``check``, ``tolerance``, ``notes``: see CONTRIBUTING.md.
    """
    versions = {"python": platform.python_version()}
    versions |= {package: importlib.metadata.version(package) for package in ("torch", *packages)}
    record = {
        "name": path.stem,
        "what": what,
        "values": values,
        "command": command,
        "device": device,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "versions": versions,
        "seed": seed,
        "cheap": False,
        **more,
    }
    separators = (",", ":") if indent is None else None
    atomic_write(path, (json.dumps(record, indent=indent, separators=separators, ensure_ascii=False) + "\n").encode())
    return record


def resumed(path: Path, settings: dict) -> dict:
    """Values to go on with: those of the file where its settings are these, else empty ``results`` and ``seconds``."""
    if path.exists():
        before = json.loads(path.read_text())["values"]
        if before["settings"] == settings:
            return before
    return {"settings": settings, "results": {}, "seconds": {}}


def finished(values: dict, jobs: dict[str, Callable[[], Any]], most: int, keep: Callable[[dict], None]) -> bool:
    """Do ``most`` of the jobs that ``values`` has no result of, in their order, and ``keep`` the values after each.

    Returns:
        Whether a further one could have been done: False where ``most`` was the limit.
    """
    for name, job in jobs.items():
        if name in values["results"] or most == 0:
            continue
        began = time.perf_counter()
        values["results"][name] = job()
        values["seconds"][name] = round(time.perf_counter() - began)
        keep(values)
        most -= 1
    return most > 0
