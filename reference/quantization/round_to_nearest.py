"""Round to nearest: the method that looks at nothing but the weight."""

import torch
from torch import Tensor

from reference.quantization import grid
from reference.quantization.grid import QuantizationSpec
from reference.tensors import QuantizedTensor, storage_dtype


@torch.no_grad()
def quantize_layer(
    weight: Tensor, spec: QuantizationSpec, *, scale_dtype: torch.dtype | None = None, name: str = "weight"
) -> QuantizedTensor:
    """Quantise one layer by rounding each weight to the nearest point of its grid.

    Args:
        weight: ``[out_features, in_features]``, floating point, finite.
        spec: the grid.
        scale_dtype: type of the stored scales; by default :func:`reference.tensors.storage_dtype`.
        name: what to call the layer in an error.

    Returns:
        The packed tensor. Its codes are computed with the scale as stored, so rounding the
        scale to 16 bits adds no error of its own.

    Raises:
        TypeError, ValueError: as :func:`reference.quantization.grid.check_weight`.

    Example:
        >>> packed = quantize_layer(torch.tensor([[-1.0, 0.0, 2.0, 0.4]]), QuantizationSpec(2))
        >>> packed.dequantize()
        tensor([[-1.,  0.,  2.,  0.]], dtype=torch.float16)

    Chapter: quantization/post_training
    """
    grid.check_weight(weight, spec, name)
    dtype = scale_dtype or storage_dtype(weight)
    scale, zero_point = grid.fit(weight, spec, scale_dtype=dtype)
    codes = grid.quantize(weight, scale, zero_point, spec)
    return QuantizedTensor.from_codes(codes, scale, zero_point, spec)
