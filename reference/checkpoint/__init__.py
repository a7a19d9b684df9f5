"""Write compressed models that other tools load, and read them back strictly."""

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
import transformers
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from reference.checkpoint import awq, compressed_tensors, gptq, served
from reference.checkpoint.stored import as_in_the_model
from reference.files import atomic_directory, tell_full
from reference.layers import Int8Linear, QuantizedLinear
from reference.models.conv1d import TRANSPOSED, linearize
from reference.models.families import replace_module
from reference.quantization import ServingWarning
from reference.quantization.activations import ActivationSpec
from reference.quantization.grid import QuantizationSpec
from reference.tensors import QuantizedTensor

#: Each writes its layers with ``configuration`` and ``tensors`` and reads them with ``Reader``.
FORMATS = {"compressed-tensors": compressed_tensors, "gptq": gptq, "awq": awq}
SHARD_BYTES = 5_000_000_000
REPORT = "compression.json"


def save(
    model: PreTrainedModel,
    directory: str | os.PathLike,
    format: str = "compressed-tensors",
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    shard_bytes: int = SHARD_BYTES,
    report: dict | None = None,
) -> None:
    """Write ``model`` as a folder that transformers loads, and vLLM where :func:`reference.checkpoint.served.refused` says nothing.

    Layers that are :class:`~reference.layers.QuantizedLinear` are stored packed, everything else
    as it is. The folder appears whole or not at all.

    Args:
        model: a transformers model, some of whose layers may be quantised.
        directory: folder to create; it may exist if it is empty.
        format: ``"compressed-tensors"`` (2 to 8 bits), ``"gptq"`` (2, 3, 4 and 8; the one that holds moved
            groups, and GPT-2) or ``"awq"`` (4 bits). The last two store float16 scales.
        tokenizer: saved beside the model, so that the folder is complete.
        shard_bytes: largest file.
        report: how the weights were made, JSON-ready; written as :data:`REPORT`, which loaders pass over.

    Raises:
        ValueError: unknown format, or a layer that the format cannot hold, named.
        FileExistsError: the folder holds something.
        OSError: the disk is full or not writable; nothing is left behind.

    Example:
        >>> import tempfile
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from reference import evaluation, workflow
        >>> from reference.quantization.grid import QuantizationSpec
        >>> config = LlamaConfig(
        ...     hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=64)
        >>> model = workflow.quantize(LlamaForCausalLM(config), QuantizationSpec(4, group_size=32))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(model, folder)
        ...     evaluation.size_on_disk(folder)["weights"]  # 10,240 weights of 4 bits
        5120

    Chapter: quantization/post_training
    """
    layers = {
        name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear | Int8Linear)
    }
    configuration = _configuration(model, layers, format)
    config = model.config.to_dict()
    for key in ("quantization_config", "_name_or_path"):  # the latter is a path of this machine
        config.pop(key, None)
    config.update(architectures=[type(model).__name__], dtype=str(model.dtype).removeprefix("torch."))
    if configuration is not None:
        config["quantization_config"] = configuration
    tensors: dict[str, Tensor] = _float_tensors(model, layers)
    for name, layer in layers.items():
        found = FORMATS[format].tensors(layer, name, config["quantization_config"])
        tensors |= {f"{name}.{suffix}": tensor for suffix, tensor in found.items()}
        if layer.bias is not None:
            tensors[f"{name}.bias"] = layer.bias
    with atomic_directory(directory, needs=sum(tensor.nbytes for tensor in tensors.values())) as folder:
        try:
            save_torch_state_dict(tensors, folder, max_shard_size=shard_bytes, metadata={"format": "pt"})
        except SafetensorError as error:
            tell_full(error, str(directory))
            raise OSError(f"{str(directory)!r} could not be written: {error}") from error
        if getattr(model, "generation_config", None) is not None:
            model.generation_config.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        if layers and format == "gptq":  # where older loaders look
            (folder / "quantize_config.json").write_text(json.dumps(config["quantization_config"], indent=2) + "\n")
        if report is not None:
            (folder / REPORT).write_text(json.dumps(report, indent=2, sort_keys=True) + "\n")
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def check(
    model: PreTrainedModel,
    grids: Mapping[str, QuantizationSpec],
    format: str = "compressed-tensors",
    *,
    activations: ActivationSpec | None = None,
    moved_groups: bool = False,
) -> None:
    """What :func:`save` would refuse of a model that is still to be quantised, refused before a long run.

    Args:
        model: in float; weights may be on the meta device.
        grids: of each layer that will be quantised, by full name.
        format: as :func:`save`.
        activations: how the layers' inputs will be quantised, if at all.
        moved_groups: whether groups move with the columns (act-order without static groups).

    Raises:
        ValueError: unknown format, or a layer that the format cannot hold, named.

    Warns:
        ServingWarning: transformers will load the folder, and vLLM will not.

    Example:
        >>> from reference.models import tutorial
        >>> check(tutorial.load(), {"model.layers.0.mlp.up_proj": QuantizationSpec(3, group_size=128)}, "awq")
        Traceback (most recent call last):
            ...
        ValueError: model.layers.0.mlp.up_proj has 3 bits; the awq format holds 4. Write compressed-tensors or gptq

    Chapter: none (checks)
    """
    layers: dict[str, QuantizedLinear | Int8Linear] = {}
    for name, spec in grids.items():
        rows, columns = model.get_submodule(name).get_parameter("weight").shape
        groups = 1 if spec.per_tensor or spec.group_size is None else columns // spec.group_size
        # As the solver will leave it, without content.
        weight = QuantizedTensor(
            torch.empty(rows, -(-columns * spec.bits // 32), dtype=torch.int32, device="meta"),
            torch.empty(1 if spec.per_tensor else rows, groups, device="meta"),
            None, (rows, columns), spec,
            torch.empty(columns, dtype=torch.int32, device="meta") if moved_groups and spec.group_size else None,
        )  # fmt: skip
        if activations is None:
            layers[name] = QuantizedLinear(weight)
        else:
            step = torch.ones(1) if activations.granularity == "static" else None
            layers[name] = Int8Linear(weight, activations, input_scale=step)
    _configuration(model, layers, format)
    reason = served.refused(model, grids, format, activations=activations, moved_groups=moved_groups)
    if reason:
        warnings.warn(f"vLLM will not load this folder: {reason}", ServingWarning, stacklevel=2)


def _configuration(
    model: PreTrainedModel, layers: Mapping[str, QuantizedLinear | Int8Linear], format: str
) -> dict | None:
    """The ``quantization_config`` of ``model`` with ``layers`` quantised; None if there are none."""
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; it may be {', '.join(FORMATS)}")
    if not layers:
        return None
    if format != "gptq" and model.config.model_type in TRANSPOSED:
        raise ValueError(
            f"{type(model).__name__} keeps its layers transposed (Conv1D), which loaders of {format} do not quantise; "
            "write format 'gptq'"
        )
    floats = [n for n, module in model.named_modules() if isinstance(module, nn.Linear) and n not in layers]
    return FORMATS[format].configuration(dict(layers), floats)


def _float_tensors(model: PreTrainedModel, layers: dict[str, QuantizedLinear | Int8Linear]) -> dict[str, Tensor]:
    """State of everything but the quantised layers; tied weights once, under the embedding's name."""
    state = model.state_dict()
    keys = dict(getattr(model, "all_tied_weights_keys", None) or {})
    # Rotations untie the head; the model still lists it.
    tied = {name for name, first in keys.items() if name in state and state[name].data_ptr() == state[first].data_ptr()}
    quantised = tuple(f"{name}." for name in layers)
    return {
        name: tensor.contiguous()
        for name, tensor in state.items()
        if name not in tied and not (quantised and name.startswith(quantised))
    }


def load(directory: str | os.PathLike, *, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Read a folder that :func:`save`, or another writer of the format, made.

    Stricter than transformers: a missing, unknown or misshapen tensor is an error, where
    transformers warns about a missing scale and computes with NaN.

    Args:
        directory: folder with ``config.json`` and safetensors files.
        dtype: of the unquantised tensors and the computation; that of the checkpoint if None.

    Returns:
        The model in evaluation mode, with packed :class:`~reference.layers.QuantizedLinear` layers.

    Raises:
        ValueError: the folder is no checkpoint, is incomplete or damaged, or has a format not known here.

    Example:
        >>> import tempfile
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(
        ...     hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=64)
        >>> model = LlamaForCausalLM(config)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(model, folder)
        ...     again = load(folder)
        >>> torch.equal(again.lm_head.weight, model.lm_head.weight)
        True

    Chapter: quantization/post_training
    """
    folder = Path(directory)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{str(folder)!r} holds no config.json; it is not a checkpoint")
    try:
        config = AutoConfig.from_pretrained(folder)
    except OSError as error:  # what transformers raises where the file is not JSON
        raise ValueError(f"{str(folder / 'config.json')!r} is damaged: {error}") from error
    quantization = getattr(config, "quantization_config", None)
    layers = None
    if quantization is not None:
        del config.quantization_config
        layers = reader(quantization)
    stored = as_in_the_model(_read(folder), config.model_type)
    kind = getattr(transformers, (config.architectures or [""])[0], None)
    model = (kind._from_config if kind else AutoModelForCausalLM.from_config)(config, dtype=dtype or config.dtype)
    linearize(model)
    if layers is not None:
        for name, module in list(model.named_modules()):
            layer = layers.take(stored, name, module) if isinstance(module, nn.Linear) else None
            if layer is not None:
                replace_module(model, name, layer)
    _fill(model, stored, folder)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval()


def reader(configuration: dict) -> awq.Reader | compressed_tensors.Reader | gptq.Reader:
    """What reads the layers that a ``quantization_config`` describes.

    Args:
        configuration: the dictionary in config.json.

    Returns:
        The reader of its ``quant_method``: its ``take`` makes a layer of the tensors of a file.

    Raises:
        ValueError: a format that is not known here, or a variant of one.

    Example:
        >>> layers = reader({"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True})
        >>> layers.spec("model.layers.0.mlp.up_proj", {"qweight"}).group_size
        128
        >>> layers.spec("lm_head", {"weight"}) is None  # in float: it has no qweight
        True

    Chapter: none (file format)
    """
    method = configuration.get("quant_method")
    if method not in FORMATS:
        raise ValueError(
            f"quantised with {method!r}, format {configuration.get('format')!r}; read here are {', '.join(FORMATS)}"
        )
    return FORMATS[method].Reader(configuration)


def _read(folder: Path) -> dict[str, Tensor]:
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{str(index)!r} is damaged: {error!r}") from error
    tensors: dict[str, Tensor] = {}
    for name in names:
        if not (folder / name).is_file():
            raise ValueError(f"{str(folder)!r} is incomplete: {name} is missing")
        try:
            tensors |= load_file(folder / name)
        except SafetensorError as error:
            raise ValueError(f"{str(folder / name)!r} is damaged: {error}") from error
    return tensors


@torch.no_grad()
def _fill(model: PreTrainedModel, stored: dict[str, Tensor], folder: Path) -> None:
    """Copy what is left of ``stored`` into the model, and insist that it is exactly what is needed."""
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    packed = {
        f"{n}.{b}"
        for n, m in model.named_modules()
        if isinstance(m, QuantizedLinear | Int8Linear)
        for b, _ in m.named_buffers()
    }
    wanted = {
        name: tensor for name, tensor in model.state_dict().items() if name not in packed or name.endswith(".bias")
    }
    missing = sorted(set(wanted) - set(stored) - tied)
    unknown = sorted(set(stored) - set(wanted))
    if missing or unknown:
        raise ValueError(
            f"{str(folder)!r} does not fit its config.json: missing {missing[:4]}, not expected {unknown[:4]}"
        )
    for name, tensor in stored.items():
        if tensor.shape != wanted[name].shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; config.json asks for {tuple(wanted[name].shape)}"
            )
    model.load_state_dict(stored, strict=False)  # by each module's own hand: GPT-2's layers are transposed in the files
