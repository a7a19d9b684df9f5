"""Stage the book's source: what is in git, the executed notebooks, and the generated pages.

Sphinx builds from `.cache/book/source`, which has the repository's layout, so that links to
edit a page or to open it in Colab are those of the repository.
"""

import json
import os
import shutil
from pathlib import Path

import api_pages
import book_execute
import claims_page
import gallery
import learning_paths
import recorded
import tools_page
from book_paths import CACHE, ROOT, chapter_name, toc_pages

SOURCE = CACHE / "source"
GENERATED = Path("book") / "_generated"


def run_times(records: dict[Path, book_execute.Record]) -> str:
    """The table of measured run times, as Markdown."""
    machines = sorted({record.machine for record in records.values()})
    several = len(machines) > 1  # one machine is named once, below
    head = ["chapter", "seconds", "elapsed", "date", *["machine"] * several]
    lines = [f"| {' | '.join(head)} |", "|---|---:|---:|---|" + "---|" * several]
    for notebook, record in records.items():
        link = f"[{chapter_name(notebook)}](/{notebook.as_posix()})"
        cells = [link, f"{record.seconds:.1f}", f"{record.elapsed:.1f}", record.date, *[record.machine] * several]
        lines.append(f"| {' | '.join(cells)} |")
    versions = {f"{name} {version}" for record in records.values() for name, version in record.versions.items()}
    how = (
        "Seconds: processor time of a fresh kernel for all cells; it has one thread. A chapter is written to take at most "
        f"{book_execute.AIM:.0f} seconds; processors differ, and a rented one does from day to day, so the build stops at "
        f"{book_execute.LIMIT:.0f}. Elapsed: by the clock, with whatever else the machine did."
    )
    where = "" if several else f" Machine: {''.join(machines)}."
    lines += ["", f"{how}{where} Versions: {', '.join(sorted(versions))}."]
    return "\n".join(lines) + "\n"


def with_run_time(notebook: str, seconds: float) -> str:
    """The JSON text of a notebook whose badge line says how long it ran."""
    parsed = json.loads(notebook)
    first = parsed["cells"][0]
    first["source"] = "".join(first["source"]).replace("[measured run time]", f"[ran in {seconds:.0f} s]", 1)
    return json.dumps(parsed)


def stage(records: dict[Path, book_execute.Record]) -> Path:
    """Write the staged source anew; its folder."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    shutil.copytree(ROOT / "book", SOURCE / "book")
    for name in ("_config.yml", "_toc.yml"):
        shutil.copyfile(ROOT / name, SOURCE / name)
    for notebook, record in records.items():
        (SOURCE / notebook).parent.mkdir(parents=True, exist_ok=True)
        (SOURCE / notebook).write_text(with_run_time((book_execute.EXECUTED / notebook).read_text(), record.seconds))
    generated = SOURCE / GENERATED
    os.makedirs(generated)
    claims_page.write(generated, {chapter_name(notebook) for notebook in records})
    (generated / "run_times.md").write_text(run_times(records))
    (generated / "learning_paths.md").write_text(
        learning_paths.page({n: record.seconds for n, record in records.items()})
    )
    gallery.write({notebook: book_execute.EXECUTED / notebook for notebook in records}, generated)
    (generated / "recorded_results.md").write_text(recorded.page())
    (generated / "tools.md").write_text(tools_page.page())
    shutil.copyfile(ROOT / "reference/models/tutorial/README.md", generated / "model_card.md")
    api_pages.write(SOURCE / "book" / "api")
    toc_pages(SOURCE)  # every page is there, or an error that names it
    return SOURCE
