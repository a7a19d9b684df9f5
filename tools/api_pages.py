"""One page a room of the package, made from its modules: the docstrings are the reference."""

from collections.abc import Iterable
from pathlib import Path

import function_links
from book_paths import ROOT

SKIPPED = ("reference.__main__",)


def rooms(root: Path = ROOT) -> dict[str, list[str]]:
    """Room → its modules: `reference.quantization` → itself and the modules inside."""
    found: dict[str, list[str]] = {}
    for module in sorted(function_links.modules(root)):
        if module == "reference" or module in SKIPPED or any(part.startswith("_") for part in module.split(".")):
            continue
        found.setdefault(".".join(module.split(".")[:2]), []).append(module)
    return found


def page(room: str, modules: Iterable[str]) -> str:
    lines = [f"# {room}", ""]
    for module in modules:
        if module != room:
            lines += [f"## {module}", ""]
        lines += ["```{eval-rst}", f".. automodule:: {module}", "   :members:", "   :show-inheritance:", "```", ""]
    return "\n".join(lines)


def write(folder: Path, root: Path = ROOT) -> None:
    """Write every room's page into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for room, modules in rooms(root).items():
        (folder / f"{room.removeprefix('reference.')}.md").write_text(page(room, modules))
