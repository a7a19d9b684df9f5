"""hadamard against scipy's matrix in float64."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.linalg import hadamard as scipys
from torch import Tensor

triton = pytest.importorskip("triton", reason="the kernels run with Triton, which is not installed")

from reference import kernel_choice  # noqa: E402
from reference.kernels import _triton  # noqa: E402
from reference.kernels import hadamard as module  # noqa: E402
from reference.kernels.hadamard import hadamard  # noqa: E402
from reference.quantization import hadamard as rotations  # noqa: E402

if not _triton.INTERPRETED.value:
    pytest.skip("TRITON_INTERPRET=1 was not set when the kernels were imported", allow_module_level=True)

# Half a unit in the last place, relative, and what pieces of bf16 (two of 8 bits, or three) leave out.
BOUND = {torch.float32: 2e-6, torch.float16: 2**-11 + 2**-16, torch.bfloat16: 2**-8 + 2**-16}


def rotated(x: Tensor) -> Tensor:
    n = x.shape[-1]
    return x.double() @ torch.from_numpy(scipys(n)).double() / math.sqrt(n)


def assert_close(y: Tensor, expected: Tensor) -> None:
    assert y.shape == expected.shape
    error = (y.double() - expected).norm() / expected.norm()
    assert error <= BOUND[y.dtype], f"relative error {error:.2e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "n"),
    [
        (3, 1),
        (3, 2),
        (5, 4),
        (70, 8),
        (33, 16),
        (7, 64),
        (70, 128),
        (3, 256),
        (2, 512),
        (3, 1024),
        (2, 4096),
        (1, 8192),
    ],
)
def test_equals_the_matrix_of_scipy(rows, n, dtype, generator) -> None:
    x = torch.randn((rows, n), generator=generator).to(dtype)
    y = hadamard(x)
    assert y.dtype == dtype
    assert_close(y, rotated(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("n", [64, 256, 1024])
def test_the_error_is_that_of_rounding_the_result_once(n, dtype, generator) -> None:
    x = torch.randn((8, n), generator=generator).to(dtype)
    expected = rotated(x)
    once = (expected.to(dtype).double() - expected).norm()
    assert (hadamard(x).double() - expected).norm() <= 1.05 * once


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("core", [12, 20, 28])
def test_other_sizes_by_a_factor_equal_the_book_own_transform(core, dtype, generator) -> None:
    x = torch.randn((3, core * 64), generator=generator).to(dtype)
    factor = rotations._core(core).T.contiguous().float()
    assert_close(hadamard(x, factor), rotations.transform(x.double()))
    signs = hadamard(torch.eye(core), factor) * math.sqrt(core)  # no power of two beside it
    assert torch.equal(signs.round(), factor.T)


def test_twice_is_the_row_again(generator) -> None:
    x = torch.randn((2, 3, 2048), generator=generator)
    assert_close(hadamard(hadamard(x)), x.double())


def test_powers_of_two_come_out_exactly() -> None:
    """One number a row: all of the row is plus or minus it, over the square root of n."""
    for n in (64, 256, 4096):
        x = torch.zeros((1, n))
        x[0, n - 3] = 2.0**-120
        y = hadamard(x)
        assert torch.equal(y.abs(), torch.full((1, n), 2.0**-120 / math.sqrt(n)))


@pytest.mark.parametrize("n", [8, 64, 1024])
def test_views_that_are_not_contiguous(n, generator) -> None:
    x = torch.randn((4, n, 3), generator=generator)
    assert_close(hadamard(x.transpose(1, 2)), rotated(x.transpose(1, 2)))
    wide = torch.full((5, n + 9), math.nan)
    inner = wide[:, 4 : 4 + n].copy_(torch.randn((5, n), generator=generator))
    assert_close(hadamard(inner), rotated(inner))
    assert_close(hadamard(x.bfloat16()[..., 0]), rotated(x.bfloat16()[..., 0]))


@pytest.mark.filterwarnings("ignore:invalid value encountered in subtract")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_extreme_values(dtype) -> None:
    largest = torch.full((2, 1024), torch.finfo(dtype).max / 64, dtype=dtype)
    largest[1, ::2] *= -1
    assert_close(hadamard(largest), rotated(largest))
    assert (hadamard(torch.zeros(3, 256, dtype=dtype)) == 0).all()
    x = torch.ones((2, 256), dtype=dtype)
    x[0, 7] = math.inf
    y = hadamard(x)
    assert not y[0].isfinite().any()
    assert torch.equal(y[1], hadamard(x[1:])[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("n", [1, 64, 28, 12 * 64])
def test_rotations_go_through_the_kernel_where_it_serves(n, dtype, generator, monkeypatch) -> None:
    x = torch.randn((2, 3, n), generator=generator).to(dtype)
    expected = x.double() @ rotations.matrix(n)
    calls = []
    monkeypatch.setattr(module, "hadamard", lambda *given: calls.append(1) or hadamard(*given))
    assert_close(rotations.transform(x), expected)
    assert not calls
    monkeypatch.setattr(kernel_choice, "KERNEL_DEVICES", {"cpu"})
    assert_close(rotations.transform(x), expected)
    assert len(calls) == 1
    rotations.transform(x.double())  # the kernel has no float64
    with_gradient = x.float().requires_grad_()
    rotations.transform(with_gradient).sum().backward()
    assert len(calls) == 1
    assert with_gradient.grad is not None


def test_no_rows() -> None:
    assert hadamard(torch.zeros((0, 3, 64))).shape == (0, 3, 64)


@pytest.mark.parametrize("n", [4, 128, 512])
def test_nothing_outside_the_tensors_is_touched(n, generator, assert_inside, monkeypatch) -> None:
    made = []
    empty_like = torch.empty_like
    monkeypatch.setattr(module.torch, "empty_like", lambda *a, **k: made.append(empty_like(*a, **k)) or made[-1])
    x = torch.randn((5, n), generator=generator)
    hadamard(x)
    assert_inside(x, *made)


@pytest.mark.parametrize(
    ("x", "factor", "error", "words"),
    [
        (torch.zeros(3, 64).double(), None, TypeError, "x was torch.float64"),
        ([1.0], None, TypeError, "x was list, may be a torch.Tensor"),
        (torch.tensor(1.0), None, ValueError, "x had no axis"),
        (torch.zeros(3, 48), None, ValueError, "x had a last axis of 48, may have a power of two"),
        (torch.zeros(3, 0), None, ValueError, "x had a last axis of 0"),
        (
            torch.zeros(3, 40),
            torch.ones(12, 12),
            ValueError,
            "x had a last axis of 40, may have 12 times a power of two",
        ),
        (torch.zeros(3, 48), torch.ones(12, 13), ValueError, r"factor had shape \[12, 13\], may be square"),
        (torch.zeros(3, 48), torch.ones(1, 1), ValueError, r"factor had shape \[1, 1\]"),
        (torch.zeros(3, 48), torch.ones(12, 12).half(), TypeError, "factor was torch.float16"),
    ],
)
def test_wrong_arguments_are_refused_by_name(x, factor, error, words) -> None:
    with pytest.raises(error, match=words):
        hadamard(x, factor)
