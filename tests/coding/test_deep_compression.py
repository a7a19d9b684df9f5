"""The pipeline on a small network: what each stage promises, and the file that comes out."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from reference.codebook_layers import CodebookConv2d, CodebookLinear
from reference.coding import deep_compression
from reference.coding.weight_sharing import CodebookTensor
from reference.training import fit


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4 * 16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.norm(self.conv(x))).flatten(1))


SPARSITY = {"conv.weight": 0.5, "fc.weight": 0.75}
BITS = {"conv.weight": 4, "fc.weight": 3}


def run(rounds: tuple[float, ...] = (0.5, 1.0)) -> tuple[Net, dict, list]:
    torch.manual_seed(0)
    net, stages = Net(), []
    x, y = torch.randn(64, 1, 6, 6), torch.randint(0, 3, (64,))

    def retrain(model: nn.Module, after_step: Callable[[], None]) -> None:
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.1)
        fit(model, x, y, epochs=2, optimizer=optimizer, after_step=after_step)

    def retrain_shared(model: nn.Module) -> None:
        fit(model, x, y, epochs=2, optimizer=torch.optim.Adam(model.parameters(), 1e-3))

    def on_stage(stage: str, model: nn.Module) -> None:
        zeros = {n: int((p == 0).sum()) for n, p in model.named_parameters() if n in SPARSITY}
        stages.append((stage, zeros))

    layers = deep_compression.compress(
        net,
        sparsity=SPARSITY,
        bits=BITS,
        retrain=retrain,
        retrain_shared=retrain_shared,
        rounds=rounds,
        on_stage=on_stage,
    )
    return net, layers, stages


def test_stages_come_in_order_and_keep_exact_counts() -> None:
    _, _, stages = run()
    assert [stage for stage, _ in stages] == ["pruned", "pruned", "retrained", "shared", "fine-tuned"]
    assert stages[0][1] == {"conv.weight": 9, "fc.weight": 72}
    assert stages[1][1] == stages[2][1] == {"conv.weight": 18, "fc.weight": 144}


@pytest.mark.parametrize("fails", [False, True])
def test_afterwards_gradients_of_pruned_weights_flow_again(fails: bool) -> None:
    """Nothing holds the weights any more, whether or not the training ended well."""
    torch.manual_seed(0)
    net = Net()

    def retrain(model: nn.Module, after_step: Callable[[], None]) -> None:
        if fails:
            raise KeyboardInterrupt

    try:
        masks = deep_compression.prune_and_retrain(net, {"fc.weight": 0.75}, retrain, rounds=(0.5, 1.0))
        assert int(masks["fc.weight"].sum()) == 48
    except KeyboardInterrupt:
        assert fails
    pruned = net.fc.weight == 0
    assert pruned.any()
    net.fc.weight.backward(torch.ones_like(net.fc.weight))
    assert bool((net.fc.weight.grad == 1).all())


def test_the_file_brings_the_network_back(tmp_path: Path) -> None:
    net, layers, _ = run()
    deep_compression.save(tmp_path / "net.dcz", layers)
    other = deep_compression.restore(Net(), deep_compression.load(tmp_path / "net.dcz"))
    x = torch.randn(5, 1, 6, 6)
    assert torch.equal(other.eval()(x), net.eval()(x))
    assert isinstance(net.conv, CodebookConv2d)
    assert isinstance(net.fc, CodebookLinear)
    for name, bits in BITS.items():
        dense = other.state_dict()[name]
        assert int((dense == 0).sum()) >= round(SPARSITY[name] * dense.numel())
        assert len(dense.unique()) <= 2**bits
    assert set(other.state_dict()) == set(layers)


def test_retraining_moves_centroids_but_not_codes() -> None:
    torch.manual_seed(0)
    net = Net()
    masks = {"fc.weight": net.fc.weight.abs() > 0.05}
    deep_compression.share_weights(net, masks, {"fc.weight": 3})
    before = net.fc.tensor
    fit(
        net,
        torch.randn(32, 1, 6, 6),
        torch.randint(0, 3, (32,)),
        epochs=3,
        optimizer=torch.optim.SGD(net.parameters(), 0.1),
    )
    assert torch.equal(net.fc.tensor.codes, before.codes)
    assert not torch.equal(net.fc.tensor.codebook, before.codebook)
    assert torch.equal(net.fc.tensor.mask, masks["fc.weight"])


def test_share_state_touches_matrices_only() -> None:
    torch.manual_seed(0)
    tensors = {
        "model.embed_tokens.weight": torch.randn(20, 8),
        "model.layers.0.mlp.up_proj.weight": torch.randn(16, 8).bfloat16(),
        "model.layers.0.norm.weight": torch.randn(8, 1),
        "bias": torch.randn(8),
        "table": torch.ones(3, 3, dtype=torch.int64),
        "model.layers.0.mlp.none.weight": torch.empty(0, 8),
    }
    found = dict(deep_compression.share_state(tensors.items(), sparsity=0.5, bits=4))
    changed = [name for name, value in found.items() if isinstance(value, CodebookTensor)]
    assert changed == ["model.layers.0.mlp.up_proj.weight"]
    shared = found[changed[0]]
    assert int((shared.codes == 0).sum()) == 64
    assert torch.equal(shared.codebook.bfloat16().float(), shared.codebook)
    assert all(found[name] is tensors[name] for name in tensors if name not in changed)


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    nothing = lambda *_: None  # noqa: E731
    with pytest.raises(ValueError, match="'conv.bias' is no weight"):
        deep_compression.prune_and_retrain(Net(), {"conv.bias": 0.5}, nothing)
    with pytest.raises(ValueError, match="rounds is"):
        deep_compression.prune_and_retrain(Net(), SPARSITY, nothing, rounds=(1.0, 0.5))
    net = Net()
    with pytest.raises(ValueError, match="bits names .*, sparsity names"):
        deep_compression.compress(
            net, sparsity=SPARSITY, bits={"fc.weight": 3}, retrain=nothing, retrain_shared=nothing
        )
    assert bool((net.fc.weight != 0).all())  # refused before it was pruned
    net = Net()
    with pytest.raises(ValueError, match="'norm' is BatchNorm2d"):
        deep_compression.share_weights(net, {"norm.weight": net.norm.weight > 0}, {"norm.weight": 2})
    deep_compression.save(tmp_path / "x.dcz", {"fc.weight": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match="does not fit the model"):
        deep_compression.restore(Net(), deep_compression.load(tmp_path / "x.dcz"))
    with pytest.raises(ValueError, match="w: .*not finite|w: weight holds"):
        list(deep_compression.share_state([("w", torch.full((2, 2), float("nan")))], sparsity=0.0, bits=4))
