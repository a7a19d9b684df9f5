"""w4a16 against float64: dequantise in plain torch, then multiply."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

triton = pytest.importorskip("triton", reason="the kernels run with Triton, which is not installed")

from reference.kernels import _checks, _triton  # noqa: E402
from reference.kernels import w4a16 as module  # noqa: E402
from reference.kernels.w4a16 import w4a16  # noqa: E402

if not _triton.INTERPRETED.value:
    pytest.skip("TRITON_INTERPRET=1 was not set when the kernels were imported", allow_module_level=True)

# Half a unit in the last place, relative: what rounding the result to the dtype may cost; fp32 sums cost 2e-6 at most.
ROUNDING = {torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8}
SUMS = 2e-6


def pack(codes: Tensor, bits: int = 4) -> Tensor:
    """[N, K] codes to int32 words, the first code in the lowest bits."""
    outputs, columns = codes.shape
    count = 32 // bits
    words = (codes.reshape(outputs, columns // count, count).long() << (bits * torch.arange(count))).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def dequantise(codes: Tensor, scale: Tensor, zero_point: Tensor | None, group_size: int) -> Tensor:
    zero = torch.full_like(scale, 8.0).double() if zero_point is None else zero_point.double()
    spread = lambda t: t.double().repeat_interleave(group_size, dim=1)  # noqa: E731
    return spread(scale) * (codes.double() - spread(zero))


def case(outputs: int, columns: int, group_size: int, zeros: bool, generator: torch.Generator):
    """Codes, scale (bf16) and zero point; every value 0…15 of code and zero point can occur."""
    groups = columns // group_size
    codes = torch.randint(0, 16, (outputs, columns), generator=generator)
    scale = (torch.rand((outputs, groups), generator=generator) + 0.01).to(torch.bfloat16)
    zero_point = torch.randint(0, 16, (outputs, groups), dtype=torch.uint8, generator=generator) if zeros else None
    return codes, scale, zero_point


def assert_close(y: Tensor, expected: Tensor) -> None:
    """Norm of the error against the norm of the result, by dtype of ``y``."""
    assert y.shape == expected.shape
    error = (y.double() - expected).norm() / expected.norm()
    bound = ROUNDING[y.dtype] + SUMS
    assert error <= bound, f"relative error {error:.2e}, bound {bound:.2e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("zeros", [False, True], ids=["symmetric", "zero_point"])
@pytest.mark.parametrize(
    ("rows", "outputs", "columns", "group_size"),
    [
        (1, 20, 512, 128),
        (1, 33, 320, 64),
        (1, 5, 4096, 32),  # two passes of the loop
        (1, 17, 1000, 1000),  # ends inside a quad
        (3, 130, 512, 128),
        (5, 40, 2048, 2048),  # split over K
        (16, 20, 1024, 32),
        (17, 130, 320, 64),
        (20, 20, 264, 264),  # ends inside a block
        (65, 20, 192, 96),
        (129, 70, 448, 64),  # unpacked first
        (130, 33, 1000, 1000),
        (1, 3, 8, 8),
        (2, 1, 24, 24),
    ],
)
def test_equals_dequantise_and_multiply(rows, outputs, columns, group_size, zeros, dtype, generator) -> None:
    codes, scale, zero_point = case(outputs, columns, group_size, zeros, generator)
    x = torch.randn((rows, columns), generator=generator).to(dtype)
    y = w4a16(x, pack(codes), scale, zero_point, group_size=group_size)
    assert y.dtype == dtype
    assert y.is_contiguous()
    # A single output of a short row can cancel: measure against a row of many.
    weight = dequantise(codes, scale, zero_point, group_size)
    if y.numel() < 16:
        magnitude = x.double().abs() @ weight.abs().T
        assert ((y.double() - x.double() @ weight.T).abs() <= (ROUNDING[dtype] + SUMS) * magnitude).all()
    else:
        assert_close(y, x.double() @ weight.T)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 20),
    outputs=st.integers(1, 40),
    group_size=st.sampled_from([32, 64, 96, 128]),
    groups=st.integers(1, 5),
    zeros=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_size_equals_dequantise_and_multiply(rows, outputs, group_size, groups, zeros, seed) -> None:
    codes, scale, zero_point = case(
        outputs, group_size * groups, group_size, zeros, torch.Generator().manual_seed(seed)
    )
    x = torch.randn((rows, group_size * groups), generator=torch.Generator().manual_seed(seed + 1))
    y = w4a16(x, pack(codes), scale, zero_point, group_size=group_size)
    weight = dequantise(codes, scale, zero_point, group_size)
    assert ((y.double() - x.double() @ weight.T).abs() <= 4e-6 * (x.double().abs() @ weight.abs().T) + 1e-30).all()


@pytest.mark.parametrize("rows", [1, 40, 160], ids=["one_row", "tile", "dense"])
@pytest.mark.parametrize("zero", [None, 0, 15])
def test_unit_vectors_return_the_weights_exactly(rows, zero, generator) -> None:
    codes, scale, _ = case(24, 40, 40, False, generator)
    zero_point = None if zero is None else torch.full((24, 1), zero, dtype=torch.uint8)
    identity = torch.eye(40).repeat(max(1, rows // 40), 1)
    y = torch.cat([w4a16(x, pack(codes), scale, zero_point, group_size=40) for x in identity.split(rows)])[:40]
    assert torch.equal(y, dequantise(codes, scale, zero_point, 40).T.float())


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_values(rows, scale_dtype, generator) -> None:
    codes, scale, zero_point = case(20, 256, 64, True, generator)
    codes[0], codes[1] = 0, 15
    zero_point[0], zero_point[1] = 15, 0
    scale = scale.to(scale_dtype)
    scale[2] = 0  # a row of zeros
    scale[3] = torch.finfo(scale_dtype).tiny
    x = torch.randn((rows, 256), generator=generator) * torch.logspace(-6, 6, 256)
    y = w4a16(x, pack(codes), scale, zero_point, group_size=64)
    weight = dequantise(codes, scale, zero_point, 64)
    expected = x.double() @ weight.T
    # One output at a time may cancel, so the bound is on what was added up, not on the sum.
    added = x.double().abs() @ weight.abs().T
    for n in (0, 1, 3):
        assert ((y[:, n].double() - expected[:, n]).abs() <= (ROUNDING[y.dtype] + SUMS) * added[:, n]).all()
    assert (y[:, 2] == 0).all()
    assert (w4a16(torch.zeros_like(x), pack(codes), scale, zero_point, group_size=64) == 0).all()


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_sixteen_bit_results_overflow_as_torch_does(generator) -> None:
    codes, scale, _ = case(20, 128, 128, False, generator)
    x = torch.full((1, 128), 65504.0, dtype=torch.float16)
    expected = (x.double() @ dequantise(codes, scale, None, 128).T).to(torch.float16)
    y = w4a16(x, pack(codes), scale, group_size=128)
    assert torch.equal(y.isinf(), expected.isinf())
    assert y.isinf().any()


@pytest.mark.parametrize("rows", [1, 7])
def test_sixteen_bit_results_are_the_fp32_sums_rounded_to_nearest_even(rows, generator) -> None:
    codes, scale, zero_point = case(40, 256, 128, True, generator)
    x = torch.randn((rows, 256), generator=generator).to(torch.bfloat16)
    in_fp32 = w4a16(x.float(), pack(codes), scale, zero_point, group_size=128)
    y = w4a16(x, pack(codes), scale, zero_point, group_size=128)
    # Blocks differ between the dtypes, so a sum may differ in its last bit; truncation would change half of them.
    assert (y == in_fp32.to(torch.bfloat16)).double().mean() > 0.97


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3, 20])
def test_nothing_outside_the_tensors_is_touched(rows, dtype, assert_inside, generator) -> None:
    columns, outputs = 8 * 37, 19
    codes, scale, zero_point = case(outputs, columns, columns, True, generator)
    # x lies inside a wider tensor of NaN: reading between its rows shows in the result.
    wide = torch.full((rows, columns + 50), math.nan, dtype=dtype)
    x = wide[:, 25 : 25 + columns].copy_(torch.randn((rows, columns), generator=generator))
    packed = pack(codes)
    plan = module.plan_for(rows, outputs, columns, columns, dtype)
    assert isinstance(plan, module.Few) == (dtype != torch.float32 and rows > 1)
    y = torch.zeros((rows, outputs), dtype=dtype)
    launch(x, (packed, scale, zero_point), y, columns, plan)
    assert_close(y, x.double() @ dequantise(codes, scale, zero_point, columns).T)
    assert_inside(x, packed, scale, zero_point, y)


@pytest.mark.parametrize(("outputs", "blocks"), [(32, 3), (19, 4)], ids=["columns", "outputs"])
def test_a_rest_on_one_side_alone_is_masked_too(outputs, blocks, assert_inside, generator) -> None:
    """Two blocks a turn: three leave a rest of the columns, 19 outputs one of the tiles."""
    columns = blocks * module.BLOCK
    codes = torch.randint(0, 16, (outputs, columns), generator=generator)
    packed, scale = pack(codes, 4), torch.rand((outputs, blocks), generator=generator).bfloat16() + 0.01
    x = torch.randn((3, columns), generator=generator).bfloat16()
    plan = module.Few(rows=8, outputs=16, blocks=2, warps=4, stages=2)
    y = w4a16(x, packed, scale, group_size=module.BLOCK, plan=plan)
    expected = x.double() @ ((codes - 8).double() * scale.double().repeat_interleave(module.BLOCK, 1)).T
    assert (y.double() - expected).norm() <= (2**-8 + 4e-6) * expected.norm()
    assert_inside(x, packed, scale, y)


@pytest.mark.parametrize("plan", [module.Direct(16, 2, 2), module.Direct(32, 4, 3)], ids=str)
@pytest.mark.parametrize("columns", [8 * 37, 128, 640])
@pytest.mark.parametrize("rows", [1, 9])
def test_words_that_go_straight_to_registers_are_masked_at_the_ends(rows, columns, plan, assert_inside, generator):
    """Turns asked for ahead lie behind the last column, and 37 units leave a part of a lane's four."""
    codes, scale, zero_point = case(19, columns, columns, True, generator)
    wide = torch.full((rows, columns + 50), math.nan, dtype=torch.bfloat16)
    x = wide[:, 25 : 25 + columns].copy_(torch.randn((rows, columns), generator=generator))
    packed, y = pack(codes), torch.zeros((rows, 19), dtype=torch.bfloat16)
    launch(x, (packed, scale, zero_point), y, columns, plan)
    assert_close(y, x.double() @ dequantise(codes, scale, zero_point, columns).T)
    assert_inside(x, packed, scale, zero_point, y)


@pytest.mark.parametrize("zeros", [False, True], ids=["symmetric", "zero_point"])
@pytest.mark.parametrize("bits", [2, 4])
def test_words_that_go_straight_to_registers_give_the_same(bits, zeros, generator) -> None:
    codes = torch.randint(0, 2**bits, (40, 768), generator=generator)
    scale = (torch.rand((40, 6), generator=generator) + 0.01).bfloat16()
    zero = torch.randint(0, 2**bits, (40, 6), dtype=torch.uint8, generator=generator)
    zero = zero if zeros else torch.full_like(zero, 2 ** (bits - 1))
    x = torch.randn((3, 768), generator=generator).bfloat16()
    plan = module.Direct(16, 4, 2)
    y = w4a16(x, pack(codes, bits), scale, zero if zeros else None, group_size=128, bits=bits, plan=plan)
    assert_close(y, x.double() @ dequantise(codes, scale, zero, 128).T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("columns", "group_size"), [(8 * 37, 8 * 37), (192, 96)])
def test_unpacking_touches_nothing_outside_and_rounds_once(columns, group_size, dtype, assert_inside, generator):
    codes, scale, zero_point = case(35, columns, group_size, True, generator)
    packed = pack(codes)
    plan = module.plan_for(500, 35, columns, group_size, dtype)
    assert isinstance(plan, module.Dense)
    w = module._unpacked((packed, scale, zero_point), columns, group_size, 4, plan, dtype)
    assert torch.equal(w, dequantise(codes, scale, zero_point, group_size).to(dtype))
    assert_inside(packed, scale, zero_point, w)


def launch(x, weight, y, group_size, plan) -> None:
    """One launch into ``y``, without splits."""
    if isinstance(plan, module.OneRow):
        module._launch_one_row(x, weight, y, group_size, plan)
    elif isinstance(plan, module.Few):
        module._launch_few(x, weight, y, group_size, 4, plan)
    elif isinstance(plan, module.Direct):
        module._launch_direct(x, weight, y, group_size, 4, plan)
    else:
        module._launch_tile(x, weight, y, group_size, 4, plan, 1)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("zeros", [False, True], ids=["symmetric", "zero_point"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "outputs", "columns", "group_size"),
    [
        (1, 33, 1024, 128),
        (1, 16, 1024, 1024),
        (7, 40, 256, 256),
        (12, 20, 400, 400),
        (20, 20, 256, 128),
        (40, 9, 96, 32),
        (129, 20, 96, 32),
    ],
)
def test_both_widths_equal_dequantise_and_multiply(rows, outputs, columns, group_size, dtype, zeros, bits, generator):
    groups = columns // group_size
    codes = torch.randint(0, 2**bits, (outputs, columns), generator=generator)
    scale = (torch.rand((outputs, groups), generator=generator) + 0.01).to(dtype)
    middle = torch.full((outputs, groups), 2 ** (bits - 1), dtype=torch.uint8)
    zero = torch.randint(0, 2**bits, (outputs, groups), dtype=torch.uint8, generator=generator) if zeros else middle
    x = torch.randn((rows, columns), generator=generator).to(dtype)
    y = w4a16(x, pack(codes, bits), scale, zero if zeros else None, group_size=group_size, bits=bits)
    assert_close(y, x.double() @ dequantise(codes, scale, zero, group_size).T)


PLANS = [
    module.Few(8, 16, 2, 4, 3),
    module.Few(8, 32, 8, 4, 2, early=True),
    module.Few(16, 16, 1, 1, 1),
    module.Direct(16, 4, 1),
    module.Direct(32, 2, 2),
    module.Direct(16, 2, 4),
    module.Tile(32, 16, 64, 4, 3),
    module.Tile(64, 64, 128, 4, 2),
    module.Dense(16, 64, 4),
]


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("rows", [1, 9, 33])
def test_every_plan_computes_the_same(plan, rows, generator) -> None:
    codes, scale, zero_point = case(50, 640, 128, True, generator)
    x = torch.randn((rows, 640), generator=generator).to(torch.float16)
    y = w4a16(x, pack(codes), scale, zero_point, group_size=128, plan=plan)
    assert_close(y, x.double() @ dequantise(codes, scale, zero_point, 128).T)


def test_products_of_sixteen_bit_activations_are_summed_in_fp32(generator) -> None:
    codes, scale, zero_point = case(16, 128, 128, True, generator)
    identity = torch.eye(128, dtype=torch.bfloat16)
    y = torch.cat([w4a16(x, pack(codes), scale, zero_point, group_size=128) for x in identity.split(8)])
    assert torch.equal(y, dequantise(codes, scale, zero_point, 128).T.to(torch.bfloat16))


def test_sums_split_over_k_agree_with_one_sum(generator) -> None:
    codes, scale, zero_point = case(20, 2048, 128, True, generator)
    x = torch.randn((4, 2048), generator=generator)
    tile = module.plan_for(4, 20, 2048, 128, x.dtype)
    assert module.splits_for(4, 20, 2048, tile[:3]) > 1
    whole = torch.empty((4, 20))
    module._launch_tile(x, (pack(codes), scale, zero_point), whole, 128, 4, tile, 1)
    split = w4a16(x, pack(codes), scale, zero_point, group_size=128)
    assert_close(split, whole.double())
    assert torch.equal(split, w4a16(x, pack(codes), scale, zero_point, group_size=128))


def test_strided_rows_are_read_in_place(generator) -> None:
    codes, scale, _ = case(20, 128, 64, False, generator)
    weight = dequantise(codes, scale, None, 64)
    wide = torch.randn((6, 256), generator=generator)
    for x in (wide[::2, :128], wide[:1, 128:], wide[0, :128].expand(3, 128)):
        assert_close(w4a16(x, pack(codes), scale, group_size=64), x.double() @ weight.T)


@pytest.mark.parametrize(("rows", "outputs"), [(0, 8), (3, 0)])
def test_nothing_in_nothing_out(rows, outputs) -> None:
    packed, scale = torch.zeros((outputs, 8), dtype=torch.int32), torch.zeros((outputs, 2))
    assert w4a16(torch.zeros((rows, 64)), packed, scale, group_size=32).shape == (rows, outputs)


def test_layout_is_that_of_compressed_tensors(generator) -> None:
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    codes, scale, _ = case(20, 256, 128, False, generator)
    packed = helpers.pack_to_int32((codes - 8).to(torch.int8), num_bits=4)
    x = torch.randn((1, 256), generator=generator)
    assert_close(w4a16(x, packed, scale, group_size=128), x.double() @ dequantise(codes, scale, None, 128).T)


GOOD = {
    "x": torch.zeros((2, 64)),
    "packed": torch.zeros((4, 8), dtype=torch.int32),
    "scale": torch.ones((4, 2)),
    "zero_point": torch.zeros((4, 2), dtype=torch.uint8),
    "group_size": 32,
}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.zeros((2, 64), dtype=torch.float64)}, TypeError, "x was torch.float64"),
        ({"packed": torch.zeros((4, 8), dtype=torch.int64)}, TypeError, "packed was torch.int64"),
        ({"scale": torch.ones((4, 2), dtype=torch.int8)}, TypeError, "scale was torch.int8"),
        ({"zero_point": torch.zeros((4, 2))}, TypeError, "zero_point was torch.float32, may be torch.uint8"),
        ({"zero_point": [[0]]}, TypeError, "zero_point was list"),
        ({"group_size": 32.0}, TypeError, "group_size was float"),
        ({"x": torch.zeros(64)}, ValueError, r"x had shape \[64\], may have two axes"),
        ({"x": torch.zeros((64, 2)).T}, ValueError, r"x had strides \(1, 2\)"),
        ({"x": torch.zeros((2, 128))[:, ::2]}, ValueError, r"x had strides \(128, 2\)"),
        ({"packed": torch.zeros((8, 4), dtype=torch.int32).T}, ValueError, r"packed had strides \(1, 4\)"),
        ({"scale": torch.ones((4, 4))[:, ::2]}, ValueError, r"scale had strides \(4, 2\)"),
        ({"x": torch.zeros((2, 60))}, ValueError, "x had 60 columns, may have a positive multiple of 8"),
        ({"x": torch.zeros((2, 0))}, ValueError, "x had 0 columns"),
        (
            {"packed": torch.zeros((4, 9), dtype=torch.int32)},
            ValueError,
            r"packed had shape \[4, 9\], may have 8 words",
        ),
        ({"bits": 3}, ValueError, "bits was 3, may be 2 or 4"),
        ({"bits": 2}, ValueError, r"packed had shape \[4, 8\], may have 4 words a row"),
        ({"group_size": 48}, ValueError, r"group_size was 48, may be 64 \(the whole row\) or a multiple of 32"),
        ({"group_size": 16}, ValueError, "group_size was 16"),
        ({"group_size": -32}, ValueError, "group_size was -32"),
        ({"group_size": 128}, ValueError, "group_size was 128"),
        ({"scale": torch.ones((4, 1))}, ValueError, r"scale had shape \[4, 1\], may have \[4, 2\] for group_size 32"),
        ({"zero_point": torch.zeros((2, 4), dtype=torch.uint8)}, ValueError, r"zero_point had shape \[2, 4\]"),
        ({"scale": torch.ones((4, 2), device="meta")}, ValueError, "scale was on meta, may be on x's device, cpu"),
        ({"x": torch.zeros((2, 64)).as_strided((2, 64), (0, 0))}, ValueError, "x had strides"),
    ],
    ids=lambda value: "" if not isinstance(value, dict) else next(iter(value)),
)
def test_wrong_arguments_are_refused_by_name(change, error, words) -> None:
    arguments = GOOD | change
    with pytest.raises(error, match=words):
        w4a16(**arguments)


def test_cpu_tensors_are_refused_outside_the_interpreter(monkeypatch) -> None:
    monkeypatch.setattr(_checks, "INTERPRETED", triton.language.constexpr(False))
    with pytest.raises(ValueError, match="x was on cpu, may be on a CUDA device"):
        w4a16(**GOOD)
