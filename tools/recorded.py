"""Recorded results: book/data/*.json, values of runs too long for a chapter. Schema, page, and how to repeat one."""

import importlib
import json
import math
import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

from book_paths import ROOT

TYPES: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "what": (str,),
    "values": (dict,),
    "command": (str,),
    "device": (str,),
    "date": (str,),
    "versions": (dict,),
    "seed": (int, list),
    "cheap": (bool,),
}
OPTIONAL: dict[str, tuple[type, ...]] = {"check": (str,), "tolerance": (int, float), "notes": (str,)}
TOLERANCE = 1e-3

Result = dict[str, Any]


def files(root: Path = ROOT) -> list[Path]:
    return sorted((root / "book" / "data").glob("*.json"))


def breaches(result: Result, stem: str) -> Iterator[str]:
    """What is wrong with one recorded result, read from `stem`.json."""
    for field, types in TYPES.items():
        if field not in result:
            yield f"{stem}: no {field!r}"
        elif not isinstance(result[field], types) or (isinstance(result[field], bool) and bool not in types):
            yield f"{stem}: {field!r} is {result[field]!r}, not {' or '.join(t.__name__ for t in types)}"
        elif result[field] in ("", {}, []):
            yield f"{stem}: {field!r} is empty"
    for field in result.keys() - TYPES.keys():
        if field not in OPTIONAL or not isinstance(result[field], OPTIONAL[field]):
            yield f"{stem}: unknown or mistyped field {field!r}"
    if result.get("name") != stem:
        yield f"{stem}: its name is {result.get('name')!r}"
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", str(result.get("date"))) or not _is_date(result["date"]):
        yield f"{stem}: the date {result.get('date')!r} is not of the form 2026-01-31"
    if "python" not in (result.get("versions") or {}):
        yield f"{stem}: versions do not say python's"
    if result.get("cheap") and "check" not in result:
        yield f"{stem}: cheap, but no function to check it with"
    if not all(map(_finite, leaves(result.get("values", {})).values())):
        yield f"{stem}: values are not all numbers, texts or booleans, or not finite"


def _is_date(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def _finite(value: Any) -> bool:
    return isinstance(value, (bool, str)) or (isinstance(value, (int, float)) and math.isfinite(value))


def leaves(values: Any, path: str = "") -> dict[str, Any]:
    """A nested object as {dotted path: value}."""
    if isinstance(values, dict):
        items: Any = values.items()
    elif isinstance(values, list):
        items = enumerate(values)
    else:
        return {path: values}
    return {k: v for key, value in items for k, v in leaves(value, f"{path}.{key}" if path else str(key)).items()}


def differences(result: Result) -> list[str]:
    """Run a cheap result's check again; where its values are not the recorded ones."""
    module, _, function = result["check"].rpartition(".")
    again = leaves(getattr(importlib.import_module(module), function)())
    recorded = leaves(result["values"])
    found = [f"{key}: only in one of the two" for key in recorded.keys() ^ again.keys()]
    for key in recorded.keys() & again.keys():
        if not _same(recorded[key], again[key], result.get("tolerance", TOLERANCE)):
            found.append(f"{key}: recorded {recorded[key]!r}, now {again[key]!r}")
    return sorted(found)


def _same(recorded: Any, now: Any, tolerance: float) -> bool:
    if isinstance(recorded, float):
        return math.isclose(recorded, now, rel_tol=tolerance, abs_tol=1e-12)
    return recorded == now


def page(root: Path = ROOT) -> str:
    """Every recorded result as Markdown."""
    results = [json.loads(path.read_text()) for path in files(root)]
    return "\n".join(_entry(result) for result in results) or "None yet.\n"


def _entry(result: Result) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    seeds = result["seed"] if isinstance(result["seed"], list) else [result["seed"]]
    lines = [f"### {result['what']}", "", f"`{result['command']}`", ""]
    lines += [f"{result['device']}; {result['date']}; {versions}; seed {', '.join(map(str, seeds))}.", ""]
    if notes := result.get("notes"):
        lines += [notes, ""]
    shown = list(leaves(result["values"]).items())
    lines += [":::{dropdown} " + f"Values (`book/data/{result['name']}.json`)", "", "| value | |", "|---|---|"]
    lines += [f"| `{key}` | {_number(value)} |" for key, value in shown[:100]]
    if len(shown) > 100:
        lines += ["", f"and {len(shown) - 100} more in the file."]
    return "\n".join([*lines, ":::", ""])


def _number(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
