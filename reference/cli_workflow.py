"""The commands that do a whole workflow: ``workflow quantize`` and ``workflow prune``."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from reference.cli_options import Command
from reference.terminal import ProgressBar

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Whole workflows: measure, try, decide, write a checkpoint and a report that says why. "
    "Exit code 0: the target is met; 1: it is not, and the best found is written; 2: wrong input, and nothing is.",
)

Model = Annotated[
    str, typer.Argument(help="Folder, name on the hub, or 'tutorial'.", show_default=False, metavar="MODEL")
]
Output = Annotated[Path, typer.Option(help="Folder to create; must be new or empty.", show_default=False)]
MaxLoss = Annotated[
    str,
    typer.Option(
        help="Largest rise of the perplexity, on the text where it rises most: 2% or 0.02.", show_default=False
    ),
]
MaxBytes = Annotated[
    str | None, typer.Option(help="Largest checkpoint: bytes, or with kB, MB, GB, such as 4.5MB.", show_default=False)
]
MinRatio = Annotated[
    float | None, typer.Option(help="Least ratio of bytes before and after, such as 2.5.", show_default=False)
]
Texts = Annotated[
    list[str],
    typer.Option(
        "--text", help="Text to measure on, repeatable: code, documentation (shipped), wikitext2, c4 (hub), or a file."
    ),
]
Calibration = Annotated[
    list[str],
    typer.Option(help="Text that solvers and training see, repeatable; names and files as for --text."),
]
Tokens = Annotated[int, typer.Option(help="Tokens of each text to measure on, from its start; 0 for all.", min=0)]
Window = Annotated[int, typer.Option(help="Tokens that the model sees at once.", min=2)]
Batch = Annotated[int, typer.Option(help="Windows in a step of training.", min=1)]
Rate = Annotated[float, typer.Option(help="Peak rate of training.", min=0.0)]
Seed = Annotated[int, typer.Option(help="Of every draw.", min=0)]
Json = Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")]


@app.command(cls=Command)
def quantize(
    model: Model,
    output: Output,
    max_loss: MaxLoss,
    max_bytes: MaxBytes = None,
    min_ratio: MinRatio = None,
    bits: Annotated[list[int], typer.Option(help="Bits to try, repeatable, 2 to 8.")] = [3, 4, 8],  # noqa: B006
    method: Annotated[
        list[str], typer.Option(help="Solvers to try, repeatable: round_to_nearest, gptq, awq, awq+gptq.")
    ] = ["round_to_nearest", "gptq", "awq", "awq+gptq"],  # noqa: B006
    group_size: Annotated[
        int, typer.Option(help="Weights that share a scale, below 8 bits; -1 for a whole row.")
    ] = 128,
    text: Texts = ["code", "documentation"],  # noqa: B006
    calibration: Calibration = ["code", "documentation"],  # noqa: B006
    tokens: Tokens = 16384,
    window: Window = 256,
    sequences: Annotated[int, typer.Option(help="Windows of calibration text in all.", min=1)] = 32,
    steps: Annotated[
        int, typer.Option(help="Steps of training where the sweep misses the target; 0 for none.", min=0)
    ] = 200,
    batch: Batch = 8,
    rate: Rate = 1e-3,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Find the smallest quantised MODEL that keeps its quality, in five steps.

    1 BASELINE: perplexity, bytes and tokens a second of the float model.

    2 SWEEP: candidates from the smallest to the largest, within a size from the cheapest solver to the dearest. The first
    that meets the target is the answer: nothing smaller did, and of its size nothing cheaper. A limit on the size
    (--max-bytes, --min-ratio) leaves out what is larger, so that the loss decides among what fits.

    3 CALIBRATION CHECK: the answer is solved again on another draw of the calibration text. If it misses the target there,
    the sweep goes on. What each text alone gives is shown.

    4 TRAINING: only where the sweep missed. The best candidate is trained for --steps to predict what the float model does.

    5 VALIDATION: the files are read back, quality and speed measured as they will serve on this machine.

    OUTPUT gets a checkpoint for transformers and vLLM, report.json, and report.html, which shows each decision with its
    numbers. A command that was killed goes on where it was when it is given again; what it has so far is in
    .OUTPUT.unfinished beside OUTPUT. Exit code 1 says that the target was missed and the best found was written.

    Example: python -m reference workflow quantize tutorial --max-loss 3% --output small

    Example: python -m reference workflow quantize tutorial --max-loss 8% --min-ratio 2.8 --output smaller
    """
    from reference.practice.quantization import Settings, run
    from reference.practice.retraining import Recipe
    from reference.practice.targets import byte_count, fraction

    _quiet()
    settings = Settings(
        bits=tuple(bits), methods=tuple(method), group_size=None if group_size == -1 else group_size, texts=tuple(text),
        calibration=tuple(calibration), tokens=tokens, window=window, sequences=sequences,
        recipe=Recipe(steps, batch, window, rate), seed=seed,
    )  # fmt: skip
    found = run(
        model, output, max_loss=fraction(max_loss, "--max-loss"),
        max_bytes=None if max_bytes is None else byte_count(max_bytes, "--max-bytes"), min_ratio=min_ratio,
        settings=settings, progress=_bar,
    )  # fmt: skip
    _end(found, as_json)


@app.command(cls=Command)
def prune(
    model: Model,
    output: Output,
    max_loss: MaxLoss,
    max_bytes: MaxBytes = None,
    min_ratio: MinRatio = None,
    sparsity: Annotated[
        float | None,
        typer.Option(help="Share of the blocks' weights to remove, another way to ask for a size.", show_default=False),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Cuts, with training after each.", min=1)] = 4,
    most: Annotated[float, typer.Option(help="Share removed by the last round where no size is asked for.")] = 0.5,
    multiple: Annotated[int, typer.Option(help="Neurons that stay come in multiples of this.", min=1)] = 16,
    text: Texts = ["code", "documentation"],  # noqa: B006
    calibration: Calibration = ["code", "documentation"],  # noqa: B006
    tokens: Tokens = 16384,
    window: Window = 256,
    sequences: Annotated[int, typer.Option(help="Windows of calibration text that score units.", min=1)] = 16,
    steps: Annotated[int, typer.Option(help="Steps of training after each round.", min=1)] = 50,
    final_steps: Annotated[int, typer.Option(help="Steps of fine-tuning at the end; 0 for none.", min=0)] = 200,
    batch: Batch = 8,
    rate: Rate = 5e-4,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Cut MODEL down to a smaller dense model that keeps its quality, in four steps after a baseline.

    1 GRADUAL: several rounds, and training after each. With a size asked for (--max-bytes, --min-ratio, --sparsity) they
    lead there along a cubic schedule, most of it in the first. Without one they are of equal size and go on until one
    loses too much, and the answer is the last that did not.

    2 STRUCTURED FIRST: whole neurons or attention heads go, in each round what costs least loss for each weight. The layers
    are really smaller: no library is needed to be faster.

    3 FINE-TUNING: the last round is trained for --final-steps to predict what the original does.

    4 SPARSE LIBRARY: CSR, 2:4 and blocks are timed against the dense product on this machine. Single weights are set to
    zero only where that is faster and keeps the limit.

    OUTPUT gets a checkpoint for transformers and vLLM (but for a Qwen2 that lost heads: vLLM computes their width from the
    hidden size), report.json, and report.html, which shows each decision with its numbers. A command that was killed goes
    on where it was when it is given again. Exit code 1 says that the target was missed and the best found was written.

    Example: python -m reference workflow prune tutorial --max-loss 5% --output cut

    Example: python -m reference workflow prune tutorial --max-loss 20% --min-ratio 1.3 --output smaller
    """
    from reference.practice.pruning import Settings, run
    from reference.practice.retraining import Recipe
    from reference.practice.targets import byte_count, fraction

    _quiet()
    settings = Settings(
        rounds=rounds, most=most, multiple=multiple, texts=tuple(text), calibration=tuple(calibration), tokens=tokens,
        window=window, sequences=sequences, seed=seed, recipe=Recipe(steps, batch, window, rate),
        final_steps=final_steps,
    )  # fmt: skip
    found = run(
        model, output, max_loss=fraction(max_loss, "--max-loss"),
        max_bytes=None if max_bytes is None else byte_count(max_bytes, "--max-bytes"), min_ratio=min_ratio,
        sparsity=sparsity, settings=settings, progress=_bar,
    )  # fmt: skip
    _end(found, as_json)


def _quiet() -> None:
    import transformers

    transformers.logging.disable_progress_bar()


def _bar(label: str) -> Callable[[list], Iterable]:
    def track(items: list) -> Iterator[Any]:
        with ProgressBar(label) as bar:
            yield from bar(items)

    return track


def _end(found: dict[str, Any], as_json: bool) -> None:
    """Say what was found; exit code 1 where it misses the target."""
    from reference.practice import report

    if as_json:
        print(json.dumps(found, indent=2))
    else:
        print(*report.lines(found), f"Written to {found['output']}; see report.html there.", sep="\n")
    if not found["met"]:
        sys.stderr.write(f"{report.outcome(found)}\n")
        raise typer.Exit(1)
