"""Products of a training against torch's counter and sums by hand."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from reference.models.vision import LeNet5, LeNet300
from reference.pruning import training_cost as cost


def dense_masks(model):
    return {name: torch.ones_like(p, dtype=torch.bool) for name, p in model.named_parameters() if p.ndim > 1}


def counted(model, x):
    with FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    return counter.get_total_flops()


def test_a_dense_step_agrees_with_torchs_counter():
    model, x = LeNet300(), torch.randn(60, 1, 28, 28, requires_grad=True)
    forward = cost.forward_products(dense_masks(model))
    assert forward == 266_200
    # Two operations a product; x wants a gradient here, so that the first layer counts three times as well.
    assert counted(model, x) == 2 * cost.static_products(forward, 60)
    assert counted(model, x.detach()) == 2 * (cost.static_products(forward, 60) - 235_200 * 60)


def test_convolutions_count_at_each_position():
    model, x = LeNet5(), torch.randn(3, 1, 28, 28, requires_grad=True)
    forward = cost.forward_products(dense_masks(model), {"conv1.weight": 24 * 24, "conv2.weight": 8 * 8})
    assert forward == 500 * 576 + 25_000 * 64 + 400_000 + 5_000
    assert counted(model, x) == 2 * cost.static_products(forward, 3)


def test_only_connections_count():
    mask = {"a": torch.tensor([[True, False, True]]), "b": torch.zeros(2, 2, dtype=torch.bool)}
    assert cost.forward_products(mask) == 2
    assert cost.forward_products(mask, {"a": 10}) == 20


def test_rigls_mean_step_is_the_papers():
    sparse, dense, period, batch = 20, 100, 9, 8
    steps = 5 * (period + 1)
    total = cost.rigl_products(sparse, dense, steps * batch, 5 * batch)
    assert total == pytest.approx(steps * batch * (3 * sparse * period + 2 * sparse + dense) / (period + 1))
    assert cost.rigl_products(sparse, dense, 40, 0) == cost.static_products(sparse, 40)
    assert cost.rigl_products(sparse, dense, 40, 40) == (2 * sparse + dense) * 40
    assert cost.rigl_products(sparse, sparse, 40, 17) == cost.static_products(sparse, 40)


def test_snip_pays_one_dense_batch():
    assert cost.snip_products(20, 100, 1000, 60) == 3 * (20 * 1000 + 100 * 60)


def test_a_ticket_pays_for_all_its_rounds():
    assert cost.ticket_products([100, 80, 64], 10) == 3 * 10 * 244
    assert cost.ticket_products([100, 80, 64], [10, 5, 1]) == 3 * (1000 + 400 + 64)
    assert cost.ticket_products([100], 10) == cost.static_products(100, 10)
    # A fifth removed a round: fifteen rounds and the ticket cost 1 + .8 + … + .8^15 = 4.86 dense trainings.
    forwards = [round(266_200 * 0.8**r) for r in range(16)]
    ratio = cost.ticket_products(forwards, 1000) / cost.static_products(266_200, 1000)
    assert ratio == pytest.approx((1 - 0.8**16) / 0.2, rel=1e-5)


def test_a_masked_layer_on_its_own_costs_its_connections():
    mask = torch.rand(30, 40, generator=torch.Generator().manual_seed(0)) < 0.1
    layer = nn.Linear(40, 30, bias=False)
    with torch.no_grad():
        layer.weight.mul_(mask)
    assert cost.forward_products({"weight": mask}) == int(layer.weight.to_sparse().values().numel())


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="positions holds"):
        cost.forward_products({"a": torch.ones(1, dtype=torch.bool)}, {"b": 2})
    with pytest.raises(ValueError, match="positions holds {'a': 0}"):
        cost.forward_products({"a": torch.ones(1, dtype=torch.bool)}, {"a": 0})
    with pytest.raises(ValueError, match="examples is -1"):
        cost.static_products(1, -1)
    with pytest.raises(ValueError, match="forward_dense is -2"):
        cost.rigl_products(1, -2, 3, 0)
    with pytest.raises(ValueError, match="dense_examples is 4"):
        cost.rigl_products(1, 2, 3, 4)
    for forwards, examples in (([], 3), ([1, 2], [3])):
        with pytest.raises(ValueError, match="rounds"):
            cost.ticket_products(forwards, examples)
