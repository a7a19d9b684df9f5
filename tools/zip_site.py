"""Offline copies beside the built site: the site as one zip, and the executed notebooks as another.

`make book` writes both at its end, `make zip` writes them again. They lie in the site's folder `offline`, with the PDF if `make pdf`
made one, and the page *Take it with you* links what is there with its size.
"""

import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

import book_execute
from book_paths import HTML, files_below, notebooks

FOLDER, PAGE = "offline", "book/offline.html"
SITE, NOTEBOOKS, PDF = "model-compression-site.zip", "model-compression-notebooks.zip", "model-compression.pdf"
DATE = (2020, 1, 1, 0, 0, 0)  # the same files give the same bytes
SLOT = re.compile(r'(<span class="offline-copy" data-file="([^"]+)">).*?(</span>)', re.DOTALL)
NOT_MADE = "not made here: <code>make pdf</code>"
NOT_INSIDE = "on the book's own pages, not inside this copy"


def pack(target: Path, files: Iterable[tuple[Path | bytes, str]]) -> int:
    """Write `target` anew from pairs of a file, or its bytes, and its name inside; bytes of the result."""
    part = target.with_suffix(".part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for content, name in files:
            entry = zipfile.ZipInfo(name, DATE)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, content if isinstance(content, bytes) else content.read_bytes())
    part.replace(target)
    return target.stat().st_size


def filled(page: str, sizes: dict[str, int], without: str = NOT_MADE) -> str:
    """The page *Take it with you*, with a link and the megabytes of each file that is there.

    Args:
        page: its HTML, filled before or not.
        sizes: file name → bytes.
        without: what stands in place of a file that `sizes` lacks.
    """

    def slot(found: re.Match[str]) -> str:
        name = found[2]
        link = f'<a href="../{FOLDER}/{name}" download>{name}</a>, {sizes.get(name, 0) / 1e6:.1f} MB'
        return found[1] + (link if name in sizes else without) + found[3]

    return SLOT.sub(slot, page)


def fill_page(site: Path = HTML) -> dict[str, int]:
    """Write into the site's page what lies in its folder `offline`; name → bytes."""
    folder = site / FOLDER
    sizes = {path.name: path.stat().st_size for path in sorted(folder.glob("*")) if path.suffix in (".zip", ".pdf")}
    page = site / PAGE
    page.write_text(filled(page.read_text(), sizes))
    return sizes


def site_files(site: Path) -> Iterable[tuple[Path | bytes, str]]:
    """What the zip of the site holds: all of it but the copies themselves."""
    for path in files_below(site):
        name = path.relative_to(site)
        if name.parts[0] == FOLDER:
            continue
        page = filled(path.read_text(), {}, NOT_INSIDE).encode() if name.as_posix() == PAGE else path
        yield page, f"model-compression/{name.as_posix()}"


def write(site: Path = HTML) -> dict[str, int]:
    """Both zips and the page that links them; name → bytes of all that lies in the folder."""
    folder = site / FOLDER
    folder.mkdir(exist_ok=True)
    pack(folder / SITE, site_files(site))
    executed = [n for n in notebooks() if (book_execute.EXECUTED / n).is_file()]
    pack(folder / NOTEBOOKS, ((book_execute.EXECUTED / n, n.as_posix()) for n in executed))
    return fill_page(site)


def main() -> None:
    if not (HTML / "index.html").is_file():
        raise SystemExit(f"no built site in {HTML}: run make book")
    for name, size in write().items():
        print(f"{HTML / FOLDER / name}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
