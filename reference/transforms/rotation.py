r"""Rotations that remove outliers: what writes the residual stream is turned, what reads it is turned back.

.. math:: \mathrm{RMSNorm}(x Q) = \mathrm{RMSNorm}(x)\, Q \quad (Q^\top Q = I,\ \text{norm weight } 1)

So with the norms' weights folded into the layers behind them, the residual stream can be rotated without changing
the function, and nothing is added to the forward pass:

    ============================= =====================
    embedding                     :math:`E\,Q`
    q, k, v, gate, up, head       :math:`W Q`
    o, down                       :math:`Q^\top W`
    v, then o, per head           :math:`H^\top W_v`, :math:`W_o H`
    ============================= =====================

The input of ``down`` comes out of a product and cannot be reached so: :class:`reference.int8.Int8Linear` rotates it
in the call (``hadamard=True``).

Source: Ashkboos et al. 2024, QuaRot, sections 3 and 4; SliceGPT for the invariance.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from reference.models.families import Family, blocks, family_of
from reference.quantization import hadamard

#: Architectures whose blocks are the ones above; RMS norms before each sublayer, no other reader of the stream.
SUPPORTED = ("llama", "mistral", "qwen2")


@torch.no_grad()
def fold_norms(model: PreTrainedModel) -> PreTrainedModel:
    """Multiply the weight of every norm into the layers that read it, in place; the norms' weights become 1.

    A head tied to the embedding gets a weight of its own.

    Args:
        model: one of :data:`SUPPORTED`, in floating point.

    Returns:
        ``model``, the same function.

    Raises:
        ValueError: another architecture.

    Source: Ashkboos et al. 2024, section 4, stage 1a.

    Example:
        >>> from reference.models import tutorial
        >>> model, ids = tutorial.load(), torch.arange(8)[None]
        >>> before = model(ids).logits
        >>> norm = fold_norms(model).model.norm
        >>> bool((norm.weight == 1).all()), torch.allclose(model(ids).logits, before, atol=1e-3)
        (True, True)

    Chapter: quantization/activations
    """
    family = _family(model)
    head: nn.Module = model.get_output_embeddings()
    if head.weight is model.get_input_embeddings().weight:
        head.weight = nn.Parameter(head.get_parameter("weight").detach().clone())
        model.config.tie_word_embeddings = False
    for block in blocks(model):
        for scaling in family.scalings:
            norm = block.get_submodule(scaling.previous)
            if not isinstance(norm, nn.Linear):
                _fold(norm, [block.get_submodule(name) for name in scaling.linears])
    _fold(model.get_submodule("model.norm"), [head])
    return model


@torch.no_grad()
def rotate(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Fold the norms, then rotate the residual stream and the value heads, in place.

    Args:
        model: as :func:`fold_norms`; hidden size and head size have Hadamard matrices.
        seed: of the signs of the residual rotation.

    Returns:
        ``model``, the same function up to rounding. Products are made in float64.

    Raises:
        ValueError: another architecture, or a size without a Hadamard matrix.

    Source: Ashkboos et al. 2024, section 4, stages 1a and 1b.

    Example:
        >>> from reference.models import tutorial
        >>> model, ids = tutorial.load(outliers=50), torch.arange(8)[None]
        >>> before = model(ids).logits
        >>> torch.allclose(rotate(model)(ids).logits, before, atol=1e-2)  # the same function
        True

    Chapter: quantization/activations
    """
    family = _family(model)
    config = model.config
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    stream, value = hadamard.matrix(config.hidden_size, seed), hadamard.matrix(head_size)
    fold_norms(model)
    for reader in (model.get_input_embeddings(), model.get_output_embeddings()):
        weight = reader.get_parameter("weight")
        _set(weight, weight.double() @ stream.to(weight.device))
    for block in blocks(model):
        for group in family.sublayers:
            for name in group:
                _rotate_layer(block.get_submodule(name), name, stream, value)
    return model


def kurtosis(x: Tensor) -> float:
    r""":math:`\mathbb{E}[(x - \mu)^4] / \sigma^4` over all values: 3 for a normal distribution, large with outliers.

    Args:
        x: any shape, at least two different values.

    Example:
        >>> kurtosis(torch.tensor([-1.0, 1.0])), kurtosis(torch.tensor([0.0] * 99 + [1.0])) > 90  # one outlier
        (1.0, True)

    Chapter: quantization/activations
    """
    centred = x.double() - x.double().mean()
    return float(centred.pow(4).mean() / centred.square().mean().square())


def _rotate_layer(linear: nn.Module, name: str, stream: Tensor, value: Tensor) -> None:
    parameter = linear.get_parameter("weight")
    bias = None if getattr(linear, "bias", None) is None else linear.get_parameter("bias")
    weight, stream, value = parameter.double(), stream.to(parameter.device), value.to(parameter.device)
    if name in ("self_attn.o_proj", "mlp.down_proj"):
        weight = stream.T @ weight
        if bias is not None:
            _set(bias, bias.double() @ stream)
    else:
        weight = weight @ stream
    if name == "self_attn.o_proj":
        weight = (weight.unflatten(1, (-1, len(value))) @ value).flatten(1)
    if name == "self_attn.v_proj":
        weight = (value.T @ weight.unflatten(0, (-1, len(value)))).flatten(0, 1)
        if bias is not None:
            _set(bias, (bias.double().unflatten(0, (-1, len(value))) @ value).flatten())
    _set(parameter, weight)


def _family(model: PreTrainedModel) -> Family:
    kind = getattr(model.config, "model_type", type(model).__name__)
    if kind not in SUPPORTED:
        raise ValueError(f"model is a {kind!r}; rotations are folded into {', '.join(SUPPORTED)}")
    return family_of(model)


def _fold(norm: nn.Module, readers: list[nn.Module]) -> None:
    weight = norm.get_parameter("weight")
    for reader in readers:
        columns = reader.get_parameter("weight")
        _set(columns, columns.double() * weight.double())
    weight.fill_(1)


def _set(parameter: Tensor, value: Tensor) -> None:
    parameter.copy_(value.to(parameter.dtype))
