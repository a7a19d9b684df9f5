"""The command prune: one-shot pruning, with or without quantisation, of a folder into a folder."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reference.cli_options import MEASURING, refuse_given
from reference.cli_shared import (
    Json,
    Model,
    Stride,
    Texts,
    Tokens,
    Window,
    announce,
    check_tokens,
    draw_calibration,
    losses,
    predicts,
    read_texts,
    show_bytes,
    show_quality,
    sizes,
    without_progress_bars,
)
from reference.terminal import ProgressBar

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def prune(
    context: typer.Context,
    model: Model,
    output: Annotated[Path, typer.Option(help="Folder to create; must be new or empty.", show_default=False)],
    method: Annotated[
        str,
        typer.Option(
            help="magnitude (by the weights alone), wanda (times the norm of what they read), or sparsegpt (by the "
            "Hessian; the weights that stay make up for the others)."
        ),
    ] = "sparsegpt",
    sparsity: Annotated[
        float | None,
        typer.Option(
            help="Fraction of each layer to remove, 0 or more and below 1; 0.5 if no pattern is given.",
            show_default=False,
        ),
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(
            help="In place of --sparsity: N:M keeps N of each M neighbours along the inputs, such as 2:4.",
            show_default=False,
        ),
    ] = None,
    bits: Annotated[
        int | None, typer.Option(help="Also quantise what stays, to 2 to 8 bits.", show_default=False)
    ] = None,
    group_size: Annotated[
        int, typer.Option(help="With --bits: weights along the input that share a scale; -1 for a whole row.")
    ] = 128,
    symmetric: Annotated[
        bool,
        typer.Option("--symmetric/--affine", help="With --bits: zero in the middle of the grid, or a zero point."),
    ] = True,
    format: Annotated[str, typer.Option(help="With --bits: compressed-tensors, gptq, or awq (4 bits).")] = (
        "compressed-tensors"
    ),
    skip: Annotated[
        list[str],
        typer.Option(
            help="Layers to leave as they are, repeatable: a pattern such as '*.layers.0.*'.", show_default=False
        ),
    ] = [],  # noqa: B006 (typer copies it)
    calibration: Annotated[
        list[str],
        typer.Option(
            help="Text to calibrate on (all methods but magnitude), repeatable; names and files as for --text."
        ),
    ] = ["code", "documentation"],  # noqa: B006
    sequences: Annotated[int, typer.Option(help="Windows of calibration text in all.", min=1)] = 128,
    damping: Annotated[
        float, typer.Option(help="For sparsegpt: share of the mean diagonal added to the Hessian.")
    ] = 0.01,
    evaluate: Annotated[
        bool, typer.Option("--evaluate/--no-evaluate", help="Measure perplexity before and after.")
    ] = True,
    text: Texts = ["code", "documentation"],  # noqa: B006
    tokens: Tokens = 16384,
    window: Window = 512,
    stride: Stride = None,
    as_json: Json = False,
) -> None:
    """Remove weights from the linear layers of MODEL's blocks, without training, and write a checkpoint.

    The folder loads in transformers, and in vLLM unless a warning says why not (see quantize). Removed weights are stored as
    zeros, so without --bits it is as large as before and as fast as before. What the zeros are worth: coded files
    (python -m reference compress), kernels for 2:4, and --bits: half of the weights at 4 bits and a bit each for their
    places take the room of 3 bits.

    One block is in memory at a time (measuring, which --no-evaluate leaves out, takes the whole model). A run that was
    killed goes on where it was when the same command is given again; what it has done so far is in .OUTPUT.unfinished
    beside OUTPUT. Each layer's sparsity and error are in OUTPUT/compression.json; inspect shows the errors.

    Several processes share the calibration text: torchrun --nproc-per-node 2 -m reference prune ...

    Example: python -m reference prune tutorial --method sparsegpt --sparsity 0.5 --output sparse

    Example: python -m reference prune tutorial --pattern 2:4 --bits 4 --output joint
    """
    from reference import checkpoint, ranks
    from reference.models import loading
    from reference.pipeline import check_output, prune_folder
    from reference.pruning import one_shot
    from reference.quantization.grid import QuantizationSpec

    without_progress_bars()
    if method not in one_shot.METHODS:
        raise ValueError(f"--method is {method!r}; it may be {', '.join(one_shot.METHODS)}")
    if sparsity is not None and pattern is not None:
        raise ValueError("--sparsity and --pattern exclude each other: a pattern N:M keeps N/M of the weights")
    if sparsity is not None and not 0 <= sparsity < 1:
        raise ValueError(f"--sparsity is {sparsity}; it may be 0 or more and below 1")
    shape = None if pattern is None else _pattern(pattern)
    if pattern is None and sparsity is None:
        sparsity = 0.5
    if format not in checkpoint.FORMATS:
        raise ValueError(f"--format is {format!r}; it may be {', '.join(checkpoint.FORMATS)}")
    size = None if group_size == -1 else group_size
    spec = None if bits is None else QuantizationSpec(bits, symmetric=symmetric, group_size=size)
    folder = loading.resolve(model)
    loading.model_class(folder)
    check_output(output)
    tokenizer = loading.load_tokenizer(folder)
    if evaluate and not predicts(folder):
        refuse_given(context, MEASURING, f"on {model!r}, which predicts no tokens: nothing is measured")
    texts = read_texts(text, tokenizer, tokens) if evaluate and predicts(folder) else {}
    drawn = draw_calibration(calibration, tokenizer, sequences, window) if method != "magnitude" else None
    check_tokens(folder, window, [*(ids for ids, _ in texts.values()), *(drawn or [])])
    group = ranks.start()
    qualities: dict[str, dict] = {"before": {}, "after": {}}

    def measure(network: "PreTrainedModel", when: str) -> None:
        qualities[when] = losses(network, texts, window, stride, when)

    with ProgressBar("pruning", silent=group.rank > 0) as track:
        errors = prune_folder(
            folder, output, sparsity, pattern=shape, method=method, spec=spec, skip=tuple(skip), calibration=drawn,
            damping=damping, format=format, tokenizer=tokenizer, ranks=group,
            announce=announce if group.rank == 0 else lambda needs: None, measure=measure if texts else None,
            progress=track,
        )  # fmt: skip
    ranks.stop()
    if group.rank:
        return
    report: dict[str, Any] = {
        "model": model,
        "output": str(output),
        "method": method,
        "sparsity": sparsity,
        "pattern": pattern,
        "spec": None if spec is None else {"bits": bits, "group_size": size, "symmetric": symmetric},
        "before": {"quality": qualities["before"], "bytes": sizes(folder)},
        "after": {"quality": qualities["after"], "bytes": sizes(output)},
        "errors": {name: error._asdict() for name, error in errors.items()},
    }
    if as_json:
        print(json.dumps(report, indent=2))
        return
    show_quality({"before": qualities["before"], "after": qualities["after"]})
    show_bytes({"before": report["before"]["bytes"], "after": report["after"]["bytes"]})
    removed = [error.removed for error in errors.values()]
    print(
        f"{len(removed)} layers, {min(removed):.1%} to {max(removed):.1%} of their weights removed; written to {output}"
    )
    if spec is None:
        part = math.floor(1000 * min(removed)) / 1000
        print(
            "Zeros are stored like other weights. A smaller file: "
            f"python -m reference compress {output} OUT.dcz --sparsity {part:g}"
        )


def _pattern(text: str) -> tuple[int, int]:
    kept, colon, group = text.partition(":")
    if not (colon and kept.isdecimal() and group.isdecimal() and 1 <= int(kept) <= int(group)):
        raise ValueError(f"--pattern is {text!r}; it may be N:M with 1 <= N <= M, such as 2:4")
    return int(kept), int(group)
