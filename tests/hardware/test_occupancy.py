"""Occupancy by hand."""

import pytest

from reference.hardware.occupancy import Occupancy, occupancy


@pytest.mark.parametrize(
    ("capability", "warps", "registers", "shared", "expected"),
    [
        # 65,536 registers: 128 a thread is 4,096 a warp, so 16 warps, four blocks of four.
        (90, 4, 128, 0, Occupancy(4, 16, 0.25, "registers")),
        (90, 1, 32, 0, Occupancy(32, 32, 0.5, "blocks")),
        (90, 4, 32, 0, Occupancy(16, 64, 1.0, "warps")),
        # 33 registers are given out as 40: 1,280 a warp, 51 warps, twelve blocks of four.
        (90, 4, 33, 0, Occupancy(12, 48, 0.75, "registers")),
        # 12 of them fit each of the four quarters; 51 in all would be 25 blocks of two.
        (90, 2, 40, 0, Occupancy(24, 48, 0.75, "registers")),
        # 168 registers: 5,376 a warp, three fit a quarter's 16,384: six blocks of two.
        (80, 2, 168, 0, Occupancy(6, 12, 0.1875, "registers")),
        # 104: 3,328 a warp, four in a quarter. 19 in all would be nine blocks of two, and 19 of one.
        (89, 1, 104, 0, Occupancy(16, 16, 1 / 3, "registers")),
        # 48 KiB and the reserved one: four fit 228 KiB, three 164.
        (90, 4, 64, 49_152, Occupancy(4, 16, 0.25, "shared memory")),
        (80, 4, 64, 49_152, Occupancy(3, 12, 0.1875, "shared memory")),
        (80, 8, 64, 166_912, Occupancy(1, 8, 0.125, "shared memory")),
        (80, 8, 64, 166_913, Occupancy(0, 0, 0.0, "shared memory")),
        (86, 4, 32, 0, Occupancy(12, 48, 1.0, "warps")),
    ],
)
def test_by_hand(capability, warps, registers, shared, expected) -> None:
    assert occupancy(capability, warps=warps, registers=registers, shared=shared) == expected


def test_refusals() -> None:
    with pytest.raises(ValueError, match="capability is 70; it may be 80, 86, 89, 90"):
        occupancy(70, warps=4, registers=32, shared=0)
    with pytest.raises(ValueError, match="warps is 0"):
        occupancy(80, warps=0, registers=32, shared=0)
