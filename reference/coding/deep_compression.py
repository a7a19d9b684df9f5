"""Deep Compression: prune, retrain, share, retrain the shared values, code.

How to train is the caller's business: the pipeline is handed two functions and knows no data, no rate, no epochs.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from reference.codebook_layers import CodebookConv2d, CodebookLinear
from reference.coding.container import Contents, describe, load, save
from reference.coding.weight_sharing import CodebookTensor, Init, share
from reference.pruning import magnitude
from reference.pruning.masks import Masks

__all__ = ["compress", "describe", "layers", "load", "prune_and_retrain", "restore", "save", "share_state",
           "share_weights"]  # fmt: skip

#: Patterns of names that :func:`share_state` leaves alone unless told otherwise: look-up tables and norms.
KEPT = ("*embed*", "*wte*", "*wpe*", "*lm_head*", "*norm*", "*ln_*")


def prune_and_retrain(
    model: nn.Module,
    sparsity: Mapping[str, float],
    retrain: Callable[[nn.Module, Callable[[], None]], object],
    *,
    rounds: Sequence[float] = (1.0,),
) -> dict[str, Tensor]:
    """Remove the smallest weights of each layer, in rounds, and train what is left after each.

    Args:
        model: changed in place.
        sparsity: name of a weight, such as ``fc1.weight`` → fraction removed in the end.
        retrain: called with the model and with a function that it must call after each step of its
            optimiser: that puts pruned weights back to zero.
        rounds: shares of the final sparsity, ascending, the last one 1.

    Returns:
        The masks, bool, True where a weight is kept.

    Raises:
        ValueError: ``sparsity`` names no weight or is out of range, or ``rounds`` does not ascend to 1.

    Source: Han et al. 2015, section 3; Han et al. 2016, section 2.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 1, bias=False))
        >>> model[0].weight.data = torch.tensor([[0.1, -3.0, 2.0, 0.2]])
        >>> def retrain(model, after_step):  # one step that would move all weights
        ...     model[0].weight.data += 1
        ...     after_step()
        >>> masks = prune_and_retrain(model, {"0.weight": 0.5}, retrain)
        >>> masks["0.weight"].tolist(), model[0].weight.tolist()
        ([[False, True, True, False]], [[0.0, -2.0, 3.0, 0.0]])

    Chapter: pruning/deep_compression
    """
    if not rounds or rounds[-1] != 1 or list(rounds) != sorted(rounds) or rounds[0] < 0:
        raise ValueError(f"rounds is {tuple(rounds)}; it must ascend from 0 or more to 1")
    weights = _weights(model, sparsity)
    held: Masks | None = None
    try:
        for part in rounds:
            masks = {name: magnitude.mask(weights[name], part * fraction) for name, fraction in sparsity.items()}
            held = Masks(model, masks) if held is None else held.update(masks)
            retrain(model, held.apply)
        assert held is not None
        return held.state_dict()
    finally:
        if held is not None:
            held.release()


def share_weights(
    model: nn.Module, masks: Mapping[str, Tensor], bits: Mapping[str, int], *, init: Init = "linear", seed: int = 0
) -> None:
    """Replace linear and convolution layers by ones whose weights share a codebook each.

    Args:
        model: changed in place.
        masks: as :func:`prune_and_retrain` returns them.
        bits: name of a weight → bits of an index, 2 to 8.
        init: start of k-means.
        seed: of a random start.

    Raises:
        ValueError: names differ between ``masks`` and ``bits``, or a layer is neither linear nor a
            convolution.

    Source: Han et al. 2016, section 3.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(5, 1, bias=False))
        >>> model[0].weight.data = torch.tensor([[0.0, 1.0, 1.5, 3.0, 5.0]])
        >>> share_weights(model, {"0.weight": model[0].weight != 0}, {"0.weight": 2})
        >>> type(model[0]).__name__, model[0].tensor.to_dense().tolist()  # three values and zero
        ('CodebookLinear', [[0.0, 1.25, 1.25, 3.0, 5.0]])

    Chapter: pruning/deep_compression
    """
    if set(masks) != set(bits):
        raise ValueError(f"bits names {sorted(bits)}, masks names {sorted(masks)}; they must be the same")
    weights = _weights(model, masks)
    for name in masks:
        path = name.removesuffix(".weight")
        layer = model.get_submodule(path)
        tensor = share(weights[name].detach(), masks[name], bits[name], init=init, seed=seed)
        if isinstance(layer, nn.Linear):
            model.set_submodule(path, CodebookLinear.from_linear(layer, tensor))
        elif isinstance(layer, nn.Conv2d):
            model.set_submodule(path, CodebookConv2d.from_conv(layer, tensor))
        else:
            raise ValueError(f"{path!r} is {type(layer).__name__}; only Linear and Conv2d can share weights")


def compress(
    model: nn.Module,
    *,
    sparsity: Mapping[str, float],
    bits: Mapping[str, int],
    retrain: Callable[[nn.Module, Callable[[], None]], object],
    retrain_shared: Callable[[nn.Module], object],
    rounds: Sequence[float] = (1.0,),
    init: Init = "linear",
    on_stage: Callable[[str, nn.Module], object] = lambda stage, model: None,
) -> dict[str, CodebookTensor | Tensor]:
    """The whole pipeline up to what :func:`save` writes.

    Args:
        model: trained; changed in place, its layers replaced.
        sparsity, retrain, rounds: see :func:`prune_and_retrain`.
        bits, init: see :func:`share_weights`.
        retrain_shared: trains the model once its weights are shared; it moves centroids, biases and
            whatever was not shared.
        on_stage: told ``"pruned"``, ``"retrained"``, ``"shared"`` and ``"fine-tuned"`` with the model as
            it then is. ``"pruned"`` comes in each round, before the training.

    Returns:
        Shared weights and remaining parameters and buffers, by the names that the dense model has.

    Raises:
        ValueError: as the two functions.

    Source: Han et al. 2016, figure 1.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 1, bias=False))
        >>> model[0].weight.data = torch.tensor([[0.1, -3.0, 2.0, 0.2]])
        >>> untrained = {"retrain": lambda model, after_step: None, "retrain_shared": lambda model: None}
        >>> found = compress(model, sparsity={"0.weight": 0.5}, bits={"0.weight": 2}, **untrained)
        >>> found["0.weight"].codes, found["0.weight"].to_dense()
        (tensor([[0, 1, 3, 0]], dtype=torch.uint8), tensor([[ 0., -3.,  2.,  0.]]))

    Chapter: pruning/deep_compression
    """

    def told(network: nn.Module, after_step: Callable[[], None]) -> None:
        on_stage("pruned", network)
        retrain(network, after_step)

    if set(sparsity) != set(bits):
        raise ValueError(f"bits names {sorted(bits)}, sparsity names {sorted(sparsity)}; they must be the same")
    masks = prune_and_retrain(model, sparsity, told, rounds=rounds)
    on_stage("retrained", model)
    share_weights(model, masks, bits, init=init)
    on_stage("shared", model)
    retrain_shared(model)
    on_stage("fine-tuned", model)
    return layers(model)


def layers(model: nn.Module) -> dict[str, CodebookTensor | Tensor]:
    """What :func:`save` takes: shared weights as such, everything else as tensors, by dense names.

    Args:
        model: its shared layers are :class:`~reference.codebook_layers.CodebookLinear` and its like.

    Returns:
        Name → shared weight, or tensor on the CPU.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(2, 1))
        >>> share_weights(model, {"0.weight": torch.tensor([[True, False]])}, {"0.weight": 2})
        >>> {name: type(value).__name__ for name, value in layers(model).items()}
        {'0.bias': 'Tensor', '0.weight': 'CodebookTensor'}

    Chapter: pruning/deep_compression
    """
    shared = {
        f"{name}.weight": module.tensor
        for name, module in model.named_modules()
        if isinstance(module, CodebookLinear | CodebookConv2d)
    }
    found: dict[str, CodebookTensor | Tensor] = {}
    for name, value in model.state_dict().items():
        owner = next((weight for weight in shared if name.startswith(f"{weight}.")), None)
        if owner is None:
            found[name] = value.detach().cpu()
        else:
            found[owner] = shared[owner]
    return found


def restore(model: nn.Module, contents: Contents) -> nn.Module:
    """Load what a container holds into a dense model of the same architecture, in place.

    Args:
        model: dense, changed in place.
        contents: of :func:`load`.

    Returns:
        ``model``.

    Raises:
        ValueError: names or shapes differ.

    Example:
        >>> import torch
        >>> values = torch.tensor([[1.0, 2.0]])
        >>> model = restore(nn.Linear(2, 1, bias=False), Contents({"weight": values}, {"weight": torch.float32}))
        >>> model.weight.tolist()
        [[1.0, 2.0]]

    Chapter: pruning/deep_compression
    """
    try:
        model.load_state_dict(contents.state_dict())
    except RuntimeError as error:
        raise ValueError(f"the container does not fit the model: {error}") from error
    return model


def share_state(
    tensors: Iterable[tuple[str, Tensor]],
    *,
    sparsity: float,
    bits: int,
    skip: Sequence[str] = KEPT,
) -> Iterator[tuple[str, CodebookTensor | Tensor]]:
    """Prune and share the matrices among some tensors, without any training.

    Args:
        tensors: names and tensors, for example of a checkpoint.
        sparsity: fraction of each matrix removed by magnitude, ``0 <= sparsity < 1``.
        bits: of an index, 2 to 8.
        skip: patterns of names that pass as they are; so does all that is not floating-point or has
            fewer than two dimensions.

    Yields:
        Names and shared weights, whose codebooks are exact in the tensor's dtype; or the tensor itself.

    Raises:
        ValueError: ``sparsity`` or ``bits`` is out of range, or a weight is not finite.

    Source: Han et al. 2016, without its two retraining steps.

    Example:
        >>> import torch
        >>> state = {"up.weight": torch.tensor([[0.1, -3.0, 2.0, 0.2]]), "norm.weight": torch.ones(4)}
        >>> {name: type(value).__name__ for name, value in share_state(state.items(), sparsity=0.5, bits=4)}
        {'up.weight': 'CodebookTensor', 'norm.weight': 'Tensor'}

    Chapter: pruning/deep_compression
    """
    for name, tensor in tensors:
        plain = not tensor.is_floating_point() or tensor.ndim < 2 or not tensor.numel()
        if plain or any(fnmatchcase(name, pattern) for pattern in skip):
            yield name, tensor
            continue
        try:
            shared = share(tensor.float(), magnitude.mask(tensor, sparsity), bits)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        yield name, CodebookTensor(shared.codebook.to(tensor.dtype).float(), shared.codes, bits)


def _weights(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    absent = [name for name in names if name not in parameters or not name.endswith(".weight")]
    if absent:
        raise ValueError(f"{absent[0]!r} is no weight of the model; it has {', '.join(parameters)}")
    return {name: parameters[name] for name in names}
