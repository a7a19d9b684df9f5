r"""Find numbers in prose that nobody computed or cited.

A *measured number* is a digit string with a decimal point, or one beside a unit, `%` or `×`. In Markdown cells,
figure captions and `book/*.md` a line may contain one only if

1. it is a role (`` {glue:text}`key` ``), code, maths, a link target, a directive's option or an HTML attribute; or
2. its line cites a source (`` {cite:p}`key` ``); or
3. a pattern of `book/prose_numbers_allowed.txt` matches it (one regular expression a line, `#` begins a comment).

Integers without a unit pass. The unit words are in `UNITS`. Run it by hand: `python tools/prose_numbers.py`.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import chapter_rules
from book_paths import ROOT

ALLOWED = ROOT / "book" / "prose_numbers_allowed.txt"
UNITS = (
    "bits?|bytes?|[kKMGT]i?B|B|[mµn]s|s|seconds?|min|minutes?|h|hours?|days?|tokens?|parameters?|weights?|nats?|dB|[MG]Hz"
    "|[kMGT]?FLOPS?|[kMGT]?FLOP/s|[kMGT]?W|J|percent|per cent|points?|times|fold|x|M|G|T|K"
)
NUMBER = re.compile(
    rf"""(?<![\w.,-])
    (?: \d[\d,]*\.\d+                              # a decimal point
      | \d[\d,]*(?=[ \u00a0\u202f-]?(?:%|‰|×|°C))        # 40 %, 4×
      | \d[\d,]*(?=[ \u00a0\u202f-]?(?:{UNITS})(?![\w]))  # 12 MB, 3-fold
      | (?<=×)\d[\d,]* | (?<=×[ \u00a0])\d[\d,]*   # × 4
    )""",
    re.VERBOSE,
)
CITATION = re.compile(r"\{cite(?::\w+)?\}`")
CODE_DIRECTIVES = "code|code-block|code-cell|literalinclude|math|mermaid|eval-rst|bibliography|toctree|include"
FENCES = re.compile(
    rf"^(\s*)(```+|~~~+|:::+) *(?:\{{(?:{CODE_DIRECTIVES})\}}|[\w+-]*)[^\n`{{]*\n.*?^\s*\2[ \t]*$", re.M | re.S
)
NOT_PROSE = (
    re.compile(r"\A---\n.*?^---$", re.M | re.S),  # front matter
    FENCES,
    re.compile(r"<!--.*?-->", re.S),
    re.compile(r"\$\$.*?\$\$", re.S),
    re.compile(r"^\\begin\{(\w+\*?)\}.*?^\\end\{\1\}", re.M | re.S),
    re.compile(r"\{[a-z:]+\}(`+).+?\1", re.S),  # roles
    re.compile(r"(`+).+?\1", re.S),
    re.compile(r"(?<!\\)\$[^$\n]+\$"),
    re.compile(r"\]\([^)]*\)"),
    re.compile(r"<?https?://[^\s>)]+>?"),
    re.compile(r"<[a-zA-Z/][^>\n]*>"),
    re.compile(r"^\s*:[\w-]+:.*$", re.M),  # options of directives
    re.compile(r"^\s*\([\w-]+\)=\s*$", re.M),  # labels
)


def allowed_patterns(path: Path = ALLOWED) -> list[re.Pattern[str]]:
    lines = [line.partition(" #")[0].strip() for line in path.read_text().splitlines()]
    return [re.compile(line) for line in lines if line and not line.startswith("#")]


def prose(markdown: str) -> str:
    """`markdown` with everything blanked that is not prose; lines keep their numbers."""
    for pattern in NOT_PROSE:
        markdown = pattern.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), markdown)
    return markdown


def bare_numbers(markdown: str, allowed: list[re.Pattern[str]]) -> Iterator[tuple[int, str]]:
    """Line number and text of each measured number without evidence."""
    for number, (raw, line) in enumerate(zip(markdown.split("\n"), prose(markdown).split("\n"), strict=True), 1):
        if CITATION.search(raw):
            continue
        for pattern in allowed:
            line = pattern.sub(lambda found: " " * len(found[0]), line)
        for found in NUMBER.finditer(line):
            yield number, line[found.start() : found.end() + 12].strip()


def texts(root: Path = ROOT) -> Iterator[tuple[str, str]]:
    """Place and Markdown of every text that is linted."""
    for path in sorted((root / "book").glob("*.md")):
        yield str(path.relative_to(root)), path.read_text()
    for path in sorted((root / "notebooks").rglob("*.ipynb")):
        if ".ipynb_checkpoints" in path.parts:
            continue
        for number, cell in enumerate(chapter_rules.load(path)["cells"], 1):
            place = f"{path.relative_to(root)} cell {number}"
            if cell["cell_type"] == "markdown":
                yield place, cell["source"]
            elif caption := cell["metadata"].get("mystnb", {}).get("figure", {}).get("caption"):
                yield f"{place} caption", caption


def breaches(root: Path = ROOT) -> list[str]:
    allowed = allowed_patterns(root / "book" / ALLOWED.name)
    return [
        f"{place} line {line}: {number!r} is neither glued nor cited"
        for place, text in texts(root)
        for line, number in bare_numbers(text, allowed)
    ]


if __name__ == "__main__":
    found = breaches()
    print("\n".join(found))
    sys.exit(bool(found))
