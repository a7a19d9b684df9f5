"""A model of which only one block is in memory at a time, the rest waits in its safetensors files."""

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from reference.models import loading
from reference.models.conv1d import linearize
from reference.models.families import blocks, family_of

_LIBC: Any = ctypes.CDLL(None) if sys.platform == "linux" else None


def give_back() -> None:
    """Return freed memory to the system; glibc keeps it in pieces that nothing large fits into.

    Example:
        >>> block = torch.zeros(1000, 1000)
        >>> del block
        >>> give_back()  # what the process holds without using it

    Chapter: none (memory)
    """
    if hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc_trim(0)


class Weights:
    """The tensors of a folder's safetensors files by name, read one at a time.

    Args:
        folder: with ``model.safetensors``, or shards and ``model.safetensors.index.json``.

    Attributes:
        files: file of each tensor, by name.

    Raises:
        ValueError: there are no such files, or one is damaged.

    Example:
        >>> weights = Weights(loading.resolve("tutorial"))
        >>> weights.read(["model.norm.weight"])["model.norm.weight"].shape
        torch.Size([256])

    Chapter: none (loading)
    """

    def __init__(self, folder: Path) -> None:
        index = folder / "model.safetensors.index.json"
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.is_file() else []
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{str(index)!r} is damaged: {error!r}") from error
        self.folder = folder
        self.files: dict[str, Path] = {}
        for path in [folder / name for name in names or ["model.safetensors"]]:
            if not path.is_file():
                raise ValueError(f"{str(folder)!r} could not be loaded: {path.name} is missing (pickle is not read)")
            try:
                with safe_open(path, "pt") as file:
                    self.files |= dict.fromkeys(file.keys(), path)
            except SafetensorError as error:
                raise ValueError(f"{str(path)!r} could not be loaded, it is damaged: {error}") from error

    @property
    def dtype(self) -> torch.dtype:
        """Type of the first tensor of floating-point numbers; float32 if there is none."""
        for name, path in self.files.items():
            with safe_open(path, "pt") as file:
                stored = file.get_slice(name)
                found = stored[:1].dtype if stored.get_shape() else torch.int64
            if found.is_floating_point:
                return found
        return torch.float32

    def read(self, names: list[str]) -> dict[str, Tensor]:
        """Copies of some tensors: no file stays mapped into memory."""
        found: dict[str, Tensor] = {}
        for path in dict.fromkeys(self.files[name] for name in names):
            with safe_open(path, "pt") as file:
                found |= {name: file.get_tensor(name).clone() for name in names if self.files[name] == path}
        return {name: found[name] for name in names}


class StreamedModel:
    """A float model whose blocks come from the disk when they are needed.

    Args:
        folder: of an unquantised model.

    Attributes:
        model: embedding and what else comes before the blocks are real, in the stored type; the blocks and
            the head are on the meta device until :meth:`enter`.
        weights: the files.
        streams: False if the files name their tensors otherwise than the model does. Then the
            whole model is in memory, and :meth:`enter` and :meth:`leave` do nothing.

    Raises:
        ValueError: as :func:`reference.models.loading.load_float`.

    Example:
        >>> streamed = StreamedModel(loading.resolve("tutorial"))
        >>> layer = streamed.model.model.layers[0].mlp.up_proj
        >>> before = layer.weight.device
        >>> streamed.enter("model.layers.0")
        >>> before, layer.weight.device
        (device(type='meta'), device(type='cpu'))
        >>> streamed.leave("model.layers.0")
        >>> layer.weight.device
        device(type='meta')

    Chapter: none (loading)
    """

    def __init__(self, folder: Path) -> None:
        kind = loading.model_class(folder)
        config = loading.float_config(folder)
        self.weights = Weights(folder)
        self.dtype: torch.dtype = config.dtype if isinstance(config.dtype, torch.dtype) else self.weights.dtype
        try:
            with init_empty_weights(include_buffers=False):
                model = (getattr(kind, "_from_config", None) or kind.from_config)(config, dtype=self.dtype)
        except Exception as error:  # a class that is not this configuration's: the types of error are its own
            raise ValueError(f"{str(folder)!r} could not be loaded as {kind.__name__}: {error}") from error
        linearize(model)
        self.model: PreTrainedModel = model.eval()
        if (folder / "generation_config.json").is_file():  # else the model's, made from config.json, holds
            try:
                self.model.generation_config = GenerationConfig.from_pretrained(folder)
            except Exception as error:  # OSError where it is no JSON, TypeError where it is no object
                raise ValueError(f"{str(folder / 'generation_config.json')!r} is damaged: {error}") from error
        self._names = self._match()
        self.streams = bool(self._names)
        if not self.streams:  # transformers renames while it loads
            self.model = loading.load_float(folder)
            return
        family = family_of(model)
        blocks(model)
        self._head = [name for name in self._names if name.startswith(f"{family.head}.")]
        later = (f"{family.blocks}.", *self._head)
        self._fill(self.model, [name for name in self._names if not name.startswith(later)])

    def _match(self) -> dict[str, str]:
        """The file's name of each tensor of the model; empty if one has none."""
        tied = set(getattr(self.model, "all_tied_weights_keys", None) or ())
        prefix = f"{self.model.base_model_prefix}."
        result = {}
        for name in self.model.state_dict():
            # Files of a base model lack the prefix, those of a task's model have one too much.
            for stored in (name, name.removeprefix(prefix), prefix + name):
                if stored in self.weights.files:
                    result[name] = stored
                    break
            else:
                if name not in tied:
                    return {}
        return result

    def _fill(self, module: nn.Module, names: list[str], prefix: str = "") -> None:
        tensors = self.weights.read([self._names[name] for name in names])
        state = {
            name.removeprefix(prefix): tensor.to(self.dtype) if tensor.is_floating_point() else tensor
            for name, tensor in zip(names, tensors.values(), strict=True)
        }
        wanted = {name: tensor.shape for name, tensor in module.state_dict().items()}
        for name, tensor in state.items():
            if tensor.shape != wanted[name]:
                raise ValueError(
                    f"{prefix}{name} has shape {tuple(tensor.shape)}; config.json asks for {tuple(wanted[name])}"
                )
        module.load_state_dict(state, strict=False, assign=True)

    def complete(self) -> PreTrainedModel:
        """The model with the weights of its head too: for saving, when the blocks are done."""
        if self.streams:
            self._fill(self.model, self._head)
            self.model.tie_weights()
        return self.model

    def enter(self, path: str) -> None:
        """Read the weights of the block called ``path``."""
        if not self.streams:
            return
        give_back()
        prefix = f"{path}."
        self._fill(self.model.get_submodule(path), [n for n in self._names if n.startswith(prefix)], prefix)

    def leave(self, path: str) -> None:
        """Forget the weights of the block called ``path``; they are on the disk."""
        if not self.streams:
            return
        block = self.model.get_submodule(path)
        for module in block.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(parameter.detach().to("meta"), requires_grad=False))
            for name, buffer in list(module.named_buffers(recurse=False)):
                if name not in module._non_persistent_buffers_set:
                    module._buffers[name] = buffer.to("meta")
