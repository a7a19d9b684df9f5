"""Layers that train under quantisation: a float weight inside, its rounded value in every product.

What a trained layer multiplies by is what the packed layer will: steps are rounded to their stored
type and zero points to integers in the forward pass, so packing changes no weight.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from reference.int8 import Int8Linear
from reference.layers import QuantizedLinear
from reference.quantization import grid
from reference.quantization.activations import ActivationSpec
from reference.quantization.grid import QuantizationSpec
from reference.quantization.quantization_aware import (
    fake_activations,
    gradient_factor,
    lsq,
    straight_through,
)
from reference.tensors import QuantizedTensor

#: Steps from the edge of its cell at which a weight starts that a solver has moved there.
DEPTH = 0.25


class TrainedLinear(nn.Module):
    r"""A linear layer with a fake-quantised weight, and input if asked for.

    Parameters, all float32:

    - ``weight`` ``[out, in]``: what the optimiser moves; the forward pass sees it rounded;
    - ``log_step`` ``[out, groups]``: logarithm of the step, which is therefore positive whatever the
      optimiser does, and moves by a *fraction* of itself;
    - ``zero_point`` ``[out, groups]``: of an affine grid, rounded in the forward pass;
    - ``log_input_step`` ``[1]``: of static activations.

    Args:
        linear: gives weight and bias.
        start: the grid to start from; its codes are reproduced at the first step (see :func:`into_cells`).
        activations: how the input is quantised; None leaves it alone.
        input_scale: ``[1]``, first step of static activations.
        scaled: whether LSQ's gradient factor is applied to steps; zero points get their gradient as it is.
        mask: see :func:`reference.quantization.quantization_aware.fake_quantize`.
        depth: how far from the edges of their cells weights start, see :func:`into_cells`.

    Raises:
        ValueError: shapes differ, groups are not consecutive, or activations lack their step.

    Example:
        >>> from reference.quantization import round_to_nearest
        >>> linear = nn.Linear(4, 1, bias=False)
        >>> linear.weight.data = torch.tensor([[0.0, 1.2, 1.9, 3.0]])
        >>> start = round_to_nearest.quantize_layer(linear.weight.detach(), QuantizationSpec(2))
        >>> layer = TrainedLinear(linear, start)
        >>> layer.quantized_weight.tolist(), layer(torch.ones(1, 4)).item()
        ([[0.0, 1.0, 2.0, 3.0]], 6.0)

    Chapter: quantization/quantization_aware
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        linear: nn.Linear,
        start: QuantizedTensor,
        *,
        activations: ActivationSpec | None = None,
        input_scale: Tensor | None = None,
        scaled: bool = True,
        mask: str = "unrounded",
        depth: float = DEPTH,
    ) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        if tuple(weight.shape) != tuple(start.shape):
            raise ValueError(f"start is {tuple(start.shape)}, the layer that it is for {tuple(weight.shape)}")
        if start.group_index is not None:
            raise ValueError("start has a group index; training needs consecutive groups (static_groups=True)")
        if activations is not None and not start.spec.symmetric:
            raise ValueError("start has an affine grid; integer products need a symmetric one")
        static = activations is not None and activations.granularity == "static"
        if static != (input_scale is not None):
            raise ValueError(f"input_scale is for static activations and them alone, not {activations}")
        self.out_features, self.in_features = start.shape
        self.spec, self.activations, self.mask = start.spec, activations, mask
        self.scale_dtype = start.scale.dtype
        self.weight = nn.Parameter(into_cells(weight, start, depth))
        self.log_step = nn.Parameter(start.scale.float().log())
        self.zero_point = None if self.spec.symmetric else nn.Parameter(start.zero_point.float())
        self.log_input_step = nn.Parameter(input_scale.detach().float().log()) if input_scale is not None else None
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().float())
        self.factor = gradient_factor(weight.numel(), self.spec.levels // 2) if scaled else 1.0
        self._rounded: Tensor | None = None
        self.input_factor = gradient_factor(self.in_features, activations.highest) if scaled and activations else 1.0

    @property
    def scale(self) -> Tensor:
        """The step as it will be stored, float32 ``[out, groups]``, differentiable."""
        step = self.log_step.exp()
        return straight_through(step.to(self.scale_dtype).float(), step)

    @property
    def rounded_zero_point(self) -> Tensor | int:
        """The zero point as it will be stored, differentiable if it is learned."""
        if self.zero_point is None:
            return self.spec.middle
        return _whole(self.zero_point, self.spec).unsqueeze(-1)

    @property
    def quantized_weight(self) -> Tensor:
        """What the forward pass multiplies by, float32 ``[out, in]``."""
        groups, zero = grid.split_groups(self.weight, self.spec), self.rounded_zero_point
        step = self.scale.unsqueeze(-1)
        return lsq(groups, step, -zero, self.spec.levels - zero, factor=self.factor, mask=self.mask).reshape(
            self.out_features, self.in_features
        )

    @property
    def input_scale(self) -> Tensor | None:
        """Step of static activations, float32 ``[1]``."""
        return None if self.log_input_step is None else self.log_input_step.exp()

    def forward(self, x: Tensor) -> Tensor:
        if self.activations is not None:
            step = self.input_scale
            if step is None:
                x = fake_activations(x, self.activations)
            else:
                low, high = self.activations.lowest, self.activations.highest
                x = lsq(x.float(), step, low, high, factor=self.input_factor, mask=self.mask).to(x.dtype)
        weight, self._rounded = self._rounded, None
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return functional.linear(x, (self.quantized_weight if weight is None else weight).to(x.dtype), bias)

    @torch.no_grad()
    def tensor(self) -> QuantizedTensor:
        """The weight packed, equal to :attr:`quantized_weight` bit for bit once dequantised in float32."""
        scale = self.scale
        zero = self.rounded_zero_point
        stored = torch.full_like(scale, zero) if isinstance(zero, int) else zero.squeeze(-1)
        codes = grid.quantize(self.weight, scale, stored, self.spec)
        return QuantizedTensor.from_codes(codes, scale.to(self.scale_dtype), stored.to(torch.int32), self.spec)

    def converted(self) -> nn.Module:
        """The packed layer: :class:`QuantizedLinear`, or :class:`Int8Linear` where the input is quantised too."""
        bias = None if self.bias is None else self.bias.detach()
        if self.activations is None:
            return QuantizedLinear(self.tensor(), bias)
        scale = self.input_scale
        return Int8Linear(self.tensor(), self.activations, bias, input_scale=None if scale is None else scale.detach())

    def extra_repr(self) -> str:
        kind = "symmetric" if self.spec.symmetric else "affine"
        return f"{self.in_features}, {self.out_features}, bits={self.spec.bits}, {kind}, trained"


def round_together(model: nn.Module) -> nn.Module:
    """Let ``model`` round the weights of all its trained layers at once, before each forward pass.

    The numbers are those of the layers on their own. On an accelerator it saves time: rounding a small
    layer is some forty kernels, forward and backward, that each take longer to start than to run.

    Args:
        model: prepared; layers with the same group size are rounded together, others on their own.

    Returns:
        ``model``, with a hook that :func:`reference.quantization.preparation.convert` makes idle.

    Example:
        >>> from reference.quantization import round_to_nearest
        >>> linear = nn.Linear(4, 1, bias=False)
        >>> start = round_to_nearest.quantize_layer(linear.weight.detach(), QuantizationSpec(4, group_size=4))
        >>> model, x = nn.Sequential(TrainedLinear(linear, start)), torch.ones(1, 4)
        >>> alone = model(x)
        >>> torch.equal(round_together(model)(x), alone)
        True

    Chapter: quantization/quantization_aware
    """

    factors: dict[object, Tensor] = {}

    def ahead(*_: object) -> None:
        together: dict[tuple, list[TrainedLinear]] = {}
        for layer in model.modules():
            if isinstance(layer, TrainedLinear) and layer.spec.group_size is not None:
                together.setdefault((layer.spec, layer.scale_dtype, layer.mask), []).append(layer)
        for (spec, dtype, mask), layers in together.items():
            sizes = [layer.log_step.numel() for layer in layers]
            groups = torch.cat([layer.weight.reshape(-1, spec.group_size) for layer in layers])
            step = torch.cat([layer.log_step.reshape(-1, 1) for layer in layers]).exp()
            key = spec, dtype, mask, step.device
            if key not in factors:  # copied to the device once
                rows = [layer.factor for layer, size in zip(layers, sizes, strict=True) for _ in range(size)]
                factors[key] = torch.tensor(rows, device=step.device)[:, None]
            zero: Tensor | int = spec.middle
            if not spec.symmetric:
                zero = _whole(torch.cat([layer.zero_point.reshape(-1, 1) for layer in layers]), spec)  # type: ignore[union-attr]
            stored = straight_through(step.to(dtype).float(), step)
            rounded = lsq(groups, stored, -zero, spec.levels - zero, factor=factors[key], mask=mask)
            for layer, part in zip(layers, rounded.split(sizes), strict=True):
                layer._rounded = part.reshape(layer.out_features, layer.in_features)

    model.register_forward_pre_hook(ahead)
    return model


def _whole(zero_point: Tensor, spec: QuantizationSpec) -> Tensor:
    clamped = zero_point.clamp(0, spec.levels)
    return straight_through(clamped.round(), clamped)


def into_cells(weight: Tensor, start: QuantizedTensor, depth: float = DEPTH) -> Tensor:
    """The weights nearest to ``weight`` that round to the codes of ``start``, at some distance from an edge.

    A solver such as GPTQ gives many a weight another code than the nearest. Its rounded weights forget the
    float ones; the float ones lie in other cells. In between: a weight in another cell is moved into that of
    its code, ``depth`` steps from the edge. At a depth of 0 it lies on the edge, where the sign of the first
    update decides which code it gets, and what the solver found is lost.

    Args:
        weight: float32 ``[out, in]``.
        start: codes and grid.
        depth: in steps, from 0 to 0.5, the centre of the cell.

    Returns:
        Float32 ``[out, in]``; weights that round to their code already stay as they are.

    Raises:
        ValueError: ``depth`` out of range.

    Example:
        >>> codes = torch.tensor([[0, 0, 1, 3]], dtype=torch.uint8)  # GPTQ rounded the second 0.4 up
        >>> start = QuantizedTensor.from_codes(codes, torch.ones(1, 1), torch.tensor([[0]]), QuantizationSpec(2))
        >>> into_cells(torch.tensor([[0.0, 0.4, 0.4, 3.0]]), start, depth=0.25)  # the edge lies at 0.5
        tensor([[0.0000, 0.4000, 0.7500, 3.0000]])

    Chapter: quantization/quantization_aware
    """
    if not 0 <= depth <= 0.5:
        raise ValueError(f"depth is {depth}; it may be 0 to 0.5")
    spec, levels = start.spec, start.spec.levels
    codes = grid.split_groups(start.codes, spec).float()
    scale, zero = start.scale.float().unsqueeze(-1), start.zero_point.float().unsqueeze(-1)
    # A thousandth of a step inside at least, so that no rounding of the division decides.
    reach = 0.5 - max(depth, 1e-3)
    groups = grid.split_groups(weight, spec)
    v = groups / scale
    low, high = codes - zero - reach, codes - zero + reach
    inside = (torch.round(v) + zero).clamp(0, levels) == codes
    return torch.where(inside, groups, v.clamp(low, high) * scale).reshape(weight.shape)
