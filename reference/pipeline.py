"""From a model's folder to a compressed model's folder: streamed, resumable, on one process or several."""

import fnmatch
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reference import checkpoint, workflow
from reference.calibration import working_memory
from reference.files import check_target, held
from reference.job import Job, digest, kept
from reference.models import loading
from reference.models.families import block_linears
from reference.models.streaming import StreamedModel
from reference.pruning import one_shot
from reference.quantization.activations import ActivationSpec
from reference.quantization.grid import QuantizationSpec
from reference.ranks import ALONE, Ranks
from reference.rounding import LayerError


def quantize_folder(
    folder: Path,
    output: Path,
    spec: QuantizationSpec,
    *,
    bits: Mapping[str, int] | None = None,
    skip: Sequence[str] = (),
    method: str = "round_to_nearest",
    activations: ActivationSpec | None = None,
    calibration: list[Tensor] | None = None,
    damping: float = 0.01,
    act_order: bool = False,
    static_groups: bool = True,
    alpha: float | None = 0.5,
    format: str = "compressed-tensors",
    tokenizer: PreTrainedTokenizerBase | None = None,
    ranks: Ranks = ALONE,
    announce: Callable[[dict[str, int]], None] = lambda needs: None,
    measure: Callable[[PreTrainedModel, str], None] | None = None,
    progress: Callable[[list], Iterable] = iter,
) -> dict[str, LayerError]:
    """Quantise the model in ``folder`` and write a checkpoint, one block in memory at a time.

    What is finished is kept in ``.OUTPUT.unfinished`` beside ``output``; called again with the same
    arguments after a kill, the run goes on there and ends with the same bytes. Under several ranks
    each process calls this with the same arguments, and the first one writes.

    Args:
        folder: of a float model.
        output: folder to create; new or empty.
        spec: grid of layers that no pattern fits.
        bits: other bits by pattern of layer names, such as ``{"*.down_proj": 8}``; the last that fits counts.
        skip: patterns of layers that stay in float.
        method, activations, calibration, damping, act_order, static_groups, alpha, ranks, progress: as
            :func:`reference.workflow.quantize`. ``calibration`` is all of it, for all ranks.
        format: one of :data:`reference.checkpoint.FORMATS`.
        tokenizer: saved beside the model.
        announce: told what the walk will need, as :func:`reference.calibration.working_memory`.
        measure: called with the whole model and ``"before"``, then ``"after"``. It costs the memory
            that streaming saves.

    Returns:
        The error of each layer, by name; the report in the folder holds it too.

    Raises:
        ValueError: an argument that does not fit the model, a pattern that fits no layer, or an
            unfinished run of other arguments; nothing is changed or left behind then.
        FileExistsError: ``output`` holds something.
        OSError: the disk is full.

    Example:
        >>> import tempfile
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from reference.evaluation import size_on_disk
        >>> config = LlamaConfig(
        ...     hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=64)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     LlamaForCausalLM(config).save_pretrained(f"{folder}/mine")
        ...     output = Path(folder, "mine-4bit")
        ...     errors = quantize_folder(Path(folder, "mine"), output, QuantizationSpec(4, group_size=32))
        ...     len(errors), size_on_disk(output)["weights"]  # 10,240 weights of 4 bits
        (7, 5120)

    Chapter: none (plumbing: streams, resumes, writes)
    """
    streamed, names = _open(folder, output)
    choose = _by_pattern(spec, bits or {}, skip, names)
    arguments: dict[str, Any] = {"method": method, "activations": activations, "calibration": calibration}
    grids = workflow.check(streamed.model, choose, damping=damping, alpha=alpha, **arguments)
    moved = method.endswith("gptq") and act_order and not static_groups
    checkpoint.check(streamed.model, grids, format, activations=activations, moved_groups=moved)

    def solve(**shared: Any) -> dict[str, QuantizationSpec | None]:
        workflow.quantize(
            streamed.model, choose, damping=damping, act_order=act_order, static_groups=static_groups, alpha=alpha,
            **arguments, **shared,
        )  # fmt: skip
        return {name: choose(name) for name in shared["errors"]}

    options = (method, spec, bits, skip, activations, damping, act_order, static_groups, alpha, format)
    return _solve_folder(
        folder, output, streamed, solve, repr(options), calibration=calibration, format=format, tokenizer=tokenizer,
        ranks=ranks, announce=announce, measure=measure, progress=progress,
    )  # fmt: skip


def prune_folder(
    folder: Path,
    output: Path,
    sparsity: float | None = None,
    *,
    pattern: tuple[int, int] | None = None,
    method: str = "sparsegpt",
    spec: QuantizationSpec | None = None,
    skip: Sequence[str] = (),
    calibration: list[Tensor] | None = None,
    damping: float = 0.01,
    format: str = "compressed-tensors",
    tokenizer: PreTrainedTokenizerBase | None = None,
    ranks: Ranks = ALONE,
    announce: Callable[[dict[str, int]], None] = lambda needs: None,
    measure: Callable[[PreTrainedModel, str], None] | None = None,
    progress: Callable[[list], Iterable] = iter,
) -> dict[str, LayerError]:
    """Prune the model in ``folder`` and write a checkpoint, one block in memory at a time.

    It resumes, and shares calibration text out, as :func:`quantize_folder` does. Without ``spec`` the checkpoint is one of
    plain weights, zeros among them, that loads wherever the model's own did.

    Args:
        folder: of a float model.
        output: folder to create; new or empty.
        sparsity, pattern, method, spec, calibration, damping: as :func:`reference.pruning.one_shot.prune`.
        skip: patterns of layers that stay as they are.
        format, tokenizer, ranks, announce, measure, progress: as :func:`quantize_folder`; ``format`` matters where a
            ``spec`` is given.

    Returns:
        The error and the sparsity of each layer, by name; the report in the folder holds them too.

    Raises:
        ValueError, FileExistsError, OSError: as :func:`quantize_folder`.

    Example:
        >>> import tempfile
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(
        ...     hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=64)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     LlamaForCausalLM(config).save_pretrained(f"{folder}/mine")
        ...     errors = prune_folder(Path(folder, "mine"), Path(folder, "mine-half"), 0.5, method="magnitude")
        >>> {error.removed for error in errors.values()}
        {0.5}

    Chapter: none (plumbing: streams, resumes, writes)
    """
    streamed, names = _open(folder, output)
    _check_patterns(skip, names)
    arguments: dict[str, Any] = {
        "pattern": pattern, "method": method, "spec": spec, "calibration": calibration,
        "skip": lambda name: any(fnmatch.fnmatchcase(name, one) for one in skip),
    }  # fmt: skip
    grids = one_shot.check(streamed.model, sparsity, damping=damping, **arguments)
    checkpoint.check(streamed.model, {name: grid for name, grid in grids.items() if grid is not None}, format)

    def solve(**shared: Any) -> dict[str, QuantizationSpec | None]:
        one_shot.prune(streamed.model, sparsity, damping=damping, **arguments, **shared)
        return dict.fromkeys(shared["errors"], spec)

    options = ("prune", method, sparsity, pattern, spec, skip, damping, format)
    return _solve_folder(
        folder, output, streamed, solve, repr(options), calibration=calibration if method != "magnitude" else None,
        format=format, tokenizer=tokenizer, ranks=ranks, announce=announce, measure=measure, progress=progress,
    )  # fmt: skip


def check_output(output: Path) -> None:
    """Refuse an output that is taken, before any work; what an earlier run left when it had written it is removed.

    Args:
        output: folder to create.

    Raises:
        FileExistsError: it holds something, or is or lies below a file.
        OSError: it cannot be written, or another run is about to write it.

    Example:
        >>> check_output(Path("/dev/null/small"))
        Traceback (most recent call last):
            ...
        FileExistsError: output '/dev/null/small' lies below 'null', which is a file; name a folder

    Chapter: none (checks)
    """
    unfinished = _unfinished(output)
    _clear_finished(unfinished, output)
    check_target(output)
    if unfinished.is_dir():
        with held(unfinished):
            pass


def _open(folder: Path, output: Path) -> tuple[StreamedModel, list[str]]:
    """The model, and the names of its layers; refuses an output that is taken."""
    check_output(output)
    streamed = StreamedModel(folder)
    return streamed, [name for name, _ in block_linears(streamed.model)]


def _unfinished(output: Path) -> Path:
    return output.resolve().parent / f".{output.resolve().name}.unfinished"


def _solve_folder(
    folder: Path,
    output: Path,
    streamed: StreamedModel,
    solve: Callable[..., dict[str, QuantizationSpec | None]],
    options: str,
    *,
    calibration: list[Tensor] | None,
    format: str,
    tokenizer: PreTrainedTokenizerBase | None,
    ranks: Ranks,
    announce: Callable[[dict[str, int]], None],
    measure: Callable[[PreTrainedModel, str], None] | None,
    progress: Callable[[list], Iterable],
) -> dict[str, LayerError]:
    """Run ``solve``, which changes the streamed model and returns the grid of each layer, and write what it made."""
    if calibration:
        announce(working_memory(streamed.model, ranks.share(calibration)))
    if measure and ranks.rank == 0:
        measure(loading.load_float(folder) if streamed.streams else streamed.model, "before")
    fingerprint = {
        "model": digest(folder / "config.json", *sorted(folder.glob("*.safetensors"))),
        "text": digest(*calibration or []),
        "options": options,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    unfinished = _unfinished(output)
    fresh = not unfinished.exists()
    if ranks.rank:
        ranks.wait()
    job = Job(unfinished, fingerprint)
    if not ranks.rank:
        ranks.wait()
    errors: dict[str, LayerError] = {}
    with nullcontext() if ranks.rank else held(unfinished):
        try:
            grids = solve(
                progress=progress, job=job, streamed=streamed, ranks=ranks, errors=errors,
                scale_dtype=None if format == "compressed-tensors" else torch.float16,
            )  # fmt: skip
            if ranks.rank == 0:
                model = streamed.complete()
                if measure:
                    measure(model, "after")
                layers = {name: _row(grid, errors[name]) for name, grid in grids.items()}
                report = {"fingerprint": fingerprint, "layers": layers}
                checkpoint.save(model, output, format, tokenizer=tokenizer, report=report)
                job.remove()
        except BaseException as error:
            # Worth keeping: what took long, and would not end in the same error again.
            if not calibration or (fresh and isinstance(error, ValueError | TypeError)):
                job.remove()
            elif isinstance(error, KeyboardInterrupt):
                error.args = (kept(unfinished),)
            raise
    return errors


def _row(grid: QuantizationSpec | None, error: LayerError) -> dict[str, Any]:
    """What the report says of a layer."""
    row: dict[str, Any] = {"error": error.relative, "error_of": error.of}
    if grid is not None:
        row |= {"bits": grid.bits, "group_size": grid.group_size, "symmetric": grid.symmetric}
    return row | ({"removed": error.removed} if error.removed else {})


def _clear_finished(unfinished: Path, output: Path) -> None:
    """Remove what a kill between the output's last rename and the end of the process left."""
    with suppress(OSError, ValueError, KeyError):
        begun = json.loads((unfinished / "fingerprint.json").read_text())
        if begun == json.loads((output / checkpoint.REPORT).read_text())["fingerprint"]:
            Job(unfinished, begun).remove()


def _by_pattern(
    spec: QuantizationSpec, bits: Mapping[str, int], skip: Sequence[str], names: list[str]
) -> Callable[[str], QuantizationSpec | None]:
    """The grid of each layer by its name, None for those left in float."""
    _check_patterns((*bits, *skip), names)
    grids = {pattern: replace(spec, bits=value) for pattern, value in bits.items()}

    def choose(name: str) -> QuantizationSpec | None:
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in skip):
            return None
        return next((grid for pattern, grid in reversed(grids.items()) if fnmatch.fnmatchcase(name, pattern)), spec)

    return choose


def _check_patterns(patterns: Iterable[str], names: list[str]) -> None:
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ValueError(f"pattern {pattern!r} fits no layer; they are called {names[0]} to {names[-1]}")
