"""Our code lengths and canonical codes against recorded optima (see README.md)."""

from pathlib import Path

import numpy as np
import pytest

from reference.coding import huffman

with np.load(Path(__file__).parent / "huffman.npz", allow_pickle=False) as file:
    STORED = dict(file)
TABLES = [key.removesuffix(".freq") for key in STORED if key.endswith(".freq")]
CANONICAL = [key.removesuffix(".lengths") for key in STORED if key.endswith(".lengths")]


@pytest.mark.parametrize("limit", [8, 12, 15])
@pytest.mark.parametrize("table", TABLES)
def test_total_under_a_limit_is_the_optimum(table: str, limit: int) -> None:
    freq, wanted = STORED[f"{table}.freq"], int(STORED[f"{table}.limit{limit}_bits"])
    if wanted == -1:
        with pytest.raises(ValueError, match="max_length"):
            huffman.code_lengths(freq, limit)
        return
    lengths = huffman.code_lengths(freq, limit)
    assert lengths.max() <= limit
    assert int(freq @ lengths) == wanted


@pytest.mark.parametrize("table", TABLES)
def test_total_without_a_limit_is_huffmans(table: str) -> None:
    freq = STORED[f"{table}.freq"]
    if (freq > 0).sum() == 1:  # recorded as no bits: the stream below, not the code, knows that
        symbols = np.repeat(np.arange(len(freq)), freq).astype(np.uint8)
        assert huffman.describe(huffman.encode(symbols)).payload_bytes == STORED[f"{table}.huffman_bits"] == 0
    else:
        assert int(freq @ huffman.code_lengths(freq)) == STORED[f"{table}.huffman_bits"]


@pytest.mark.parametrize("table", TABLES)
def test_entropy(table: str) -> None:
    freq = STORED[f"{table}.freq"]
    assert huffman.entropy(freq) * freq.sum() == pytest.approx(float(STORED[f"{table}.entropy_bits"]), rel=1e-12)


@pytest.mark.parametrize("case", CANONICAL)
def test_canonical_codes(case: str) -> None:
    np.testing.assert_array_equal(huffman.canonical_codes(STORED[f"{case}.lengths"]), STORED[f"{case}.codes"])


def test_the_vectors_are_all_read() -> None:
    assert len(TABLES) == 19
    assert len(CANONICAL) == 6
