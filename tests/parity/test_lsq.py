"""Learned step sizes against tensors recorded from two LSQ codes and from torch (see README.md)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from reference.quantization.quantization_aware import fake_quantize, initial_step, lsq

HERE = Path(__file__).parent
CASES = json.loads((HERE / "lsq.json").read_text())
LEARNED = [case for case in json.loads((HERE / "torch_fake_quant.json").read_text()) if case["key"].startswith("learn")]


def stored(file: str, prefix: str) -> dict[str, Tensor]:
    with np.load(HERE / file, allow_pickle=False) as arrays:
        return {
            k.removeprefix(prefix): torch.from_numpy(np.asarray(arrays[k]))
            for k in arrays.files
            if k.startswith(prefix)
        }


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['key']}_{case['init']}")
def test_values_and_both_gradients_are_the_authors(case: dict) -> None:
    tensors = stored("lsq.npz", f"{case['key']}_")
    of = {name.removeprefix(f"{case['init']}_"): t for name, t in tensors.items() if name.startswith(case["init"])}
    x = tensors["w"].float().requires_grad_()
    step = of["s"].clone().requires_grad_()
    y = lsq(x, step, case["Qn"], case["Qp"])
    y.backward(tensors["up"].float())
    assert torch.allclose(y, of["y"], rtol=0, atol=1e-6)
    assert x.grad is not None
    assert step.grad is not None
    assert torch.allclose(x.grad, of["gw"], rtol=0, atol=1e-6)
    assert torch.allclose(step.grad, of["gs"], rtol=1e-4, atol=1e-5)
    for other in ("hust_gs_method1", "hust_gs_method2"):
        if other in of:
            assert torch.allclose(step.grad, of[other].reshape(()), rtol=1e-4, atol=1e-5)
    if "hust_gw_method2" in of:
        assert torch.allclose(x.grad, of["hust_gw_method2"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", [case for case in CASES if case["init"] == "init"], ids=lambda case: str(case["key"]))
def test_first_step_is_the_authors(case: dict) -> None:
    tensors = stored("lsq.npz", f"{case['key']}_")
    found = initial_step(tensors["w"].float(), case["Qp"], axis=-1 if case["per_channel"] else None)
    assert torch.allclose(found, tensors["init_s"], rtol=1e-5)


@pytest.mark.parametrize("case", LEARNED, ids=lambda case: case["key"])
def test_rounded_mask_is_torchs_learnable_fake_quantize(case: dict) -> None:
    arrays = stored("torch_fake_quant.npz", "")
    tensors = {name.removeprefix(f"{case['key']}_"): t for name, t in arrays.items() if name.startswith(case["key"])}
    x = arrays["x"].clone().requires_grad_()
    step = tensors["s"].clone().requires_grad_()
    y = lsq(x, step, case["qmin"], case["qmax"], factor=float(tensors["grad_factor"]), mask="rounded")
    y.backward(arrays["up"])
    # torch multiplies by 1/s: a few ties fall the other way.
    assert ((y - tensors["y"]).abs() > 1e-6).sum() <= 4
    assert x.grad is not None
    assert step.grad is not None
    assert torch.allclose(x.grad, tensors["gx"], rtol=1e-6, atol=0)
    assert torch.allclose(step.grad, tensors["gs"], rtol=2e-3)


def test_the_masks_differ_between_the_last_level_and_half_a_step_beyond() -> None:
    """What torch 7.2 steps from zero lets through, LSQ stops; values are equal."""
    v = torch.tensor([-9.0, -8.2, -8.0, 0.3, 7.0, 7.2, 7.49, 7.6])
    found = {}
    for mask in ("unrounded", "rounded"):
        x = v.clone().requires_grad_()
        y = fake_quantize(x, torch.tensor(1.0), -8, 7, mask=mask)
        y.sum().backward()
        found[mask] = (y.detach(), x.grad)
    assert torch.equal(found["unrounded"][0], found["rounded"][0])
    assert found["unrounded"][1].tolist() == [0, 0, 1, 1, 1, 0, 0, 0]  # type: ignore[union-attr]
    assert found["rounded"][1].tolist() == [0, 1, 1, 1, 1, 1, 1, 0]  # type: ignore[union-attr]
    reference = v.clone().requires_grad_()
    torch.fake_quantize_per_tensor_affine(reference, 1.0, 0, -8, 7).sum().backward()
    assert torch.equal(reference.grad, found["rounded"][1])  # type: ignore[arg-type]
