"""Three ways through the book, with the minutes that the chapters themselves state and the seconds that they ran."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

from book_paths import ROOT, chapter_name

# Reader → chapters in order, each with the reason why it stands there.
PATHS: dict[str, list[tuple[str, str]]] = {
    "The student": [
        ("overview", "all three families at work on one model"),
        ("quantization/post_training", "the grid, from which everything else is derived"),
        ("quantization/gptq", "second order: the derivation that the field rests on"),
        ("quantization/awq", "the same goal by another way"),
        ("quantization/quantization_aware", "gradients through a staircase"),
        ("pruning/magnitude", "masks, schedules, and when small is not unimportant"),
        ("pruning/lottery_ticket", "an experiment with controls, and what is left of its claim"),
        ("pruning/movement", "importance that is learned"),
        ("pruning/deep_compression", "three methods in one file, each byte accounted for"),
        ("advanced/distillation", "a small model taught by a large one"),
        ("advanced/dynamic", "not the same model for every input"),
    ],
    "The practitioner": [
        ("overview", "which method for which problem"),
        ("quantization/post_training", "what to expect from 8, 4 and 2 bits"),
        ("quantization/trade_offs", "the table to decide by, and how to fill a row"),
        ("quantization/smoothquant", "weights and activations in 8 bits, for many users"),
        ("quantization/awq", "4 bits for one user"),
        ("pruning/structured", "smaller without special kernels"),
        ("pruning/one_shot", "zeros without training"),
        ("deployment/trade_offs", "does it fit, and how fast is it"),
        ("deployment/production", "serving, shadow, canary, back"),
        ("practice/quantization_workflow", "from a model to a release"),
        ("practice/pruning_pipeline", "the same with zeros"),
    ],
    "The kernel engineer": [
        ("quantization/post_training", "layouts of codes, scales and zero points"),
        ("advanced/hardware_aware", "rooflines: what a format can win at most"),
        ("advanced/kernels", "the kernels, and their instructions counted"),
        ("quantization/activations", "formats below 8 bits, and what outliers do to them"),
        ("quantization/smoothquant", "why the scale of a channel cannot be in the sum"),
        ("pruning/structured", "2:4 and blocks: sparsity that hardware knows"),
        ("pruning/deep_compression", "a decoder on the critical path"),
        ("quantization/trade_offs", "predicted and measured speed, side by side"),
    ],
}
MINUTES = re.compile(r"(\d+) minutes to read")
#: What the stated minutes are held against: words a minute, and minutes for a displayed formula and for a line of code.
WORDS, FORMULA, LINE = 200.0, 0.5, 0.05
UNREAD = {"remove-cell", "hide-cell", "hide-input", "solution"}


def minutes(notebook: Path) -> int:
    """What a chapter says on top.

    Raises:
        ValueError: it does not say it.
    """
    first = "".join(json.loads(notebook.read_text())["cells"][0]["source"])
    found = MINUTES.search(first)
    if found is None:
        raise ValueError(f"{notebook}: the first cell does not say '… minutes to read'")
    return int(found[1])


def counted_minutes(notebook: Path) -> float:
    """How long a chapter takes by its words, formulas and lines of code, without exercises and without its list of functions."""
    words, minutes_, skipping = [], 0.0, False
    for cell in json.loads(notebook.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            heading = re.search(r"^## (.+)", source, re.MULTILINE)
            skipping = heading[1] in ("Exercises", "Functions of this chapter") if heading else skipping
            if not skipping:
                minutes_ += FORMULA * len(re.findall(r"\$\$.*?\$\$", source, re.DOTALL))
                prose = re.sub(r"\$\$.*?\$\$|\{[\w:]+\}`[^`]*`|\]\([^)]*\)", "", source, flags=re.DOTALL)
                words += re.findall(r"[A-Za-z][A-Za-z'’-]+", prose)
        elif not skipping and not UNREAD & set(cell["metadata"].get("tags", ())):
            minutes_ += LINE * len(source.splitlines())
    return minutes_ + len(words) / WORDS


def title(notebook: Path) -> str:
    return "".join(json.loads(notebook.read_text())["cells"][0]["source"]).splitlines()[0].removeprefix("# ")


def page(seconds: Mapping[Path, float], root: Path = ROOT) -> str:
    """The tables, as Markdown.

    Args:
        seconds: notebook, relative to ``root`` → its measured run time.
    """
    chapters = {chapter_name(notebook): notebook for notebook in seconds}
    lines: list[str] = []
    for reader, wanted in PATHS.items():
        steps = [(chapters[name], why) for name, why in wanted]
        reading = sum(minutes(root / notebook) for notebook, _ in steps)
        running = sum(seconds[notebook] for notebook, _ in steps)
        lines += [
            f"## {reader}",
            "",
            f"{len(steps)} chapters, {reading // 60} h {reading % 60} min to read, {math.ceil(running / 60)} min to run.",
            "",
        ]
        lines += ["| | chapter | why here | to read, min | ran in, s |", "|---:|---|---|---:|---:|"]
        for number, (notebook, why) in enumerate(steps, 1):
            link = f"[{title(root / notebook)}](/{notebook.as_posix()})"
            lines.append(f"| {number} | {link} | {why} | {minutes(root / notebook)} | {seconds[notebook]:.0f} |")
        lines.append("")
    return "\n".join(lines)
