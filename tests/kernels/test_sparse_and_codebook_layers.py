"""CodebookLinear and SparseLinear: codes in, the numbers of ``to_dense() @ x`` out, on either way."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("triton", reason="the kernels run with Triton, which is not installed")

import reference.kernel_choice
from reference import codebook_layers, sparse_layers
from reference.coding.weight_sharing import share
from reference.kernels import _triton
from reference.layers import CodebookLinear, SparseLinear
from reference.sparse_tensors import SparseTensor

if not _triton.INTERPRETED.value:
    pytest.skip("TRITON_INTERPRET=1 was not set when the kernels were imported", allow_module_level=True)


@pytest.fixture
def by_kernels(monkeypatch) -> None:
    monkeypatch.setattr(reference.kernel_choice, "KERNEL_DEVICES", {"cpu"})


def linear(outputs: int, inputs: int, generator: torch.Generator) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    with torch.no_grad():
        layer.weight.copy_(torch.randn((outputs, inputs), generator=generator))
        layer.bias.copy_(torch.randn(outputs, generator=generator))
    return layer


def relative(y: torch.Tensor, expected: torch.Tensor) -> float:
    return ((y.double() - expected.double()).norm() / expected.double().norm()).item()


def shared(bits: int, inputs: int, generator: torch.Generator) -> CodebookLinear:
    layer = linear(24, inputs, generator)
    return CodebookLinear.from_linear(layer, share(layer.weight, layer.weight.abs() > 0.3, bits))


def sparse(inputs: int, generator: torch.Generator) -> tuple[SparseLinear, torch.Tensor]:
    layer = linear(24, inputs, generator).bfloat16()
    mask = torch.rand((24, inputs // 4, 4), generator=generator).argsort(-1).lt(2).view(24, inputs)
    return SparseLinear.from_linear(layer, SparseTensor.from_dense(layer.weight.detach(), mask)), layer.weight * mask


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("rows", [(1,), (2, 3), (20,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codebook_linear_equals_to_dense_and_multiply(bits, rows, dtype, generator, by_kernels, monkeypatch) -> None:
    layer = shared(bits, 100, generator).to(dtype)
    x = torch.randn((*rows, 100), generator=generator).to(dtype)
    expected = x.double() @ layer.tensor.to_dense().double().T + layer.bias.double()
    monkeypatch.setattr(codebook_layers.SharedWeight, "forward", None)  # the kernel has no need of it
    with torch.no_grad():
        y = layer(x)
    assert y.dtype == dtype
    assert y.shape == (*rows, 24)
    assert relative(y, expected) < (2**-7 if dtype == torch.bfloat16 else 3e-6)


def test_codebook_linear_follows_its_centroids_and_codes(generator, by_kernels) -> None:
    first, second = shared(4, 64, generator), shared(4, 64, generator)
    x = torch.randn((3, 64), generator=generator)
    with torch.no_grad():
        first(x)
        first.weight.centroids.mul_(2)
        assert relative(first(x), x @ first.tensor.to_dense().T + first.bias) < 3e-6
        first.load_state_dict(second.state_dict())
        assert torch.equal(first(x), second(x))


def test_codebook_linear_trains_on_the_dense_way(generator, by_kernels) -> None:
    layer = shared(4, 64, generator)
    layer(torch.randn((3, 64), generator=generator)).sum().backward()
    assert layer.weight.centroids.grad.abs().sum() > 0


def test_codebook_linear_without_kernels_is_unchanged(generator, monkeypatch) -> None:
    layer = shared(4, 64, generator)
    x = torch.randn((3, 64), generator=generator)
    monkeypatch.setattr(CodebookLinear, "_forward_kernel", None)
    with torch.no_grad():
        assert torch.equal(layer(x), nn.functional.linear(x, layer.weight(), layer.bias))


@pytest.mark.parametrize("rows", [(1,), (2, 3), (20,)])
@pytest.mark.parametrize("way", ["kernel", "dense"])
def test_sparse_linear_equals_to_dense_and_multiply(rows, way, generator, monkeypatch) -> None:
    layer, dense = sparse(96, generator)
    assert torch.equal(layer.tensor.to_dense(), dense)
    x = torch.randn((*rows, 96), generator=generator).bfloat16()
    if way == "kernel":
        monkeypatch.setattr(reference.kernel_choice, "KERNEL_DEVICES", {"cpu"})
        monkeypatch.setattr(sparse_layers, "expand", None)
    with torch.no_grad():
        y = layer(x)
    assert y.dtype == x.dtype
    assert y.shape == (*rows, 24)
    assert relative(y, x.double() @ dense.double().T + layer.bias.double()) < 2**-7


def test_sparse_linear_takes_other_types_and_gradients_on_the_dense_way(generator, by_kernels) -> None:
    layer, dense = sparse(96, generator)
    x = torch.randn((3, 96), generator=generator, requires_grad=True)
    y = layer(x)
    assert y.dtype == torch.float32
    y.sum().backward()
    assert relative(x.grad, dense.double().sum(0).expand(3, -1)) < 1e-5


def test_sparse_linear_moves_and_loads_like_any_module(generator) -> None:
    layer, _ = sparse(96, generator)
    other = SparseLinear(SparseTensor(torch.zeros_like(layer.values), layer.positions.clone()), torch.zeros(24))
    other.load_state_dict(layer.state_dict())
    x = torch.randn((2, 96), generator=generator)
    assert torch.equal(layer.float()(x), other.float()(x))
    assert layer.positions.dtype == torch.int16
    assert repr(layer) == "SparseLinear(96, 24, 2:4)"
    assert 16 * layer.bfloat16().tensor.nbytes == 9 * 24 * 96 * 2
    with pytest.raises(ValueError, match=r"weight is \(24, 96\), the layer that it replaces \(24, 32\)"):
        SparseLinear.from_linear(nn.Linear(32, 24), layer.tensor)
    assert SparseLinear.from_linear(pruned(generator)).bias is None


def pruned(generator: torch.Generator) -> nn.Linear:
    """A layer that is 2:4 already."""
    layer = nn.Linear(32, 8, bias=False)
    with torch.no_grad():
        layer.weight.mul_(torch.rand((8, 8, 4), generator=generator).argsort(-1).lt(2).view(8, 32))
    return layer
