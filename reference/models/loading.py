"""Find a model by name and load it, or say in one line why not."""

import json
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import is_protobuf_available, is_sentencepiece_available

from reference.models import minilm, tutorial
from reference.models.conv1d import linearize
from reference.models.families import blocks, family_of_type

PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]

#: Files that hold a tokenizer's words, one of which every tokenizer has.
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model", "*.tiktoken", "tekken.json")


def resolve(name: str) -> Path:
    """Folder of the model called ``name``.

    Args:
        name: ``"tutorial"`` for the shipped model, ``"minilm"`` for the encoder of
            :mod:`reference.models.minilm`, a folder, or a name on the hub, which is
            downloaded into the usual cache (safetensors only).

    Raises:
        ValueError: there is no such folder, and the hub has no such model or cannot be reached.

    Example:
        >>> resolve("tutorial").name
        'tutorial'

    Chapter: none (loading)
    """
    if name == "tutorial":
        return tutorial.PATH
    if name == "minilm":
        return minilm.path()
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(f"model folder {name!r} holds no config.json")
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=PATTERNS))
    except HFValidationError as error:
        raise ValueError(f"no such model: {name!r} is neither a folder nor a name on the hub") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"no such model: there is no folder {name!r}, and the hub has no model of that name or cannot be "
            "reached; give a local folder, or 'tutorial' for the shipped model"
        ) from error


def model_class(folder: Path) -> Any:
    """The transformers class that the folder's config.json names, or AutoModelForCausalLM.

    Args:
        folder: holds ``config.json``.

    Raises:
        ValueError: config.json is damaged, or the architecture is not one of
            :data:`reference.models.families.FAMILIES`.

    Example:
        >>> model_class(resolve("tutorial")).__name__
        'LlamaForCausalLM'

    Chapter: none (loading)
    """
    try:
        config = json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise ValueError(f"{str(folder / 'config.json')!r} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{str(folder / 'config.json')!r} is no JSON object")
    if not isinstance(config.get("quantization_config"), dict | None):
        raise ValueError(f"{str(folder / 'config.json')!r} is damaged: its quantization_config is no JSON object")
    family_of_type(config.get("model_type", "unknown"))
    names = config.get("architectures") or []
    found = getattr(transformers, names[0], None) if names else None
    return found or transformers.AutoModelForCausalLM


def load_float(folder: Path) -> PreTrainedModel:
    """Load an unquantised model in the type that it is stored in.

    Args:
        folder: of :func:`resolve`.

    Returns:
        The model in evaluation mode; GPT-2's transposed layers are linear ones.

    Raises:
        ValueError: no weights, damaged files, unknown architecture or class, or already quantised.

    Example:
        >>> model = load_float(resolve("tutorial"))
        >>> model.dtype, model.num_parameters()
        (torch.bfloat16, 5770496)

    Chapter: none (loading)
    """
    kind = model_class(folder)
    float_config(folder)
    try:
        model, report = kind.from_pretrained(folder, dtype="auto", output_loading_info=True)
    except Exception as error:  # transformers raises OSError, RuntimeError, SafetensorError, KeyError …
        raise ValueError(f"{str(folder)!r} could not be loaded: {_first_line(error)}") from error
    absent = sorted(report["missing_keys"])
    if absent:  # transformers makes up random ones
        raise ValueError(f"{str(folder)!r} is incomplete: {len(absent)} tensors are missing, the first {absent[0]}")
    blocks(model)
    linearize(model)
    return model.eval()


def float_config(folder: Path) -> PreTrainedConfig:
    """The configuration of an unquantised model.

    Args:
        folder: of :func:`resolve`.

    Raises:
        ValueError: ``config.json`` is damaged, or the model is quantised already.

    Example:
        >>> config = float_config(resolve("tutorial"))
        >>> config.model_type, config.num_hidden_layers, config.hidden_size
        ('llama', 6, 256)

    Chapter: none (loading)
    """
    config = _config(folder)
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(f"{str(folder)!r} is quantised already; start from the float model")
    return config


def limits(folder: Path) -> tuple[int | None, int | None]:
    """The most tokens that the model can see at once, and how many it knows.

    Args:
        folder: of :func:`resolve`; the model may be quantised.

    Returns:
        ``(positions, vocabulary)``, each None where ``config.json`` does not say.

    Raises:
        ValueError: ``config.json`` is damaged.

    Example:
        >>> limits(resolve("tutorial"))
        (512, 4096)

    Chapter: none (loading)
    """
    config = _config(folder)
    return getattr(config, "max_position_embeddings", None), getattr(config, "vocab_size", None)


def _config(folder: Path) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(folder)
    except Exception as error:  # a wrong field: the types of error are the config class's own
        raise ValueError(f"{str(folder / 'config.json')!r} is damaged: {_first_line(error)}") from error


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The folder's tokenizer, or None if it has none.

    Args:
        folder: of :func:`resolve`.

    Raises:
        ValueError: its files are damaged or not all there, or need a package that is not installed.

    Example:
        >>> load_tokenizer(resolve("tutorial")).tokenize("return x")  # Ġ is a space
        ['return', 'Ġx']

    Chapter: none (loading)
    """
    named = [name for name in VOCABULARIES if any(folder.glob(name))]
    if not named:
        if not (folder / "tokenizer_config.json").is_file():
            return None
        raise ValueError(  # transformers would make up one that knows no words
            f"the tokenizer in {str(folder)!r} has a tokenizer_config.json and no vocabulary; add the file that the model "
            "comes with: tokenizer.json, tokenizer.model, or vocab.json and merges.txt"
        )
    if named == ["*.model"] and not (is_sentencepiece_available() and is_protobuf_available()):
        raise ValueError(
            f"the tokenizer in {str(folder)!r} has no tokenizer.json, and to read its .model file transformers needs two "
            "packages: pip install sentencepiece protobuf"
        )
    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # tokenizers raises a bare Exception for a damaged file
        raise ValueError(f"the tokenizer in {str(folder)!r} could not be loaded: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
