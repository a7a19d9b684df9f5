"""How many warps of a kernel live on one multiprocessor at once: what its registers and shared memory leave room for."""

from typing import NamedTuple


class Limits(NamedTuple):
    """What one multiprocessor has: CUDA C++ programming guide, technical specifications per compute capability.

    Most ``warps`` and ``blocks`` at once; 32-bit ``registers``; bytes of ``shared`` memory, and the most of one block.

    Example:
        >>> limits = LIMITS[90]
        >>> limits.registers // (limits.warps * 32)  # registers of a thread where all warps are there
        32

    Chapter: advanced/kernels
    """

    warps: int
    blocks: int
    registers: int
    shared: int
    shared_per_block: int


#: By compute capability. A block's shared memory costs one KiB more than it asks for, from 8.0 on.
LIMITS = {
    80: Limits(64, 32, 65_536, 164 * 1024, 163 * 1024),
    86: Limits(48, 16, 65_536, 100 * 1024, 99 * 1024),
    89: Limits(48, 24, 65_536, 100 * 1024, 99 * 1024),
    90: Limits(64, 32, 65_536, 228 * 1024, 227 * 1024),
}
RESERVED, REGISTER_UNIT = 1024, 256
#: A multiprocessor has four schedulers, each with its own warps and a quarter of the registers.
QUARTERS = 4


class Occupancy(NamedTuple):
    """Blocks and warps of a kernel on one multiprocessor, their share of the most, and what sets the limit.

    Example:
        >>> found = occupancy(90, warps=4, registers=32, shared=0)
        >>> found.warps, found.share
        (64, 1.0)

    Chapter: advanced/kernels
    """

    blocks: int
    warps: int
    share: float
    limit: str


def occupancy(capability: int, *, warps: int, registers: int, shared: int) -> Occupancy:
    """Blocks of a kernel that fit one multiprocessor together.

    Args:
        capability: 80, 86, 89 or 90.
        warps: of one block (one Triton program).
        registers: of one thread.
        shared: bytes of one block.

    Returns:
        Zero blocks where a single one does not fit.

    Raises:
        ValueError: an unknown capability, or a count below what a kernel can have.

    Source: CUDA C++ programming guide; registers are given out to a warp 256 at a time, out of the quarter that it lives in
    (``cuda_occupancy.h`` of the CUDA toolkit).

    Example:
        >>> occupancy(90, warps=4, registers=128, shared=64 * 1024)  # three blocks of 64 + 1 KiB in 228
        Occupancy(blocks=3, warps=12, share=0.1875, limit='shared memory')
        >>> occupancy(90, warps=4, registers=128, shared=0)  # four blocks of 128 threads with 128 registers
        Occupancy(blocks=4, warps=16, share=0.25, limit='registers')

    Chapter: advanced/kernels
    """
    if capability not in LIMITS:
        raise ValueError(f"capability is {capability}; it may be {', '.join(map(str, LIMITS))}")
    if warps < 1 or registers < 1 or shared < 0:
        raise ValueError(f"warps is {warps}, registers {registers}, shared {shared}; they may be 1, 1 and 0 or more")
    limits = LIMITS[capability]
    per_warp = -(-registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
    room = {
        "warps": limits.warps // warps,
        "blocks": limits.blocks,
        "registers": limits.registers // QUARTERS // per_warp * QUARTERS // warps,
        "shared memory": limits.shared // (shared + RESERVED) if shared <= limits.shared_per_block else 0,
    }
    limit = min(room, key=lambda name: room[name])
    blocks = room[limit]
    return Occupancy(blocks, blocks * warps, blocks * warps / limits.warps, limit)
