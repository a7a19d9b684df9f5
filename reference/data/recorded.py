"""Results too long for a chapter, as the scripts in ``studies/`` wrote them into ``book/data``."""

import json
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "recorded"  # book/data in a checkout; the wheel carries it


def read(name: str) -> dict:
    """The values of a recorded result.

    Args:
        name: of the result, such as ``"post_training_methods"``.

    Raises:
        FileNotFoundError: there is no result of that name; the message lists those that exist.

    Chapter: none (plumbing: reads files)
    """
    file = FOLDER / f"{name}.json"
    if not file.is_file():
        known = sorted(path.stem for path in FOLDER.glob("*.json"))
        raise FileNotFoundError(f"no recorded result {name!r}; there are {', '.join(known)}")
    return json.loads(file.read_text(encoding="utf-8"))["values"]
