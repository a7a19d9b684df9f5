"""Collect, split and clean the text that the shipped model learns from.

Two domains: Python source (CPython's standard library, as installed) and English
technical prose (the reStructuredText sources of Python's documentation, from Debian's
package ``python3.11-doc``). Files are split whole into training, evaluation and
calibration text *before* anything else happens; then training and calibration lose
every paragraph that shares a run of 13 words with held-out text.

    python studies/tutorial_corpus.py --work /tmp/tutorial

writes ``train_code.txt`` and ``train_documentation.txt`` to the work folder and the
held-out text, its checksums and the licence notice to ``reference/data/text/``.
"""

import argparse
import hashlib
import json
import re
import subprocess
import sysconfig
import tempfile
from pathlib import Path

SHIPPED = Path(__file__).resolve().parents[1] / "reference/data/text"
SHINGLE = 13  # words; the run length usual in decontamination since GPT-3
HELD_OUT_BYTES = 375_000
SEPARATOR = "\n\n\n"
# Tables rather than language, text that repeats the documentation, and broken-on-purpose files.
SKIPPED = re.compile(
    r"site-packages|__pycache__|/encodings/|pydoc_data|lib2to3/tests/data|/bad|badsyntax"
    r"|test_unicode_identifiers|_sysconfigdata|/cjkencodings|config-3"
)


def code_files(stdlib: Path) -> dict[str, str]:
    """Relative path → text of every readable source file of the standard library."""
    files = {}
    for path in sorted(stdlib.rglob("*.py")):
        name = path.relative_to(stdlib).as_posix()
        if SKIPPED.search("/" + name) or not 400 < path.stat().st_size < 400_000:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        letters = sum(c.isalpha() or c.isspace() for c in text)
        if letters > 0.6 * len(text):  # below that it is a table of data
            files[name] = text
    return files


def documentation_files(package: Path | None, smallest: int = 401) -> dict[str, str]:
    """Relative path → reStructuredText of Debian's ``python3.11-doc``, files of ``smallest`` bytes or more."""
    with tempfile.TemporaryDirectory() as folder:
        if package is None:
            subprocess.run(["apt-get", "download", "python3.11-doc"], cwd=folder, check=True)
            package = next(Path(folder).glob("*.deb"))
        subprocess.run(["dpkg", "-x", package, folder], check=True)
        root = next(Path(folder).rglob("_sources"))
        return {
            path.relative_to(root).as_posix(): path.read_text(encoding="utf-8")
            for path in sorted(root.rglob("*.txt"))
            if path.stat().st_size >= smallest
        }


def split(files: dict[str, str]) -> dict[str, list[str]]:
    """Names for evaluation, calibration and training, in the order of a hash of the name."""
    order = sorted(files, key=lambda name: hashlib.sha256(name.encode()).digest())
    parts: dict[str, list[str]] = {"evaluation": [], "calibration": [], "train": []}
    taken = {"evaluation": 0, "calibration": 0}
    for name in order:
        size = len(files[name].encode())
        for part in ("evaluation", "calibration"):
            if 2_000 < size < 60_000 and taken[part] + size <= HELD_OUT_BYTES:
                parts[part].append(name)
                taken[part] += size
                break
        else:
            parts["train"].append(name)
    return parts


def shingles(text: str) -> set[int]:
    words = text.split()
    return {hash(tuple(words[i : i + SHINGLE])) for i in range(len(words) - SHINGLE + 1)}


def without_overlap(text: str, held_out: set[int]) -> tuple[str, int]:
    """``text`` less the paragraphs that share a shingle with ``held_out``, and bytes removed."""
    kept, removed = [], 0
    for paragraph in re.split(r"(\n\s*\n)", text):
        if shingles(paragraph) & held_out:
            removed += len(paragraph.encode())
        else:
            kept.append(paragraph)
    return "".join(kept), removed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the training text")
    parser.add_argument("--stdlib", type=Path, default=Path(sysconfig.get_path("stdlib")))
    parser.add_argument("--documentation", type=Path, help="python3.11-doc .deb (default: apt-get download)")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    SHIPPED.mkdir(parents=True, exist_ok=True)

    domains = {"code": code_files(options.stdlib), "documentation": documentation_files(options.documentation)}
    splits = {domain: split(files) for domain, files in domains.items()}
    evaluation, held_out = set(), set()
    for domain, files in domains.items():
        for name in splits[domain]["evaluation"]:
            evaluation |= shingles(files[name])
        for name in splits[domain]["calibration"]:
            held_out |= shingles(files[name])
    held_out |= evaluation

    manifest = {}
    for domain, files in domains.items():
        for part, against in (("evaluation", None), ("calibration", evaluation), ("train", held_out)):
            texts, removed, dropped = [], 0, 0
            for name in splits[domain][part]:
                text, lost = (files[name], 0) if against is None else without_overlap(files[name], against)
                if lost > 0.25 * len(files[name].encode()):  # a near-duplicate: the whole file goes
                    dropped, removed = dropped + 1, removed + len(files[name].encode())
                    continue
                texts.append(text.strip("\n"))
                removed += lost
            joined = SEPARATOR.join(texts) + "\n"
            folder, stem = (options.work, f"train_{domain}") if part == "train" else (SHIPPED, f"{domain}_{part}")
            (folder / f"{stem}.txt").write_text(joined, encoding="utf-8")
            manifest[stem] = {
                "files": len(texts),
                "near_duplicate_files_dropped": dropped,
                "bytes": len(joined.encode()),
                "bytes_removed_as_overlap": removed,
                "sha256": hashlib.sha256(joined.encode()).hexdigest(),
            }
            if part != "train":
                manifest[stem]["names"] = splits[domain][part]
    (SHIPPED / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    for stem, row in manifest.items():
        print(stem, {k: v for k, v in row.items() if k != "names"})


if __name__ == "__main__":
    main()
