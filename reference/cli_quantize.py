"""The command ``quantize``: a folder in integers that other tools load."""

import json
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

    from reference.quantization.grid import QuantizationSpec


def quantize(
    context: typer.Context,
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
    if format not in checkpoint.FORMATS:
        raise ValueError(f"--format is {format!r}; it may be {', '.join(checkpoint.FORMATS)}")
    if act_order and not static_groups and format != "gptq":
        raise ValueError(f"--moving-groups needs --format gptq: {format} has no place for the group index")
    folder = loading.resolve(model)
    loading.model_class(folder)
    check_output(output)
    tokenizer = loading.load_tokenizer(folder)
    if evaluate and not predicts(folder):
        refuse_given(context, MEASURING, f"on {model!r}, which predicts no tokens: nothing is measured")
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
