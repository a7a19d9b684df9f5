"""sparse_24 and block_sparse against float64 products with the dense weight, and their packers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

triton = pytest.importorskip("triton", reason="the kernels run with Triton, which is not installed")

from reference.kernels import _triton, block_sparse, sparse_24  # noqa: E402
from reference.kernels.block_sparse import block_sparse as multiply_blocks  # noqa: E402
from reference.kernels.sparse_24 import sparse_24 as multiply_24  # noqa: E402
from reference.sparse_tensors import BlockSparseTensor, SparseTensor  # noqa: E402

if not _triton.INTERPRETED.value:
    pytest.skip("TRITON_INTERPRET=1 was not set when the kernels were imported", allow_module_level=True)

ROUNDING = {torch.float16: 2**-11, torch.bfloat16: 2**-8}  # half a unit in the last place, relative
SUMS = 2e-6


def assert_close(y: Tensor, x: Tensor, dense: Tensor) -> None:
    product, magnitude = x.double() @ dense.double().T, x.double().abs() @ dense.double().abs().T
    assert y.dtype == x.dtype
    assert y.is_contiguous()
    assert y.shape == product.shape
    assert (y.double() - product).norm() <= ROUNDING[y.dtype] * product.norm() + SUMS * magnitude.norm()


def two_of_four(outputs: int, columns: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """At most two of each four columns, anywhere; some groups hold one or none."""
    weight = torch.randn((outputs, columns // 4, 4), generator=generator)
    keep = torch.rand((outputs, columns // 4, 4), generator=generator).argsort(-1) < 2
    keep &= torch.rand(weight.shape, generator=generator) < 0.9
    return (weight * keep).reshape(outputs, columns).to(dtype)


def some_blocks(outputs: int, columns: int, size: int, density: float, dtype, generator: torch.Generator) -> Tensor:
    keep = torch.rand((outputs // size, columns // size), generator=generator) < density
    mask = keep.repeat_interleave(size, 0).repeat_interleave(size, 1)
    return (torch.randn((outputs, columns), generator=generator) * mask).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "outputs", "columns"),
    [
        (1, 20, 512),
        (1, 33, 48),
        (1, 5, 2064),
        (5, 70, 400),
        (3, 9, 2048),
        (17, 20, 64),
        (130, 20, 80),
        (1, 1, 16),
        (2, 1, 16),
    ],
)
def test_24_equals_the_dense_product(rows, outputs, columns, dtype, generator) -> None:
    dense = two_of_four(outputs, columns, dtype, generator)
    tensor = SparseTensor.from_dense(dense)
    assert torch.equal(tensor.to_dense(), dense)
    x = torch.randn((rows, columns), generator=generator).to(dtype)
    assert_close(multiply_24(x, tensor.values, tensor.positions), x, dense)


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 20), outputs=st.integers(1, 40), sixteens=st.integers(1, 20), seed=st.integers(0, 2**32 - 1))
def test_24_of_any_size_equals_the_dense_product(rows, outputs, sixteens, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    dense = two_of_four(outputs, 16 * sixteens, torch.float16, generator)
    tensor = SparseTensor.from_dense(dense)
    x = torch.randn((rows, 16 * sixteens), generator=generator).to(torch.float16)
    assert_close(multiply_24(x, tensor.values, tensor.positions), x, dense)


@pytest.mark.parametrize("rows", [1, 64], ids=["one_row", "tile"])
def test_24_unit_vectors_return_the_weights_exactly(rows, generator) -> None:
    dense = two_of_four(24, 64, torch.bfloat16, generator)
    dense[0, :4] = torch.tensor([torch.finfo(torch.bfloat16).tiny, 0, 0, -3e38])
    tensor = SparseTensor.from_dense(dense)
    identity = torch.eye(64, dtype=torch.bfloat16)
    y = torch.cat([multiply_24(x, tensor.values, tensor.positions) for x in identity.split(rows)])
    assert torch.equal(y, dense.T)


@pytest.mark.parametrize("rows", [1, 3, 20])
def test_24_rows_far_apart_and_at_odd_addresses(rows, generator) -> None:
    dense = two_of_four(19, 80, torch.bfloat16, generator)
    tensor = SparseTensor.from_dense(dense)
    wide = torch.full((rows, 131), math.nan, dtype=torch.bfloat16)
    x = wide[:, 25:105].copy_(torch.randn((rows, 80), generator=generator))
    assert_close(multiply_24(x, tensor.values, tensor.positions), x, dense)


def test_24_each_pair_of_positions(generator) -> None:
    """All six pairs, and the groups of one value or none."""
    kept = torch.tensor([[a, b] for a in range(4) for b in range(a + 1, 4)])
    dense = torch.zeros(1, 8, 4, dtype=torch.bfloat16)
    dense[0, torch.arange(6)[:, None], kept] = torch.randn((6, 2), generator=generator).bfloat16()
    dense[0, 6, 3] = 5.0
    tensor = SparseTensor.from_dense(dense.view(1, 32))
    positions = (int(tensor.positions[0, 0]) & 0xFFFF) | (int(tensor.positions[0, 1]) & 0xFFFF) << 16
    found = [(positions >> 4 * g & 3, positions >> 4 * g + 2 & 3) for g in range(8)]
    assert found[:6] == [tuple(pair) for pair in kept.tolist()]
    assert found[6] == (0, 3)
    assert found[7][0] < found[7][1]
    assert torch.equal(tensor.to_dense(), dense.view(1, 32))
    assert tensor.nbytes * 16 == 9 * dense.nbytes


@pytest.mark.parametrize("rows", [1, 20])
def test_24_nothing_outside_the_tensors_is_touched(rows, generator, assert_inside, monkeypatch) -> None:
    made = []
    empty = torch.empty
    monkeypatch.setattr(sparse_24.torch, "empty", lambda *a, **k: made.append(empty(*a, **k)) or made[-1])
    tensor = SparseTensor.from_dense(two_of_four(19, 208, torch.float16, generator))
    x = torch.randn((rows, 208), generator=generator).to(torch.float16)
    multiply_24(x, tensor.values, tensor.positions)
    # One row: x is read as numbers of 8 bytes, weights as numbers of 4.
    x = x.view(torch.int64) if rows == 1 else x
    assert_inside(x, tensor.values.view(torch.int32), tensor.positions, *made)


def test_24_no_rows_and_masks(generator) -> None:
    weight = torch.randn((8, 32), generator=generator)
    mask = torch.rand((8, 8, 4), generator=generator).argsort(-1).lt(2).view(8, 32)
    tensor = SparseTensor.from_dense(weight, mask)
    assert torch.equal(tensor.to_dense(), weight * mask)
    values = tensor.values.bfloat16()
    assert multiply_24(torch.zeros((0, 32), dtype=torch.bfloat16), values, tensor.positions).shape == (0, 8)


def blocks_at(column: list[int], crow: list[int]) -> BlockSparseTensor:
    """Blocks of ones, 2 by 2, in a matrix of 4 columns."""
    numbers = [torch.tensor(values, dtype=torch.int32) for values in (crow, column, range(len(crow) - 1))]
    return BlockSparseTensor(torch.ones(len(column), 2, 2), *numbers, columns=4)


def test_columns_ascend_in_a_row_and_start_again_in_the_next() -> None:
    assert blocks_at([1, 0, 1], [0, 1, 3]).to_dense().tolist() == [[0, 0, 1, 1]] * 2 + [[1, 1, 1, 1]] * 2


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: SparseTensor.from_dense(torch.ones(2, 16)), ValueError, "row 0 keeps more than two of columns 0 to 3"),
        (lambda: SparseTensor.from_dense(torch.ones(2, 20)), ValueError, r"weight has shape \(2, 20\)"),
        (lambda: SparseTensor.from_dense(torch.ones(2, 16).int()), TypeError, "weight and mask must be"),
        (
            lambda: SparseTensor.from_dense(torch.ones(2, 16), torch.ones(2, 8) > 0),
            ValueError,
            r"mask has shape \(2, 8\)",
        ),
        (lambda: SparseTensor(torch.ones(2, 8), torch.zeros(2, 1).short()), ValueError, "do not ascend"),
        (
            lambda: SparseTensor(torch.ones(2, 8), torch.zeros(2, 2).short()),
            ValueError,
            r"values need int16 of \(2, 1\)",
        ),
        (lambda: SparseTensor(torch.ones(2, 7), torch.zeros(2, 1).short()), ValueError, "values is torch.float32"),
        (lambda: BlockSparseTensor.from_dense(torch.ones(32, 40), 32), ValueError, "multiples of 32"),
        # A block twice: the product would add both, the dense matrix hold the last.
        (lambda: blocks_at([1, 1], [0, 2]), ValueError, "column must ascend within each block row"),
        (lambda: blocks_at([1, 0], [0, 2]), ValueError, "column must ascend within each block row"),
        (lambda: BlockSparseTensor.from_dense(torch.ones(32, 32).int(), 32), TypeError, "weight is torch.int32"),
    ],
)
def test_wrong_weights_are_refused_by_name(call, error, words) -> None:
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", block_sparse.SIZES)
@pytest.mark.parametrize("rows", [1, 16, 17, 130])
def test_blocks_equal_the_dense_product(rows, size, dtype, generator) -> None:
    dense = some_blocks(3 * size, 4 * size, size, 0.5, dtype, generator)
    dense[:size, :size] = 0
    dense[size : 2 * size] = 0  # an empty block row
    dense[2 * size :] = torch.randn((size, 4 * size), generator=generator)  # a full one
    tensor = BlockSparseTensor.from_dense(dense, size)
    assert torch.equal(tensor.to_dense(), dense)
    assert int(tensor.order[0]) == 2
    assert int(tensor.order[-1]) == 1
    x = torch.randn((rows, 4 * size), generator=generator).to(dtype)
    y = multiply_blocks(x, tensor.blocks, tensor.crow, tensor.column, tensor.order)
    assert_close(y, x, dense)
    assert (y[:, size : 2 * size] == 0).all()
    assert torch.equal(y, multiply_blocks(x, tensor.blocks, tensor.crow, tensor.column))


@pytest.mark.filterwarnings("ignore:Sparse BSR tensor support")
def test_blocks_are_torchs(generator) -> None:
    dense = some_blocks(96, 160, 32, 0.4, torch.float32, generator)
    tensor, theirs = BlockSparseTensor.from_dense(dense, 32), dense.to_sparse_bsr((32, 32))
    assert torch.equal(tensor.crow.long(), theirs.crow_indices())
    assert torch.equal(tensor.column.long(), theirs.col_indices())
    assert torch.equal(tensor.blocks, theirs.values())
    assert tensor.nbytes == 4 * tensor.blocks.numel() + 4 * (4 + len(tensor.column) + 3)


def test_blocks_none_at_all(generator) -> None:
    tensor = BlockSparseTensor.from_dense(torch.zeros(64, 64, dtype=torch.float16), 32)
    x = torch.randn((3, 64), generator=generator).half()
    assert (multiply_blocks(x, tensor.blocks, tensor.crow, tensor.column, tensor.order) == 0).all()
    assert multiply_blocks(x[:0], tensor.blocks, tensor.crow, tensor.column).shape == (0, 64)


@pytest.mark.parametrize("rows", [2, 20])
def test_blocks_nothing_outside_is_touched_even_by_wrong_indices(rows, generator, touched, monkeypatch) -> None:
    made = []
    empty = torch.empty
    monkeypatch.setattr(block_sparse.torch, "empty", lambda *a, **k: made.append(empty(*a, **k)) or made[-1])
    dense = some_blocks(96, 128, 32, 1.0, torch.float16, generator)
    tensor = BlockSparseTensor.from_dense(dense, 32)
    x = torch.full((rows, 150), math.nan, dtype=torch.float16)[:, 11:139]
    x.copy_(torch.randn((rows, 128), generator=generator))
    assert_close(multiply_blocks(x, tensor.blocks, tensor.crow, tensor.column), x, dense)
    crow, column = tensor.crow.clone(), tensor.column.clone()
    crow[1:3] = torch.tensor([-7, 4000])
    column[:3] = torch.tensor([-1, 2**30, 4])
    order = torch.tensor([5, -3, 1], dtype=torch.int32)
    multiply_blocks(x, tensor.blocks, crow, column, order)
    addresses = np.unique(np.concatenate([a.reshape(-1) for a in touched]))
    outside = np.ones(len(addresses), dtype=bool)
    for read in (x, tensor.blocks, tensor.crow, tensor.column, crow, column, order, *made):
        last = tuple(n - 1 for n in read.shape)
        outside &= (addresses < read.data_ptr()) | (addresses > read[last].data_ptr())
    assert not outside.any()


GOOD_24 = {
    "x": torch.zeros((2, 32), dtype=torch.float16),
    "values": torch.zeros((4, 16), dtype=torch.float16),
    "positions": torch.zeros((4, 2), dtype=torch.int16),
}
GOOD_BLOCKS = {
    "x": torch.zeros((2, 64), dtype=torch.float16),
    "blocks": torch.zeros((3, 32, 32), dtype=torch.float16),
    "crow": torch.tensor([0, 1, 3], dtype=torch.int32),
    "column": torch.zeros(3, dtype=torch.int32),
    "order": torch.tensor([1, 0], dtype=torch.int32),
}


@pytest.mark.parametrize(
    ("kernel", "change", "error", "words"),
    [
        (multiply_24, {"x": torch.zeros((2, 32))}, TypeError, "x was torch.float32, may be torch.float16 or"),
        (multiply_24, {"x": torch.zeros((2, 32)).bfloat16()}, TypeError, "values was torch.float16, may be torch.bf"),
        (
            multiply_24,
            {"values": torch.zeros(4 * 16 + 1, dtype=torch.float16)[1:].view(4, 16)},
            ValueError,
            "values began at an odd address, may begin at a multiple of 4 bytes",
        ),
        (multiply_24, {"positions": torch.zeros((4, 2)).int()}, TypeError, "positions was torch.int32"),
        (multiply_24, {"x": torch.zeros((2, 40)).half()}, ValueError, "x had 40 columns, may have a positive multiple"),
        (
            multiply_24,
            {"x": torch.zeros((2, 48)).half()},
            ValueError,
            r"values had shape \[4, 16\], may have \[4, 24\]",
        ),
        (multiply_24, {"positions": torch.zeros((4, 3)).short()}, ValueError, r"positions had shape \[4, 3\]"),
        (multiply_24, {"x": torch.zeros((32, 2)).half().T}, ValueError, r"x had strides \(1, 2\)"),
        (multiply_24, {"values": torch.zeros((16, 4)).half().T}, ValueError, "values had strides"),
        (multiply_blocks, {"x": torch.zeros((2, 64))}, TypeError, "x was torch.float32"),
        (multiply_blocks, {"blocks": torch.zeros((3, 32, 32)).bfloat16()}, TypeError, "blocks was torch.bfloat16"),
        (
            multiply_blocks,
            {"blocks": torch.zeros((3, 16, 16)).half()},
            ValueError,
            "may have a side of 32 or 64 or 128",
        ),
        (multiply_blocks, {"blocks": torch.zeros((3, 32)).half()}, ValueError, "may have three axes"),
        (multiply_blocks, {"column": torch.zeros(2).int()}, ValueError, r"column had shape \[2\], may have \[3\]"),
        (multiply_blocks, {"order": torch.zeros(3).int()}, ValueError, r"order had shape \[3\], may have \[2\]"),
        (multiply_blocks, {"crow": torch.zeros(0).int()}, ValueError, "crow had no entries"),
        (multiply_blocks, {"x": torch.zeros((2, 48)).half()}, ValueError, "x had 48 columns, may have a positive"),
    ],
)
def test_wrong_arguments_are_refused_by_name(kernel, change, error, words) -> None:
    with pytest.raises(error, match=words):
        kernel(**((GOOD_24 if kernel is multiply_24 else GOOD_BLOCKS) | change))
