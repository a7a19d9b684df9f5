"""Build the book: execute what changed, stage, run Sphinx with warnings as errors, check the site.

`python tools/build_book.py` is what `make book` runs. When nothing has changed since the last good
build it only prints where the book is.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import book_execute
import book_stage
import glossary_check
import glossary_links
import site_check
import zip_site
from book_paths import CACHE, HTML, ROOT, digest, files_below, notebooks, toc_pages

STAMP = CACHE / "built"


def html_of(page: Path) -> str:
    """Where a source file's page is, in the site."""
    return page.with_suffix(".html").as_posix()


def sphinx() -> None:
    """HTML from the staged source, from scratch: a page that is not read again would hide its warnings."""
    out = ROOT / "_build"
    shutil.rmtree(out, ignore_errors=True)
    program = Path(sys.executable).with_name("jupyter-book")
    command = [str(program), "build", str(book_stage.SOURCE), "--path-output", str(ROOT)]
    command += ["-W", "-n", "--keep-going", "-q"]
    environment = book_execute.environment()
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tools"), environment["PYTHONPATH"]])  # offline_site
    if subprocess.run(command, env=environment, stdin=subprocess.DEVNULL).returncode:
        raise SystemExit("the book was not built: warnings count as errors")


def inputs_digest() -> str:
    """What the site depends on, beyond the notebooks' outputs."""
    own = [
        ROOT / name
        for name in ("book", "reference", "kernels", "tools", "_config.yml", "_toc.yml", "requirements.lock")
    ]
    return digest(files_below(*own))


def state_of(records: dict) -> str:
    """What a build was made from, as its stamp keeps it, in whatever order its notebooks were executed."""
    return "\n".join([inputs_digest(), *(f"{n} {r.key} {r.seconds}" for n, r in sorted(records.items()))])


def is_current() -> bool:
    """Whether the site was built from the source as it is now."""
    wanted = book_execute.keys(notebooks())
    records = {notebook: book_execute.read_record(notebook) for notebook in wanted}
    if any(record is None or record.key != wanted[notebook] for notebook, record in records.items()):
        return False
    return STAMP.is_file() and STAMP.read_text() == state_of(records)


def report(records: dict, seconds: float) -> None:
    width = max((len(str(notebook)) for notebook in records), default=8)
    print(f"\n{'notebook':{width}}  seconds  elapsed")
    for notebook, record in records.items():
        print(f"{notebook!s:{width}}  {record.seconds:7.1f}  {record.elapsed:7.1f}")
    index = HTML / html_of(toc_pages()[0])
    print(f"\n{seconds:.0f} s in all. The book: {index.as_uri()}", flush=True)


def main() -> None:
    start = time.monotonic()
    records = book_execute.execute(notebooks())
    state = state_of(records)
    if not (STAMP.is_file() and STAMP.read_text() == state and (HTML / "index.html").is_file()):
        STAMP.unlink(missing_ok=True)
        source = book_stage.stage(records)
        sphinx()
        pages = toc_pages(source)
        problems = site_check.problems(HTML, [html_of(page) for page in pages])
        linked = [html_of(page) for page in pages if glossary_links.has_links(page.with_suffix("").as_posix())]
        if problems := problems or glossary_check.problems(HTML, linked, glossary_links.plain_names()):
            raise SystemExit("\n".join(problems))
        zip_site.main()
        STAMP.write_text(state)
    else:
        print("nothing has changed since the last build")
    report(records, time.monotonic() - start)


if __name__ == "__main__":
    main()
