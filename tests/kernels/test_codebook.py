"""codebook against float64: look up in plain torch, then multiply; and the packing against bits placed one by one."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

triton = pytest.importorskip("triton", reason="the kernels run with Triton, which is not installed")

from reference import tensors  # noqa: E402
from reference.coding.planes import pack_planes, plane_widths, unpack_planes  # noqa: E402
from reference.kernels import _triton  # noqa: E402
from reference.kernels.codebook import FEW, MANY, ONE_ROW, codebook  # noqa: E402

if not _triton.INTERPRETED.value:
    pytest.skip("TRITON_INTERPRET=1 was not set when the kernels were imported", allow_module_level=True)

# Half a unit in the last place, relative: what rounding the result to the dtype may cost; fp32 sums cost 2e-6 at most.
ROUNDING = {torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8}
SUMS = 2e-6


def expected(x: Tensor, codes: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """The product and the sum of magnitudes, float64. With more than one row the table is rounded to the type of x."""
    weight = (table if len(x) == 1 else table.to(x.dtype)).double()[codes]
    return x.double() @ weight.T, x.double().abs() @ weight.abs().T


def case(rows: int, outputs: int, columns: int, bits: int, dtype: torch.dtype, generator: torch.Generator):
    codes = torch.randint(0, 2**bits, (outputs, columns), generator=generator)
    codes.view(-1)[: min(2**bits, codes.numel())] = torch.arange(2**bits)[: codes.numel()]  # every entry is used
    table = torch.randn(2**bits, generator=generator)
    return torch.randn((rows, columns), generator=generator).to(dtype), codes, table


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(
    ("rows", "outputs", "columns", "dtype"),
    [
        (1, 20, 784, torch.float32),
        (1, 33, 1200, torch.bfloat16),
        (1, 3, 40, torch.float16),
        (5, 70, 300, torch.bfloat16),
        (17, 9, 130, torch.float16),
        (20, 20, 64, torch.float32),
        (3, 17, 2048, torch.bfloat16),  # split over K
    ],
)
def test_equals_look_up_and_multiply(rows, outputs, columns, dtype, bits, generator) -> None:
    x, codes, table = case(rows, outputs, columns, bits, dtype, generator)
    y = codebook(x, pack_planes(codes, bits), table)
    product, magnitude = expected(x, codes, table)
    assert y.dtype == dtype
    assert y.is_contiguous()
    assert y.shape == (rows, outputs)
    assert (y.double() - product).norm() <= ROUNDING[dtype] * product.norm() + SUMS * magnitude.norm()


@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 20),
    outputs=st.integers(1, 40),
    columns=st.integers(1, 200),
    bits=st.integers(2, 8),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_size_equals_look_up_and_multiply(rows, outputs, columns, bits, seed) -> None:
    x, codes, table = case(rows, outputs, columns, bits, torch.float32, torch.Generator().manual_seed(seed))
    product, magnitude = expected(x, codes, table)
    y = codebook(x, pack_planes(codes, bits), table)
    assert ((y.double() - product).abs() <= 4e-6 * magnitude + 1e-30).all()


@pytest.mark.parametrize("rows", [1, 40], ids=["one_row", "tile"])
def test_unit_vectors_return_the_table_exactly(rows, generator) -> None:
    _, codes, table = case(1, 24, 40, 6, torch.float32, generator)
    y = torch.cat([codebook(x, pack_planes(codes, 6), table) for x in torch.eye(40).split(rows)])
    assert torch.equal(y, table[codes].T)


@pytest.mark.parametrize("rows", [1, 4])
def test_extreme_values(rows, generator) -> None:
    x, codes, table = case(rows, 20, 256, 4, torch.float32, generator)
    table[:4] = torch.tensor([0.0, torch.finfo(torch.float32).tiny, 1e30, -1e30])
    x *= torch.logspace(-6, 6, 256)
    product, magnitude = expected(x, codes, table)
    y = codebook(x, pack_planes(codes, 4), table)
    assert ((y.double() - product).abs() <= SUMS * magnitude).all()
    assert (codebook(torch.zeros_like(x), pack_planes(codes, 4), table) == 0).all()
    x[0, 3] = math.nan
    assert codebook(x, pack_planes(codes, 4), table)[0].isnan().all()


@pytest.mark.parametrize("rows", [1, 3, 20])
def test_rows_far_apart_and_what_lies_between_them(rows, generator) -> None:
    x, codes, table = case(rows, 19, 8 * 37, 5, torch.float32, generator)
    wide = torch.full((rows, 8 * 37 + 50), math.nan)
    inner = wide[:, 25 : 25 + 8 * 37].copy_(x)
    product, magnitude = expected(x, codes, table)
    y = codebook(inner, pack_planes(codes, 5), table)
    assert ((y.double() - product).abs() <= 4e-6 * magnitude).all()


@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize("bits", [4, 7])
def test_nothing_outside_the_tensors_is_touched(rows, bits, generator, assert_inside, monkeypatch) -> None:
    from reference.kernels import codebook as module

    made = []
    empty = torch.empty
    monkeypatch.setattr(module.torch, "empty", lambda *a, **k: made.append(empty(*a, **k)) or made[-1])
    x, codes, table = case(rows, 19, 200, bits, torch.float32, generator)
    packed = pack_planes(codes, bits)
    codebook(x, packed, table)
    assert_inside(x, packed, table, *made)


def test_no_rows_and_no_outputs(generator) -> None:
    x, codes, table = case(3, 5, 64, 4, torch.bfloat16, generator)
    assert codebook(x[:0], pack_planes(codes, 4), table).shape == (0, 5)
    assert codebook(x, pack_planes(codes[:0], 4), table).shape == (3, 0)


@pytest.mark.parametrize("plan", [ONE_ROW._replace(outputs=8, columns=128), FEW._replace(columns=64), MANY])
def test_plans_change_the_order_of_sums_only(plan, generator) -> None:
    x, codes, table = case(1, 20, 300, 5, torch.float32, generator)
    product, magnitude = expected(x, codes, table)
    y = codebook(x, pack_planes(codes, 5), table, plan=plan)
    assert ((y.double() - product).abs() <= 4e-6 * magnitude).all()


@pytest.mark.parametrize("bits", range(1, 9))
def test_planes_hold_each_bit_where_the_docstring_says(bits, generator) -> None:
    codes = torch.randint(0, 2**bits, (3, 70), generator=generator)
    packed = pack_planes(codes, bits)
    assert packed.shape == (3, 3 * bits)
    assert torch.equal(unpack_planes(packed, bits, 70), codes.to(torch.uint8))
    words, before = packed.long() & 0xFFFFFFFF, 0
    first = plane_widths(bits)[0]
    for width in plane_widths(bits):
        plane = words[:, 3 * before : 3 * (before + width)]
        for column in range(70):
            block, c = divmod(column, 32)
            # Where the first plane has it: word, byte, field; then the same byte and running number of the field.
            word, place = divmod(c * first, 32)
            byte, field = divmod(place, 8)
            number = word * (8 // first) + field // first
            word, field = divmod(number, 8 // width)
            found = plane[:, block * width + word] >> (8 * byte + width * field) & (2**width - 1)
            assert torch.equal(found, codes[:, column] >> before & (2**width - 1))
        before += width


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_plane_alone_is_the_packed_stream(bits, generator) -> None:
    codes = torch.randint(0, 2**bits, (3, 64), generator=generator)
    assert torch.equal(pack_planes(codes, bits), tensors.pack(codes, bits))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: pack_planes(torch.zeros(2, 3, dtype=torch.int32), 9), "bits is 9"),
        (lambda: pack_planes(torch.zeros(2, 3), 4), "codes must be an integer matrix"),
        (lambda: pack_planes(torch.full((2, 3), 16), 4), "codes run from 16 to 16"),
        (lambda: unpack_planes(torch.zeros(2, 3, dtype=torch.int32), 4, 32), "packed has 3 words a row"),
    ],
)
def test_wrong_packings_are_refused_by_name(call, words) -> None:
    with pytest.raises(ValueError, match=words):
        call()


GOOD = {
    "x": torch.zeros((2, 64)),
    "packed": torch.zeros((4, 8), dtype=torch.int32),
    "table": torch.zeros(16),
}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.zeros((2, 64), dtype=torch.float64)}, TypeError, "x was torch.float64"),
        ({"packed": torch.zeros((4, 8), dtype=torch.int64)}, TypeError, "packed was torch.int64"),
        ({"table": torch.zeros(16, dtype=torch.bfloat16)}, TypeError, "table was torch.bfloat16, may be torch.float32"),
        ({"table": torch.zeros(2, 8)}, ValueError, r"table had shape \[2, 8\], may have one axis"),
        ({"table": torch.zeros(12)}, ValueError, "table had 12 entries, may have 4 to 256"),
        ({"table": torch.zeros(2)}, ValueError, "table had 2 entries"),
        (
            {"table": torch.zeros(8)},
            ValueError,
            r"packed had shape \[4, 8\], may have \[4, 6\] for 64 columns of 3 bits",
        ),
        ({"x": torch.zeros((2, 65))}, ValueError, r"packed had shape \[4, 8\], may have \[4, 12\]"),
        ({"x": torch.zeros((64, 2)).T}, ValueError, r"x had strides \(1, 2\)"),
        ({"x": torch.zeros((2, 0))}, ValueError, "x had 0 columns"),
        ({"packed": torch.zeros((8, 4), dtype=torch.int32).T}, ValueError, r"packed had strides \(1, 4\)"),
        ({"table": torch.zeros(16, device="meta")}, ValueError, "table was on meta, may be on x's device, cpu"),
    ],
)
def test_wrong_arguments_are_refused_by_name(change, error, words) -> None:
    with pytest.raises(error, match=words):
        codebook(**(GOOD | change))
