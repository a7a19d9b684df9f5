r"""Numbers other than integers: FP8, FP6, FP4, NF4, and the block scales of MX and NVFP4.

A value becomes a sign, a row of a small table, and a scale that its block shares:

.. math:: \hat x = s_\text{tensor}\; s_\text{block}\; (-1)^\text{sign}\; v_\text{code}

============ ========= ===== ============================== ===============
format       element   block scale of a block               bits per value
============ ========= ===== ============================== ===============
``mxfp8``    E4M3      32    E8M0, a power of two           8.25
``mxfp6``    E2M3      32    E8M0                           6.25
``mxfp4``    E2M1      32    E8M0                           4.25
``mxint8``   INT8      32    E8M0                           8.25
``nvfp4``    E2M1      16    E4M3, times one float32        4.5
``nf4``      NF4       64    bfloat16                       4.25
``fp8``      E4M3      row   float32                        8 + 32 / row
============ ========= ===== ============================== ===============

Sources: OCP 8-bit floating point specification 1.0; OCP microscaling formats specification 1.0, sections 5
and 6; NVIDIA's description of NVFP4; Dettmers et al. 2023, QLoRA, section 3 and appendix E.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from reference.tensors import pack, unpack


@dataclass(frozen=True)
class ElementFormat:
    """A signed table of values: the top bit of a code is the sign, the rest a row of ``magnitudes``.

    Args:
        name: as in the specifications, ``"E2M1"``.
        bits: of a code.
        magnitudes: the finite values that a code without sign may stand for, rising from zero.

    Example:
        >>> E2M1.magnitudes
        (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
        >>> codes = E2M1.encode(torch.tensor([2.4, -0.4, 100.0]))
        >>> codes, E2M1.decode(codes)
        (tensor([4, 9, 7], dtype=torch.uint8), tensor([ 2.0000, -0.5000,  6.0000]))

    Chapter: quantization/activations
    """

    name: str
    bits: int
    magnitudes: tuple[float, ...]

    @property
    def largest(self) -> float:
        """Largest finite value."""
        return self.magnitudes[-1]

    @cached_property
    def table(self) -> Tensor:
        """float32 ``[2^bits]``: what each code stands for; NaN where it stands for no finite number."""
        half = torch.full((2 ** (self.bits - 1),), torch.nan)
        half[: len(self.magnitudes)] = torch.tensor(self.magnitudes)
        return torch.cat((half, -half))

    def encode(self, x: Tensor) -> Tensor:
        """Codes of the nearest values; ties go to the even code, values beyond the table to its end.

        Args:
            x: floating point, any shape, without NaN; infinity lies beyond the table.

        Returns:
            uint8 of the shape of ``x``.

        Raises:
            ValueError: ``x`` holds NaN, which has no nearest value.
        """
        return _nearest(x, self.table[: len(self.magnitudes)], self.bits)

    def decode(self, codes: Tensor) -> Tensor:
        """float32 values of ``codes``."""
        return self.table.to(codes.device)[codes.long()]


def _nearest(x: Tensor, magnitudes: Tensor, bits: int) -> Tensor:
    if x.isnan().any():
        raise ValueError("x holds NaN, which has no nearest value in the table")
    magnitudes = magnitudes.to(x.device, torch.float64)
    middles = (magnitudes[1:] + magnitudes[:-1]) / 2
    size = x.abs().double()
    below = torch.bucketize(size, middles)  # a tie counts as below
    tie = size == torch.cat((middles, middles.new_full((1,), torch.nan)))[below]  # beyond the table there is none
    codes = below + (tie & (below % 2 == 1))
    return (codes + (x.signbit() << (bits - 1))).to(torch.uint8)


def _minifloat(name: str, exponent_bits: int, mantissa_bits: int, *, codes: int) -> ElementFormat:
    """Exponent field 0 holds the subnormals; ``codes``: how many magnitudes, from zero, are finite."""
    bias = 2 ** (exponent_bits - 1) - 1
    values = []
    for code in range(codes):
        exponent, mantissa = divmod(code, 2**mantissa_bits)
        fraction = mantissa / 2**mantissa_bits + (exponent > 0)
        values.append(fraction * 2.0 ** (max(exponent, 1) - bias))
    return ElementFormat(name, 1 + exponent_bits + mantissa_bits, tuple(values))


class NormalFloat4(ElementFormat):
    """NF4: the table is not symmetric, so codes are rows of all 16 levels instead of sign and magnitude.

    Source: Dettmers et al. 2023, eq. 4 and appendix E.

    Example:
        >>> NF4.encode(torch.tensor([-1.0, 0.0, 0.01, 1.0]))  # level 7 is zero
        tensor([ 0,  7,  7, 15], dtype=torch.uint8)

    Chapter: quantization/activations
    """

    @cached_property
    def table(self) -> Tensor:
        """float32 ``[16]``, rising from −1 to 1."""
        return torch.tensor(self.magnitudes)

    def encode(self, x: Tensor) -> Tensor:
        """Codes 0 to 15 of the nearest levels; a tie goes to the lower one, and NaN is a ValueError."""
        if x.isnan().any():
            raise ValueError("x holds NaN, which has no nearest value in the table")
        levels = self.table.to(x.device)
        return torch.bucketize(x.float(), (levels[1:] + levels[:-1]) / 2).to(torch.uint8)


E4M3 = _minifloat("E4M3", 4, 3, codes=127)  # code 127 is NaN; no infinity
E5M2 = _minifloat("E5M2", 5, 2, codes=124)  # as in IEEE 754: infinity and three NaN above
E3M2 = _minifloat("E3M2", 3, 2, codes=32)
E2M3 = _minifloat("E2M3", 2, 3, codes=32)
E2M1 = _minifloat("E2M1", 2, 1, codes=8)
INT8 = ElementFormat("INT8", 8, tuple(i / 64 for i in range(128)))  # of MX: two integer bits, six after the point
#: Quantiles of a normal distribution, scaled to [−1, 1] and rounded as in the authors' library. Eight from zero up and
#: eight from zero down share the zero, so one more lies above it than below.
NF4 = NormalFloat4(
    "NF4", 4,
    (
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ),
)  # fmt: skip

SCALES = {"E8M0": 8, "E4M3": 8, "bfloat16": 16, "float32": 32}  # bits of a scale


@dataclass(frozen=True)
class BlockFormat:
    """An element format and the scale that a block of values along the last axis shares.

    Args:
        element: table of values.
        block: values a scale; None for the whole row.
        scale: ``"E8M0"`` (a power of two, from the exponent of the largest value), ``"E4M3"`` (relative to one
            float32 for the whole tensor), ``"bfloat16"`` or ``"float32"``.

    Raises:
        ValueError: a field is outside what it may be.

    Example:
        >>> FORMATS["mxfp4"].bits_per_value(4096), FORMATS["nvfp4"].bits_per_value(4096)  # 4 + 8/32, 4 + 8/16
        (4.25, 4.5)

    Chapter: quantization/activations
    """

    element: ElementFormat
    block: int | None
    scale: str

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise ValueError(f"scale is {self.scale!r}; it may be {', '.join(SCALES)}")
        if self.block is not None and self.block < 1:
            raise ValueError(f"block is {self.block}; it may be a positive integer, or None for the whole row")

    def bits_per_value(self, row: int) -> float:
        """Bits stored per value of rows of ``row``, block scales included."""
        return self.element.bits + SCALES[self.scale] / (self.block or row)


FORMATS = {
    "mxfp8": BlockFormat(E4M3, 32, "E8M0"),
    "mxfp8_e5m2": BlockFormat(E5M2, 32, "E8M0"),
    "mxfp6": BlockFormat(E2M3, 32, "E8M0"),
    "mxfp6_e3m2": BlockFormat(E3M2, 32, "E8M0"),
    "mxfp4": BlockFormat(E2M1, 32, "E8M0"),
    "mxint8": BlockFormat(INT8, 32, "E8M0"),
    "nvfp4": BlockFormat(E2M1, 16, "E4M3"),
    "nf4": BlockFormat(NF4, 64, "bfloat16"),
    "fp8": BlockFormat(E4M3, None, "float32"),
    "fp8_e5m2": BlockFormat(E5M2, None, "float32"),
}


def decode_e8m0(codes: Tensor) -> Tensor:
    """Powers of two ``2^(code − 127)`` of uint8 codes, float32 of their shape; code 255 is NaN.

    Source: OCP microscaling formats specification 1.0, section 5.4.1.

    Example:
        >>> decode_e8m0(torch.tensor([126, 127, 130], dtype=torch.uint8))
        tensor([0.5000, 1.0000, 8.0000])

    Chapter: quantization/activations
    """
    values = torch.ldexp(torch.ones_like(codes, dtype=torch.float32), codes.to(torch.int32) - 127)
    return torch.where(codes == 255, torch.nan, values)


def encode_e8m0(absmax: Tensor, element: ElementFormat) -> Tensor:
    r"""The MX scale of blocks: :math:`2^{\lfloor \log_2 \text{absmax} \rfloor - e_\text{max}}`.

    The floor leaves values between the element's largest and the next power of two beyond the table, where
    they saturate: in E2M1 a block's largest value, if between 6 and 8 steps, comes back as 6.

    Args:
        absmax: float, largest magnitude of each block.
        element: its :math:`e_\text{max}` is the exponent of its largest value.

    Returns:
        uint8 codes of the shape of ``absmax``; 0 for blocks of zeros.

    Raises:
        ValueError: a block holds infinity, or is too large for the largest scale.

    Source: OCP microscaling formats specification 1.0, section 6.3.

    Example:
        >>> encode_e8m0(torch.tensor([6.0, 7.9, 8.0]), E2M1)  # E2M1 ends at 6: 7.9 will saturate, 8 gets a step of 2
        tensor([127, 127, 128], dtype=torch.uint8)

    Chapter: quantization/activations
    """
    if not torch.isfinite(absmax).all():
        raise ValueError("x holds infinite values, which no scale can represent")
    # frexp: absmax = m · 2^e with m in [0.5, 1), so the exponent of the leading bit is e - 1.
    exponent = torch.frexp(absmax.float()).exponent - 1
    emax = torch.frexp(torch.tensor(element.largest)).exponent - 1
    exponent = torch.where(absmax > 0, exponent - emax.to(absmax.device), -127)
    return (exponent.clamp(-127, 127) + 127).to(torch.uint8)


@dataclass(frozen=True, eq=False)
class FloatTensor:
    """A matrix as packed codes of a table and block scales, as they lie on the disk.

    Attributes:
        packed: int32 ``[rows, ceil(n·bits / 32)]``, :func:`reference.tensors.pack` of the codes.
        scale: ``[rows, blocks]``: uint8 codes (E8M0, E4M3), bfloat16 or float32.
        tensor_scale: float32 ``[]`` (with E4M3 scales), else None.
        shape: ``(rows, n)``.
        format: element and block.

    Example:
        >>> found = quantize(torch.ones(1, 32), FORMATS["mxfp4"])
        >>> found.packed.nbytes, found.scale.nbytes, found.nbytes  # 32 codes of 4 bits, one scale
        (16, 1, 17)

    Chapter: quantization/activations
    """

    packed: Tensor
    scale: Tensor
    tensor_scale: Tensor | None
    shape: tuple[int, int]
    format: BlockFormat

    @property
    def codes(self) -> Tensor:
        """uint8 ``[rows, n]``."""
        return unpack(self.packed, self.format.element.bits, self.shape[1])

    @property
    def block_scale(self) -> Tensor:
        """float32 ``[rows, blocks]``, the factor of each block."""
        if self.format.scale == "E8M0":
            return decode_e8m0(self.scale)
        if self.tensor_scale is not None:
            return E4M3.decode(self.scale) * self.tensor_scale
        return self.scale.float()

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """``[rows, n]`` in ``dtype``; the product is made in float32."""
        values = self.format.element.decode(self.codes)
        blocks = values.reshape(self.shape[0], self.scale.shape[1], -1) * self.block_scale[..., None]
        return blocks.reshape(self.shape).to(dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales, as stored."""
        return sum(t.nbytes for t in (self.packed, self.scale, self.tensor_scale) if t is not None)


@torch.no_grad()
def quantize(x: Tensor, form: BlockFormat) -> FloatTensor:
    """Round a matrix to a table, block by block along its last axis.

    Args:
        x: ``[rows, n]``, floating point, finite; computed in float32.
        form: one of :data:`FORMATS`, or another.

    Returns:
        The packed tensor. Codes are computed with the scale as stored.

    Raises:
        ValueError: ``x`` is no matrix of finite floats, or the block does not divide its rows.

    Source: as the module.

    Example:
        >>> found = quantize(torch.tensor([[0.4, 1.0, -2.6, 7.0] * 8]), FORMATS["mxfp4"])
        >>> found.dequantize()[0, :4]  # the scale is 1; 7 saturates at 6
        tensor([ 0.5000,  1.0000, -3.0000,  6.0000])

    Chapter: quantization/activations
    """
    if x.ndim != 2 or not x.is_floating_point() or x.numel() == 0:
        raise ValueError(f"x must be a non-empty floating-point matrix, got {x.dtype} of shape {tuple(x.shape)}")
    if not torch.isfinite(x).all():
        raise ValueError(f"x holds {int((~torch.isfinite(x)).sum())} values that are NaN or infinite")
    rows, n = x.shape
    block = form.block or n
    if n % block:
        raise ValueError(f"a block of {block} does not divide the {n} columns of x; pad them, or use another format")
    blocks = x.float().reshape(rows, -1, block)
    absmax = blocks.abs().amax(-1)
    tensor_scale = None
    if form.scale == "E8M0":
        scale = encode_e8m0(absmax, form.element)
        factor = decode_e8m0(scale)
    elif form.scale == "E4M3":
        full = absmax.amax() / (E4M3.largest * form.element.largest)
        tensor_scale = torch.where(full > 0, full, 1.0)
        scale = E4M3.encode(absmax / form.element.largest / tensor_scale)
        factor = E4M3.decode(scale) * tensor_scale
    else:
        scale = (absmax / form.element.largest).to(getattr(torch, form.scale))
        factor = scale.float()
    steps = torch.where(factor[..., None] > 0, blocks / factor[..., None], 0.0)
    codes = form.element.encode(steps).reshape(rows, n)
    return FloatTensor(pack(codes, form.element.bits), scale, tensor_scale, (rows, n), form)
