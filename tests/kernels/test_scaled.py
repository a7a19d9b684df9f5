"""w8a8 and fp8 against exact sums: integers in int64, e4m3 in float64; scales, zero points and bias in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="the kernels run with Triton, which is not installed")

from reference.kernels import _triton
from reference.kernels import fp8 as fp8_module
from reference.kernels import w8a8 as module
from reference.kernels._scaled import Slim, Square, scaled_product, supports_descriptors
from reference.kernels.fp8 import fp8
from reference.kernels.w8a8 import w8a8

if not _triton.INTERPRETED.value:
    pytest.skip("TRITON_INTERPRET=1 was not set when the kernels were imported", allow_module_level=True)

SHAPES = [(1, 20, 300), (5, 130, 64), (16, 33, 1000), (17, 70, 130), (70, 40, 256), (130, 300, 33), (300, 20, 128)]
E4M3 = torch.float8_e4m3fn
PLANS = [
    Slim(8, 16, 128, 2, 4, 3),
    Slim(32, 32, 256, 1, 4, 2),
    Square(64, 64, 64, 2, 4, 3),
    Square(128, 64, 128, 1, 4, 3, described=True),
]


def integers(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Codes with −128 and 127 among them."""
    codes = torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8)
    codes.view(-1)[:2] = torch.tensor([-128, 127], dtype=torch.int8)
    return codes


def positive(size: int, generator: torch.Generator) -> Tensor:
    return torch.rand(size, generator=generator) * 0.1 + 1e-3


@pytest.mark.parametrize(("rows", "outputs", "columns"), SHAPES)
def test_integer_sums_are_exact(rows, outputs, columns, generator) -> None:
    x, w = integers((rows, columns), generator), integers((outputs, columns), generator)
    ones = torch.ones(rows), torch.ones(outputs)
    y = w8a8(x, w, *ones, dtype=torch.float32)
    assert torch.equal(y, (x.long() @ w.long().T).float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("rows", "outputs", "columns"), SHAPES[::2])
def test_scales_zero_points_and_bias_come_after_the_sum(rows, outputs, columns, dtype, generator) -> None:
    x, w = integers((rows, columns), generator), integers((outputs, columns), generator)
    x_scale, w_scale = positive(rows, generator), positive(outputs, generator)
    bias = torch.randn(outputs, generator=generator).to(dtype)
    zero = torch.randint(-128, 128, (rows,), generator=generator, dtype=torch.int32)
    w_sum = w.sum(1, dtype=torch.int32)
    y = w8a8(x, w, x_scale * 0.01, w_scale, bias, x_zero_point=zero, w_sum=w_sum, dtype=dtype)
    exact = (x.long() - zero[:, None]) @ w.long().T
    expected = exact.double() * x_scale.mul(0.01).double()[:, None] * w_scale.double() + bias.double()
    assert (y.double() - expected).norm() <= (torch.finfo(dtype).eps / 2 + 1e-6) * expected.norm()


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("kind", [torch.int8, E4M3], ids=str)
def test_every_plan_computes_the_same(plan, kind, generator) -> None:
    rows, outputs, columns = 20, 90, 272
    draw = integers if kind == torch.int8 else lambda s, g: torch.randn(s, generator=g).to(E4M3)
    x, w = draw((rows, columns), generator), draw((outputs, columns), generator)
    product = w8a8 if kind == torch.int8 else fp8
    y = product(x, w, torch.ones(rows), torch.ones(outputs), dtype=torch.float32, plan=plan)
    expected = x.double() @ w.double().T
    assert (y.double() - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("rows", "outputs", "columns"), SHAPES)
def test_e4m3_products(rows, outputs, columns, dtype, generator) -> None:
    x = torch.randn((rows, columns), generator=generator).to(E4M3)
    w = torch.randn((outputs, columns), generator=generator).to(E4M3)
    x[0, :3] = torch.tensor([448.0, -448.0, 2.0**-9]).to(E4M3)  # the largest, and a subnormal number
    x_scale, w_scale = positive(rows, generator), positive(outputs, generator)
    bias = torch.randn(outputs, generator=generator)
    y = fp8(x, w, x_scale, w_scale, bias, dtype=dtype)
    expected = (x.double() @ w.double().T) * x_scale.double()[:, None] * w_scale.double() + bias.double()
    assert y.dtype == dtype
    assert (y.double() - expected).norm() <= (torch.finfo(dtype).eps / 2 + 2e-6) * expected.norm()


@pytest.mark.parametrize("rows", [1, 20, 70])
def test_strided_rows_are_read_in_place(rows, generator) -> None:
    wide = integers((rows, 200), generator)
    x, w = wide[:, 30:130], integers((20, 100), generator)
    y = w8a8(x, w, torch.ones(rows), torch.ones(20), dtype=torch.float32)
    assert torch.equal(y, (x.long() @ w.long().T).float())


@pytest.mark.parametrize("plan", [Slim(8, 16, 128, 2, 4, 3), Square(32, 32, 64, 2, 4, 3)], ids=str)
def test_nothing_outside_the_tensors_is_touched(plan, assert_inside, generator) -> None:
    wide = integers((21, 150), generator)
    x, w = wide[:, 30:107], integers((19, 77), generator)
    x_scale, w_scale, y = torch.ones(21), torch.ones(19), torch.empty((21, 19))
    scaled_product(x, w, (x_scale, w_scale, None, None, None), y, plan)
    assert torch.equal(y, (x.long() @ w.long().T).float())
    assert_inside(x, w, x_scale, w_scale, y)


def test_nothing_in_nothing_out() -> None:
    w = torch.zeros((0, 8), dtype=torch.int8)
    assert w8a8(torch.zeros((3, 8), dtype=torch.int8), w, torch.ones(3), torch.ones(0)).shape == (3, 0)
    w = torch.zeros((4, 8), dtype=torch.int8).to(E4M3)
    assert fp8(w[:0], w, torch.ones(0), torch.ones(4)).shape == (0, 4)


def test_descriptors_are_used_where_rows_are_aligned(generator) -> None:
    large = module.plan_for(5000, 4096, True)
    assert isinstance(large, Square)
    assert large.described
    assert not module.plan_for(5000, 4096, False).described


@pytest.mark.parametrize("kind", [torch.int8, E4M3], ids=str)
@pytest.mark.parametrize(("offset_x", "offset_w"), [(0, 0), (16, 0), (0, 16), (5, 0), (0, 5), (8, 8)])
def test_tensors_that_begin_anywhere_are_multiplied(kind, offset_x, offset_w, generator) -> None:
    """Many rows are read by descriptors, which begin at multiples of 16 bytes: elsewhere by pointers, the same way."""

    def at(offset: int, rows: int) -> Tensor:
        room = torch.empty(rows * 32 + offset, dtype=torch.int8).view(kind)
        return room[offset:].view(rows, 32).copy_(torch.randint(-9, 10, (rows, 32), generator=generator).float())

    x, w = at(offset_x, 70 if kind == torch.int8 else 257), at(offset_w, 20)
    product = w8a8 if kind == torch.int8 else fp8
    y = product(x, w, torch.ones(len(x)), torch.ones(20), dtype=torch.float32)
    assert torch.equal(y, x.float() @ w.float().T)
    assert supports_descriptors(x, w) == (offset_x % 16 == 0 and offset_w % 16 == 0)
    one = torch.zeros((1, 32), dtype=torch.int8).view(kind)[:, :20]  # contiguous, as its rows' distance says nothing
    assert not supports_descriptors(x, one)


GOOD = {
    "x": torch.zeros((2, 64), dtype=torch.int8),
    "w": torch.zeros((4, 64), dtype=torch.int8),
    "x_scale": torch.ones(2),
    "w_scale": torch.ones(4),
}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.zeros((2, 64))}, TypeError, "x was torch.float32, may be torch.int8"),
        ({"w": torch.zeros((4, 64), dtype=torch.uint8)}, TypeError, "w was torch.uint8"),
        ({"x_scale": torch.ones(2).half()}, TypeError, "x_scale was torch.float16"),
        ({"x_scale": torch.ones((2, 1))}, ValueError, r"x_scale had shape \[2, 1\], may have one axis"),
        ({"w_scale": torch.ones(2)}, ValueError, r"w_scale had shape \[2\], may have \[4\] for w's rows"),
        ({"w": torch.zeros((4, 32), dtype=torch.int8)}, ValueError, r"w had shape \[4, 32\], may have \[4, 64\]"),
        ({"w": torch.zeros((64, 4), dtype=torch.int8).T}, ValueError, "w had strides"),
        ({"bias": torch.ones(3)}, ValueError, r"bias had shape \[3\]"),
        ({"bias": torch.ones(4, dtype=torch.int8)}, TypeError, "bias was torch.int8"),
        ({"dtype": torch.float64}, TypeError, "dtype was torch.float64"),
        ({"w_sum": torch.ones(4, dtype=torch.int32)}, ValueError, "x_zero_point and w_sum were not given together"),
        ({"x": torch.zeros((64, 2), dtype=torch.int8).T}, ValueError, r"x had strides \(1, 2\)"),
        (
            {n: torch.zeros((s, 131_072), dtype=torch.int8) for n, s in (("x", 2), ("w", 4))},
            ValueError,
            "x had 131072 columns, may have up to 131071",
        ),
    ],
)
def test_wrong_arguments_are_refused_by_name(change, error, words) -> None:
    with pytest.raises(error, match=words):
        w8a8(**(GOOD | change))


def test_older_gpus_are_refused_for_e4m3(monkeypatch) -> None:
    from reference.kernels import _checks

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(ValueError, match=r"capability 8\.0; a product of e4m3 matrices needs 8\.9 or more"):
        _checks.check_capability(torch.device("cuda"), fp8_module.LEAST_CAPABILITY, "a product of e4m3 matrices")
