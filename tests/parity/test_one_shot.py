"""SparseGPT and Wanda against what the authors' code gave on the same inputs (see README.md)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from reference.pruning import sparsegpt, wanda
from reference.quantization.grid import QuantizationSpec
from reference.quantization.hessian import HessianAccumulator

AUTHORS = {"count_rule": "floor_plus_one", "tie_rule": "all"}
SPARSEGPT_CASES = {
    "l0.s50": {"sparsity": 0.5, **AUTHORS},
    "l0.s80": {"sparsity": 0.8, **AUTHORS},
    "l0.nm2of4": {"pattern": (2, 4)},
    "l0.nm4of8": {"pattern": (4, 8)},
    "l0.s50_q4asym": {"sparsity": 0.5, "spec": QuantizationSpec(4), **AUTHORS},
    "l0.nm2of4_q4asym": {"pattern": (2, 4), "spec": QuantizationSpec(4)},
    "l1.s50_bs32": {"sparsity": 0.5, "block_size": 32, **AUTHORS},
    "l1.s50_damp10": {"sparsity": 0.5, "damping": 0.1, **AUTHORS},
}
WANDA_CASES = {
    "wanda_s50": lambda weight, norm: wanda.mask(weight, norm, 0.5, count_rule="floor"),
    "wanda_s70": lambda weight, norm: wanda.mask(weight, norm, 0.7, count_rule="floor"),
    "wanda_2of4": lambda weight, norm: wanda.mask(weight, norm, pattern=(2, 4)),
    "wanda_4of8": lambda weight, norm: wanda.mask(weight, norm, pattern=(4, 8)),
    "wanda_variant_s50": lambda weight, norm: wanda.mass_mask(weight, norm, 0.5),
}


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parent / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


SPARSEGPT, WANDA = load("sparsegpt"), load("wanda")


def test_every_recorded_case_is_compared() -> None:
    assert {key.removesuffix(".W_out") for key in SPARSEGPT if key.endswith(".W_out")} == set(SPARSEGPT_CASES)
    assert {key.split(".")[0] for key in WANDA if key.endswith("scaler_row")} == set(WANDA_CASES)


@pytest.mark.parametrize("layer", ["l0", "l1"])
def test_hessian_of_the_recorded_samples(layer: str) -> None:
    accumulator = HessianAccumulator(SPARSEGPT[f"{layer}.W"].shape[1])
    for sample in np.split(SPARSEGPT[f"{layer}.X"], SPARSEGPT[f"{layer}.sample_lengths"].cumsum()[:-1]):
        accumulator.add(torch.from_numpy(sample))
    np.testing.assert_allclose(accumulator.hessian.numpy(), SPARSEGPT[f"{layer}.H"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("case", SPARSEGPT_CASES)
def test_sparsegpt_masks_weights_error_and_codes(case: str) -> None:
    layer = case.split(".")[0]
    weight, hessian = (torch.from_numpy(SPARSEGPT[f"{layer}.{key}"]) for key in "WH")
    found = sparsegpt.prune_layer(weight, hessian, **SPARSEGPT_CASES[case])
    expected = SPARSEGPT[f"{case}.W_out"]
    np.testing.assert_array_equal(found.weight.numpy() != 0, expected != 0)
    np.testing.assert_allclose(found.weight.numpy(), expected, rtol=0, atol=2e-6)
    assert found.loss == pytest.approx(float(SPARSEGPT[f"{case}.error"]), rel=1e-4)
    if found.quantized is None:
        # Beside the mask, only the input that is always zero makes zeros.
        alive = hessian.diagonal() != 0
        np.testing.assert_array_equal(found.mask[:, alive].numpy(), expected[:, alive.numpy()] != 0)
    else:
        scale, zero = SPARSEGPT[f"{case}.scale"], SPARSEGPT[f"{case}.zero"]
        np.testing.assert_allclose(found.quantized.scale.numpy(), scale, rtol=1e-6)
        codes = np.clip(np.round(expected / scale) + zero, 0, 15)
        np.testing.assert_array_equal(found.quantized.codes.numpy(), codes)
        assert torch.equal(found.quantized.dequantize(), found.weight)


@pytest.mark.parametrize("case", WANDA_CASES)
def test_wanda_norms_and_masks_through_both_blocks(case: str) -> None:
    """Block 1 is scored from the outputs of the pruned block 0; within a block, from the whole one's activations."""
    x = torch.from_numpy(WANDA["X"])
    for block in ("block0", "block1"):
        up, down = (torch.from_numpy(WANDA[f"{block}.{part}.W"]) for part in ("up", "down"))
        kept = {}
        for part, weight, inputs in (("up", up, x), ("down", down, functional.relu(x @ up.T))):
            norms = wanda.InputNorms(weight.shape[1])
            for sample in inputs.split(4):
                norms.add(sample)
            key = f"{case}.{block}.{part}"
            np.testing.assert_allclose(norms.norms.square().numpy(), WANDA[f"{key}.scaler_row"], rtol=1e-5)
            kept[part] = WANDA_CASES[case](weight, norms.norms)
            np.testing.assert_array_equal(kept[part].numpy(), WANDA[f"{key}.mask"].astype(bool))
        x = x + functional.relu(x @ (up * kept["up"]).T) @ (down * kept["down"]).T
