"""Render book/claims.yml as the tables that book/claims.md includes, and check its rows."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from book_paths import ROOT

VERDICTS = ("holds", "holds with conditions", "wrong", "not checkable here", "open")
FIELDS = ("id", "section", "claim", "verdict", "evidence", "chapter", "ours")
BIB_KEY = re.compile(r"^@\w+\{([^,\s]+),", re.MULTILINE)

Claim = dict[str, Any]


def read(root: Path = ROOT) -> list[Claim]:
    return yaml.safe_load((root / "book" / "claims.yml").read_text())


def bibliography_keys(root: Path = ROOT) -> set[str]:
    return set(BIB_KEY.findall((root / "book" / "references.bib").read_text()))


def breaches(claims: list[Claim], chapters: set[str], keys: set[str], least: dict[str, int]) -> list[str]:
    """What is wrong with the ledger.

    Args:
        claims: its rows.
        chapters: the chapters that exist.
        keys: the keys of the bibliography.
        least: outline section → how many claims it makes at least.
    """
    found = []
    for row, count in Counter(claim.get("id") for claim in claims).items():
        if count > 1:
            found.append(f"{row}: {count} rows with this id")
    for claim in claims:
        name = claim.get("id")
        missing = [field for field in FIELDS if field not in claim]
        if missing:
            found.append(f"{name}: no {', '.join(missing)}")
            continue
        for field in ("verdict", "ours"):
            if claim[field] not in VERDICTS:
                found.append(f"{name}: unknown {field} {claim[field]!r}, not one of {VERDICTS}")
        if not str(claim["evidence"] or "").strip():
            found.append(f"{name}: no evidence")
        cited = claim.get("cite") or []
        found += [f"{name}: cites {key}, which is not in references.bib" for key in cited if key not in keys]
        if claim.get("checked") in ("text", "abstract", "readme") and not cited:
            found.append(f"{name}: read in a source, but cites none")
        if claim["ours"] != "open" and claim.get("shown_by") not in chapters:
            found.append(f"{name}: our verdict is {claim['ours']!r}, but no existing chapter shows it")
    rows = Counter(str(claim.get("section")) for claim in claims)
    for section, number in least.items():
        if rows[section] < number:
            found.append(f"section {section} of the outline makes {number} claims, {rows[section]} rows are here")
    return found


def table(claims: list[Claim], chapters: set[str]) -> str:
    """One table an outline section. An existing chapter becomes a link."""
    lines = [_summary(claims)]
    section = None
    for claim in claims:
        if claim["section"] != section:
            section = claim["section"]
            title = "Opening paragraph" if section == "0" else f"§ {section}"
            lines += [
                "",
                f"### {title}",
                "",
                ":::{list-table}",
                ":header-rows: 1",
                ":widths: 34 14 38 14",
                ":class: claims",
                "",
            ]
            lines += _row("Claim", "Verdict", "Evidence", "Our runs")
        evidence = _flat(claim["evidence"])
        if cited := claim.get("cite"):
            evidence += f" {{cite:p}}`{','.join(cited)}`"
        lines += _row(_flat(claim["claim"]), claim["verdict"], evidence, _ours(claim, chapters))
        following = claims[claims.index(claim) + 1 :]
        if not following or following[0]["section"] != section:
            lines.append(":::")
    return "\n".join(lines) + "\n"


def _summary(claims: list[Claim]) -> str:
    counts = Counter(claim["verdict"] for claim in claims)
    ours = sum(claim["ours"] != "open" for claim in claims)
    parts = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
    return f"{len(claims)} claims: {parts}. Our own runs have settled {ours} of them so far."


def _ours(claim: Claim, chapters: set[str]) -> str:
    chapter = claim["chapter"]
    link = f"[{chapter}](/notebooks/{chapter}.ipynb)" if chapter in chapters else f"`{chapter}`"
    if chapter == "takeaways":
        link = "[takeaways](/book/takeaways.md)"
    return f"{claim['ours']} ({link})" if chapter else claim["ours"]


def _flat(text: str) -> str:
    return " ".join(str(text).split())


def _row(*cells: str) -> list[str]:
    return [f"{'* - ' if position == 0 else '  - '}{cell}" for position, cell in enumerate(cells)]


def write(folder: Path, chapters: set[str], root: Path = ROOT) -> None:
    (folder / "claims_table.md").write_text(table(read(root), chapters))
