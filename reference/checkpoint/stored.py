"""What the readers and writers of all formats share: taking tensors out of a file, checking them, 16-bit scales."""

import torch
from torch import Tensor

#: Model type → beginnings of names that transformers writes otherwise than its model has them, and what the model has.
RENAMED = {"gpt_neox": ("embed_out.", "lm_head.")}


def as_in_the_model(stored: dict[str, Tensor], model_type: str) -> dict[str, Tensor]:
    """The tensors of a file under the names of the model, as transformers renames them while it loads.

    Args:
        stored: tensors by the names of the file; names of the model are kept.
        model_type: of config.json.

    Example:
        >>> list(as_in_the_model({"embed_out.weight": torch.ones(2)}, "gpt_neox"))
        ['lm_head.weight']

    Chapter: none (file format)
    """
    written, named = RENAMED.get(model_type, ("", ""))
    return {
        named + name.removeprefix(written) if name.startswith(written) else name: tensor
        for name, tensor in stored.items()
    }


def pop(stored: dict[str, Tensor], name: str, suffix: str) -> Tensor:
    """Remove and return the tensor ``suffix`` of the layer ``name``.

    Args:
        stored: tensors by name; it loses this one.
        name: of the layer.
        suffix: of the tensor, such as ``"scales"``.

    Raises:
        ValueError: it is not there.

    Example:
        >>> stored = {"up_proj.scales": torch.ones(2), "up_proj.qweight": torch.zeros(2)}
        >>> pop(stored, "up_proj", "scales"), list(stored)
        (tensor([1., 1.]), ['up_proj.qweight'])

    Chapter: none (file format)
    """
    if f"{name}.{suffix}" not in stored:
        raise ValueError(f"{name}.{suffix} is missing from the checkpoint")
    return stored.pop(f"{name}.{suffix}")


def check(name: str, suffix: str, tensor: Tensor, shape: tuple[int, ...], *, floating: bool = False) -> None:
    """Insist on the shape of a tensor from a file, and on floating point or integers.

    Args:
        name, suffix: of layer and tensor, for the message.
        tensor: as read.
        shape: what it should have.
        floating: whether it should be floating point.

    Raises:
        ValueError: the tensor is otherwise, by name.

    Example:
        >>> check("up_proj", "scales", torch.ones(2, 1), (1, 2), floating=True)
        Traceback (most recent call last):
            ...
        ValueError: up_proj.scales has shape (2, 1); it should be (1, 2)

    Chapter: none (file format)
    """
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}.{suffix} has shape {tuple(tensor.shape)}; it should be {shape}")
    if tensor.is_floating_point() != floating:
        raise ValueError(f"{name}.{suffix} has type {tensor.dtype}")


def float16_scale(scale: Tensor, name: str, format: str) -> Tensor:
    """``scale`` as float16, which is what the GPTQ and AWQ formats store, exactly.

    Every bfloat16 number from 2⁻¹⁷ to 65,280 is a float16 number too, so nearly all scales of a
    bfloat16 model pass. The codes were made for the scale as it is: another one is never put in its place.

    Args:
        scale: any shape and floating-point type.
        name: of the layer, for the message.
        format: ``"gptq"`` or ``"awq"``, for the message.

    Returns:
        float16, of the shape of ``scale``.

    Raises:
        ValueError: a scale is no float16 number; the message says how to solve for float16 scales.

    Example:
        >>> float16_scale(torch.tensor([0.25], dtype=torch.bfloat16), "up_proj", "gptq")
        tensor([0.2500], dtype=torch.float16)
        >>> float16_scale(torch.tensor([2.0**-30], dtype=torch.bfloat16), "up_proj", "gptq")
        Traceback (most recent call last):
            ...
        ValueError: up_proj has 1 scales of 1 that are no float16 numbers, ...

    Chapter: none (file format)
    """
    stored = scale.to(torch.float16)
    changed = stored.float() != scale.float()
    if changed.any():
        raise ValueError(
            f"{name} has {int(changed.sum())} scales of {scale.numel()} that are no float16 numbers, the first "
            f"{scale[changed][0].item():.4g}, and the {format} format stores float16; quantise with scale_dtype float16, "
            "or write compressed-tensors"
        )
    return stored
