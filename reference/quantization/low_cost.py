r"""Training that leaves the codes alone: new scales for them, or a low-rank correction beside them.

============ ============================== =============================== =====================
layer        trains                         serves                          bits a weight
============ ============================== =============================== =====================
ScalesLinear ``scale`` (float zero points   the same codes, new scales      as before
             stay integers: fixed)
LowRank      ``down`` [r, in], ``up``       packed base, plus two thin      as before, plus
             [out, r]                       matrices in 16 bits             16·r·(in + out)
============ ============================== =============================== =====================
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from reference.layers import QuantizedLinear
from reference.models.families import block_linears, replace_module
from reference.quantization import formats, grid
from reference.quantization.quantization_aware import straight_through
from reference.tensors import QuantizedTensor


class ScalesLinear(nn.Module):
    r"""A quantised layer whose codes are fixed and whose scales train.

    :math:`\hat w = s\,(q - z)` is linear in :math:`s`: no estimator is needed, the gradient is exact.

    Args:
        weight: from any solver, with consecutive groups.
        bias: ``[out]`` or None.

    Raises:
        ValueError: groups are not consecutive.

    Source: Kim et al. 2023 (PEQA).

    Example:
        >>> codes, spec = torch.tensor([[0, 1, 2, 3]], dtype=torch.uint8), grid.QuantizationSpec(2)
        >>> layer = ScalesLinear(QuantizedTensor.from_codes(codes, torch.ones(1, 1), torch.tensor([[0]]), spec))
        >>> layer(torch.ones(1, 4)).sum().backward()  # y = 6s
        >>> layer.log_step.grad
        tensor([[6.]])

    Chapter: quantization/quantization_aware
    """

    codes: Tensor
    zero_point: Tensor

    def __init__(self, weight: QuantizedTensor, bias: Tensor | None = None) -> None:
        super().__init__()
        if weight.group_index is not None:
            raise ValueError("weight has a group index; its scales train with consecutive groups (static_groups=True)")
        self.out_features, self.in_features = weight.shape
        self.spec, self.scale_dtype = weight.spec, weight.scale.dtype
        self.log_step = nn.Parameter(weight.scale.float().log())
        self.register_buffer("codes", weight.codes)
        self.register_buffer("zero_point", weight.zero_point)
        self.bias = None if bias is None else nn.Parameter(bias.detach().float())

    @property
    def scale(self) -> Tensor:
        """As it will be stored, float32 ``[out, groups]``, differentiable."""
        step = self.log_step.exp()
        return straight_through(step.to(self.scale_dtype).float(), step)

    def forward(self, x: Tensor) -> Tensor:
        weight = grid.dequantize(self.codes, self.scale, self.zero_point, self.spec)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return functional.linear(x, weight.to(x.dtype), bias)

    @torch.no_grad()
    def converted(self) -> QuantizedLinear:
        """The packed layer, with equal weights."""
        weight = QuantizedTensor.from_codes(self.codes, self.scale.to(self.scale_dtype), self.zero_point, self.spec)
        return QuantizedLinear(weight, self.bias)


class NF4Linear(nn.Module):
    """A linear layer whose weight is packed NF4; nothing in it trains, and inputs get gradients.

    Args:
        weight: ``[out, in]``, float, inputs in multiples of 64.
        bias: ``[out]`` or None.

    Raises:
        ValueError: as :func:`reference.quantization.formats.quantize`.

    Example:
        >>> layer = NF4Linear(torch.ones(1, 64))
        >>> layer.tensor.nbytes, layer(torch.ones(1, 64)).item()  # 64 codes of 4 bits, a scale of 16
        (34, 64.0)

    Chapter: quantization/quantization_aware
    """

    packed: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        found = formats.quantize(weight.detach(), formats.FORMATS["nf4"])
        self.register_buffer("packed", found.packed)
        self.register_buffer("scale", found.scale)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    @property
    def tensor(self) -> formats.FloatTensor:
        """The compressed weight."""
        shape = (self.out_features, self.in_features)
        return formats.FloatTensor(self.packed, self.scale, None, shape, formats.FORMATS["nf4"])

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return functional.linear(x, self.tensor.dequantize(x.dtype), bias)


class LowRankLinear(nn.Module):
    r"""A frozen quantised layer and a trained correction of rank r: :math:`y = \hat W x + B A x`.

    ``down`` (:math:`A`) starts random and ``up`` (:math:`B`) at zero, so training starts at the base; or
    both start as the best rank-r approximation of ``error``, what rounding lost.

    Args:
        base: the layer with the codes, :class:`QuantizedLinear` or :class:`NF4Linear`.
        rank: 1 or more.
        error: ``[out, in]``, float weight less the base's, or None.
        seed: of ``down``.

    Raises:
        ValueError: ``rank`` is below 1 or above the smaller side of the weight.

    Source: Dettmers et al. 2023, section 3; start from the error: Li et al. 2024 (LoftQ).

    Example:
        >>> base = NF4Linear(torch.ones(8, 64))
        >>> layer, x = LowRankLinear(base, rank=2), torch.ones(1, 64)
        >>> torch.equal(layer(x), base(x)), layer.nbytes  # nothing yet; 2 · 2 · (64 + 8) bytes
        (True, 288)

    Chapter: quantization/quantization_aware
    """

    def __init__(
        self, base: QuantizedLinear | NF4Linear, rank: int, *, error: Tensor | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        if not 1 <= rank <= min(base.in_features, base.out_features):
            raise ValueError(f"rank is {rank}; it may be 1 to {min(base.in_features, base.out_features)}")
        self.base = base
        self.out_features, self.in_features = base.out_features, base.in_features
        if error is None:
            random = torch.randn(rank, base.in_features, generator=torch.Generator().manual_seed(seed))
            down, up = random / base.in_features**0.5, torch.zeros(base.out_features, rank)
        else:
            left, size, right = torch.linalg.svd(error.float(), full_matrices=False)
            root = size[:rank].sqrt()
            down, up = root[:, None] * right[:rank], left[:, :rank] * root
        self.down, self.up = nn.Parameter(down.contiguous()), nn.Parameter(up.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        thin = functional.linear(functional.linear(x, self.down.to(x.dtype)), self.up.to(x.dtype))
        return self.base(x) + thin

    @property
    def nbytes(self) -> int:
        """Of the two thin matrices as served, in 16 bits."""
        return 2 * (self.down.numel() + self.up.numel())

    @torch.no_grad()
    def converted(self) -> "LowRankLinear":
        """As it is served: the base packed, the thin matrices in bfloat16's values, nothing to train."""
        for matrix in (self.down, self.up):
            matrix.copy_(matrix.to(torch.bfloat16))
            matrix.requires_grad_(False)
        return self


def add_low_rank(
    model: nn.Module,
    rank: int,
    *,
    base: Callable[[str, nn.Linear], QuantizedLinear | NF4Linear] | None = None,
    from_error: bool = False,
) -> nn.Module:
    """Put a :class:`LowRankLinear` on every layer of the blocks, in place.

    Args:
        model: already quantised, or in float with ``base``.
        rank: of each correction.
        base: makes the frozen layer of a float one; None where the model is quantised already.
        from_error: start from the error of the rounding; needs ``base``.

    Returns:
        ``model``, with everything but the corrections frozen.

    Raises:
        ValueError: a layer without a base, named, or ``from_error`` without the float weights.

    Example:
        >>> from reference.models import tutorial
        >>> model = tutorial.load()
        >>> model.model.layers = model.model.layers[:1]
        >>> _ = add_low_rank(model, 1, base=lambda name, linear: NF4Linear(linear.weight))
        >>> [name for name, parameter in model.named_parameters() if parameter.requires_grad][:2]
        ['model.layers.0.self_attn.q_proj.down', 'model.layers.0.self_attn.q_proj.up']

    Chapter: quantization/quantization_aware
    """
    if from_error and base is None:
        raise ValueError("from_error needs base: a quantised model no longer knows its float weights")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for number, (name, layer) in enumerate(list(block_linears(model))):
        frozen = base(name, layer) if base and isinstance(layer, nn.Linear) else layer
        if not isinstance(frozen, QuantizedLinear | NF4Linear):
            raise ValueError(f"{name} is a {type(frozen).__name__}; base must make a quantised layer of it")
        error = None
        if from_error:
            error = layer.get_parameter("weight").detach() - frozen.tensor.dequantize(torch.float32)
        added = LowRankLinear(frozen, rank, error=error, seed=number)
        replace_module(model, name, added.to(next(model.parameters()).device))
    return model


def train_scales(model: nn.Module) -> nn.Module:
    """Replace quantised layers by :class:`ScalesLinear`, in place, and freeze everything else.

    Args:
        model: quantised, for example by :func:`reference.workflow.quantize`.

    Returns:
        ``model``.

    Raises:
        ValueError: no layer is quantised.

    Example:
        >>> from reference import workflow
        >>> from reference.models import tutorial
        >>> model = tutorial.load()
        >>> model.model.layers = model.model.layers[:1]
        >>> _ = train_scales(workflow.quantize(model, grid.QuantizationSpec(4, symmetric=True, group_size=128)))
        >>> sum(p.numel() for p in model.parameters() if p.requires_grad)  # 786,432 weights in groups of 128
        6144

    Chapter: quantization/quantization_aware
    """
    layers = {n: ScalesLinear(m.tensor, m.bias) for n, m in block_linears(model) if isinstance(m, QuantizedLinear)}
    if not layers:
        raise ValueError("model has no quantised layer whose scales could train; quantise it first")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name, layer in layers.items():
        replace_module(model, name, layer)
    return model
