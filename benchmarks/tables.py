"""The kernels' tables of settings, as JSON and as Python: found by `tune_kernels.py`, used by `kernels.py --tables`."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

#: By "module.NAME": rows ``[limits, plan]``, the plan as ``[type, fields]``; a table of one plan has one row, no limits.
Tables = dict[str, list[list[Any]]]


def plan_of(module: Any, stored: list) -> Any:
    return getattr(module, stored[0])(**stored[1])


def stored(plan: Any) -> list:
    return [type(plan).__name__, plan._asdict()]


def install(path: Path) -> list[str]:
    """Put the tables of a file into the kernels' modules, in front of what is there; return their names."""
    tables: Tables = json.loads(path.read_text())["tables"]
    for name, rows in tables.items():
        module_name, attribute = name.split(".")
        module = importlib.import_module(f"reference.kernels.{module_name}")
        plans = [(*limits, plan_of(module, plan)) for limits, plan in rows]
        if rows[0][0]:
            setattr(module, attribute, [*plans, *getattr(module, attribute)])
        else:
            setattr(module, attribute, plans[0][0])
    return list(tables)


def source(tables: Tables) -> str:
    """The tables as lines of Python for the modules."""
    lines = []
    for name, rows in tables.items():
        written = [
            (limits, f"{kind}({', '.join(f'{field}={value}' for field, value in fields.items())})")
            for limits, (kind, fields) in rows
        ]
        if rows[0][0]:
            lines.append(f"# {name}")
            for limits, plan in written:
                numbers = ", ".join("2**31" if limit == 2**31 else str(limit) for limit in limits)
                lines.append(f"    ({numbers}, {plan}),")
        else:
            lines.append(f"# {name}\n{name.split('.')[1]} = {written[0][1]}")
    return "\n".join(lines)
