"""Settings of codebook, sparse_24, block_sparse, huffman and hadamard, to choose from."""

from __future__ import annotations

from collections.abc import Iterator

from cases import QUICK_SHAPES, SHAPES, Case, block_sparse, codebook, hadamard, huffman, sparse_24
from reference.kernels.block_sparse import Tile as BlockTile
from reference.kernels.codebook import Tile as CodebookTile
from reference.kernels.hadamard import Plan
from reference.kernels.huffman import Lanes
from reference.kernels.sparse_24 import Tile as SparseTile


def _named(kind: type, plans: list[tuple[int, ...]]) -> dict:
    return {"/".join(map(str, plan)): kind(*plan) for plan in plans}


# rows, outputs, columns, warps, stages
ONE_ROW_CODES = [(1, 16, 512, 4, 3), (1, 32, 512, 4, 3), (1, 8, 512, 2, 3), (1, 16, 512, 2, 4), (1, 32, 512, 8, 3),
                 (1, 16, 1024, 8, 2), (1, 8, 1024, 4, 3), (1, 16, 256, 4, 3), (1, 16, 256, 4, 6), (1, 8, 256, 2, 6),
                 (1, 8, 512, 4, 4), (1, 8, 256, 4, 6), (1, 32, 256, 8, 4)]  # fmt: skip
FEW_ROWS_CODES = [(16, 64, 128, 4, 3), (16, 128, 64, 4, 3), (16, 64, 128, 4, 4), (16, 64, 64, 4, 4),
                  (16, 64, 128, 8, 3), (16, 32, 128, 4, 4), (16, 32, 128, 2, 4)]  # fmt: skip
MANY_ROWS_CODES = [(128, 128, 64, 8, 3), (64, 128, 64, 4, 3), (128, 64, 64, 4, 3)]
ONE_ROW_SPARSE = [(1, 16, 1024, 4, 3), (1, 8, 1024, 4, 3), (1, 8, 1024, 4, 4), (1, 32, 512, 4, 3), (1, 4, 1024, 2, 4),
                  (1, 16, 512, 2, 4), (1, 16, 1024, 8, 3), (1, 8, 512, 4, 4), (1, 4, 1024, 4, 4)]  # fmt: skip
FEW_ROWS_SPARSE = [(16, 64, 128, 4, 4), (16, 128, 64, 4, 4), (16, 64, 64, 4, 5), (16, 128, 128, 4, 3), (16, 64, 128, 8, 4),
                   (16, 32, 128, 4, 4), (16, 32, 128, 2, 4)]  # fmt: skip
MANY_ROWS_SPARSE = [(128, 128, 64, 8, 3), (64, 128, 64, 4, 3), (128, 128, 64, 4, 3), (128, 64, 64, 4, 3)]


def cases(quick: bool) -> Iterator[Case]:
    shapes = list(QUICK_SHAPES.values())
    for outputs, columns in shapes if quick else [*shapes, SHAPES["70B attention"]]:
        for warps_and_chunk in ((256, 8), (256, 10), (256, 12), (128, 10), (512, 10), (1024, 10)):
            yield huffman.case(outputs, columns, *warps_and_chunk, plans=_named(Lanes, [(1,), (2,), (4,)]))
        for bits in (3, 4, 5, 8):
            yield codebook.case(1, outputs, columns, bits, _named(CodebookTile, ONE_ROW_CODES))
        for bits in (4, 5):
            yield codebook.case(16, outputs, columns, bits, _named(CodebookTile, FEW_ROWS_CODES))
        yield codebook.case(256, outputs, columns, 4, _named(CodebookTile, MANY_ROWS_CODES))
        yield sparse_24.case(1, outputs, columns, _named(SparseTile, ONE_ROW_SPARSE))
        yield sparse_24.case(16, outputs, columns, _named(SparseTile, FEW_ROWS_SPARSE))
        yield sparse_24.case(512, outputs, columns, _named(SparseTile, MANY_ROWS_SPARSE))
    # rows, warps, stages
    for size, few, many in (
        (32, [(16, 1, 9), (16, 1, 7), (16, 2, 9)], [(128, 4, 9), (64, 4, 7), (128, 4, 7)]),
        (64, [(16, 4, 9), (16, 4, 7), (16, 4, 5)], [(128, 4, 7), (128, 8, 7), (128, 4, 5), (64, 4, 7)]),
        (128, [(16, 4, 7), (16, 4, 5), (16, 8, 5)], [(128, 8, 5), (128, 8, 3), (64, 4, 5)]),
    ):
        yield block_sparse.case(1, 4096, 4096, size, 0.3, plans=_named(BlockTile, few))
        yield block_sparse.case(512, 4096, 4096, size, 0.3, plans=_named(BlockTile, many))
    # left, right, rows, warps, programs for each multiprocessor
    yield hadamard.case(2048, 4096, plans=_named(Plan, [(64, 64, 1, 4, 2), (64, 64, 1, 4, 4), (64, 64, 1, 8, 2)]))
    yield hadamard.case(1024, 8192, plans=_named(Plan, [(128, 64, 1, 8, 1), (128, 64, 1, 8, 2), (128, 64, 1, 4, 2)]))
    yield hadamard.case(65536, 128, plans=_named(Plan, [(1, 128, 64, 4, 2), (1, 128, 64, 4, 4), (1, 128, 128, 8, 2)]))
    yield hadamard.case(8192, 1024, plans=_named(Plan, [(32, 32, 1, 1, 8), (32, 32, 1, 1, 16), (32, 32, 1, 2, 8)]))


def small_cases() -> Iterator[Case]:
    yield huffman.case(20, 52, 64, 8, _named(Lanes, [(1,), (2,)]))
    yield codebook.case(1, 80, 512, 5, _named(CodebookTile, ONE_ROW_CODES[:2]))
    yield sparse_24.case(16, 80, 512, _named(SparseTile, FEW_ROWS_SPARSE[:2]))
