"""The gallery: every figure of the book, small, with its caption, linked to the place where its cell draws it.

Made at each build from the executed notebooks; nothing of it is in git.
"""

import base64
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import chapter_rules
from book_paths import chapter_name

GLUE = re.compile(r"\{glue:text\}`([^`:]+(?::[^`:]*)?)`")


def figures(notebook: chapter_rules.Notebook) -> list[dict]:
    """Name, alt text, caption and PNG of each figure that an executed notebook shows."""
    found = []
    for cell in chapter_rules.code_cells(notebook):
        if "figure" not in chapter_rules.tags(cell):
            continue
        images = [o["data"]["image/png"] for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
        settings = cell["metadata"]["mystnb"]
        if images:
            data = base64.b64decode("".join(images[0]))
            found.append({**settings["figure"], "alt": settings["image"]["alt"], "png": data})
    return found


def card(figure: dict, notebook: Path, folder: str) -> str:
    """One figure: the image leads to its place in the chapter. Glued numbers of a caption are looked up there."""
    caption = GLUE.sub(rf"{{glue:text}}`../{notebook.as_posix()}::\1`", figure["caption"])
    alt = re.sub(r"[\[\]\n]", " ", figure["alt"])
    image = f"[![{alt}]({folder}/{figure['name']}.png)](#{figure['name']})"
    return "\n".join(["::::{grid-item-card}", image, "", f"{{numref}}`{figure['name']}`: {caption}", "::::"])


def parts(names: Iterable[str]) -> list[str]:
    """Buttons that choose a part of the book; `book.js` shows them and makes them work."""
    made = [("", "all"), *((name, name) for name in dict.fromkeys(names))]
    buttons = "".join(
        f'<button type="button" data-part="{part}" aria-pressed="{str(not part).lower()}">{label}</button>'
        for part, label in made
    )
    return [
        "```{raw} html",
        f'<div class="gallery-filter" role="group" aria-label="Part" hidden>{buttons}</div>',
        "```",
        "",
    ]


def part_of(notebook: Path) -> str:
    """`notebooks/pruning/movement.ipynb` → `pruning`; what lies in no folder is the overview."""
    return notebook.parent.name if notebook.parent.name != "notebooks" else notebook.stem


def write(executed: dict[Path, Path], generated: Path) -> int:
    """Write `gallery.md` and its images below `generated`; how many figures it has.

    Args:
        executed: notebook, relative to the repository → its executed copy.
        generated: `book/_generated` of the staged source.
    """
    folder = generated / "gallery"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    lines: list[str] = []
    shown: list[str] = []
    count = 0
    for notebook, path in executed.items():
        loaded = chapter_rules.load(path)
        if found := figures(loaded):
            title = loaded["cells"][0]["source"].splitlines()[0].removeprefix("# ")
            lines += [f"## {title}", "", f"From [{chapter_name(notebook)}](/{notebook.as_posix()}).", ""]
            lines += [":::::{grid} 1 1 2 2", ":gutter: 3", f":class-container: part-{part_of(notebook)}", ""]
            shown.append(part_of(notebook))
            for figure in found:
                (folder / f"{figure['name']}.png").write_bytes(figure["png"])
                lines += [card(figure, notebook, "_generated/gallery"), ""]
            lines += [":::::", ""]
            count += len(found)
    (generated / "gallery.md").write_text("\n".join([*parts(shown), *lines]) + "\n")
    return count
