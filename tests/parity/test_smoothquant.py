"""Our smoothing against tensors recorded from the authors' code (see README.md)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from reference.quantization.channel_scale import fold
from reference.quantization.smoothquant import columns_absmax, smoothing_factors

HERE = Path(__file__).parent
CASES = json.loads((HERE / "smoothquant.json").read_text())
SMOOTHED = [case for case in CASES if "alpha" in case] if isinstance(CASES, list) else CASES


def vectors(prefix: str) -> dict[str, Tensor]:
    with np.load(HERE / "smoothquant.npz", allow_pickle=False) as file:
        return {k.removeprefix(prefix): torch.from_numpy(file[k]) for k in file.files if k.startswith(prefix)}


def linears(stored: dict[str, Tensor]) -> list[nn.Linear]:
    found = []
    for name in sorted(name for name in stored if name.startswith("W") and not name.endswith("_after")):
        layer = nn.Linear(*reversed(stored[name].shape), bias=False)
        layer.weight = nn.Parameter(stored[name].clone(), requires_grad=False)
        found.append(layer)
    return found


def norm(stored: dict[str, Tensor]) -> nn.Module:
    width = len(stored["ln_w"])
    found: nn.Module = nn.LayerNorm(width) if "ln_b" in stored else nn.RMSNorm(width)
    found.weight = nn.Parameter(stored["ln_w"].clone(), requires_grad=False)
    if "ln_b" in stored:
        found.bias = nn.Parameter(stored["ln_b"].clone(), requires_grad=False)
    return found


@pytest.mark.parametrize("case", SMOOTHED, ids=lambda case: case["key"])
def test_factors_equal_the_authors(case: dict) -> None:
    stored = vectors(f"{case['key']}_")
    absmax = columns_absmax([layer.weight for layer in linears(stored)])
    found = smoothing_factors(stored["act_max"], absmax, case["alpha"])
    tolerance = 2e-3 if stored["s"].dtype == torch.float16 else 1e-6  # theirs is computed in the model's type
    torch.testing.assert_close(found, stored["s"].float(), rtol=tolerance, atol=0)


@pytest.mark.parametrize("case", [c for c in SMOOTHED if "16" not in c["dtype"]], ids=lambda case: case["key"])
def test_folded_norms_and_weights_equal_the_authors(case: dict) -> None:
    stored = vectors(f"{case['key']}_")
    layers, before = linears(stored), norm(stored)
    fold(
        before, layers, smoothing_factors(stored["act_max"], columns_absmax([x.weight for x in layers]), case["alpha"])
    )
    torch.testing.assert_close(before.weight.data, stored["ln_w_after"], rtol=1e-6, atol=0)
    if "ln_b" in stored:
        torch.testing.assert_close(before.bias.data, stored["ln_b_after"], rtol=1e-6, atol=0)
    for index, layer in enumerate(layers):
        torch.testing.assert_close(layer.weight.data, stored[f"W{index}_after"], rtol=1e-6, atol=0)


def test_a_factor_that_overflows_the_norm_is_refused_where_the_authors_store_infinity() -> None:
    case = next(c for c in SMOOTHED if "16" in c["dtype"])
    stored = vectors(f"{case['key']}_")
    assert torch.isinf(stored["ln_w_after"]).any()
    layers, before = linears(stored), norm(stored)
    factors = smoothing_factors(stored["act_max"], columns_absmax([x.weight for x in layers]), case["alpha"])
    with pytest.raises(ValueError, match="takes a weight beyond torch.float16"):
        fold(before, layers, factors)
    assert torch.equal(before.weight, stored["ln_w"])
    assert all(torch.equal(layer.weight, stored[f"W{i}"]) for i, layer in enumerate(layers))
