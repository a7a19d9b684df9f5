"""Where blocks, linear layers and norms are, one row of a table per architecture."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn


@dataclass(frozen=True)
class Scaling:
    """A place in a block where channels can be rescaled without changing the function.

    Attributes:
        previous: the norm, or linear layer, whose output channels are divided by the scale.
        linears: the layers that read them, and nothing else does; their columns are multiplied.
        inspected: the module whose output tells how good a scale is (AWQ).

    Example:
        >>> family_of_type("opt").scalings[-1]
        Scaling(previous='fc1', linears=('fc2',), inspected='fc2')

    Chapter: none (a data table; the smoothquant and awq chapters read it)
    """

    previous: str
    linears: tuple[str, ...]
    inspected: str


@dataclass(frozen=True)
class Family:
    """Names of the parts of one architecture, relative to the model or to a block.

    Attributes:
        blocks: path of the list of transformer blocks.
        embedding: path of the token embedding.
        head: path of the output layer; None for an encoder.
        sublayers: linear layers of a block in the order of the forward pass, grouped by
            shared input: all names of a group see the same activations.
        scalings: see :class:`Scaling`, in the order in which AWQ's authors search them. A value
            projection is followed by the output projection through the attention's average, which
            is linear; that holds only where each value head serves one query head, so users of the
            table compare the two widths.

    Example:
        >>> family = family_of_type("gpt2")
        >>> family.blocks, family.sublayers
        ('transformer.h', (('attn.c_attn',), ('attn.c_proj',), ('mlp.c_fc',), ('mlp.c_proj',)))

    Chapter: none (a data table; the walk of the calibration chapters reads it)
    """

    blocks: str
    embedding: str
    head: str | None
    sublayers: tuple[tuple[str, ...], ...]
    scalings: tuple[Scaling, ...]


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
_LLAMA = Family(
    blocks="model.layers",
    embedding="model.embed_tokens",
    head="lm_head",
    sublayers=(_QKV, ("self_attn.o_proj",), _GATE_UP, ("mlp.down_proj",)),
    scalings=(
        Scaling("input_layernorm", _QKV, "self_attn"),
        Scaling("self_attn.v_proj", ("self_attn.o_proj",), "self_attn.o_proj"),
        Scaling("post_attention_layernorm", _GATE_UP, "mlp"),
        Scaling("mlp.up_proj", ("mlp.down_proj",), "mlp.down_proj"),
    ),
)
_GEMMA2 = Family(
    blocks="model.layers",
    embedding="model.embed_tokens",
    head="lm_head",
    sublayers=_LLAMA.sublayers,
    scalings=tuple(
        replace(scaling, previous="pre_feedforward_layernorm")
        if scaling.previous == "post_attention_layernorm"
        else scaling
        for scaling in _LLAMA.scalings
    ),
)
_PHI3 = Family(
    blocks="model.layers",
    embedding="model.embed_tokens",
    head="lm_head",
    sublayers=(("self_attn.qkv_proj",), ("self_attn.o_proj",), ("mlp.gate_up_proj",), ("mlp.down_proj",)),
    scalings=(
        Scaling("input_layernorm", ("self_attn.qkv_proj",), "self_attn"),
        Scaling("post_attention_layernorm", ("mlp.gate_up_proj",), "mlp"),
        Scaling("mlp.gate_up_proj", ("mlp.down_proj",), "mlp.down_proj"),  # its last rows are the up half
    ),
)
_OPT = Family(
    blocks="model.decoder.layers",
    embedding="model.decoder.embed_tokens",
    head="lm_head",
    sublayers=(_QKV, ("self_attn.out_proj",), ("fc1",), ("fc2",)),
    scalings=(
        Scaling("self_attn_layer_norm", _QKV, "self_attn"),
        Scaling("self_attn.v_proj", ("self_attn.out_proj",), "self_attn.out_proj"),
        Scaling("final_layer_norm", ("fc1",), "fc1"),
        Scaling("fc1", ("fc2",), "fc2"),  # through a ReLU, which a positive scale passes
    ),
)
_GPT_NEOX = Family(
    blocks="gpt_neox.layers",
    embedding="gpt_neox.embed_in",
    head="lm_head",
    sublayers=(
        ("attention.query_key_value",), ("attention.dense",), ("mlp.dense_h_to_4h",), ("mlp.dense_4h_to_h",),
    ),
    scalings=(
        Scaling("input_layernorm", ("attention.query_key_value",), "attention"),
        Scaling("post_attention_layernorm", ("mlp.dense_h_to_4h",), "mlp"),
    ),
)  # fmt: skip
_GPT2 = Family(  # its layers are transposed when it is loaded, see reference.models.conv1d
    blocks="transformer.h",
    embedding="transformer.wte",
    head="lm_head",
    sublayers=(("attn.c_attn",), ("attn.c_proj",), ("mlp.c_fc",), ("mlp.c_proj",)),
    scalings=(Scaling("ln_1", ("attn.c_attn",), "attn"), Scaling("ln_2", ("mlp.c_fc",), "mlp")),
)
_BERT_QKV = ("attention.self.query", "attention.self.key", "attention.self.value")
_BERT = Family(
    blocks="encoder.layer",
    embedding="embeddings.word_embeddings",
    head=None,
    sublayers=(_BERT_QKV, ("attention.output.dense",), ("intermediate.dense",), ("output.dense",)),
    scalings=(),  # the residual reads every norm's output too, so nothing can be moved through it
)

FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _GEMMA2,
    "phi3": _PHI3,
    "opt": _OPT,
    "gpt2": _GPT2,
    "gpt_neox": _GPT_NEOX,
    "bert": _BERT,
}


def family_of(model: nn.Module) -> Family:
    """The table row of ``model``, by its ``config.model_type``.

    Args:
        model: from transformers; a task's head on an encoder is passed through. An OPT whose norms stand behind the
            residual has no ``scalings``, and one whose activation is no ReLU none through it.

    Raises:
        ValueError: the architecture is not in the table; the message names those that are.

    Example:
        >>> from reference.models import tutorial
        >>> family_of(tutorial.load()).sublayers[0]  # three layers that read the same input
        ('self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj')

    Chapter: none (look-up)
    """
    config = getattr(model, "config", None)
    family = family_of_type(getattr(config, "model_type", type(model).__name__))
    if family is _OPT and not getattr(config, "do_layer_norm_before", True):  # OPT-350M: norms behind the residual
        return replace(family, scalings=())
    if family is _OPT and getattr(config, "activation_function", "relu") != "relu":  # Galactica: a GELU
        return replace(family, scalings=tuple(scaling for scaling in family.scalings if scaling.previous != "fc1"))
    if family is _BERT and hasattr(model, "bert"):  # an encoder below a task's head
        return replace(family, blocks=f"bert.{family.blocks}", embedding=f"bert.{family.embedding}")
    return family


def family_of_type(model_type: str) -> Family:
    """The table row of a ``model_type``; see :func:`family_of`.

    Args:
        model_type: of a config, such as ``"llama"``.

    Raises:
        ValueError: the architecture is not in the table; the message names those that are.

    Example:
        >>> family_of_type("opt").blocks
        'model.decoder.layers'
        >>> family_of_type("t5")
        Traceback (most recent call last):
            ...
        ValueError: architecture 't5' is not known here; supported are bert, gemma, ...

    Chapter: none (look-up)
    """
    if model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise ValueError(f"architecture {model_type!r} is not known here; supported are {known}")
    return FAMILIES[model_type]


def blocks(model: nn.Module) -> nn.ModuleList:
    """The transformer blocks of ``model``.

    Args:
        model: an architecture of the table.

    Raises:
        ValueError: unknown architecture, or a model class without the usual parts.

    Example:
        >>> from reference.models import tutorial
        >>> found = blocks(tutorial.load())
        >>> len(found), type(found[0]).__name__
        (6, 'LlamaDecoderLayer')

    Chapter: none (look-up)
    """
    path = family_of(model).blocks
    try:
        found = model.get_submodule(path)
    except AttributeError:
        found = None
    if not isinstance(found, nn.ModuleList):
        raise ValueError(f"{type(model).__name__} has no blocks at {path!r}; load it as the causal language model")
    return found


def block_linears(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Full name and module of every linear layer inside the blocks, in forward order.

    Embedding and head are not among them: like every production tool, the book leaves them in
    16 bits.

    Args:
        model: an architecture of the table.

    Example:
        >>> from reference.models import tutorial
        >>> layers = dict(block_linears(tutorial.load()))
        >>> len(layers), next(iter(layers)), layers["model.layers.0.mlp.down_proj"].in_features
        (42, 'model.layers.0.self_attn.q_proj', 768)

    Chapter: quantization/post_training
    """
    family = family_of(model)
    for index, block in enumerate(blocks(model)):
        for group in family.sublayers:
            for name in group:
                yield f"{family.blocks}.{index}.{name}", block.get_submodule(name)


def input_groups(model: nn.Module) -> list[tuple[str, ...]]:
    """Full names of the linear layers inside the blocks, in forward order, those that read the same input together.

    They are also what servers join: queries, keys and values become one layer there, and gate and up another, so the parts
    must agree in their grid.

    Args:
        model: an architecture of the table.

    Example:
        >>> from reference.models import tutorial
        >>> groups = input_groups(tutorial.load())
        >>> len(groups), [len(group) for group in groups[:4]], groups[3]  # q k v, o, gate up, down
        (24, [3, 1, 2, 1], ('model.layers.0.mlp.down_proj',))

    Chapter: none (look-up)
    """
    family = family_of(model)
    return [
        tuple(f"{family.blocks}.{index}.{name}" for name in group)
        for index in range(len(blocks(model)))
        for group in family.sublayers
    ]


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` where ``name`` is in ``model``, in place.

    Args:
        model: changed in place.
        name: full name of the module that goes, such as ``"model.layers.0.mlp.up_proj"``.
        module: the one that comes.

    Raises:
        AttributeError: ``model`` has no parent of that name.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> replace_module(model, "1", nn.GELU())
        >>> model[1]
        GELU(approximate='none')

    Chapter: none (plumbing)
    """
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
