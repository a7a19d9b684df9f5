"""bfloat16 weights that stay coded in a GPU's memory, and are decoded there when they are needed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reference.coding import huffman, lossless
from reference.coding.code_table import CorruptStream
from reference.coding.huffman_stream import Stream
from reference.coding.prefix_code import canonical_codes

#: Bits of the longest code word that one lookup can take, and what the number of symbols in a chunk is a multiple of.
LONGEST, BLOCK = 16, 16


def decode_table(stream: Stream) -> np.ndarray:
    """What the next bits of a stream decode to: one lookup a symbol.

    Args:
        stream: of symbols of one byte, coded one by one, in words of at most 16 bits.

    Returns:
        int16 ``[2^L]`` for a longest word of L bits. Entry ``x`` is for L bits of value x: the symbol that
        they begin with, plus 256 times the length of its code word.

    Raises:
        ValueError: the stream is none of that, or holds fewer than two different symbols.

    Example:
        >>> blob = huffman.encode(np.array([5, 5, 9, 5, 6, 5, 5, 5], dtype=np.uint8), group=1)
        >>> table = decode_table(huffman.read(blob))  # code words 0 (5), 10 (6), 11 (9)
        >>> [(int(entry) % 256, int(entry) // 256) for entry in table]  # symbol and length, by the next two bits
        [(5, 1), (5, 1), (6, 2), (9, 2)]

    Chapter: advanced/kernels
    """
    longest = int(stream.lengths.max(initial=0))
    if stream.width != 1 or stream.group != 1 or longest > LONGEST:
        raise ValueError(
            f"stream has symbols of {stream.width} bytes in groups of {stream.group} and words of up to {longest} "
            f"bits; one lookup a symbol needs 1 byte, groups of 1 and up to {LONGEST} bits"
        )
    if len(stream.used) < 2:
        return np.full(2, stream.used[0] if len(stream.used) else 0, np.int16)
    lengths = stream.lengths.astype(np.int64)
    codes = canonical_codes(lengths)
    table = np.empty(2**longest, np.int16)
    for symbol, length, code in zip(stream.used.tolist(), lengths.tolist(), codes.tolist(), strict=True):
        table[code << (longest - length) : (code + 1) << (longest - length)] = symbol + 256 * length
    return table


@dataclass(frozen=True, eq=False)  # comparing tensors field by field has no truth value
class ResidentTensor:
    """A bfloat16 tensor as the GPU's decoder reads it.

    Attributes:
        words: int32 ``[W]``, the payload of the stream of exponents.
        starts: int32 ``[chunks + 1]``, first word of each chunk, and W.
        table: int16 ``[2^L]`` of `decode_table`.
        raw: uint8 ``[n]``, sign and mantissa of each element, filled up with zeros to a multiple of 16.
        chunk: elements of a chunk, a multiple of 16.
        shape: of the tensor.

    Example:
        >>> tensor = torch.tensor([1.0, -2.0, 3.0, 1.5] * 1024).bfloat16()
        >>> resident = ResidentTensor.from_tensor(tensor, "cpu")
        >>> resident.raw.nbytes, resident.words.nbytes  # a byte of sign and mantissa, a bit of exponent
        (4096, 512)
        >>> resident.nbytes < tensor.nbytes
        True

    Chapter: advanced/kernels
    """

    words: Tensor
    starts: Tensor
    table: Tensor
    raw: Tensor
    chunk: int
    shape: tuple[int, ...]

    @classmethod
    def from_tensor(
        cls, tensor: Tensor, device: torch.device | str, *, chunk: int = 256, max_length: int = 10
    ) -> "ResidentTensor":
        """Code ``tensor`` for a GPU.

        Args:
            tensor: bfloat16, any shape.
            device: where the coded tensor is kept.
            chunk: elements of a chunk, a multiple of 16. Fewer: more is decoded at once, 6 bytes more a chunk.
            max_length: longest code word in bits, up to 16. Fewer: a smaller table, a little more payload.

        Raises:
            TypeError: ``tensor`` is not bfloat16.
            ValueError: ``chunk`` or ``max_length`` is out of range, or too short for the number of exponents.
        """
        if tensor.dtype != torch.bfloat16:
            raise TypeError(f"tensor is {tensor.dtype}; it may be bfloat16")
        if chunk < BLOCK or chunk % BLOCK:
            raise ValueError(f"chunk is {chunk}; it may be a multiple of {BLOCK}")
        if not 1 <= max_length <= LONGEST:
            raise ValueError(f"max_length is {max_length}; it may be 1 to {LONGEST}")
        blob = lossless.encode(tensor, chunk=chunk, group=1, max_length=max_length)
        return cls.from_bytes(blob, tensor.shape, device)

    @classmethod
    def from_bytes(cls, blob: bytes, shape: Sequence[int], device: torch.device | str) -> "ResidentTensor":
        """Take the bytes of :func:`reference.coding.lossless.encode` apart, unchanged, and move them to ``device``.

        Raises:
            CorruptStream: ``blob`` was cut off or altered, or is not of a bfloat16 tensor of ``shape``.
            ValueError: it was not coded for this: ``group=1``, ``chunk`` a multiple of 16, words of up to 16 bits.
        """
        coded, _, rest = lossless.split(blob, torch.bfloat16, math.prod(shape))
        stream = huffman.read(coded, max_symbols=math.prod(shape))
        table = decode_table(stream)
        if stream.symbols != len(rest):
            raise CorruptStream(f"the tensor has {stream.symbols} coded bytes, not {len(rest)}")
        if stream.chunk % BLOCK or len(stream.words) > 2**31:
            raise ValueError(f"blob is in chunks of {stream.chunk}; it may be in chunks of a multiple of {BLOCK}")
        raw = np.zeros(-(-len(rest) // BLOCK) * BLOCK, np.uint8)
        raw[: len(rest)] = rest
        arrays = (stream.words[:-1].view(np.int32), stream.starts.astype(np.int32), table, raw)
        words, starts, table_there, raw_there = (torch.from_numpy(array).to(device) for array in arrays)
        return cls(words, starts, table_there, raw_there, stream.chunk, tuple(shape))

    def decode(self, *, check: bool = True) -> Tensor:
        """The tensor, bit for bit, on the same device.

        Args:
            check: wait for the decoder and look at its report; without, damage inside chunks goes unseen (the bytes
                that :meth:`from_bytes` was given had passed their checksum).

        Raises:
            CorruptStream: the bits of a chunk do not end where the next one begins.
        """
        from reference.kernels.huffman import huffman as decode_chunks

        values, damaged = decode_chunks(
            self.words, self.starts, self.table, self.raw, symbols=math.prod(self.shape), chunk=self.chunk
        )
        if check and bool(damaged.any()):
            raise CorruptStream(f"chunk {int(damaged.nonzero()[0])} does not end where the next one begins")
        return values.view(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes on the device."""
        return sum(tensor.nbytes for tensor in (self.words, self.starts, self.table, self.raw))
