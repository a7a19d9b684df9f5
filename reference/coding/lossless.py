r"""Floating-point tensors without loss, about a third smaller in bfloat16: Huffman for exponents, the rest as it is.

Trained weights fill few exponents and all mantissas: of bfloat16's 16 bits, the 8 of the exponent carry about 2.6 bits
of information, sign and mantissa nearly all of their 8. The bytes of `encode`, numbers little-endian::

    byte  0  4 bytes   "EXP1"
          4  uint32    CRC-32 of all that follows
          8  uint8     1 bfloat16, 2 float16, 3 float32
          9  uint64    bytes of the coded part
         17  coded     a stream of `reference.coding.huffman`, a byte for each element
             raw       the other bits, for each element

    dtype     coded byte                          raw
    bfloat16  exponent (8 bits)                   1 byte: sign, mantissa (7 bits)
    float16   sign, exponent (5), mantissa (2)    1 byte: the mantissa's lower 8 bits
    float32   exponent (8 bits)                   mantissa's lower 16 bits, then 1 byte: sign, mantissa's upper 7

float16's exponent has no byte of its own: the upper byte is coded whole. In float32 the raw part is all 16-bit halves,
then all bytes. Neither dtype nor shape decides anything but the bits: NaN, infinities and -0.0 come back as they were.
"""

import math
import struct
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from reference.coding import huffman
from reference.coding.huffman import CorruptStream

_HEADER = struct.Struct("<4sIBQ")
_MAGIC = b"EXP1"
_KINDS = {torch.bfloat16: 1, torch.float16: 2, torch.float32: 3}
_RAW_BYTES = {torch.bfloat16: 1, torch.float16: 1, torch.float32: 3}


def encode(tensor: Tensor, *, max_length: int | None = None, chunk: int = 65_536, group: int | None = None) -> bytes:
    """Code a tensor's exponents, keep its other bits.

    Args:
        tensor: any shape, bfloat16, float16 or float32.
        max_length: longest code word, in bits.
        chunk: elements in a chunk.
        group: elements that a code word stands for. These three are `reference.coding.huffman.encode`'s; a GPU's
            decoder (`reference.coding.resident`) wants ``max_length=10, chunk=256, group=1`` or the like.

    Returns:
        The bytes, from which `decode` makes the same bits; dtype and shape are not in them.

    Raises:
        TypeError: ``tensor`` is of another dtype.
        ValueError: ``max_length``, ``chunk`` or ``group`` is out of range.

    Source: Zhang et al. 2025, "70% Size, 100% Accuracy" (DFloat11), section 3.

    Example:
        >>> tensor = torch.tensor([1.0, -2.0, 3.0, 1.5] * 1000).bfloat16()  # two exponents, a bit each
        >>> tensor.nbytes, len(encode(tensor)) < tensor.nbytes * 0.6
        (8000, True)

    Chapter: pruning/deep_compression
    """
    _check_dtype("tensor", tensor.dtype)
    flat = tensor.detach().cpu().contiguous().flatten()
    if tensor.dtype == torch.float32:
        low, high = np.ascontiguousarray(flat.view(torch.int32).numpy().view("<u2").reshape(-1, 2).T)
    else:
        low, high = np.empty(0, "<u2"), flat.view(torch.int16).numpy().view("<u2")
    if tensor.dtype == torch.float16:
        coded, rest = (high >> 8).astype(np.uint8), high.astype(np.uint8)
    else:
        coded, rest = (high >> 7).astype(np.uint8), (high >> 8 & 0x80 | high & 0x7F).astype(np.uint8)
    stream = huffman.encode(coded, max_length=max_length, chunk=chunk, group=group)
    body = struct.pack("<BQ", _KINDS[tensor.dtype], len(stream)) + stream + low.tobytes() + rest.tobytes()
    return _MAGIC + struct.pack("<I", zlib.crc32(body)) + body


def decode(blob: bytes, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """The tensor that `encode` was given, bit for bit.

    Args:
        blob: bytes of `encode`, from a source that need not be trusted.
        dtype: bfloat16, float16 or float32, as it was encoded.
        shape: as it was encoded; bounds the memory that is taken.

    Returns:
        ``shape``, ``dtype``.

    Raises:
        TypeError: ``dtype`` is another one.
        ValueError: ``shape`` holds a negative number.
        CorruptStream: ``blob`` was cut off or altered, or is of another dtype or number of elements.

    Source: Zhang et al. 2025, "70% Size, 100% Accuracy" (DFloat11), section 3.

    Example:
        >>> tensor = torch.tensor([1.0, -0.0, float("inf"), float("nan")]).bfloat16()
        >>> decode(encode(tensor), torch.bfloat16, (2, 2))
        tensor([[1., -0.],
                [inf, nan]], dtype=torch.bfloat16)

    Chapter: pruning/deep_compression
    """
    _check_dtype("dtype", dtype)
    if any(size < 0 for size in shape):
        raise ValueError(f"shape is {tuple(shape)}; no size may be below 0")
    n = math.prod(shape)
    stream, low, rest = split(blob, dtype, n)
    coded = huffman.decode(stream, max_symbols=n)
    if len(coded) != n:
        raise CorruptStream(f"the tensor has {len(coded)} coded bytes, not {n}")
    high = coded.astype("<u2")
    if dtype == torch.float16:
        high = high << 8 | rest
    else:
        high = (high << 7) | (rest & 0x7F)
        high |= (rest & 0x80).astype("<u2") << 8
    if dtype == torch.float32:
        high = np.stack([low, high], axis=1)
    return torch.from_numpy(high.view(np.int16).reshape(-1)).view(dtype).reshape(tuple(shape))


def split(blob: bytes, dtype: torch.dtype, n: int) -> tuple[memoryview, np.ndarray, np.ndarray]:
    """The parts of what `encode` wrote, with its checksum and sizes checked and nothing decoded.

    Args:
        blob: bytes of `encode`, from a source that need not be trusted.
        dtype: as it was encoded.
        n: number of elements.

    Returns:
        The coded stream; the lower halves of float32, uint16 ``[n]``, empty for the other types; the raw bytes, uint8
        ``[n]``.

    Raises:
        CorruptStream: ``blob`` was cut off or altered, or is of another dtype or number of elements.

    Example:
        >>> stream, low, rest = split(encode(torch.tensor([1.0, -1.5]).bfloat16()), torch.bfloat16, 2)
        >>> [f"{byte:08b}" for byte in rest], len(low)  # sign, then seven bits of mantissa
        (['00000000', '11000000'], 0)

    Chapter: none (plumbing: the layout is the module's docstring)
    """
    if len(blob) < _HEADER.size:
        raise CorruptStream(f"the tensor is cut off: {len(blob)} bytes, a header takes {_HEADER.size}")
    magic, crc, kind, stream_bytes = _HEADER.unpack_from(blob)
    view = memoryview(blob)
    if magic != _MAGIC:
        raise CorruptStream(f"the tensor begins with {magic!r}, not with {_MAGIC!r}")
    if zlib.crc32(view[8:]) != crc:
        raise CorruptStream("the tensor's checksum does not fit: its bytes were altered or cut off")
    if kind != _KINDS[dtype]:
        raise CorruptStream(f"the tensor is of kind {kind}, not {_KINDS[dtype]}, which {dtype} is")
    if stream_bytes + n * _RAW_BYTES[dtype] != len(blob) - _HEADER.size:
        raise CorruptStream(f"the tensor's {len(blob)} bytes are not those of {n} elements")
    halves = n if dtype == torch.float32 else 0
    low = np.frombuffer(blob, "<u2", halves, len(blob) - 3 * n) if halves else np.empty(0, "<u2")
    rest = np.frombuffer(blob, np.uint8, n, len(blob) - n)
    return view[_HEADER.size : _HEADER.size + stream_bytes], low, rest


def _check_dtype(name: str, dtype: torch.dtype) -> None:
    if dtype not in _KINDS:
        raise TypeError(f"{name} is {dtype}; it may be bfloat16, float16 or float32")
