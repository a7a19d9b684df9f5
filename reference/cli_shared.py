"""What several commands share: options, texts to measure and to calibrate on, and tables of results."""

import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from reference.terminal import ProgressBar

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Model = Annotated[
    str, typer.Argument(help="Folder, name on the hub, 'tutorial' or 'minilm'.", show_default=False, metavar="MODEL")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Texts = Annotated[
    list[str],
    typer.Option(
        "--text",
        help="Text to measure on, repeatable: code, documentation (shipped), wikitext2, c4 (from the hub), or a file.",
    ),
]
Tokens = Annotated[int, typer.Option(help="Tokens of each text to use, from its start; 0 for all.", min=0)]
Window = Annotated[int, typer.Option(help="Tokens that the model sees at once.", min=2)]
Stride = Annotated[
    int | None,
    typer.Option(
        help="Tokens by which the window moves (default: half of the window). Equal to --window: no overlap.", min=1
    ),
]


def without_progress_bars() -> None:
    """The error stream is for our one bar and our one line, not for those of transformers."""
    import transformers

    transformers.logging.disable_progress_bar()


def predicts(folder: Path) -> bool:
    from reference.models.families import family_of_type

    return family_of_type(json.loads((folder / "config.json").read_text())["model_type"]).head is not None


def read_texts(
    names: list[str], tokenizer: "PreTrainedTokenizerBase | None", limit: int
) -> "dict[str, tuple[Tensor, int]]":
    """Token ids and bytes of each text, cut to ``limit`` tokens."""
    from reference.data import text

    if tokenizer is None:
        raise ValueError("the model's folder has no tokenizer, so it cannot be evaluated; add one or use --no-evaluate")
    result = {}
    for name in names:
        ids = text.encode(text.read(name), tokenizer)
        ids = ids[:limit] if limit else ids
        size = len(str(tokenizer.decode(ids[1:], clean_up_tokenization_spaces=False)).encode())
        result[name] = (ids, size)
    return result


def draw_calibration(names: list[str], tokenizer: Any, sequences: int, length: int) -> list:
    """Batches for the solver, as many windows from each text as from the others."""
    from reference.calibration import batches
    from reference.data import text

    if tokenizer is None:
        raise ValueError(
            "the model's folder has no tokenizer, so it cannot be calibrated; use --method round_to_nearest"
        )
    share = -(-sequences // len(names))
    found = []
    for name in names:
        ids = text.encode(text.read(name, "calibration"), tokenizer)
        found += batches(ids, sequences=share, length=min(length, len(ids)))
    return found


def check_tokens(folder: Path, window: int, texts: "Iterable[Tensor]") -> None:
    """Refuse, before any work, windows that the model has no positions for and ids that it does not know.

    ``texts`` are token ids, ``[tokens]`` or ``[sequences, tokens]``.
    """
    from reference.models import loading

    longest, vocabulary = loading.limits(folder)
    for ids in texts:
        if longest is not None and min(window, ids.shape[-1]) > longest:
            raise ValueError(f"--window is {window}; it may be 2 to {longest}, the model's positions ({str(folder)!r})")
        if vocabulary is not None and ids.numel() and int(ids.max()) >= vocabulary:
            raise ValueError(
                f"the tokenizer makes id {int(ids.max())}, and the model in {str(folder)!r} knows {vocabulary} tokens: is it "
                "another model's?"
            )


def losses(model: "PreTrainedModel", texts: dict, window: int, stride: int | None, label: str) -> dict:
    from reference import evaluation

    stride = stride or window // 2
    rows = {}
    for name, (ids, size) in texts.items():
        with ProgressBar(f"{label}: {name}") as track:
            losses = evaluation.token_losses(model, ids, window=window, stride=stride, progress=track)
        mean = losses.double().mean().item()
        rows[name] = {
            "perplexity": math.exp(mean) if mean < 700 else math.inf,
            "nats_per_token": mean,
            # Where windows do not overlap, the first token of each is not scored: it counts as the mean of the others.
            "bits_per_byte": evaluation.bits_per_byte(losses, size) * (len(ids) - 1) / len(losses),
            "tokens": len(losses),
            "window": window,
            "stride": stride,
        }
    return rows


def sizes(folder: Path) -> dict:
    from reference.evaluation import size_on_disk

    return size_on_disk(folder)


def show_quality(columns: dict) -> None:
    rows = [(label, name, row) for label, texts in columns.items() for name, row in texts.items()]
    if not rows:
        return
    extra = [key for key in ("top1_agreement", "kl") if any(key in row for *_, row in rows)]
    names = [Column(heading, overflow="fold") for heading in ("", "text")]
    numbers = [Column(heading, no_wrap=True, justify="right") for heading in ("perplexity", "bits per byte", *extra)]
    table = Table(*names, *numbers)
    for label, name, row in rows:
        values = (row["perplexity"], row["bits_per_byte"], *(row[key] for key in extra))
        table.add_row(label, name, *(f"{value:.4g}" for value in values))
    Console().print(table)


def show_bytes(columns: dict) -> None:
    table = Table(Column("bytes", no_wrap=True), *(Column(name, justify="right", overflow="fold") for name in columns))
    for kind in next(iter(columns.values())):
        table.add_row(kind.replace("_", " "), *(f"{sizes[kind]:,}" for sizes in columns.values()))
    Console().print(table)


def announce(needs: dict[str, int]) -> None:
    """Say on the error stream what a walk will hold."""
    parts = ", ".join(f"{name} {size / 1e6:,.0f}" for name, size in needs.items())
    sys.stderr.write(f"working memory in MB, beside the weights outside of blocks: {parts}\n")
