"""Masks that hold during training: a pruned weight is exactly zero at every forward pass.

Setting a weight to zero once is not enough. Three things bring it back at the next step: its gradient, which is not
zero; the optimiser's momentum, gathered before it was pruned; and the restored copy of a checkpoint. :class:`Masks`
closes the three doors: it stops the gradient of pruned weights, empties their part of the optimiser's state when the
mask changes, and writes the zeros again after each step, whatever the optimiser did.
"""

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

#: The integer of so many bytes.
_INTEGER = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Masks:
    """Hold the masks of some parameters of a model, and keep pruned weights at zero while it trains.

    An object of this class can be called after each step: ``fit(..., after_step=masks)``. It zeroes the pruned
    weights at once. Gradients of pruned weights are zero from then on, so that clipping by norm does not count them.

    Args:
        model: its parameters are changed in place.
        masks: name of a parameter → bool of its shape, True where kept. Parameters without a mask stay dense.
        optimizer: its state (momentum, moments) is zeroed where weights are pruned, whenever masks change. Without
            it weights stay zero as well, and a weight that a later mask brings back starts with an old momentum.

    Raises:
        ValueError: a name is no parameter of ``model``, or a mask is not bool of the parameter's shape.

    Source: Zhu and Gupta 2017, section 3: masked weights get no update.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> masks = Masks(model, {"weight": torch.tensor([[True, False]])}, optimizer)
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> model.weight.grad.tolist()  # none for the pruned weight
        [[1.0, 0.0]]
        >>> optimizer.step(), masks()
        (None, None)
        >>> model.weight[0, 1].item(), masks.density()
        (0.0, 0.5)

    Chapter: pruning/magnitude
    """

    def __init__(
        self, model: nn.Module, masks: Mapping[str, Tensor], optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        self._parameters = dict(model.named_parameters())
        self._optimizer = optimizer
        self.masks: dict[str, Tensor] = {}
        self._hooks: dict[str, torch.utils.hooks.RemovableHandle] = {}
        self.update(masks)

    def update(self, masks: Mapping[str, Tensor]) -> Self:
        """Replace the masks of the parameters named, and apply them; the others keep theirs."""
        for name, mask in masks.items():
            if name not in self._parameters:
                raise ValueError(f"masks name {name!r}, which is no parameter: {', '.join(self._parameters)}")
            shape = self._parameters[name].shape
            if mask.dtype != torch.bool or mask.shape != shape:
                raise ValueError(f"mask {name!r} is {mask.dtype} {tuple(mask.shape)}; it must be bool {tuple(shape)}")
        for name, mask in masks.items():
            parameter = self._parameters[name]
            self.masks[name] = mask.detach().to(parameter.device).clone()
            if name not in self._hooks and parameter.requires_grad:
                self._hooks[name] = parameter.register_hook(
                    lambda gradient, name=name: _kept(gradient, self.masks[name])
                )
        self._clear_state()
        self.apply()
        return self

    @torch.no_grad()
    def apply(self) -> None:
        """Write the zeros: call it after each step of the optimiser. Zeros are positive, NaN becomes zero too."""
        for name, mask in self.masks.items():
            _clear(self._parameters[name], mask)

    def __call__(self) -> None:
        self.apply()

    @torch.no_grad()
    def _clear_state(self) -> None:
        for name, mask in self.masks.items():
            parameter = self._parameters[name]
            state = {} if self._optimizer is None else self._optimizer.state.get(parameter, {})
            for value in (parameter.grad, *state.values()):
                if isinstance(value, Tensor) and value.shape == mask.shape:
                    _clear(value, mask)

    def release(self) -> None:
        """Stop holding: gradients of pruned weights flow again, and masks are forgotten."""
        for hook in self._hooks.values():
            hook.remove()
        self._hooks.clear()
        self.masks.clear()

    def densities(self) -> dict[str, float]:
        """Fraction kept of each masked parameter."""
        return {name: float(mask.double().mean()) for name, mask in self.masks.items()}

    def density(self) -> float:
        """Fraction kept of all masked parameters together; parameters without a mask are not counted."""
        kept = sum(int(mask.sum()) for mask in self.masks.values())
        return kept / max(1, sum(mask.numel() for mask in self.masks.values()))

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the masks, bool tensors on the CPU, which safetensors and ``torch.save`` can write."""
        return {name: mask.cpu().clone() for name, mask in self.masks.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take masks that :meth:`state_dict` gave, and apply them.

        Raises:
            ValueError: names differ from those held, or as for the constructor.
        """
        if set(state) != set(self.masks):
            raise ValueError(f"state holds {sorted(state)}; the masks held are {sorted(self.masks)}")
        self.update(state)


def _clear(tensor: Tensor, mask: Tensor) -> None:
    """Zero in place what the mask does not keep, by its bits: several times as fast as ``masked_fill_``.

    Not a product: -0.3 times False is -0.0, and NaN times False is NaN.
    """
    integer = _INTEGER[tensor.element_size()]
    tensor.view(integer).bitwise_and_(mask.to(integer).neg_())  # True is all ones


def _kept(gradient: Tensor, mask: Tensor) -> Tensor:
    """A gradient, zero where the mask keeps nothing."""
    if gradient.requires_grad:  # of a second derivative: bits have none
        return gradient.masked_fill(~mask, 0)
    gradient = gradient.clone()
    _clear(gradient, mask)
    return gradient
