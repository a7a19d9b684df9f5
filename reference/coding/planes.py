"""Codes of 1 to 8 bits in planes of 8, 4, 2 or 1 bits, as `reference.kernels.codebook` reads them."""

import torch
from torch import Tensor

from reference.tensors import pack, unpack


def plane_widths(bits: int) -> list[int]:
    """Widths of the planes of a code, the lowest bits first: 7 is 4, 2 and 1.

    Args:
        bits: of a code, 1 to 8.

    Raises:
        ValueError: ``bits`` is not 1 to 8.

    Example:
        >>> plane_widths(7)
        [4, 2, 1]

    Chapter: advanced/kernels
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"bits is {bits}; it may be 1 to 8")
    return [width for width in (8, 4, 2, 1) if bits & width]


def pack_planes(codes: Tensor, bits: int) -> Tensor:
    """Pack the rows of ``codes``, filled up with zeros to a multiple of 32.

    Each plane is `reference.tensors.pack`'s stream. The first one is in the order of the columns; in the others, columns
    stand so that the parts of a code lie in the same byte, counted within a word: column c of each 32 is number t of
    byte j, where the first plane has it as field t of byte j.

    Args:
        codes: ``[rows, n]`` integers, each in ``[0, 2^bits - 1]``.
        bits: 1 to 8.

    Returns:
        int32 ``[rows, bits * ceil(n / 32)]``.

    Raises:
        ValueError: ``bits`` is out of range, a value does not fit into it, or ``codes`` is not an integer matrix.

    Example:
        >>> codes = torch.zeros(1, 32, dtype=torch.uint8)
        >>> codes[0, 0] = 0b10110
        >>> packed = pack_planes(codes, 5)[0]  # four words of four bits each, and one word of fifth bits
        >>> f"{packed[0]:04b}", int(packed[4])
        ('0110', 1)

    Chapter: advanced/kernels
    """
    widths = plane_widths(bits)
    if codes.ndim != 2 or codes.is_floating_point():
        raise ValueError(f"codes must be an integer matrix, got {codes.dtype} of shape {tuple(codes.shape)}")
    if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= 2**bits):
        raise ValueError(
            f"codes run from {int(codes.min())} to {int(codes.max())}; {bits} bits hold 0 to {2**bits - 1}"
        )
    rows, n = codes.shape
    padded = torch.zeros(rows, -(-n // 32), 32, dtype=torch.int32, device=codes.device)
    padded.view(rows, 32 * padded.shape[1])[:, :n] = codes
    planes, before = [], 0
    for width in widths:
        part = (padded >> before & (2**width - 1))[..., _order(widths[0], width, codes.device)]
        planes.append(pack(part.reshape(rows, 32 * padded.shape[1]), width))
        before += width
    return torch.cat(planes, dim=1)


def unpack_planes(packed: Tensor, bits: int, n: int) -> Tensor:
    """Undo :func:`pack_planes`.

    Args:
        packed: int32 ``[rows, bits * ceil(n / 32)]``.
        bits: as packed.
        n: codes a row.

    Returns:
        uint8 ``[rows, n]``.

    Raises:
        ValueError: ``bits`` is out of range, or the number of words does not fit ``n`` and ``bits``.

    Example:
        >>> codes = torch.tensor([[0, 5, 31, 16]])
        >>> packed = pack_planes(codes, 5)
        >>> packed.shape, unpack_planes(packed, 5, 4)
        (torch.Size([1, 5]), tensor([[ 0,  5, 31, 16]], dtype=torch.uint8))

    Chapter: advanced/kernels
    """
    widths, blocks = plane_widths(bits), -(-n // 32)
    if packed.shape[1] != bits * blocks:
        raise ValueError(f"packed has {packed.shape[1]} words a row; {n} codes of {bits} bits need {bits * blocks}")
    codes = torch.zeros(len(packed), blocks, 32, dtype=torch.uint8, device=packed.device)
    before = 0
    for width in widths:
        words = packed[:, before * blocks : (before + width) * blocks]
        part = unpack(words, width, 32 * blocks).view(len(packed), blocks, 32)
        codes[..., _order(widths[0], width, packed.device)] |= part << before
        before += width
    return codes.view(len(packed), 32 * blocks)[:, :n].contiguous()


def _order(first: int, width: int, device: torch.device) -> Tensor:
    """Column, 0 to 31, of each field of a plane in the order of its bits."""
    steps = 8 // first  # words of four codes, a byte each, that a word of the first plane gives
    column = torch.arange(32, device=device).view(-1, 4, steps)  # word of the first plane, byte, field of the byte
    by_word_and_byte = column.transpose(1, 2).reshape(8, 4)  # all fields t, their bytes j
    return by_word_and_byte.view(width, 8 // width, 4).transpose(1, 2).reshape(32)
