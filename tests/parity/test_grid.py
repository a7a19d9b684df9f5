"""Our grid and packing against numbers recorded from torch and from the authors of GPTQ (see README.md)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from reference.quantization import grid
from reference.quantization.grid import QuantizationSpec
from reference.tensors import pack, unpack

HERE = Path(__file__).parent


def load(name: str) -> tuple[dict[str, torch.Tensor], list[dict]]:
    with np.load(HERE / f"{name}.npz", allow_pickle=False) as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file.files if file[key].dtype != np.uint32}
    settings = json.loads((HERE / f"{name}.json").read_text())
    return arrays, settings if isinstance(settings, list) else settings["configs"]


TORCH, TORCH_CONFIGS = load("torch_fake_quant")
AFFINE = [config for config in TORCH_CONFIGS if config["key"].startswith("affine")]
SYMMETRIC = [config for config in TORCH_CONFIGS if config["key"].startswith("sym")]


@pytest.mark.parametrize("config", AFFINE, ids=lambda config: config["key"])
def test_affine_grid_is_torchs_observer_and_fake_quantize(config: dict) -> None:
    x, key = TORCH["x"], config["key"]
    spec = QuantizationSpec(config["bits"], per_tensor=not config["per_channel"])
    scale, zero_point = grid.fit(x, spec)
    theirs, zero = TORCH[f"{key}_scale"], TORCH[f"{key}_zero"]
    # An all-zero row has torch's smallest scale, and the range (−1, 1) with us.
    rows = x.abs().amax(1) > 0 if config["per_channel"] else torch.tensor([True])
    assert torch.allclose(scale[rows, 0], theirs[rows], rtol=1e-6, atol=0)
    assert torch.equal(zero_point[rows, 0], zero[rows].int())
    back = grid.dequantize(grid.quantize(x, scale, zero_point, spec), scale, zero_point, spec)
    differ = (back - TORCH[f"{key}_y"]).abs() > 1e-6 * scale
    assert differ.sum() <= config["elements_where_division_version_differs"]


@pytest.mark.parametrize("config", SYMMETRIC, ids=lambda config: config["key"])
def test_codes_on_torchs_symmetric_grid_are_torchs(config: dict) -> None:
    """torch's step is 2·absmax/(2^b − 1), as ours; signed codes, so zero point 0 and not the middle."""
    x, key = TORCH["x"], config["key"]
    spec = QuantizationSpec(config["bits"], symmetric=True, per_tensor=not config["per_channel"])
    scale, zero_point = grid.fit(x, spec)
    theirs = TORCH[f"{key}_scale"]
    rows = x.abs().amax(1) > 0 if config["per_channel"] else torch.tensor([True])
    assert torch.allclose(scale[rows, 0], theirs[rows], rtol=1e-6, atol=0)
    # Codes on their scale, so that only the rounding is compared.
    codes = grid.quantize(x, theirs.reshape(-1, 1), zero_point, spec)
    back = grid.dequantize(codes, theirs.reshape(-1, 1), zero_point, spec)
    differ = (back - TORCH[f"{key}_y"]).abs() > 1e-6 * theirs.reshape(-1, 1)
    assert differ.sum() <= config["elements_where_division_version_differs"]


@pytest.mark.parametrize("problem", ["gptq_a", "gptq_b_dead_outlier"])
def test_per_channel_scales_are_those_of_the_authors_quantizer(problem: str) -> None:
    arrays, configs = load(problem)
    weight, checked = arrays["W"].float(), 0
    dead = arrays["H"].diagonal() == 0
    for config in configs:
        key = config["key"]
        if config["groupsize"] != -1 or not config["perchannel"]:
            continue
        spec = QuantizationSpec(config["bits"], symmetric=config["sym"], clip_search=config["mse"])
        alive = torch.where(dead, 0.0, weight)  # the authors clear dead columns after they fit the grid
        candidates = [grid.fit(candidate, spec) for candidate in (weight, alive)]
        close = [torch.allclose(scale, arrays[f"{key}_scale"], rtol=1e-6) for scale, _ in candidates]
        same = [torch.equal(zero, arrays[f"{key}_zero"].int()) for _, zero in candidates]
        assert any(a and b for a, b in zip(close, same, strict=True)), key
        checked += 1
    assert checked >= 3


def test_packed_words_are_those_of_the_authors_3_bit_layer() -> None:
    arrays, _ = load("packing")
    codes = arrays["gptq3_codes"]
    assert torch.equal(pack(codes, 3).T, arrays["gptq3_qweight"])
    assert torch.equal(unpack(arrays["gptq3_qweight"].T.contiguous(), 3, codes.shape[1]), codes)
