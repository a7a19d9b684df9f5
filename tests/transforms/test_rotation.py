"""Rotations: the function stays, the outliers go."""

import pytest
import scipy.stats
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM, Qwen2Config, Qwen2ForCausalLM

from reference import checkpoint
from reference.int8 import Int8Linear
from reference.models import tutorial
from reference.quantization import hadamard
from reference.quantization.activations import ActivationSpec
from reference.quantization.grid import QuantizationSpec
from reference.transforms import rotation
from reference.transforms.smoothquant import quantize_integer

SIZES = {
    "vocab_size": 61, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 12, "max_position_embeddings": 64,
}  # fmt: skip


def random_model(kind: type, config: type, **more: object) -> nn.Module:
    torch.manual_seed(0)
    model = kind(config(**SIZES | more)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.2, 3)
            if "bias" in name:
                parameter.normal_()
    return model


@pytest.mark.parametrize(
    ("kind", "config", "more"),
    [
        (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True}),
        (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
        (LlamaForCausalLM, LlamaConfig, {"head_dim": 8}),  # heads together narrower than the stream
        (Qwen2ForCausalLM, Qwen2Config, {}),
    ],
)
@pytest.mark.parametrize("change", [rotation.fold_norms, rotation.rotate])
def test_logits_stay(kind, config, more, change) -> None:
    model = random_model(kind, config, **more).double()
    ids = torch.randint(0, 61, (3, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = model(ids).logits
        weights = model.model.layers[0].mlp.up_proj.weight.clone()
        after = change(model)(ids).logits
    # Norms and softmax compute in float32 whatever the type of the weights.
    assert torch.allclose(after, before, atol=1e-4 * before.abs().max())
    assert not torch.allclose(model.model.layers[0].mlp.up_proj.weight, weights, atol=1e-3)
    assert all((p == 1).all() for n, p in model.named_parameters() if "norm" in n)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_kurtosis_is_scipys(dtype) -> None:
    x = (torch.randn(40, 50, generator=torch.Generator().manual_seed(7)).exp() * 20 + 300).to(dtype)
    assert rotation.kurtosis(x) == pytest.approx(scipy.stats.kurtosis(x.double().flatten().numpy(), fisher=False))


def test_shipped_model_stays_and_its_planted_outliers_go() -> None:
    ids = torch.randint(0, 4096, (2, 64), generator=torch.Generator().manual_seed(2))
    plain = tutorial.load()
    model = tutorial.load(outliers=50)
    seen: dict[str, list[float]] = {"before": [], "after": []}

    def watch(model: nn.Module, when: str) -> torch.Tensor:
        handles = [
            block.self_attn.q_proj.register_forward_pre_hook(
                lambda _, args: seen[when].append(rotation.kurtosis(args[0]))
            )
            for block in model.model.layers
        ]
        with torch.no_grad():
            logits = model(ids).logits
        for handle in handles:
            handle.remove()
        return logits

    before = watch(model, "before")
    after = watch(rotation.rotate(model), "after")
    with torch.no_grad():
        assert torch.allclose(before, plain(ids).logits, atol=2e-3)
    assert torch.allclose(after, before, atol=2e-3)
    assert min(seen["before"]) > 50
    assert max(seen["after"]) < 4


def test_rotated_layer_equals_the_plain_product() -> None:
    generator = torch.Generator().manual_seed(3)
    linear = nn.Linear(96, 24)
    x = torch.randn(7, 96, generator=generator)
    layer = Int8Linear.from_linear(linear, hadamard=True)
    with torch.no_grad():
        assert torch.allclose(layer(x), linear(x), atol=0.02)
        rows, columns = hadamard.transform(x), layer.tensor.dequantize(torch.float32)
    absmax = rows.abs().amax(1, keepdim=True) / 127.5
    codes = (rows / absmax).round().clamp(-128, 127)
    expected = (codes * absmax) @ columns.T + linear.bias
    assert torch.allclose(layer(x), expected.detach(), atol=1e-5)
    assert "rotated" in repr(layer)


def test_rotation_saves_activations_with_an_outlier_channel() -> None:
    """4-bit activations of a layer with one channel 50 times as large as the rest."""
    generator = torch.Generator().manual_seed(4)
    linear = nn.Linear(96, 24)
    x = torch.randn(64, 96, generator=generator)
    x[:, 7] *= 50
    errors = []
    with torch.no_grad():
        for turn in (False, True):
            layer = Int8Linear.from_linear(linear, activations=ActivationSpec(bits=4), hadamard=turn)
            errors.append((layer(x) - linear(x)).square().mean().item())
    assert errors[1] < errors[0] / 3


def test_quantize_integer_rotates_the_layers_named() -> None:
    model = random_model(LlamaForCausalLM, LlamaConfig)
    ids = [torch.randint(0, 61, (2, 16), generator=torch.Generator().manual_seed(5))]
    with torch.no_grad():
        before = model(ids[0]).logits
    quantize_integer(model, ids, alpha=None, rotated=("mlp.down_proj",))
    for name, layer in model.named_modules():
        if isinstance(layer, Int8Linear):
            assert layer.hadamard == name.endswith("down_proj")
    with torch.no_grad():
        assert (model(ids[0]).logits - before).abs().max() < 0.1 * before.abs().max()
    with pytest.raises(ValueError, match="down_proj rotates its input"):
        checkpoint.save(model, "never_written")


def test_wrong_input_is_refused_by_name() -> None:
    opt = OPTForCausalLM(
        OPTConfig(vocab_size=61, hidden_size=32, ffn_dim=64, num_hidden_layers=1, num_attention_heads=2)
    )
    with pytest.raises(ValueError, match="model is a 'opt'"):
        rotation.rotate(opt)
    model = random_model(LlamaForCausalLM, LlamaConfig)
    with pytest.raises(ValueError, match="rotated layers need dynamic"):
        quantize_integer(model, [], activations=ActivationSpec("static"), rotated=("mlp.down_proj",))
    odd = LlamaForCausalLM(LlamaConfig(**SIZES | {"hidden_size": 56, "head_dim": 14}))
    with pytest.raises(ValueError, match="n is 14"):
        rotation.rotate(odd)
    with pytest.raises(ValueError, match="symmetric"):
        Int8Linear.from_linear(nn.Linear(8, 8), quantize_affine(), hadamard=True)


def quantize_affine():
    from reference.quantization.round_to_nearest import quantize_layer

    return quantize_layer(torch.randn(8, 8, generator=torch.Generator().manual_seed(6)), QuantizationSpec(8))
