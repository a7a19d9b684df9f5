"""WikiText-2 and C4 through ``datasets``, as the papers read them."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class HubText:
    """Where a data set is on the hub, and how its rows become one text.

    Args:
        path, config: of the data set on the hub.
        splits: its split for ``"evaluation"`` and ``"calibration"``.
        files: file of each split, where it has many; else None.
        column: that holds the text.
        separator: put between rows.
        rows: how many are taken, from the first; all if None.

    Example:
        >>> DATASETS["wikitext2"].splits, DATASETS["wikitext2"].column
        ({'evaluation': 'test', 'calibration': 'train'}, 'text')

    Chapter: none (a data table)
    """

    path: str
    config: str | None
    splits: dict[str, str]
    files: dict[str, str] | None
    column: str
    separator: str
    rows: int | None


DATASETS = {
    # Frantar et al. 2023, section 4: test split joined with two newlines.
    "wikitext2": HubText(
        "Salesforce/wikitext", "wikitext-2-raw-v1", {"evaluation": "test", "calibration": "train"}, None,
        "text", "\n\n", None,
    ),
    # The first shard of each split, as the authors' scripts take it.
    "c4": HubText(
        "allenai/c4", None, {"evaluation": "validation", "calibration": "train"},
        {"validation": "en/c4-validation.00000-of-00008.json.gz", "train": "en/c4-train.00000-of-01024.json.gz"},
        "text", " ", 1100,
    ),
}  # fmt: skip


def read(name: str, part: str, *, source: str | Path | None = None) -> str:
    """Text of a hub data set.

    Args:
        name: ``"wikitext2"`` or ``"c4"``.
        part: ``"evaluation"`` or ``"calibration"``.
        source: a local copy in the hub's layout; by default the hub itself or its local cache.

    Returns:
        The rows, joined.

    Raises:
        ValueError: unknown name, ``datasets`` is not installed, or the data cannot be reached;
            the message says what to do.

    Example:
        >>> read("wikitext", "evaluation")  # a right name asks the hub, or its cache
        Traceback (most recent call last):
            ...
        ValueError: data set 'wikitext' is not known; there are wikitext2, c4

    Chapter: none (loading)
    """
    if name not in DATASETS:
        raise ValueError(f"data set {name!r} is not known; there are {', '.join(DATASETS)}")
    if importlib.util.find_spec("datasets") is None:
        raise ValueError(f"text {name!r} needs the package datasets: pip install datasets")
    import datasets

    entry = DATASETS[name]
    split = entry.splits[part]
    files = None if entry.files is None else {split: entry.files[split]}
    try:
        # No checks: one file of many never has the sizes that the data set's card states.
        rows = datasets.load_dataset(
            str(source or entry.path), entry.config, data_files=files, split=split, verification_mode="no_checks"
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"text {name!r} could not be loaded from {source or entry.path} ({first}). Without a network, "
            "take 'code' or 'documentation', which ship, or a text file of your own"
        ) from error
    texts = rows[entry.column]
    return entry.separator.join(texts[: entry.rows] if entry.rows else texts)
