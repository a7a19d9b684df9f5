"""Results too long for a chapter, as the scripts in ``studies/`` and ``benchmarks/`` wrote them into ``book/data``."""

import json
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "recorded"  # book/data in a checkout; the wheel carries it


def read(name: str) -> dict:
    """The values of a recorded result.

    Args:
        name: of the result, such as ``"post_training_methods"``.

    Returns:
        What stands under ``"values"`` in ``book/data/NAME.json``.

    Raises:
        FileNotFoundError: there is no result of that name; the message lists those that exist.

    Example:
        >>> sizes = read("tutorial_model")
        >>> sizes["file_bytes"] > 2 * sizes["parameters"]  # bfloat16, and a header
        True

    Chapter: none (plumbing: reads files)
    """
    file = FOLDER / f"{name}.json"
    if not file.is_file():
        known = sorted(path.stem for path in FOLDER.glob("*.json"))
        raise FileNotFoundError(f"no recorded result {name!r}; there are {', '.join(known)}")
    return json.loads(file.read_text(encoding="utf-8"))["values"]


def gpu_cases(kernel: str, name: str = "kernels") -> list[dict]:
    """What ``benchmarks/kernels.py --record`` measured of a kernel on a GPU; empty where it has not been run.

    Args:
        kernel: such as ``"w4a16"``.
        name: of the recorded result.

    Returns:
        One dictionary a case, its sizes and options (``"M"``, ``"N"``, …; whole numbers as int) beside
        ``"microseconds"`` by call, ``"of_copy"``, ``"tflops"`` and ``"times_faster_than"`` by peer.

    Example:
        >>> {case["bits"] for case in gpu_cases("w4a16")}, gpu_cases("no such kernel")
        ({2, 4}, [])

    Chapter: none (plumbing: reads files)
    """
    try:
        values = read(name)
    except FileNotFoundError:
        return []
    found = []
    for title, measured in values["cases"].items():
        first, *options = title.split(" ")
        if first == kernel:
            pairs = (option.split("=", 1) for option in options)
            found.append({key: int(text) if text.isdigit() else text for key, text in pairs} | measured)
    return found


def about(name: str) -> dict:
    """Device, date, versions and command of a recorded result: all but its values.

    Args:
        name: of the result.

    Raises:
        FileNotFoundError: there is no result of that name.

    Example:
        >>> about("tutorial_model")["command"].split()[:2]
        ['python', 'studies/tutorial_card.py']

    Chapter: none (plumbing: reads files)
    """
    read(name)
    found = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return {key: found[key] for key in ("device", "date", "versions", "command")}
