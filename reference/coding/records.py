"""One tensor as bytes: shared weights with their streams, or the bits as they are.

A *shared* record holds, numbers little-endian::

    uint8   bits of a code          uint8   bits of a gap; 0: every position has a code, and there are no gaps
    uint8   1 if the codes are Huffman-coded, else packed    uint8   the same for the gaps
    uint64  entries, fillers included                        uint64  bytes of the code stream
    codebook, entries 1 and up, in the tensor's dtype · code stream · gap stream

Of the widths of a gap the one with the smallest entropy is taken, and of the two layouts, with gaps or with a code
at every position, the shorter. A stream is Huffman-coded where that is shorter than packing.
"""

import math
import struct
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from reference.coding import huffman, lossless, sparse_index
from reference.coding.weight_sharing import CodebookTensor
from reference.tensors import pack, unpack

SHARED, RAW, LOSSLESS = 1, 2, 3
DTYPES = (
    torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
)  # fmt: skip
_FIELDS = struct.Struct("<BBBBQQ")
_WIDTHS = range(1, 9)


class Record(NamedTuple):
    """A tensor's bytes, and how to read them: the kind is SHARED, RAW or LOSSLESS.

    Example:
        >>> record = encode_tensor(torch.tensor([1, 2], dtype=torch.uint8))
        >>> record.kind == RAW, list(record.body)
        (True, [1, 2])

    Chapter: pruning/deep_compression
    """

    kind: int
    body: bytes


def encode_shared(tensor: CodebookTensor, dtype: torch.dtype) -> Record:
    """Code a shared weight.

    Args:
        tensor: the weight.
        dtype: of the codebook as stored, and of the weight that is decoded later: a floating-point one of :data:`DTYPES`.

    Returns:
        The shorter of the two layouts, kind SHARED.

    Raises:
        TypeError: another dtype.
        ValueError: a value of the codebook changes when it is stored as ``dtype``.

    Source: Han et al. 2016, sections 2 to 4.

    Example:
        >>> codebook, codes = torch.tensor([0.0, 0.5, 1.0, -1.0]), torch.zeros(1000, dtype=torch.uint8)
        >>> codes[::50] = 3  # 20 weights are kept
        >>> record = encode_shared(CodebookTensor(codebook, codes, bits=2), torch.float32)
        >>> len(record.body) < 2 * 1000 / 8  # less than two bits for each position
        True

    Chapter: pruning/deep_compression
    """
    floats = [kind for kind in DTYPES if kind.is_floating_point]
    if dtype not in floats:
        raise TypeError(f"dtype of the codebook is {dtype}; it may be {', '.join(map(str, floats))}")
    codebook = tensor.codebook[1:].to(dtype)
    if not torch.equal(codebook.float(), tensor.codebook[1:]):
        raise ValueError(f"codebook holds values that {dtype} cannot; round it before sharing")
    table = _bytes(codebook)
    codes = tensor.codes.flatten()
    positions = codes.nonzero().squeeze(1)
    candidates: list[tuple[Tensor, Tensor | None, int]] = [(codes, None, 0)]
    if len(positions) < len(codes):
        width = min(_WIDTHS, key=lambda bits: _estimate(positions, codes, bits))
        fields, is_filler = sparse_index.relative(positions, width, len(codes))
        values = torch.zeros(len(fields), dtype=torch.uint8)
        values[~is_filler] = codes[positions]
        candidates.append((values, fields.to(torch.uint8), width))
    bodies = []
    for entries, gaps, width in candidates:
        coded_values, value_stream = _stream(entries, tensor.bits)
        coded_gaps, gap_stream = (0, b"") if gaps is None else _stream(gaps, width)
        head = _FIELDS.pack(tensor.bits, width, coded_values, coded_gaps, len(entries), len(value_stream))
        bodies.append(head + table + value_stream + gap_stream)
    return Record(SHARED, min(bodies, key=len))


def decode_shared(body: memoryview, dtype: torch.dtype, shape: tuple[int, ...]) -> CodebookTensor:
    """Undo :func:`encode_shared`.

    Args:
        body: bytes that need not be trusted; memory for ``shape`` is taken.
        dtype, shape: as encoded.

    Returns:
        Codes of ``shape``, codebook in float32.

    Raises:
        ValueError: the bytes contradict themselves, or ``shape``.

    Example:
        >>> codes = torch.tensor([0, 3, 1], dtype=torch.uint8)
        >>> shared = CodebookTensor(torch.tensor([0.0, 0.5, 1.0, -1.0]), codes, bits=2)
        >>> record = encode_shared(shared, torch.float32)
        >>> decode_shared(memoryview(record.body), torch.float32, (3,)).to_dense()
        tensor([ 0.0000, -1.0000,  0.5000])

    Chapter: pruning/deep_compression
    """
    if len(body) < _FIELDS.size:
        raise ValueError(f"{len(body)} bytes are fewer than the {_FIELDS.size} of its fields")
    bits, width, coded_values, coded_gaps, entries, value_bytes = _FIELDS.unpack_from(body)
    if not 1 <= bits <= 8 or width > 8 or coded_values > 1 or coded_gaps > min(1, width) or not dtype.is_floating_point:
        raise ValueError(f"it declares codes of {bits} bits and gaps of {width} bits in {dtype}")
    total = math.prod(shape)
    start = _FIELDS.size + (2**bits - 1) * dtype.itemsize
    if start + value_bytes > len(body) or entries > total or (width == 0 and entries != total):
        raise ValueError(f"it declares {entries} entries in {value_bytes} bytes for {total} weights")
    codebook = torch.zeros(2**bits)
    codebook[1:] = _tensor(body[_FIELDS.size : start], dtype).float()
    values = _unstream(body[start : start + value_bytes], bits, entries, bool(coded_values))
    rest = body[start + value_bytes :]
    if width == 0:
        if len(rest):
            raise ValueError(f"{len(rest)} bytes are left over")
        codes = values
    else:
        fields = _unstream(rest, width, entries, bool(coded_gaps))
        codes = torch.zeros(total, dtype=torch.uint8)
        codes[sparse_index.absolute(fields, total)] = values
    return CodebookTensor(codebook, codes.view(shape), bits)


def encode_tensor(tensor: Tensor) -> Record:
    """Keep a tensor's bits: with coded exponents where that is shorter, else as they are.

    Args:
        tensor: any shape, one of :data:`DTYPES`.

    Returns:
        The record, kind LOSSLESS or RAW.

    Raises:
        TypeError: another dtype.

    Example:
        >>> encode_tensor(torch.tensor([1.0, 2.0])).kind == RAW  # too short for a code
        True
        >>> encode_tensor(torch.ones(10_000)).kind == LOSSLESS
        True

    Chapter: pruning/deep_compression
    """
    if tensor.dtype not in DTYPES:
        raise TypeError(f"tensor is {tensor.dtype}; it may be {', '.join(str(d) for d in DTYPES)}")
    raw = _bytes(tensor)
    if tensor.dtype in (torch.float32, torch.float16, torch.bfloat16):
        coded = lossless.encode(tensor)
        if len(coded) < len(raw):
            return Record(LOSSLESS, coded)
    return Record(RAW, raw)


def decode_tensor(kind: int, body: memoryview, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Undo :func:`encode_tensor`.

    Args:
        kind: LOSSLESS or RAW.
        body: bytes that need not be trusted.
        dtype, shape: as encoded.

    Returns:
        ``shape``, ``dtype``, bit for bit.

    Raises:
        ValueError: the bytes are not those of ``dtype`` and ``shape``.

    Example:
        >>> tensor = torch.tensor([[True, False]])
        >>> kind, body = encode_tensor(tensor)
        >>> decode_tensor(kind, memoryview(body), torch.bool, (1, 2))
        tensor([[ True, False]])

    Chapter: pruning/deep_compression
    """
    if kind == LOSSLESS:
        return lossless.decode(bytes(body), dtype, shape)
    if len(body) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(body)} bytes are not those of {dtype} {shape}")
    return _tensor(body, dtype).view(shape)


def purposes(kind: int, body: memoryview, dtype: torch.dtype, shape: tuple[int, ...]) -> dict[str, int]:
    """Where the bytes of a record go.

    Args:
        kind, body: of a :class:`Record` that was decoded without an error.
        dtype, shape: of its tensor.

    Returns:
        Bytes by purpose, adding up to the body, as ``raw``; or ``exponents`` and ``rest``; or of a shared
        weight ``fields``, ``codebook``, ``tables`` (of the Huffman codes, with headers and offsets),
        ``codes``, ``gaps`` and ``fillers``, the part of both payloads that falls to filler entries
        by their number.

    Example:
        >>> codes = torch.tensor([0, 3, 1], dtype=torch.uint8)
        >>> shared = CodebookTensor(torch.tensor([0.0, 0.5, 1.0, -1.0]), codes, bits=2)
        >>> kind, body = encode_shared(shared, torch.float32)
        >>> parts = purposes(kind, memoryview(body), torch.float32, (3,))
        >>> parts["codebook"], sum(parts.values()) == len(body)  # three float32 values beside zero
        (12, True)

    Chapter: pruning/deep_compression
    """
    if kind == RAW:
        return {"raw": len(body)}
    if kind == LOSSLESS:
        rest = math.prod(shape) * (dtype.itemsize - 1)
        return {"exponents": len(body) - rest, "rest": rest}
    bits, width, coded_values, coded_gaps, entries, value_bytes = _FIELDS.unpack_from(body)
    start = _FIELDS.size + (2**bits - 1) * dtype.itemsize
    streams = body[start : start + value_bytes], body[start + value_bytes :]
    tables, payloads = 0, []
    for stream, coded in zip(streams, (coded_values, coded_gaps), strict=True):
        payloads.append(huffman.describe(stream).payload_bytes if coded else len(stream))
        tables += len(stream) - payloads[-1]
    share = 0.0
    if width and entries:
        share = 1 - int(_unstream(streams[0], bits, entries, bool(coded_values)).count_nonzero()) / entries
    fillers = [round(payload * share) for payload in payloads]
    return {
        "fields": _FIELDS.size, "codebook": start - _FIELDS.size, "tables": tables, "codes": payloads[0] - fillers[0],
        "gaps": payloads[1] - fillers[1], "fillers": sum(fillers),
    }  # fmt: skip


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _tensor(data: memoryview, dtype: torch.dtype) -> Tensor:
    if not len(data):
        return torch.empty(0, dtype=dtype)
    raw = torch.from_numpy(np.frombuffer(data, np.uint8).copy())
    if dtype == torch.bool and int(raw.max()) > 1:
        raise ValueError("a truth value is neither 0 nor 1")
    return raw.view(dtype)


def _entropy_bits(values: Tensor) -> float:
    counts = torch.bincount(values)
    counts = counts[counts > 0].double()
    return float(-(counts * (counts / counts.sum()).log2()).sum())


def _estimate(positions: Tensor, codes: Tensor, width: int) -> float:
    """Bits of both streams at their entropy."""
    fields, is_filler = sparse_index.relative(positions, width, len(codes))
    values = torch.zeros(len(fields), dtype=torch.int64)
    values[~is_filler] = codes[positions].long()
    return _entropy_bits(values) + _entropy_bits(fields)


def _stream(values: Tensor, bits: int) -> tuple[int, bytes]:
    """Whether Huffman-coded, and the bytes."""
    packed = pack(values.view(1, -1), bits).numpy().tobytes()[: -(-len(values) * bits // 8)]
    coded = huffman.encode(values.numpy())
    return (1, coded) if len(coded) < len(packed) else (0, packed)


def _unstream(data: memoryview, bits: int, count: int, coded: bool) -> Tensor:
    if coded:
        values = huffman.decode(data, max_symbols=count)
        if len(values) != count or values.dtype != np.uint8 or (count and int(values.max()) >= 2**bits):
            raise ValueError(f"a stream does not hold {count} codes of {bits} bits")
        return torch.from_numpy(values)
    if len(data) != -(-count * bits // 8):
        raise ValueError(f"{len(data)} bytes do not hold {count} codes of {bits} bits")
    words = np.zeros(-(-count * bits // 32) * 4, np.uint8)
    words[: len(data)] = np.frombuffer(data, np.uint8)
    return unpack(torch.from_numpy(words.view(np.int32)).view(1, -1), bits, count).flatten()
