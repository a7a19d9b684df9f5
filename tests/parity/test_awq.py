"""Our AWQ against scales, losses and clipping limits recorded from the authors' code (see README.md)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from reference.calibration import Call
from reference.models.families import FAMILIES, Scaling
from reference.quantization import awq, grid
from reference.quantization.grid import QuantizationSpec
from reference.transforms.awq import scale_block

HERE = Path(__file__).parent


def cases(name: str) -> list:
    return [pytest.param(case, id=case["key"]) for case in json.loads((HERE / f"{name}.json").read_text())]


def vectors(name: str, prefix: str) -> dict[str, Tensor]:
    with np.load(HERE / f"{name}.npz", allow_pickle=False) as file:
        found = {k.removeprefix(prefix): torch.from_numpy(file[k]) for k in file.files if k.startswith(prefix)}
    return {name: t.float() if t.dtype == torch.float16 else t for name, t in found.items()}


def authors_grid(bits: int, group_size: int) -> QuantizationSpec:
    return QuantizationSpec(bits, group_size=None if group_size == -1 else group_size, zero_in_range=False)


def rounded(weight: Tensor, spec: QuantizationSpec) -> Tensor:
    scale, zero_point = grid.fit(weight, spec)
    return grid.dequantize(grid.quantize(weight, scale, zero_point, spec), scale, zero_point, spec)


@pytest.mark.parametrize("case", cases("awq_scale_linear"))
def test_scale_search_equals_the_authors(case: dict) -> None:
    stored = vectors("awq_scale_linear", f"{case['key']}_")
    spec = authors_grid(case["w_bit"], case["q_group_size"])
    found = awq.search_scale(stored["W"], stored["x"], spec)
    assert found.ratio == pytest.approx(case["best_ratio"])
    torch.testing.assert_close(found.scale, stored["scales"], rtol=1e-5, atol=0)
    np.testing.assert_allclose(found.losses, stored["history"].numpy(), rtol=1e-3)
    ours = rounded(stored["W"] * found.scale, spec)
    assert ((ours - stored["Wq_scaled"]).abs() <= 1e-6).float().mean() >= 0.999


@pytest.mark.parametrize("case", cases("awq_clip_linear"))
def test_clip_search_equals_the_authors(case: dict) -> None:
    stored = vectors("awq_clip_linear", f"{case['key']}_")
    spec = authors_grid(case["n_bit"], case["q_group_size"])
    found = awq.search_clip(
        stored["W"], stored["x"], spec, grid=case["n_grid"], max_shrink=case["max_shrink"],
        samples=case["n_sample_token"],
    )  # fmt: skip
    same = torch.isclose(found, stored["best_max_val"], rtol=1e-6, atol=0)
    assert same.float().mean() >= 0.995
    assert ((rounded(awq.clip(stored["W"], found), spec) - stored["Wq"]).abs() <= 1e-6).float().mean() >= 0.99


def recorded_block() -> tuple[nn.Module, Call, QuantizationSpec, dict[str, Tensor], dict]:
    """The recorded decoder layer, its call, the grid, what was stored, and the settings."""
    (case,) = json.loads((HERE / "awq_block_llama.json").read_text())
    stored = vectors("awq_block_llama", "b0/")
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=case["hidden"],
            intermediate_size=case["inter"],
            num_attention_heads=case["heads"],
            num_key_value_heads=case["kv_heads"],
            num_hidden_layers=1,
            vocab_size=8,
            rms_norm_eps=case["rms_eps"],
            rope_theta=case["rope_theta"],
            attn_implementation="eager",
        )
    ).eval()
    block = model.model.layers[0]
    block.load_state_dict({name: stored[name] for name in block.state_dict()})
    x = stored["x"]
    tokens = x.shape[1]
    mask = torch.full((tokens, tokens), torch.finfo(x.dtype).min).triu(1)[None, None]
    embedding = model.model.rotary_emb(x, torch.arange(tokens)[None])
    call: Call = ((x,), {"attention_mask": mask, "position_embeddings": embedding})
    return block, call, authors_grid(case["w_bit"], case["q_group_size"]), stored, case


def test_every_search_in_a_block_has_the_authors_losses_and_given_their_scales_all_their_limits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Our scales are theirs to a float's last digit, and that digit decides ties of the clipping grids (README.md)."""
    block, call, spec, stored, case = recorded_block()
    groups, limits = iter(case["groups"]), {}
    search_scale, search_clip = awq.search_scale, awq.search_clip

    def recorded_scale(*args: Any, **options: Any) -> awq.AwqScale:
        found, group = search_scale(*args, **options), next(groups)
        np.testing.assert_allclose(found.losses, stored[f"history/{group['prev_op']}"], rtol=1e-5)
        assert found.ratio == group["best_ratio"]
        scale = stored[f"scale/{group['prev_op']}"]
        torch.testing.assert_close(found.scale, scale, rtol=1e-6, atol=0)
        return found._replace(scale=scale)

    def kept_limit(*args: Any, name: str, **options: Any) -> Tensor:
        limits[name.removeprefix("block.")] = search_clip(*args, name=name, **options)
        return limits[name.removeprefix("block.")]

    monkeypatch.setattr(awq, "search_scale", recorded_scale)
    monkeypatch.setattr(awq, "search_clip", kept_limit)
    scale_block(block, [call], FAMILIES["llama"].scalings, spec)
    assert next(groups, None) is None
    assert sorted(limits) == sorted(case["clip_layers"])
    for name, limit in limits.items():
        torch.testing.assert_close(limit, stored[f"clip/{name}"], rtol=1e-6, atol=0)


@torch.no_grad()
def test_a_whole_block_equals_the_authors() -> None:
    block, call, spec, stored, case = recorded_block()
    before = {s.previous: block.get_submodule(s.linears[0]).weight.clone() for s in FAMILIES["llama"].scalings}
    (output,) = scale_block(block, [call], FAMILIES["llama"].scalings, spec, clip=False)
    torch.testing.assert_close(output, stored["y_fp"], rtol=0, atol=1e-4)
    for norm in ("input_layernorm", "post_attention_layernorm"):
        torch.testing.assert_close(block.get_submodule(norm).weight.data, stored[f"ln_after/{norm}"], rtol=1e-4, atol=0)
        scaled = block.get_submodule(_first(norm)).weight
        torch.testing.assert_close(scaled, before[norm] * stored[f"scale/{norm}"], rtol=2e-4, atol=1e-7)

    block.load_state_dict({name: stored[name] for name in block.state_dict()})
    scale_block(block, [call], FAMILIES["llama"].scalings, spec)
    same = total = 0
    for name in case["clip_layers"]:
        weight = block.get_submodule(name).weight
        limit = weight.reshape(*stored[f"clip/{name}"].shape[:2], -1).abs().amax(-1, keepdim=True)
        agree = torch.isclose(limit, stored[f"clip/{name}"], rtol=1e-4, atol=0)
        same, total = same + int(agree.sum()), total + agree.numel()
    assert same >= 0.99 * total
    for module in block.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.copy_(rounded(module.weight, spec))
    result = block(*call[0], **call[1])
    result = result[0] if isinstance(result, tuple) else result
    assert (result - stored["y_q"]).norm() <= 0.01 * stored["y_q"].norm()


def _first(norm: str) -> str:
    scalings: tuple[Scaling, ...] = FAMILIES["llama"].scalings
    return next(s.linears[0] for s in scalings if s.previous == norm)
