"""codebook, sparse_24, block_sparse, huffman and hadamard, as their public functions launch them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from launches import empty, launched
from variant import Variant

from reference.kernels.block_sparse import SIZES, block_sparse
from reference.kernels.codebook import codebook
from reference.kernels.hadamard import hadamard
from reference.kernels.huffman import huffman
from reference.kernels.sparse_24 import sparse_24

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
NARROW = {80: "mma.sync.aligned.m16n8k16", 90: "mma.sync.aligned.m16n8k16"}
WIDE = {80: "mma.sync.aligned.m16n8k16", 90: "wgmma.mma_async"}
NONE = {80: "", 90: ""}
N = K = 4096
#: Instructions for each weight that one row takes, by bits: a plane, two, three. At 3 TB/s an H100 has time for
#: 31 / (3 · 8 / bits): 10 at 8 bits, 6.5 at 5, 5.2 at 4; below, arithmetic decides and not memory. Longer pieces of a
#: row would take 0.5 fewer, and their reads of x from shared memory four times as many turns.
INSTRUCTIONS = {2: 6.7, 3: 7.7, 4: 7.6, 5: 8.7, 6: 8.7, 7: 10.0, 8: 7.0}


def kind(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def of_codebook() -> Iterator[Variant]:
    cases = [(bits, rows, BF16) for bits in range(2, 9) for rows in (1, 16)]
    cases += [(4, 512, BF16), (5, 512, FP16), (5, 1, FP32), (5, 16, FP32)]
    for bits, rows, dtype in cases:

        def facts(c: dict[str, Any], bits: int = bits, rows: int = rows, dtype: torch.dtype = dtype) -> dict[str, Any]:
            weights = c["OUTPUTS"] * c["COLUMNS"]
            widest = max(width for width in (8, 4, 2) if bits & width)  # narrower planes come in smaller pieces
            return {
                "weights": weights, "stream": weights * widest // 8,
                "most_instructions": INSTRUCTIONS[bits] if rows == 1 else 0.0,
                "matrix": NONE if rows == 1 else {} if dtype == FP32 else WIDE,
            }  # fmt: skip

        yield from launched(
            f"codebook {bits} bits {rows} rows {kind(dtype)}", codebook, empty(rows, K, dtype=dtype),
            empty(N, K * bits // 32, dtype=torch.int32), empty(2**bits, dtype=FP32), facts=facts,
        )  # fmt: skip


def of_sparse_24() -> Iterator[Variant]:
    for rows, dtype in ((1, BF16), (1, FP16), (16, BF16), (512, BF16), (512, FP16)):

        def facts(c: dict[str, Any], rows: int = rows) -> dict[str, Any]:
            kept = c["OUTPUTS"] * c["BLOCK"] * (2 if rows == 1 else 1) // (1 if rows == 1 else 2)
            # An H100 that reads 3 TB/s has time for 23 instructions for each kept value, which takes 2.25 bytes.
            limit = 10.5 if rows == 1 else 17.0 if rows == 16 else 0.0
            return {
                "weights": kept, "stream": 2 * kept, "most_instructions": limit,
                "matrix": NONE if rows == 1 else WIDE,
            }  # fmt: skip

        yield from launched(
            f"sparse_24 {rows} rows {kind(dtype)}", sparse_24, empty(rows, K, dtype=dtype),
            empty(N, K // 2, dtype=dtype), empty(N, K // 16, dtype=torch.int16), facts=facts,
        )  # fmt: skip


def of_block_sparse() -> Iterator[Variant]:
    for size in SIZES:
        stored = (N // size) * (K // size) // 4
        indices = (N // size + 1, stored, N // size)
        for rows in (16, 512):
            yield from launched(
                f"block_sparse blocks of {size} {rows} rows", block_sparse, empty(rows, K), empty(stored, size, size),
                *(empty(length, dtype=torch.int32) for length in indices),
                facts=lambda c, size=size: {
                    "weights": size * size, "stream": 2 * size * size, "matrix": NARROW if size == 32 else WIDE
                },
            )  # fmt: skip


def of_huffman() -> Iterator[Variant]:
    symbols, chunk = 2**24, 256
    for bits, raw in ((8, True), (10, True), (12, True), (10, False)):
        yield from launched(
            f"huffman table of {bits} bits to {'bfloat16' if raw else 'bytes'}", huffman,
            empty(2**22, dtype=torch.int32), empty(symbols // chunk + 1, dtype=torch.int32),
            empty(2**bits, dtype=torch.int16), empty(symbols, dtype=torch.uint8) if raw else None,
            symbols=symbols, chunk=chunk,
            facts=lambda c, raw=raw: {
                "weights": 16 * c["LANES"], "stream": 16 * c["LANES"] * raw, "most_instructions": 28.0, "matrix": NONE
            },
        )  # fmt: skip


def of_hadamard() -> Iterator[Variant]:
    cases = [(n, BF16) for n in (16, 128, 256, 512, 1024, 2048, 4096, 8192)]
    for n, dtype in [*cases, (4096, FP16), (128, FP32), (1024, FP32), (4096, FP32)]:

        def facts(c: dict[str, Any], n: int = n, dtype: torch.dtype = dtype) -> dict[str, Any]:
            numbers = c["A"] * c["B"] if "A" in c else c["ROWS"] * c["SIDE"]
            wide = n >= 2048 or (n <= 128 and not (n == 128 and dtype == FP32))
            return {
                "weights": numbers, "stream": numbers * dtype.itemsize, "most_instructions": 50.0,
                "matrix": WIDE if wide else NARROW,
            }  # fmt: skip

        yield from launched(f"hadamard {n} {kind(dtype)}", hadamard, empty(2**23 // n, n, dtype=dtype), facts=facts)


def variants() -> Iterator[Variant]:
    yield from of_codebook()
    yield from of_sparse_24()
    yield from of_block_sparse()
    yield from of_huffman()
    yield from of_hadamard()
