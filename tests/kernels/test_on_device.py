"""The compiled kernels on a GPU, and whole layers and a model with them. On a machine without one, all are skipped.

    TRITON_INTERPRET=0 python -m pytest tests/kernels/test_on_device.py

`benchmarks/kernels.py --check` compares more sizes; here stands what it does not: bits, NaN, repetition, layers.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("triton", reason="the kernels run with Triton, which is not installed")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from reference.coding.planes import pack_planes
from reference.coding.resident import ResidentTensor
from reference.kernels import _triton
from reference.kernels.block_sparse import block_sparse
from reference.kernels.codebook import codebook
from reference.kernels.fp8 import LEAST_CAPABILITY, fp8
from reference.kernels.quantize_activations import quantize_activations
from reference.kernels.sparse_24 import sparse_24
from reference.kernels.w4a16 import w4a16
from reference.kernels.w8a8 import w8a8
from reference.layers import Int8Linear, QuantizedLinear
from reference.quantization import activations, hadamard
from reference.quantization.activations import ActivationSpec
from reference.quantization.grid import QuantizationSpec
from reference.quantization.round_to_nearest import quantize_layer
from reference.sparse_tensors import BlockSparseTensor, SparseTensor

if _triton.INTERPRETED.value:
    pytest.skip("kernels are interpreted in this process: start it with TRITON_INTERPRET=0", allow_module_level=True)

DEVICE = torch.device("cuda")


def normal(*shape: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator).to(DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("columns", [33, 4096, 11008])
def test_codes_equal_torchs_bit_for_bit(columns, restricted, dtype, generator) -> None:
    x = normal(257, columns, generator=generator).to(dtype)
    codes, scale = quantize_activations(x, restricted=restricted)
    expected, step = activations.quantize_activations(x, ActivationSpec(restricted=restricted))
    assert torch.equal(scale, step[:, 0])
    assert torch.equal(codes, expected)


def test_rows_with_nan_and_infinity_show_it_in_their_steps() -> None:
    x = torch.ones((3, 100), device=DEVICE)
    x[0, 5], x[1, 7] = torch.nan, torch.inf
    scale = quantize_activations(x)[1]
    assert scale.isnan().tolist() == [True, False, False]
    assert scale.isinf().tolist() == [False, True, False]


@pytest.mark.parametrize("rows", [1, 5, 16, 20, 100, 300])
def test_integer_sums_are_exact(rows, generator) -> None:
    x = torch.randint(-128, 128, (rows, 4096), generator=generator, dtype=torch.int8)
    w = torch.randint(-128, 128, (1000, 4096), generator=generator, dtype=torch.int8)
    ones = torch.ones(rows, device=DEVICE), torch.ones(1000, device=DEVICE)
    y = w8a8(x.to(DEVICE), w.to(DEVICE), *ones, dtype=torch.float32)
    assert torch.equal(y.cpu(), (x.double() @ w.double().T).float())


@pytest.mark.parametrize("rows", [1, 4, 16, 64, 200])
@pytest.mark.parametrize("bits", [2, 4])
def test_w4a16_repeats_and_leaves_no_element_unwritten(rows, bits, generator) -> None:
    words = torch.randint(-(2**31), 2**31, (1000, 1024 * bits // 32), generator=generator).int().to(DEVICE)
    scale = (torch.rand((1000, 8), generator=generator) + 0.1).bfloat16().to(DEVICE)
    x = normal(rows, 1024, generator=generator).bfloat16()
    poison = torch.full((64, 1000, 64), torch.nan, device=DEVICE)  # freed at once: results are made of it
    del poison
    first = w4a16(x, words, scale, group_size=128, bits=bits)
    shifts = torch.arange(0, 32, bits, device=DEVICE, dtype=torch.int32)
    codes = ((words[:, :, None] >> shifts) & (2**bits - 1)).flatten(1)
    weight = (codes - 2 ** (bits - 1)).double() * scale.double().repeat_interleave(128, 1)
    expected = x.double() @ weight.T
    assert (first.double() - expected).norm() <= (2**-8 + 4e-6) * expected.norm()
    for _ in range(3):
        assert torch.equal(first, w4a16(x, words, scale, group_size=128, bits=bits))


def test_nan_of_e4m3_stays_in_its_row(generator) -> None:
    if torch.cuda.get_device_capability() < LEAST_CAPABILITY:
        pytest.skip("this GPU has no e4m3 products")
    for rows in (5, 100):
        x = normal(rows, 256, generator=generator)
        x[2, 7] = torch.nan
        w = normal(64, 256, generator=generator).to(torch.float8_e4m3fn)
        ones = torch.ones(rows, device=DEVICE), torch.ones(64, device=DEVICE)
        y = fp8(x.to(torch.float8_e4m3fn), w, *ones)
        assert y[2].isnan().all()
        assert y.isnan().any(1).sum() == 1


def assert_repeats_and_is_close(call, expected: torch.Tensor) -> None:
    first = call()
    assert (first.double() - expected).norm() <= (2**-8 + 4e-6) * expected.norm()
    for _ in range(3):
        assert torch.equal(first, call())


@pytest.mark.parametrize("rows", [1, 5, 200])
@pytest.mark.parametrize("bits", [2, 5, 7, 8])
def test_codebook_of_every_plane(bits, rows, generator) -> None:
    codes = torch.randint(0, 2**bits, (100, 1000), generator=generator, dtype=torch.int32).to(DEVICE)
    table = normal(2**bits, generator=generator).bfloat16().float()
    x = normal(rows, 1000, generator=generator).bfloat16()
    packed = pack_planes(codes, bits)
    assert_repeats_and_is_close(lambda: codebook(x, packed, table), x.double() @ table.double()[codes.long()].T)


@pytest.mark.parametrize("rows", [1, 5, 200])
@pytest.mark.parametrize("columns", [48, 4096])
def test_two_of_four(columns, rows, generator) -> None:
    dense = normal(100, columns, generator=generator).bfloat16()
    order = dense.view(100, -1, 4).abs().argsort(-1)
    dense = dense.view(100, -1, 4).scatter(-1, order[..., :2], 0).view(100, columns)
    weight, x = SparseTensor.from_dense(dense), normal(rows, columns, generator=generator).bfloat16()
    expected = x.double() @ dense.double().T
    assert_repeats_and_is_close(lambda: sparse_24(x, weight.values, weight.positions), expected)


@pytest.mark.parametrize("rows", [1, 200])
@pytest.mark.parametrize("size", [32, 64, 128])
def test_blocks(size, rows, generator) -> None:
    kept = torch.rand((6, 8), generator=generator) < 0.4
    kept[2] = False
    dense = normal(6 * size, 8 * size, generator=generator)
    dense = (dense * torch.kron(kept, torch.ones(size, size)).to(DEVICE)).bfloat16()
    weight, x = BlockSparseTensor.from_dense(dense, size), normal(rows, 8 * size, generator=generator).bfloat16()
    parts = (weight.blocks, weight.crow, weight.column, weight.order)
    y = block_sparse(x, *parts)
    assert not y[:, 2 * size : 3 * size].any()
    assert_repeats_and_is_close(lambda: block_sparse(x, *parts), x.double() @ dense.double().T)


def test_bits_come_back_from_huffmans_code(generator) -> None:
    weight = normal(300, 77, generator=generator).bfloat16()
    weight[0, :4] = torch.tensor([torch.nan, torch.inf, -0.0, 1e-40], device=DEVICE)
    back = ResidentTensor.from_tensor(weight, DEVICE).decode()
    assert torch.equal(back.view(torch.int16), weight.view(torch.int16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("n", [8, 128, 12 * 64, 1024, 4096, 2**15])
def test_rotations_by_the_kernel_equal_the_cpus(n, dtype, generator) -> None:
    x = torch.randn((9, n), generator=generator).to(dtype)
    expected = hadamard.transform(x.double())
    y = hadamard.transform(x.to(DEVICE)).cpu()
    half_a_unit = {torch.float32: 2e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8}[dtype]
    assert (y.double() - expected).norm() <= (half_a_unit + 2**-16) * expected.norm()


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [128, 64, None])
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_quantized_linear(bits, symmetric, group_size, rows, generator) -> None:
    weight = quantize_layer(
        torch.randn((96, 512), generator=generator), QuantizationSpec(bits, symmetric=symmetric, group_size=group_size)
    )
    layer = QuantizedLinear(weight, torch.randn(96, generator=generator)).to(DEVICE)
    x = normal(rows, 512, generator=generator).bfloat16()
    with torch.no_grad():
        y = layer(x)
    expected = x.cpu().double() @ weight.dequantize(torch.float64).T + layer.bias.cpu().double()
    assert (y.cpu().double() - expected).norm() <= 2**-7 * expected.norm()


@pytest.mark.parametrize("granularity", ["per_token", "per_tensor", "static"])
@pytest.mark.parametrize("rows", [1, 20, 300])
def test_int8_linear_equals_the_cpus(granularity, rows, generator) -> None:
    layer = Int8Linear.from_linear(
        nn.Linear(512, 96),
        activations=ActivationSpec(granularity=granularity),
        input_scale=torch.tensor([0.03]) if granularity == "static" else None,
    )
    x = torch.randn((rows, 512), generator=generator)
    on_cpu = layer(x)
    y = layer.to(DEVICE)(x.to(DEVICE)).cpu()
    assert (y - on_cpu).abs().max() <= 4 * torch.finfo(torch.float32).eps * on_cpu.abs().max()


@pytest.mark.parametrize(
    "options", [["--bits", "4"], ["--bits", "8", "--group-size", "-1", "--activations", "per_token"]]
)
def test_a_whole_model_is_evaluated_with_the_kernels(options, tmp_path, capsys) -> None:
    import json

    from reference.cli import main

    folder = str(tmp_path / "small")
    fast = ["--tokens", "2048", "--text", "documentation"]
    main(["quantize", "tutorial", folder, *options, "--no-evaluate"])
    found = {}
    for device in ("cpu", "cuda"):
        capsys.readouterr()
        main(["evaluate", folder, "--device", device, "--json", *fast])
        found[device] = json.loads(capsys.readouterr().out)["quality"]["documentation"]["nats_per_token"]
    assert abs(found["cuda"] - found["cpu"]) <= 2e-3 * found["cpu"]
