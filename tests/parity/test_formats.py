"""Number formats against the authors' microxcaling and torch's own casts (vectors: microscaling_fp8)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from reference.quantization import formats
from reference.quantization.formats import BlockFormat

VECTORS = np.load(Path(__file__).with_name("microscaling_fp8.npz"))


def vector(name: str) -> Tensor:
    return torch.from_numpy(VECTORS[name])


@pytest.mark.parametrize(
    ("name", "element"),
    [
        ("fp4_e2m1", formats.E2M1),
        ("fp6_e3m2", formats.E3M2),
        ("fp6_e2m3", formats.E2M3),
        ("fp8_e4m3", formats.E4M3),
        ("fp8_e5m2", formats.E5M2),
        ("int8", formats.INT8),
    ],
)
def test_mx_equals_microxcaling(name, element) -> None:
    """Ties to even, the specification's rule; a zero row, rows of 1e-30 and 1e6, and ties are among the inputs."""
    quantized = formats.quantize(vector("x"), BlockFormat(element, 32, "E8M0"))
    assert torch.equal(quantized.dequantize(), vector(f"mx_{name}_even"))


def test_ties_away_differ_on_ties_only() -> None:
    """microxcaling's own default, which is not the specification's."""
    even, away = vector("mx_fp4_e2m1_even"), vector("mx_fp4_e2m1_nearest")
    different = even != away
    assert 0 < different.sum() < 20
    x = vector("x")[different]
    assert torch.equal((x - even[different]).abs(), (x - away[different]).abs())


@pytest.mark.parametrize(
    ("element", "table", "dtype"),
    [
        (formats.E4M3, "torch_e4m3fn_all256", torch.float8_e4m3fn),
        (formats.E5M2, "torch_e5m2_all256", torch.float8_e5m2),
    ],
)
def test_fp8_tables_equal_torch(element, table, dtype) -> None:
    expected = vector(table)
    finite = torch.isfinite(expected)
    assert torch.equal(element.table[finite], expected[finite])
    assert element.table[~finite].isnan().all()
    x = vector("fp8_x")
    x = x[x.abs() <= element.largest]
    codes = element.encode(x)
    assert torch.equal(codes, x.to(dtype).view(torch.uint8))


def test_e8m0_table_equals_torch() -> None:
    expected = vector("torch_e8m0_all256")
    values = formats.decode_e8m0(torch.arange(256, dtype=torch.uint8))
    assert torch.equal(values[:255], expected[:255])
    assert values[255].isnan()
    assert expected[255].isnan()
