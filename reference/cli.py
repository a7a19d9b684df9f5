"""The command line: ``python -m reference {quantize,prune,evaluate,compress,decompress,inspect} MODEL``, ``… workflow``."""

import json
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import typer
from rich.console import Console
from rich.table import Column, Table
from typer.core import TyperGroup

from reference import cli_compress, cli_prune, cli_workflow
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
from reference.quantization import CalibrationWarning, ServingWarning
from reference.terminal import ProgressBar

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from reference.quantization.grid import QuantizationSpec

#: click's error for a wrong command line; typer carries click under changing names.
UsageError: type[Any] = typer.BadParameter.__mro__[1]


class Interrupted(Exception):
    """What stopped a command, in words; typer keeps Ctrl-C's own to itself."""


class Commands(TyperGroup):
    """The commands; one that is stopped can say what it had finished."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted(str(error) or "nothing was written") from error


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Make a language model smaller, measure what that cost, and look inside the result. "
    "MODEL is a folder, a name on the Hugging Face hub, or 'tutorial' for the small model that ships with the package.",
)


@app.command()
def quantize(
    model: Model,
    output: Annotated[Path, typer.Option(help="Folder to create; must be new or empty.", show_default=False)],
    method: Annotated[
        str, typer.Option(help="round_to_nearest, gptq, awq, smoothquant, awq+gptq or smoothquant+gptq.")
    ] = "round_to_nearest",
    bits: Annotated[
        int,
        typer.Option(
            help="Bits per weight, 2 to 8. vLLM runs 4 on GPUs and CPUs with AVX-512, 8 on GPUs, others on NVIDIA's."
        ),
    ] = 4,
    group_size: Annotated[
        int, typer.Option(help="Weights along the input that share a scale; -1 for a whole row.")
    ] = 128,
    symmetric: Annotated[
        bool,
        typer.Option("--symmetric/--affine", help="Zero in the middle of the grid, or a zero point per group."),
    ] = True,
    clip_search: Annotated[bool, typer.Option("--clip-search", help="Shrink ranges to the least error.")] = False,
    activations: Annotated[
        str,
        typer.Option(
            help="Inputs of the layers: float, or integers of 8 bits with a step per_token, per_tensor (not in vLLM) or "
            "static. With --bits 8 --group-size -1 that is W8A8."
        ),
    ] = "float",
    calibration: Annotated[
        list[str],
        typer.Option(
            help="Text to calibrate on (all methods but round_to_nearest), repeatable; names and files as for --text."
        ),
    ] = ["code", "documentation"],  # noqa: B006 (typer copies it)
    sequences: Annotated[int, typer.Option(help="Windows of calibration text in all.", min=1)] = 128,
    damping: Annotated[float, typer.Option(help="For gptq: share of the mean diagonal added to the Hessian.")] = 0.01,
    act_order: Annotated[bool, typer.Option("--act-order", help="For gptq: columns of large inputs first.")] = False,
    static_groups: Annotated[
        bool,
        typer.Option(
            "--static-groups/--moving-groups",
            help="With --act-order: keep groups in place, or move them with the columns (needs --format gptq; not in vLLM).",
        ),
    ] = True,
    alpha: Annotated[
        str,
        typer.Option(
            help="For smoothquant: share of the difficulty that the weights take, 0 to 1; 'auto' searches it "
            "(with --activations)."
        ),
    ] = "0.5",
    format: Annotated[str, typer.Option(help="Checkpoint: compressed-tensors, gptq, or awq (4 bits).")] = (
        "compressed-tensors"
    ),
    bits_for: Annotated[
        list[str],
        typer.Option(
            help="Other bits for some layers, repeatable: PATTERN=BITS, such as '*.down_proj=8'.", show_default=False
        ),
    ] = [],  # noqa: B006 (typer copies it)
    average_bits: Annotated[
        float | None,
        typer.Option(
            help="Stored bits per weight, scales included, shared out among the layers by how much each of them hurts, "
            "as many for query, key and value, and for gate and up (in place of --bits; holds the whole model in memory "
            "once).",
            show_default=False,
        ),
    ] = None,
    skip: Annotated[
        list[str],
        typer.Option(
            help="Layers to leave in float, repeatable: a pattern such as '*.layers.0.*'.", show_default=False
        ),
    ] = [],  # noqa: B006
    evaluate: Annotated[
        bool, typer.Option("--evaluate/--no-evaluate", help="Measure perplexity before and after.")
    ] = True,
    text: Texts = ["code", "documentation"],  # noqa: B006 (typer copies it)
    tokens: Tokens = 16384,
    window: Window = 512,
    stride: Stride = None,
    as_json: Json = False,
) -> None:
    """Quantise the linear layers of MODEL's blocks and write a checkpoint that other tools load.

    Embedding, output layer and norms stay in 16 bits. The folder loads in transformers
    (pip install compressed-tensors) and, unless a warning says why not, in vLLM. One block is in memory
    at a time (measuring, which --no-evaluate leaves out, takes the whole model). A run that was killed
    goes on where it was when the same command is given again; what it has done so far is in
    .OUTPUT.unfinished beside OUTPUT.

    Several processes share the calibration text: torchrun --nproc-per-node 2 -m reference quantize ...

    Example: python -m reference quantize tutorial --bits 4 --group-size 128 --output small

    Example: python -m reference quantize tutorial --method gptq --bits 3 --act-order --output smaller

    Example: python -m reference quantize tutorial --method gptq --bits 3 --bits-for model.layers.0.mlp.down_proj=8 --output mixed

    Example: python -m reference quantize tutorial --method gptq --average-bits 2.5 --output shared

    Example: python -m reference quantize tutorial --method smoothquant --bits 8 --group-size -1
    --activations per_token --output integers
    """
    from reference import checkpoint, ranks, workflow
    from reference.models import loading
    from reference.pipeline import check_output, quantize_folder
    from reference.quantization.activations import GRANULARITIES, ActivationSpec
    from reference.quantization.grid import QuantizationSpec

    without_progress_bars()
    size = None if group_size == -1 else group_size
    spec = QuantizationSpec(bits, symmetric=symmetric, group_size=size, clip_search=clip_search)
    if method not in workflow.METHODS:
        raise ValueError(f"--method is {method!r}; it may be {', '.join(workflow.METHODS)}")
    if activations not in ("float", *GRANULARITIES):
        raise ValueError(f"--activations is {activations!r}; it may be float, {', '.join(GRANULARITIES)}")
    inputs = None if activations == "float" else ActivationSpec(granularity=activations)
    if act_order and not method.endswith("gptq"):
        raise ValueError(f"--act-order is for gptq, awq+gptq and smoothquant+gptq; --method is {method!r}")
    if format not in checkpoint.FORMATS:
        raise ValueError(f"--format is {format!r}; it may be {', '.join(checkpoint.FORMATS)}")
    if act_order and not static_groups and format != "gptq":
        raise ValueError(f"--moving-groups needs --format gptq: {format} has no place for the group index")
    folder = loading.resolve(model)
    loading.model_class(folder)
    check_output(output)
    tokenizer = loading.load_tokenizer(folder)
    texts = read_texts(text, tokenizer, tokens) if evaluate and predicts(folder) else {}
    calibrated = method != "round_to_nearest" or activations == "static"
    drawn = draw_calibration(calibration, tokenizer, sequences, window) if calibrated else None
    check_tokens(folder, window, [*(ids for ids, _ in texts.values()), *(drawn or [])])
    layer_bits = _bits_for(bits_for)
    if average_bits is not None:
        if layer_bits:
            raise ValueError("--average-bits and --bits-for exclude each other; give one of them")
        few = draw_calibration(calibration, tokenizer, 4, min(window, 256))
        check_tokens(folder, window, few)
        layer_bits = _shared_out(folder, spec, average_bits, few, skip, drawn if method.endswith("gptq") else None)
    group = ranks.start()
    qualities: dict[str, dict] = {"before": {}, "after": {}}

    def measure(network: "PreTrainedModel", when: str) -> None:
        qualities[when] = losses(network, texts, window, stride, when)

    with ProgressBar("quantising", silent=group.rank > 0) as track:
        errors = quantize_folder(
            folder, output, spec, bits=layer_bits, skip=tuple(skip), method=method, activations=inputs,
            calibration=drawn, damping=damping, act_order=act_order, static_groups=static_groups, alpha=_alpha(alpha),
            format=format, tokenizer=tokenizer, ranks=group, announce=announce if group.rank == 0 else lambda needs: None, measure=measure if texts else None,
            progress=track,
        )  # fmt: skip
    ranks.stop()
    if group.rank:
        return
    before, after = qualities["before"], qualities["after"]
    report: dict[str, Any] = {
        "model": model,
        "output": str(output),
        "method": method,
        "spec": {"bits": bits, "group_size": size, "symmetric": symmetric, "clip_search": clip_search},
        "bits_for": layer_bits,
        "before": {"quality": before, "bytes": sizes(folder)},
        "after": {"quality": after, "bytes": sizes(output)},
        "errors": {name: error._asdict() for name, error in errors.items()},
    }
    if as_json:
        print(json.dumps(report, indent=2))
        return
    show_quality({"before": before, "after": after})
    show_bytes({"before": report["before"]["bytes"], "after": report["after"]["bytes"]})
    print(f"Written to {output}")


@app.command()
def evaluate(
    model: Model,
    against: Annotated[
        str | None, typer.Option(help="Original model: also report agreement with its predictions.")
    ] = None,
    text: Texts = ["code", "documentation"],  # noqa: B006
    tokens: Tokens = 16384,
    window: Window = 512,
    stride: Stride = None,
    device: Annotated[
        str, typer.Option(help="Where to compute: cpu, or cuda, where 4- and 8-bit layers run their Triton kernels.")
    ] = "cpu",
    as_json: Json = False,
) -> None:
    """Perplexity and bits per byte of MODEL on held-out text, and its bytes on disk.

    Example: python -m reference evaluate small --against tutorial --json

    Example: python -m reference evaluate small --device cuda
    """
    from reference import evaluation
    from reference.models import loading

    without_progress_bars()
    place = _device(device)
    folder = loading.resolve(model)
    other = None if against is None else loading.resolve(against)
    for name, one in ((model, folder), (against, other)):
        if one is not None and loading.model_class(one) and not predicts(one):
            raise ValueError(f"{name!r} does not predict tokens (an encoder?), so it has no perplexity")
    network, tokenizer = _load_any(folder, place), loading.load_tokenizer(folder)
    texts = read_texts(text, tokenizer, tokens)
    check_tokens(folder, window, (ids for ids, _ in texts.values()))
    quality = losses(network, texts, window, stride, "evaluating")
    report: dict[str, Any] = {"model": model, "quality": quality, "bytes": sizes(folder)}
    if other is not None:
        original = _load_any(other, place)
        report["against"] = against
        for name, (ids, _) in texts.items():
            result = evaluation.agreement(network, original, ids, window=min(window, len(ids)))
            report["quality"][name] |= {"top1_agreement": result.top1, "kl": result.kl}
    if as_json:
        print(json.dumps(report, indent=2))
        return
    show_quality({model: report["quality"]})
    show_bytes({model: report["bytes"]})


app.command()(cli_prune.prune)
app.command()(cli_compress.compress)
app.command()(cli_compress.decompress)
app.add_typer(cli_workflow.app, name="workflow")


@app.command()
def inspect(model: Model, as_json: Json = False) -> None:
    """What is inside MODEL: architecture, the grid of each layer, bytes by kind. Loads no weights.

    MODEL may also be a container that compress wrote: then where its bytes go, layer by layer.

    Folders that quantize or prune wrote also tell each layer's error, and the part of its weights that was removed. The
    error is the norm of the change of its output on the calibration text, or of its weight, relative to the norm of that.

    Example: python -m reference inspect small

    Example: python -m reference inspect small.dcz
    """
    from reference import checkpoint
    from reference.evaluation import tensor_bytes
    from reference.models import loading

    if Path(model).is_file():
        cli_compress.inspect_container(Path(model), as_json)
        return
    without_progress_bars()
    folder = loading.resolve(model)
    loading.model_class(folder)
    config = json.loads((folder / "config.json").read_text())
    quantization = config.get("quantization_config")
    reader = checkpoint.reader(quantization) if quantization else None
    layers: dict[str, dict] = {}
    suffixes: dict[str, set[str]] = {}
    for tensor, size in tensor_bytes(folder).items():
        name, _, suffix = tensor.rpartition(".")
        row = layers.setdefault(name, {"bytes": 0, "grid": None})
        row["bytes"] += size
        suffixes.setdefault(name, set()).add(suffix)
    for name, row in layers.items():
        spec = reader.spec(name, suffixes[name]) if reader is not None else None
        row["grid"] = None if spec is None else _describe(spec)
    for name, made in _report(folder).items():
        if name in layers:
            layers[name] |= {key: made[key] for key in ("error", "error_of", "removed") if key in made}
    report = {"model": model, "architecture": config["model_type"], "bytes": sizes(folder), "layers": layers}
    if as_json:
        print(json.dumps(report, indent=2))
        return
    print(f"{model}: {config['model_type']}, {len(layers)} modules with weights")
    known = any("error" in row for row in layers.values())
    table = Table(
        Column("module", overflow="fold"), "grid", *(["error"] if known else []), Column("bytes", justify="right")
    )
    for name, row in layers.items():
        error = f"{row['error']:.3g} of {row['error_of']}" if "error" in row else ""
        removed = f", {row['removed']:.1%} removed" if "removed" in row else ""
        table.add_row(name, (row["grid"] or "float") + removed, *([error] if known else []), f"{row['bytes']:,}")
    Console().print(table)
    show_bytes({model: report["bytes"]})


def _report(folder: Path) -> dict[str, dict]:
    """What the report in a folder of ours says of each layer; nothing where there is none."""
    from reference.checkpoint import REPORT

    try:
        return json.loads((folder / REPORT).read_text())["layers"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _describe(spec: "QuantizationSpec") -> str:
    grouping = "per tensor" if spec.per_tensor else f"groups of {spec.group_size}" if spec.group_size else "per channel"
    return f"{spec.bits} bits, {'symmetric' if spec.symmetric else 'affine'}, {grouping}"


def _load_any(folder: Path, device: "torch.device | None" = None) -> "PreTrainedModel":
    from reference import checkpoint
    from reference.models import loading

    loading.model_class(folder)
    quantised = "quantization_config" in json.loads((folder / "config.json").read_text())
    model = checkpoint.load(folder) if quantised else loading.load_float(folder)
    return model if device is None else model.to(device)  # type: ignore[arg-type]


def _device(name: str) -> "torch.device":
    import torch

    try:
        found = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device is {name!r}; it may be cpu, cuda or cuda:1") from None
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"--device is {name!r}; it may be cpu, cuda or cuda:1")
    if found.type == "cuda" and (not torch.cuda.is_available() or (found.index or 0) >= torch.cuda.device_count()):
        raise ValueError(f"--device is {name!r}, but torch finds {torch.cuda.device_count()} CUDA devices here")
    return found


def _alpha(value: str) -> float | None:
    if value == "auto":
        return None
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"--alpha is {value!r}; it may be a number from 0 to 1, or 'auto'") from None


def _bits_for(pairs: list[str]) -> dict[str, int]:
    found = {}
    for pair in pairs:
        pattern, equals, value = pair.rpartition("=")
        if not equals or not value.isdecimal():
            raise ValueError(f"--bits-for is {pair!r}; it should be PATTERN=BITS, such as '*.down_proj=8'")
        found[pattern] = int(value)
    return found


def _shared_out(
    folder: Path,
    spec: "QuantizationSpec",
    average_bits: float,
    batches: list,
    skip: list[str],
    solved_on: list | None,
) -> dict[str, int]:
    """The bits of each layer by measured sensitivity, to GPTQ's rounding if there is text that it solves on."""
    from reference.dynamic.mixed_precision import GptqRounding, choose_bits
    from reference.models import loading

    if not predicts(folder):
        raise ValueError(
            "--average-bits needs a model that predicts tokens: what changes is measured on its predictions"
        )
    with ProgressBar("sensitivity") as track:
        model = loading.load_float(folder)
        rounding = GptqRounding(model, solved_on) if solved_on else None
        return choose_bits(model, spec, average_bits, batches, skip=skip, rounding=rounding, progress=track)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; wrong input ends with one line on the error stream and exit code 2."""
    warnings.filterwarnings("ignore")
    for category in (CalibrationWarning, ServingWarning):
        warnings.filterwarnings("always", category=category)
    warnings.showwarning = lambda message, *_, **__: sys.stderr.write(f"warning: {message}\n")  # type: ignore[assignment]
    logging.getLogger("transformers").setLevel(logging.ERROR)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    arguments = sys.argv[1:] if arguments is None else arguments
    told: list[int] = []
    try:
        with _stoppable(told):
            code = app(arguments or ["--help"], prog_name="python -m reference", standalone_mode=False)
    except UsageError as error:
        message = error.format_message().rstrip(".")
        if not message:  # a group of commands without one: typer has shown its help
            sys.exit(2)
        command = getattr(getattr(error, "ctx", None), "command_path", "python -m reference")
        _fail(f"{message}; see {command} --help")
    except (ValueError, TypeError, OSError) as error:
        _fail(str(error))
    except Interrupted as error:
        code = 128 + (signal.SIGTERM if told else signal.SIGINT)
        sys.stderr.write(f"{'terminated' if told else 'interrupted'}; {error}\n")
    if not arguments:
        sys.exit(2)
    if code:
        sys.exit(code)


@contextmanager
def _stoppable(told: list[int]) -> Iterator[None]:
    """Let SIGTERM, which service managers and ``timeout`` send, tidy up as Ctrl-C does; ``told`` then holds its number."""

    def stop(number: int, frame: object) -> NoReturn:
        told.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(message: str) -> NoReturn:
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    sys.exit(2)
