"""Make the transfer task: passages of Python's documentation, to be told apart by the part of it they come from.

    python studies/topics.py                # apt-get download python3.11-doc, or --documentation FILE.deb
    python studies/topics.py --baselines    # only book/data/topics.json: counts, and accuracies of simple classifiers

Writes ``reference/data/topics/``: the passages, a manifest (documents, splits, checksums) and the licence notice. The
same package of Debian gives the same bytes; the checksums of the committed files were made from version 3.11.2-6+deb12u8.

A passage is one paragraph of prose, or several in a row until they have 25 words, at most 100 words long. Left out are
headings, signatures, code, tables, comments, notes on versions, and file names; marks of reStructuredText are removed.
A document is one file of the manual; it lies whole in one split. Passages that share a run of eight words with
another split are removed from the larger split, and repeated passages are kept once.
"""

import argparse
import hashlib
import json
import lzma
import platform
import re
from collections.abc import Iterator
from pathlib import Path

import recording
from tutorial_corpus import documentation_files

from reference.data import topics

RESULT = Path(__file__).resolve().parents[1] / "book/data/topics.json"

# Topic → chapters of the library's manual ("library/…", by the name of the chapter's file) and other manuals, whole.
PARTS = {
    "C API": ("c-api", "extending"),
    "packaging": ("distutils", "install", "installing", "distributing", "using", "library/distribution"),
    "data types": ("library/datatypes", "library/numeric", "library/functional"),
    "files": ("library/filesys", "library/persistence", "library/archiving", "library/fileformats"),
    "concurrency": ("library/concurrency", "library/ipc"),
    "internet data": ("library/netdata", "library/markup"),
    "internet protocols": ("library/internet",),
    "development": ("library/development", "library/debug"),
    "interfaces": ("library/tk", "library/frameworks"),
    "interpreter": ("library/python", "library/custominterp", "library/modules", "library/language"),
}
SHORTEST, LONGEST, SHINGLE = 25, 100, 8  # words
SHARES = {"test": 0.2, "validation": 0.12}
# Directives whose indented text is prose. That of the others (code, tables, notes on versions, …) is left out.
PROSE = re.compile(
    "function|method|class|attribute|data|exception|classmethod|staticmethod|decorator|module|object|describe"
    "|coroutine(?:function|method)|awaitable(?:function|method)|decoratormethod|abstractmethod|property"
    "|note|warning|important|tip|caution|cmdoption|option|envvar|opcode|c:(?:function|type|macro|var|member)"
)
ROLE = re.compile(r":[\w:+-]+:`([^`]*)`")
WORD = re.compile(r"[A-Za-z][a-z']+")
NOTICE = """The passages in passages.jsonl.xz are taken from the documentation of Python 3.11 (the sources in Debian's package
python3.11-doc, {version}), with markup removed and long paragraphs cut.

Copyright © 2001-2023 Python Software Foundation. All rights reserved. Copyright © 2000 BeOpen.com. All rights
reserved. Copyright © 1995-2000 Corporation for National Research Initiatives. All rights reserved.
Copyright © 1991-1995 Stichting Mathematisch Centrum. All rights reserved.

License: PSF-2.0, see LICENSES/PSF-2.0.txt.
"""


def documents(files: dict[str, str]) -> dict[str, str]:
    """Document → topic. The documents of a library chapter are those that its tables of contents list."""
    found: dict[str, str] = {}

    def listed(name: str) -> Iterator[str]:
        for block in re.findall(r"\.\. toctree::\n((?:[ \t]+.*\n|\n)+)", files[name] + "\n"):
            for line in block.splitlines():
                match = re.fullmatch(r"\s+(?:.*<)?([\w.\-]+?)(?:\.rst)?>?", line)
                child = f"library/{match[1]}.rst.txt" if match else ""
                if child in files and child not in found:
                    yield child
                    yield from listed(child)

    for topic, parts in PARTS.items():
        for part in parts:
            inside = listed(f"{part}.rst.txt") if "/" in part else (n for n in files if n.startswith(f"{part}/"))
            for name in sorted(inside):
                found.setdefault(name, topic)
    return {name.removesuffix(".rst.txt"): topic for name, topic in found.items()}


def paragraphs(source: str) -> Iterator[str]:
    """Paragraphs of prose of a reStructuredText file, in its order, as plain text."""
    current: list[str] = []
    skipped: int | None = None  # indentation of the directive whose contents are left out
    for line in [*source.expandtabs(8).split("\n"), ""]:
        indentation, text = len(line) - len(line.lstrip()), line.strip()
        if skipped is not None and text:
            if indentation > skipped:
                continue
            skipped = None
        directive = re.match(r"\.\. (?:\|\w+\| )?([\w:-]+)::", text)
        comment = not directive and (text == ".." or text.startswith(".. "))  # targets too
        field = re.match(r":[\w ]+:( |$)", text) and not ROLE.match(text)
        if not text or directive or comment or field or text.startswith((">>>", "...")):
            if current:
                yield plain(" ".join(current))
            current = []
            if comment or field or (directive and not PROSE.fullmatch(directive[1])):
                skipped = indentation
        elif re.fullmatch(r"([^\w\s])\1{2,}", text) or re.fullmatch(r"[=+|].*[=+|]", text):
            current = []  # what stood above an underline was a heading; other lines are rules and tables
        else:
            item = re.match(r"(?:[*\-+]|\(?[0-9#a-z]{1,2}[.)]) +", text)
            if item and current:
                yield plain(" ".join(current))
                current = []
            current.append(text[item.end() :] if item else text)
            if text.endswith("::"):  # a block of code follows
                yield plain(" ".join(current)[:-1])
                current, skipped = [], indentation


def plain(text: str) -> str:
    """The text less reStructuredText's marks: a role becomes its title or its target."""

    def title(match: re.Match) -> str:
        titled = re.fullmatch(r"(.*?)\s*<[^>]*>", match[1])
        return titled[1] if titled else match[1].lstrip("~!")

    text = re.sub(r"`([^`<]*?)\s*<[^`]*>`__?", r"\1", ROLE.sub(title, text))
    text = text.replace("``", "").replace("`_", "").replace("`", "")
    text = re.sub(r"\|(\w+)\|", r"\1", text)
    text = re.sub(r"(?<!\w)\*{1,2}([^*\s][^*]*?)\*{1,2}(?!\w)", r"\1", text)
    return " ".join(re.sub(r"\\(?=\W|s)", "", text).split())


def passages(source: str) -> Iterator[str]:
    """Passages of one document; what is left at its end and too short is dropped."""
    held: list[str] = []
    for paragraph in paragraphs(source):
        letters = sum(c.isalpha() or c == " " for c in paragraph)
        if len(WORD.findall(paragraph)) >= 12 and letters > 0.8 * len(paragraph) and paragraph[-1] in ".:!?)":
            held += paragraph.split()
            if len(held) >= SHORTEST:
                yield " ".join(held[:LONGEST])
                held = []


def split(sizes: dict[str, int]) -> dict[str, str]:
    """Document → split, for the documents of one topic, in the order of a hash of the name.

    A document that would be more than 80 % of a held-out split's share is for training.
    """
    order = sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).digest())
    found, taken = {}, dict.fromkeys(SHARES, 0)
    for name in order:
        found[name] = "train"
        targets = {part: share * sum(sizes.values()) for part, share in SHARES.items()}
        for part, target in sorted(targets.items(), key=lambda item: taken[item[0]] / item[1]):  # the emptier first
            if sizes[name] <= 0.8 * target and taken[part] + sizes[name] <= 1.2 * target:
                found[name] = part
                taken[part] += sizes[name]
                break
    return found


def shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + SHINGLE]) for i in range(len(words) - SHINGLE + 1)}


def baselines() -> dict:
    """Accuracy on test passages of the largest topic, bag of words, and a linear classifier on MiniLM as it is.

    The strength of regularisation is chosen on validation passages.
    """
    import torch
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    from reference.models import minilm

    splits = {name: topics.load(name) for name in topics.SPLITS}
    counts = {name: labels.bincount().tolist() for name, (_, labels) in splits.items()}
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2).fit(splits["train"][0])
    model, tokenizer = minilm.load(), minilm.tokenizer()

    def embedded(texts: list[str]) -> torch.Tensor:
        found = torch.empty(len(texts), model.config.hidden_size)
        for rows in torch.tensor([len(text) for text in texts]).argsort().split(32):
            batch = tokenizer(
                [texts[i] for i in rows], padding=True, truncation=True, max_length=96, return_tensors="pt"
            )
            found[rows] = minilm.embed(model, batch["input_ids"], batch["attention_mask"])
        return found

    features = {
        "bag of words": {name: words.transform(texts) for name, (texts, _) in splits.items()},
        "MiniLM as it is": {name: embedded(texts).numpy() for name, (texts, _) in splits.items()},
    }
    labels = {name: values.numpy() for name, (_, values) in splits.items()}
    accuracy = {"largest topic": max(counts["test"]) / sum(counts["test"])}
    for kind, of in features.items():
        fitted = [LogisticRegression(C=c, max_iter=2000).fit(of["train"], labels["train"]) for c in (1, 3, 10, 30)]
        best = max(fitted, key=lambda f: f.score(of["validation"], labels["validation"]))
        accuracy[kind] = float(best.score(of["test"], labels["test"]))
    return {"topics": topics.names(), "passages": counts, "test_accuracy": accuracy}


def record() -> None:

    values = baselines()
    recording.write(
        RESULT,
        what="The topics task: passages by split and topic, and accuracy on test passages of the largest topic, of "
        "tf-idf of words and pairs of words with logistic regression, and of the latter on MiniLM's embeddings",
        values=values,
        command="python studies/topics.py --baselines",
        device=f"{platform.machine()} CPU",
        seed=0,
        packages=("scikit-learn",),
    )
    print(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documentation", type=Path, help="python3.11-doc .deb (default: apt-get download)")
    parser.add_argument("--out", type=Path, default=topics.FOLDER, help="folder to write to")
    parser.add_argument("--baselines", action="store_true", help="record simple classifiers, make nothing")
    options = parser.parse_args()
    if options.baselines:
        return record()

    files = documentation_files(options.documentation, smallest=1)
    topic_of = documents(files)
    found = {name: list(passages(files[f"{name}.rst.txt"])) for name in topic_of}
    split_of: dict[str, str] = {}
    for topic in PARTS:
        split_of |= split({name: len(found[name]) for name in found if topic_of[name] == topic and found[name]})

    kept, seen, removed = [], {part: set() for part in topics.SPLITS}, 0
    before = {"test": (), "validation": ("test",), "train": ("test", "validation")}
    for part, others in before.items():
        held_out = set().union(*(seen[other] for other in others))
        known: set[str] = set()
        for name in sorted(split_of):
            for text in found[name] if split_of[name] == part else ():
                runs = shingles(text)
                if text in known or runs & held_out:
                    removed += 1
                    continue
                known.add(text)
                seen[part] |= runs
                kept.append((name, text))
    kept.sort(key=lambda row: row[0])  # stable: a document's passages stay in their order

    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept).encode()
    counts = {name: sum(row[0] == name for row in kept) for name in sorted({row[0] for row in kept})}
    manifest = {
        "source": "the documentation of Python 3.11, Debian's package python3.11-doc",
        "license": "PSF-2.0",
        "topics": list(PARTS),
        "removed_as_repeated_or_near_duplicate": removed,
        "sha256": hashlib.sha256(content).hexdigest(),
        "documents": {n: {"topic": topic_of[n], "split": split_of[n], "passages": c} for n, c in counts.items()},
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "passages.jsonl.xz").write_bytes(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))
    (options.out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    (options.out / "NOTICE.txt").write_text(NOTICE.format(version="version 3.11.2-6+deb12u8"))
    print(f"{len(kept)} passages of {len(counts)} documents, {removed} removed, {len(content):,} bytes uncompressed")


if __name__ == "__main__":
    main()
