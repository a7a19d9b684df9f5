"""Relative indices: against a loop, against the closed form, and against damage."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference.coding import sparse_index


def slow_relative(positions: list[int], bits: int) -> list[tuple[int, bool]]:
    entries, last = [], -1
    for position in positions:
        while position - last > 2**bits:
            entries.append((2**bits - 1, True))
            last += 2**bits
        entries.append((position - last - 1, False))
        last = position
    return entries


masks = st.lists(st.booleans(), max_size=400) | st.sets(st.integers(0, 3000)).map(
    lambda kept: [i in kept for i in range(3001)]
)


@given(masks, st.integers(1, 16))
def test_fields_equal_a_loop_and_positions_come_back(mask: list[bool], bits: int) -> None:
    positions = torch.tensor(mask, dtype=torch.bool).nonzero().squeeze(1)
    fields, is_filler = sparse_index.relative(positions, bits, len(mask))
    assert list(zip(fields.tolist(), is_filler.tolist(), strict=True)) == slow_relative(positions.tolist(), bits)
    assert torch.equal(sparse_index.absolute(fields, len(mask))[~is_filler], positions)
    assert sparse_index.relative_bits(torch.tensor(mask, dtype=torch.bool), 5, bits) == len(fields) * (5 + bits)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16])
def test_positions_do_not_wrap_around_in_the_type_of_the_fields(dtype: torch.dtype) -> None:
    """A field of 255 is a gap of 256, which no uint8 holds."""
    fields = torch.tensor([255, 255, 0, 7], dtype=dtype)
    assert sparse_index.absolute(fields, 600).tolist() == [255, 511, 512, 520]


@pytest.mark.parametrize(
    ("density", "bits", "fillers"),
    [(0.04, 4, 1.085), (0.04, 5, 0.371), (0.04, 6, 0.079), (0.08, 4, 0.358), (0.12, 4, 0.149), (0.25, 4, 0.010)],
)
def test_expected_fillers_match_a_simulation(density: float, bits: int, fillers: float) -> None:
    """The third column was simulated elsewhere (the facts sheet); ours is drawn here."""
    mask = torch.from_numpy(np.random.default_rng(0).random(2_000_000) < density)
    _, is_filler = sparse_index.relative(mask.nonzero().squeeze(1), bits, mask.numel())
    measured = float(is_filler.sum() / (~is_filler).sum())
    expected = sparse_index.expected_fillers(density, bits)
    assert expected == pytest.approx(fillers, abs=6e-4)
    assert measured == pytest.approx(expected, rel=0.03, abs=1e-3)


def test_nothing_dropped_needs_no_filler_and_almost_nothing_kept_needs_many() -> None:
    assert sparse_index.expected_fillers(1.0, 4) == 0
    assert sparse_index.expected_fillers(1e-9, 4) == pytest.approx(1 / (16e-9), rel=1e-6)


def test_the_papers_overhead() -> None:
    """Bits for each kept weight at 4-bit codes: the facts sheet's table."""
    table = {(0.04, 4): 16.7, (0.04, 5): 12.3, (0.08, 5): 9.7, (0.12, 5): 9.15, (0.25, 4): 8.1, (0.25, 6): 10.0}
    for (density, bits), expected in table.items():
        assert sparse_index.bits_per_nonzero(density, 4, bits) == pytest.approx(expected, abs=0.06)


def test_bitmap_and_rows_by_hand() -> None:
    mask = torch.tensor([[True, False, False, True, False], [False, False, True, False, False]])
    assert sparse_index.bitmap_bits(mask, 4) == 10 + 3 * 4
    # Columns 0 to 4 take 3 bits; three row pointers, 0 to 3, take 2 bits each.
    assert sparse_index.csr_bits(mask, 4) == 3 * (4 + 3) + 3 * 2


def test_best_width_is_the_cheapest_of_all() -> None:
    mask = torch.from_numpy(np.random.default_rng(1).random((300, 784)) < 0.06)
    costs = {width: sparse_index.relative_bits(mask, 6, width) for width in range(1, 17)}
    assert sparse_index.best_index_bits(mask, 6) == min(costs, key=costs.get)
    assert costs[16] > costs[sparse_index.best_index_bits(mask, 6)]
    assert sparse_index.best_index_bits(torch.zeros(5, dtype=torch.bool), 4) == 1


def test_break_even_between_bitmap_and_rows_is_one_over_the_width() -> None:
    """d (v + c) = 1 + d v at d = 1 / c."""
    density = sparse_index.break_even(lambda d: d * (8 + 10), lambda d: 1 + 8 * d)
    assert density == pytest.approx(1 / 10)


def test_break_even_of_relative_and_bitmap_lies_where_masks_cost_the_same() -> None:
    density = sparse_index.break_even(lambda d: d * sparse_index.bits_per_nonzero(d, 4, 4), lambda d: 1 + 4 * d)
    mask = torch.from_numpy(np.random.default_rng(2).random(1_000_000) < density)
    assert sparse_index.relative_bits(mask, 4, 4) == pytest.approx(sparse_index.bitmap_bits(mask, 4), rel=0.01)
    with pytest.raises(ValueError, match="same layout is cheaper"):
        sparse_index.break_even(lambda d: 1 + d, lambda d: 2 + d)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="bits is 0"):
        sparse_index.relative(torch.tensor([1]), 0, 5)
    for bits in (0, 17):
        with pytest.raises(ValueError, match=f"bits is {bits}; it may be 1 to 16"):
            sparse_index.relative_bits(torch.ones(3, dtype=torch.bool), 4, bits)
    with pytest.raises(ValueError, match="strictly ascending"):
        sparse_index.relative(torch.tensor([1, 1]), 4, 5)
    with pytest.raises(ValueError, match="total is 5"):
        sparse_index.relative(torch.tensor([1, 5]), 4, 5)
    with pytest.raises(ValueError, match="there are 5"):
        sparse_index.absolute(torch.tensor([2, 2]), 5)
    with pytest.raises(ValueError, match="past the last of 5"):
        sparse_index.absolute(torch.tensor([2**62, 2**62]), 5)
    with pytest.raises(ValueError, match="down to -1"):
        sparse_index.absolute(torch.tensor([2, -1]), 5)
    with pytest.raises(ValueError, match="density is 0"):
        sparse_index.expected_fillers(0, 4)
