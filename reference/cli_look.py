"""The commands that change nothing: ``evaluate`` and ``inspect``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from reference import cli_compress
from reference.cli_shared import (
    Json,
    Model,
    Stride,
    Texts,
    Tokens,
    Window,
    check_tokens,
    losses,
    predicts,
    read_texts,
    show_bytes,
    show_quality,
    sizes,
    without_progress_bars,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from reference.quantization.grid import QuantizationSpec


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
    texts = read_texts(text, loading.load_tokenizer(folder), tokens)
    for one in (folder, *([] if other is None else [other])):
        check_tokens(one, window, (ids for ids, _ in texts.values()))
    network = _load_any(folder, place)
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
        found = json.loads((folder / REPORT).read_text())["layers"].items()
        return {
            name: made for name, made in found if isinstance(made["error"], float) and isinstance(made["error_of"], str)
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # not there, or not ours
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
