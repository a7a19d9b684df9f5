"""Masks, hidden states, attention and text: slow loops and torch's own losses as oracles."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from reference.distillation.losses import attention_loss, hidden_loss, logits_loss, next_token_loss


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


MASK = torch.tensor([[True, True, False, False, False], [True, True, True, True, False]])


def test_a_mask_leaves_the_mean_over_real_positions() -> None:
    student, teacher = drawn(2, 5, 7), drawn(2, 5, 7, seed=1)
    real = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (1, 3)]
    loop = sum(
        4 * functional.kl_div((student[at] / 2).log_softmax(-1), (teacher[at] / 2).softmax(-1), reduction="sum")
        for at in real
    ) / len(real)  # fmt: skip
    torch.testing.assert_close(logits_loss(student, teacher, 2.0, mask=MASK), loop)


def test_what_padding_holds_changes_nothing_and_gets_no_gradient() -> None:
    student, teacher = drawn(2, 5, 7).requires_grad_(True), drawn(2, 5, 7, seed=1)
    other = torch.where(MASK[..., None], teacher, torch.full_like(teacher, 1e4))
    loss = logits_loss(student, other, mask=MASK)
    torch.testing.assert_close(loss, logits_loss(student, teacher, mask=MASK))
    loss.backward()
    assert student.grad is not None
    assert not student.grad[~MASK].any()
    assert student.grad[MASK].abs().sum(-1).all()


@given(st.integers(0, 1000))
def test_at_high_temperature_it_is_half_the_squared_distance_of_centred_logits(seed: int) -> None:
    student, teacher = drawn(3, 9, seed=seed).double(), drawn(3, 9, seed=seed + 1).double()
    apart = (student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
    limit = apart.square().mean(-1).mean() / 2
    # The loss is computed in float32: T² magnifies what cancels, so T may not be too large.
    assert logits_loss(student, teacher, 30.0).item() == pytest.approx(limit.item(), rel=0.12, abs=2e-3)


def test_squared_distance_by_hand_and_with_a_projection() -> None:
    assert hidden_loss(torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 1.0]])).item() == pytest.approx(2.0)
    student, teacher = drawn(2, 5, 4), drawn(2, 5, 6, seed=1)
    projection = nn.Linear(4, 6, bias=False)
    ours = torch.einsum("bld,hd->blh", student, projection.weight)
    expected = functional.mse_loss(ours[MASK], teacher[MASK])
    torch.testing.assert_close(hidden_loss(student, teacher, projection=projection, mask=MASK), expected)


def test_cosine_sees_the_direction_only() -> None:
    student, teacher = drawn(2, 5, 8), drawn(2, 5, 8, seed=1)
    assert hidden_loss(3 * teacher, teacher, kind="cosine").item() == pytest.approx(0.0, abs=1e-6)
    assert hidden_loss(-teacher, teacher, kind="cosine").item() == pytest.approx(2.0)
    expected = functional.cosine_embedding_loss(student.flatten(0, 1), teacher.flatten(0, 1), torch.ones(10))
    torch.testing.assert_close(hidden_loss(student, teacher, kind="cosine"), expected)


def causal(seed: int) -> Tensor:
    scores = drawn(2, 3, 5, 5, seed=seed).masked_fill(~torch.ones(5, 5, dtype=torch.bool).tril(), -torch.inf)
    return scores.softmax(-1)


def test_attention_is_the_divergence_row_by_row() -> None:
    student, teacher = causal(0), causal(1)
    total, rows = 0.0, 0
    for batch in range(2):
        for query in range(5):
            if not MASK[batch, query]:
                continue
            for head in range(3):
                rows += 1
                for key in range(query + 1):
                    p, q = float(teacher[batch, head, query, key]), float(student[batch, head, query, key])
                    total += p * math.log(p / q)
    assert attention_loss(student, teacher, mask=MASK).item() == pytest.approx(total / rows, rel=1e-5)
    assert attention_loss(teacher, teacher).item() == pytest.approx(0.0, abs=1e-7)


def test_attention_with_zeros_has_finite_values_and_gradients() -> None:
    student = torch.eye(4).expand(1, 1, 4, 4).clone().requires_grad_(True)
    loss = attention_loss(student, torch.full((1, 1, 4, 4), 0.25))
    loss.backward()
    assert 10 < loss.item() < 100
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_next_token_is_torchs_cross_entropy_with_ignored_padding() -> None:
    logits, ids = drawn(2, 5, 7), torch.randint(7, (2, 5), generator=torch.Generator().manual_seed(2))
    labels = torch.where(MASK, ids, torch.full_like(ids, -100))[:, 1:]
    expected = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), ignore_index=-100)
    torch.testing.assert_close(next_token_loss(logits, ids, mask=MASK), expected)
    plain = functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(next_token_loss(logits, ids), plain)


@pytest.mark.parametrize("mask", [torch.ones(2, 4, dtype=torch.bool), torch.ones(2, 5), torch.zeros(2, 5) > 1])
def test_a_mask_that_does_not_fit_or_hides_all_is_refused(mask: Tensor) -> None:
    with pytest.raises(ValueError, match="mask is"):
        logits_loss(drawn(2, 5, 7), drawn(2, 5, 7), mask=mask)


def test_widths_kinds_and_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="projection"):
        hidden_loss(drawn(2, 4), drawn(2, 6))
    with pytest.raises(ValueError, match="'mse' or 'cosine'"):
        hidden_loss(drawn(2, 4), drawn(2, 4), kind="l1")
    with pytest.raises(ValueError, match="must agree"):
        attention_loss(causal(0), causal(1)[:1])
    with pytest.raises(ValueError, match="two tokens"):
        next_token_loss(drawn(2, 1, 7), torch.zeros(2, 1, dtype=torch.int64))
