"""What the studies of the chapter trained and ships with the package: exit heads for MiniLM, routers for the tutorial model."""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from reference.dynamic.early_exit import EarlyExit
from reference.dynamic.skipping import skip_tokens
from reference.models import minilm

FILE = Path(__file__).with_name("trained.safetensors")


def topics_classifier() -> EarlyExit:
    """MiniLM as it is, a head for the topics on its embeddings, one after the fourth block, and one at the end.

    Thresholds are 0: set them with :func:`reference.dynamic.early_exit.calibrate`.

    Raises:
        ValueError: MiniLM is not there, see :func:`reference.models.minilm.path`.

    Chapter: advanced/dynamic
    """
    tensors = load_file(FILE)
    places = sorted({int(name.split(".")[1]) for name in tensors if name.startswith("exits.")})
    classes = len(tensors[f"exits.{places[0]}.bias"])
    model = EarlyExit(minilm.Classifier(minilm.load(), classes), places[:-1])
    for place, head in zip(places, [*model.heads, model.classifier.head], strict=True):
        head.load_state_dict({name: tensors[f"exits.{place}.{name}"] for name in ("weight", "bias")})
    return model.eval()


def token_skipping(model: PreTrainedModel) -> PreTrainedModel:
    """Put the routers that were trained on the tutorial model, which stayed as it is, into it, in place.

    Thresholds are minus infinity: set them with :func:`reference.dynamic.skipping.set_thresholds`.

    Args:
        model: of :func:`reference.models.tutorial.load`.

    Chapter: advanced/dynamic
    """
    tensors = load_file(FILE)

    def routers() -> Iterator[nn.Module]:
        for block in range(1, model.config.num_hidden_layers):
            yield _linear(tensors[f"routers.{block}.weight"], tensors[f"routers.{block}.bias"])

    return skip_tokens(model, 0.5, routers=routers())


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer
