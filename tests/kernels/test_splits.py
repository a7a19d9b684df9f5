"""Sums split over K where tiles have many rows: the rule's bounds, and the same product as float64 from each kernel."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton", reason="the kernels run with Triton, which is not installed")

from reference.coding.planes import pack_planes
from reference.kernels import _splits, _triton, w4a16
from reference.kernels import block_sparse as block_sparse_module
from reference.kernels.block_sparse import block_sparse
from reference.kernels.codebook import codebook
from reference.kernels.mxfp4 import mxfp4
from reference.kernels.sparse_24 import sparse_24
from reference.sparse_tensors import BlockSparseTensor, SparseTensor
from reference.tensors import pack

if not _triton.INTERPRETED.value:
    pytest.skip("TRITON_INTERPRET=1 was not set when the kernels were imported", allow_module_level=True)

ROWS, OUTPUTS, COLUMNS = 70, 64, 2112  # blocks of columns that two programs cannot share evenly
MANY = (128, 128, 64)


@given(
    rows=st.integers(1, 5000), outputs=st.integers(1, 30000), columns=st.integers(1, 20000),
    tile=st.sampled_from([(64, 64, 64), (64, 128, 64), MANY]),
)  # fmt: skip
def test_many_rows_are_split_until_every_processor_has_one_tile(rows, outputs, columns, tile) -> None:
    tiles = -(-rows // tile[0]) * -(-outputs // tile[1])
    splits = _splits.splits_for(rows, outputs, columns, tile)
    assert splits >= 1
    if splits > 1:  # one round of programs, each with 1024 columns or more
        assert splits * tiles <= _splits.PROCESSORS
        assert splits * 1024 <= columns
    if (splits + 1) * 1024 <= columns:  # no more would fit
        assert (splits + 1) * tiles > _splits.PROCESSORS


@given(
    rows=st.integers(1, 63), outputs=st.integers(1, 30000), columns=st.integers(32, 20000),
    bits=st.sampled_from([2.0, 4.0, 4.25, 16.0]), programs=st.sampled_from([256, 264]),
    tile=st.sampled_from([(16, 64, 64), (16, 128, 128), (32, 64, 128)]),
)  # fmt: skip
def test_few_rows_are_split_as_long_as_their_partial_sums_are_a_quarter_of_the_weight(
    rows, outputs, columns, bits, programs, tile
) -> None:
    tiles, blocks = -(-rows // tile[0]) * -(-outputs // tile[1]), -(-columns // tile[2])

    def worth_it(splits: int) -> bool:
        """Of use: the programs before the last split were too few; each has a block; and the bytes."""
        sums = 8 * rows * outputs * splits
        return (splits - 1) * tiles < programs and splits <= blocks and 4 * sums <= outputs * int(columns * bits) / 8

    splits = _splits.splits_for(rows, outputs, columns, tile, bits, programs)
    assert splits == max([1, *(number for number in range(2, 300) if worth_it(number))])


@pytest.mark.parametrize(
    ("rows", "outputs", "expected"), [(128, 4096, 4), (256, 4096, 2), (512, 4096, 1), (128, 11008, 1), (65, 1024, 4)]
)
def test_the_layers_of_the_benchmarks(rows, outputs, expected) -> None:
    assert _splits.splits_for(rows, outputs, 4096, MANY) == expected


def calls(x: Tensor, generator: torch.Generator):
    """By kernel: its product with a random weight, and that weight in float64."""
    codes = torch.randint(0, 16, (OUTPUTS, COLUMNS), generator=generator)
    scale = (torch.rand((OUTPUTS, COLUMNS // 64), generator=generator) + 0.01).bfloat16()
    yield (
        "w4a16",
        lambda: w4a16.w4a16(x, pack(codes, 4), scale, group_size=64),
        ((codes - 8).double() * scale.double().repeat_interleave(64, 1)),
    )
    table = torch.randn(16, generator=generator).bfloat16()
    yield "codebook", lambda: codebook(x, pack_planes(codes, 4), table.float()), table.double()[codes]
    exponents = torch.full((OUTPUTS, COLUMNS // 32), 127, dtype=torch.uint8)
    # Codes 1 to 4 of E2M1 are 0.5, 1, 1.5 and 2.
    halves = torch.randint(1, 5, (OUTPUTS, COLUMNS), generator=generator)
    packed = (halves[:, ::2] | halves[:, 1::2] << 4).to(torch.uint8)
    yield "mxfp4", lambda: mxfp4(x, packed, exponents), halves.double() / 2
    dense = torch.randn((OUTPUTS, COLUMNS), generator=generator).bfloat16()
    kept = dense.view(OUTPUTS, -1, 4).clone()
    kept[..., ::2] = 0
    two = SparseTensor.from_dense(kept.reshape(OUTPUTS, COLUMNS))
    yield "sparse_24", lambda: sparse_24(x, two.values, two.positions), two.to_dense().double()
    blocks = BlockSparseTensor.from_dense(dense, 64)
    parts = (blocks.blocks, blocks.crow, blocks.column, blocks.order)
    yield "block_sparse", lambda: block_sparse(x, *parts), dense.double()


class Counted:
    """Stands for the kernel that adds up the splits, and counts its launches."""

    def __init__(self, kernel) -> None:
        self.kernel, self.launches = kernel, 0

    def __getitem__(self, grid):
        self.launches += 1
        return self.kernel[grid]


def test_split_sums_are_the_product_and_the_same_in_every_run(generator, monkeypatch) -> None:
    x = torch.randn((ROWS, COLUMNS), generator=generator).bfloat16()
    counted = Counted(_splits.add_splits)
    monkeypatch.setattr(_splits, "add_splits", counted)
    for number, (kernel, call, weight) in enumerate(calls(x, generator), 1):
        y, again = call(), call()
        assert counted.launches == 2 * number, f"{kernel} did not split its sums"
        expected = x.double() @ weight.T
        assert (y.double() - expected).norm() <= (2**-8 + 4e-6) * expected.norm(), kernel
        assert torch.equal(y, again), kernel


def test_splits_that_do_not_divide_the_blocks_touch_nothing_outside(generator, assert_inside, monkeypatch) -> None:
    """Three blocks for two programs, and sums that end within a block of those that are added up."""
    made = []
    empty = torch.empty
    monkeypatch.setattr(w4a16.torch, "empty", lambda *a, **k: made.append(empty(*a, **k)) or made[-1])
    codes = torch.randint(0, 16, (19, 96), generator=generator)
    packed, scale = pack(codes, 4), torch.rand((19, 3), generator=generator) + 0.01
    x = torch.randn((3, 96), generator=generator)
    y = w4a16.w4a16(x, packed, scale, group_size=32, plan=w4a16.Tile(16, 32, 32, 4, 2, splits=2))
    expected = x.double() @ ((codes - 8).double() * scale.double().repeat_interleave(32, 1)).T
    assert (y.double() - expected).norm() <= 4e-6 * expected.norm()
    assert_inside(x, packed, scale, *made)


def test_a_sparse_row_of_blocks_is_not_split_by_the_columns_that_it_lacks(generator) -> None:
    dense = torch.zeros((64, 4096), dtype=torch.bfloat16)
    dense[:, :64] = torch.randn((64, 64), generator=generator)
    sparse = BlockSparseTensor.from_dense(dense, 64)
    x = torch.randn((ROWS, 4096), generator=generator).bfloat16()
    plan = block_sparse_module.plan_for(ROWS, 64)
    assert _splits.splits_for(ROWS, 64, 4096, (plan.rows, 64, 64)) == 4
    stored = sparse.blocks.numel() // 64
    assert _splits.splits_for(ROWS, 64, stored, (plan.rows, 64, 64), 16) == 1
    expected = x.double() @ dense.double().T
    y = block_sparse(x, sparse.blocks, sparse.crow, sparse.column, sparse.order)
    assert (y.double() - expected).norm() <= (2**-8 + 4e-6) * expected.norm()
