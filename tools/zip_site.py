"""Offline copies: the built site as one zip, and the executed notebooks as another (`make zip`, after `make book`)."""

import zipfile
from collections.abc import Iterable
from pathlib import Path

import book_execute
from book_paths import HTML, ROOT, files_below, notebooks

SITE = ROOT / "_build" / "model-compression-site.zip"
NOTEBOOKS = ROOT / "_build" / "model-compression-notebooks.zip"
DATE = (2020, 1, 1, 0, 0, 0)  # the same files give the same bytes


def pack(target: Path, files: Iterable[tuple[Path, str]]) -> int:
    """Write `target` anew from pairs of a file and its name inside; bytes of the result."""
    part = target.with_suffix(".part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for path, name in files:
            entry = zipfile.ZipInfo(name, DATE)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, path.read_bytes())
    part.replace(target)
    return target.stat().st_size


def main() -> None:
    if not (HTML / "index.html").is_file():
        raise SystemExit(f"no built site in {HTML}: run make book")
    site = ((path, f"model-compression/{path.relative_to(HTML).as_posix()}") for path in files_below(HTML))
    books = [n for n in notebooks() if (book_execute.EXECUTED / n).is_file()]
    for target, files in ((SITE, site), (NOTEBOOKS, ((book_execute.EXECUTED / n, n.as_posix()) for n in books))):
        print(f"{target}: {pack(target, files) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
