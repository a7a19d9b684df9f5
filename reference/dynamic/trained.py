"""What a study of the chapter trained and ships with the package: exit heads for MiniLM on the topics task."""

from pathlib import Path

from safetensors.torch import load_file

from reference.dynamic.early_exit import EarlyExit
from reference.models import minilm

FILE = Path(__file__).with_name("trained.safetensors")


def topics_classifier() -> EarlyExit:
    """MiniLM as it is, a head for the topics on its embeddings, one after the fourth block, and one at the end.

    Thresholds are 0: set them with :func:`reference.dynamic.early_exit.calibrate`.

    Returns:
        A model with heads after none, four and all of its blocks, in evaluation mode.

    Raises:
        ValueError: MiniLM is not there, see :func:`reference.models.minilm.path`.

    Example:
        >>> model = topics_classifier()
        >>> model.exits, model.classifier.head.out_features, model.thresholds.tolist()
        ((0, 4), 10, [0.0, 0.0])

    Chapter: advanced/dynamic
    """
    tensors = load_file(FILE)
    places = sorted({int(name.split(".")[1]) for name in tensors if name.startswith("exits.")})
    classes = len(tensors[f"exits.{places[0]}.bias"])
    model = EarlyExit(minilm.Classifier(minilm.load(), classes), places[:-1])
    for place, head in zip(places, [*model.heads, model.classifier.head], strict=True):
        head.load_state_dict({name: tensors[f"exits.{place}.{name}"] for name in ("weight", "bias")})
    return model.eval()
