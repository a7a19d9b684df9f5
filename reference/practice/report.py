"""The page of a workflow: one file that opens anywhere, with every decision and the numbers it was made on."""

import io
import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from reference.figures import STYLE
from reference.figures import practice as draw

Row = dict[str, Any]

#: Columns that hold fractions and are shown in percent.
PERCENT = ("rise", "error", "removed", "sparsity", "rise before", "rise after", "share")

_STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #ffffff; --line: #d8d8d8; --quiet: #595959; --good: #00664b;
  --bad: #a33c00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --paper: #16181c; --line: #3a3d43; --quiet: #a8a8a8;
  --good: #4fcf9f; --bad: #ffa06a; } }
body { margin: 0 auto; max-width: 54rem; padding: 1.5rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.met { color: var(--good); } .missed { color: var(--bad); } .quiet { color: var(--quiet); font-size: 0.9rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.92rem; }
th, td { border-bottom: 1px solid var(--line); padding: 0.3rem 0.7rem; text-align: left; white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
figure { margin: 1rem 0; padding: 0.5rem; width: fit-content; max-width: 100%; box-sizing: border-box; background: #ffffff; border-radius: 4px; } figure svg { max-width: 100%; height: auto; }
code { overflow-wrap: anywhere; }
""".strip()


def page(found: Row) -> str:
    """The report as one HTML file: no script, no request, text escaped, light or dark as the reader's system is.

    Args:
        found: what :func:`reference.practice.quantization.run` or :func:`reference.practice.pruning.run` returns.

    Example:
        >>> found = {
        ...     "workflow": "prune", "model": "a & b", "met": True, "answer": "round 2", "machine": {"threads": 1},
        ...     "target": {"max_loss": 0.02, "max_bytes": None}, "found": {"rise": 0.01, "bytes": 1000, "ratio": 1.6},
        ...     "steps": [
        ...         {"title": t, "decision": "…", "rows": []} for t in ("Gradual pruning", "Sparse library check")],
        ... }
        >>> "<h1>Pruning a &amp; b</h1>" in page(found)
        True

    Chapter: practice/quantization_workflow
    """
    kind = {"quantize": "Quantising", "prune": "Pruning"}[found["workflow"]]
    title = f"{kind} {found['model']}"
    figures = _figures(found)
    body = [f"<h1>{escape(title)}</h1>", _summary(found)]
    for number, step in enumerate(found["steps"], start=1):
        body.append(f"<h2>{number}. {escape(step['title'])}</h2>\n<p>{escape(step['decision'])}</p>")
        body.append(_table(step["rows"]))
        if step["title"] in figures:
            drawn, text = figures[step["title"]]
            body.append(_figure(drawn, text))
    facts = "; ".join(f"{name} {value}" for name, value in found["machine"].items())
    body.append(f'<p class="quiet">Measured on: {escape(facts)}. All numbers are in report.json beside this page.</p>')
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_STYLE}\n</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def lines(found: Row) -> list[str]:
    """The report in words, for a terminal: a line for the outcome, then one a step.

    Args:
        found: as :func:`page`.

    Example:
        >>> found = {
        ...     "met": True, "answer": "W4A16 gptq", "target": {"max_loss": 0.02, "max_bytes": None},
        ...     "found": {"rise": 0.01, "bytes": 1000, "ratio": 3.5},
        ...     "steps": [{"title": "Calibration check", "decision": "The answer holds."}],
        ... }
        >>> lines(found)[1]
        'Calibration check: The answer holds.'

    Chapter: none (words)
    """
    return [outcome(found), *(f"{step['title']}: {step['decision']}" for step in found["steps"])]


def outcome(found: Row) -> str:
    """One sentence: whether the target was met, by what.

    Args:
        found: as :func:`page`.

    Example:
        >>> found = {"rise": 0.01, "bytes": 1000, "ratio": 3.5}
        >>> outcome({"met": True, "answer": "W4A16", "target": {"max_loss": 0.02, "max_bytes": None}, "found": found})
        'Target met (at most 2.00% of perplexity lost) by W4A16: 1.00% lost, 1,000 bytes, 3.50 times smaller.'

    Chapter: none (words)
    """
    reached, target = found["found"], found["target"]
    size = "" if target["max_bytes"] is None else f" in at most {target['max_bytes']:,} bytes"
    share = "" if target.get("sparsity") is None else f", {target['sparsity']:.0%} of the blocks removed"
    wanted = f"at most {target['max_loss']:.2%} of perplexity lost{size}{share}"
    is_now = f"{reached['rise']:.2%} lost, {reached['bytes']:,} bytes, {reached['ratio']:.2f} times smaller"
    if found["met"]:
        return f"Target met ({wanted}) by {found['answer']}: {is_now}."
    return f"Target missed ({wanted}). The best found is {found['answer']}: {is_now}."


def value(column: str, cell: object) -> str:
    """A cell of a table as people read it.

    Args:
        column: its heading; those of :data:`PERCENT` are shown in percent.
        cell: a word, a truth value or a number.

    Example:
        >>> value("rise", 0.0165), value("bytes", 4_500_000), value("seconds", 4.0), value("error", float("nan"))
        ('1.65%', '4,500,000', '4', '–')

    Chapter: none (words)
    """
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        return str(cell)
    if isinstance(cell, int):
        return f"{cell:,}"
    if not math.isfinite(cell):
        return "–" if math.isnan(cell) else "∞"
    if column in PERCENT:
        return f"{cell:.2%}"
    return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"


def _summary(found: Row) -> str:
    kind = "met" if found["met"] else "missed"
    return f'<p class="{kind}"><strong>{escape(outcome(found))}</strong></p>'


def _table(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    columns = list(rows[0])
    numeric = {c for c in columns if all(isinstance(r[c], int | float) and not isinstance(r[c], bool) for r in rows)}
    kind = {c: ' class="number"' if c in numeric else "" for c in columns}
    head = "".join(f'<th scope="col"{kind[c]}>{escape(c)}</th>' for c in columns)
    cells = ["".join(f"<td{kind[c]}>{escape(value(c, row[c]))}</td>" for c in columns) for row in rows]
    body = "\n".join(f"<tr>{row}</tr>" for row in cells)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _figures(found: Row) -> dict[str, tuple[Callable[[], Axes], str]]:
    """For a step's title, how its figure is drawn and what it shows, in words."""
    steps = {step["title"]: step["rows"] for step in found["steps"]}
    limit = 100 * found["target"]["max_loss"]
    figures: dict[str, tuple[Callable[[], Axes], str]] = {}
    if found["workflow"] == "quantize":
        rows = steps["Post-training sweep"] + steps["Quantization-aware training"][1:]
        figures["Post-training sweep"] = (
            lambda: draw.sweep(rows, limit, found["target"]["max_bytes"]),
            "Rise of the perplexity over the size of each candidate, with the limits as lines.",
        )
        return figures
    if rounds := steps["Gradual pruning"]:
        figures["Gradual pruning"] = (
            lambda: draw.rounds(rounds, limit),
            "Rise of the perplexity over the share of weights removed, before and after each round's training.",
        )
    if kernels := steps["Sparse library check"]:
        figures["Sparse library check"] = (
            lambda: draw.kernels(kernels),
            "Speed of sparse formats against the dense product over the share of zeros.",
        )
    return figures


def _figure(drawn: Callable[[], Axes], text: str) -> str:
    # Loads the backend first: a notebook's sets rcParams as it loads, which the end of the style's context would undo.
    plt.close(plt.figure())
    with plt.style.context(STYLE):
        axes = drawn()
        figure: Any = axes.figure
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
        plt.close(figure)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace("<svg ", f'<svg role="img" aria-label="{escape(text, quote=True)}" ', 1)
    return f"<figure>\n{svg}</figure>"
