"""Early exit: off is the dense classifier; on computes for a row only what the row needs, and answers as the rule says."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertModel

from reference.dynamic.early_exit import EarlyExit, calibrate, choose, entropy, joint_loss
from reference.models.minilm import Classifier

CONFIG = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 24,
}  # fmt: skip


def model(exits: tuple[int, ...] = (0, 1, 3)) -> EarlyExit:
    torch.manual_seed(0)
    classifier = Classifier(BertModel(BertConfig(**CONFIG)), 5)
    found = EarlyExit(classifier, exits, seed=1).eval()
    for head in [*found.heads, classifier.head]:
        nn.init.normal_(head.weight)
    return found


def batch(rows: int = 25, longest: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(1, 50, (rows, longest), generator=generator)
    lengths = torch.randint(3, longest + 1, (rows, 1), generator=generator)
    mask = (torch.arange(longest) < lengths).long()
    return ids * mask, mask


def middle(found: EarlyExit, ids: Tensor, mask: Tensor) -> Tensor:
    """Thresholds at which some rows leave at every head."""
    with torch.no_grad():
        return entropy(found.all_logits(ids, mask)[:-1]).quantile(0.3, dim=1)


def test_new_heads_depend_on_their_seed_alone() -> None:
    made = []
    for seed in (1, 1, 2):
        heads = EarlyExit(Classifier(BertModel(BertConfig(**CONFIG)), 5), (0, 2), seed=seed).heads
        assert not any(head.bias.any() for head in heads)
        made.append(torch.stack([head.weight for head in heads]))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


@pytest.mark.parametrize("padded", [True, False])
def test_thresholds_of_zero_are_the_dense_classifier_bit_for_bit(padded: bool) -> None:
    found, (ids, mask) = model(), batch()
    if not padded:
        ids, mask = ids.clamp(min=1), torch.ones_like(mask)
    with torch.no_grad():
        dense = found.classifier(ids, mask)
        answer = found(ids, mask)
        assert torch.equal(answer.logits, dense)
        assert torch.equal(found.all_logits(ids, mask)[-1], dense)
    assert (answer.exit == 3).all()


def test_infinity_leaves_at_the_first_head() -> None:
    found, (ids, mask) = model((0, 2)), batch()
    found.thresholds.fill_(float("inf"))
    calls = []
    for block in found.classifier.encoder.encoder.layer:
        block.register_forward_hook(lambda *_: calls.append(1))
    answer = found(ids, mask)
    assert (answer.exit == 0).all()
    assert calls == []
    with torch.no_grad():
        assert torch.equal(answer.logits, found.all_logits(ids, mask)[0])


def test_the_batch_gives_what_each_row_alone_gives() -> None:
    found, (ids, mask) = model(), batch()
    found.thresholds.copy_(middle(found, ids, mask))
    together = found(ids, mask)
    assert len(together.exit.unique()) == 4
    for row in range(len(ids)):
        alone = found(ids[row : row + 1], mask[row : row + 1])
        assert alone.exit == together.exit[row]
        torch.testing.assert_close(alone.logits[0], together.logits[row], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        expected = choose(found.all_logits(ids, mask), found.thresholds)
    assert torch.equal(expected.exit, together.exit)
    torch.testing.assert_close(expected.logits, together.logits, rtol=1e-4, atol=1e-5)


def test_blocks_see_only_the_rows_that_are_left() -> None:
    found, (ids, mask) = model(), batch()
    found.thresholds.copy_(middle(found, ids, mask))
    rows = []
    for block in found.classifier.encoder.encoder.layer:
        block.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    left = found(ids, mask).exit
    # Heads stand before blocks 0, 1 and 3.
    assert rows == [int((left > 0).sum()), int((left > 1).sum()), int((left > 1).sum()), int((left > 2).sum())]


def test_entropy_does_not_overflow_and_is_that_of_the_formula() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0], [1e4, 0.0, 0.0], [1.0, 2.0, 3.0]])
    p = logits[2].softmax(0)
    expected = torch.tensor([3.0]).log().item(), 0.0, float(-(p * p.log()).sum())
    assert entropy(logits).tolist() == pytest.approx(expected, abs=1e-6)


def test_the_joint_loss_weighs_the_heads() -> None:
    logits, labels = torch.randn(3, 8, 4), torch.randint(4, (8,))
    each = [float(functional.cross_entropy(row, labels)) for row in logits]
    assert float(joint_loss(logits, labels)) == pytest.approx(sum(each) / 3, rel=1e-5)
    assert float(joint_loss(logits, labels, (1, 0, 3))) == pytest.approx((each[0] + 3 * each[2]) / 4, rel=1e-5)


@given(st.integers(0, 10_000), st.floats(0, 0.3), st.integers(1, 3), st.booleans())
def test_calibration_keeps_its_promise_on_its_own_rows(seed: int, tolerance: float, heads: int, ties: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (40,), generator=generator)
    signal = functional.one_hot(labels, 3) * torch.linspace(0.5, 2, heads + 1)[:, None, None]
    logits = torch.randn(heads + 1, 40, 3, generator=generator) + signal
    if ties:
        logits = logits.round()
    thresholds = calibrate(logits, labels, tolerance)
    answer = choose(logits, thresholds)
    dense = float((logits[-1].argmax(-1) == labels).double().mean())
    early = float((answer.logits.argmax(-1) == labels).double().mean())
    assert early >= dense - tolerance - 1e-9
    more = choose(logits, calibrate(logits, labels, float(heads)))
    assert (more.exit == 0).all()


def test_calibration_lets_the_surest_leave_as_long_as_it_costs_nothing() -> None:
    labels = torch.zeros(4, dtype=torch.int64)
    sure, right, wrong = torch.tensor([9.0, 0, 0]), torch.tensor([2.0, 0, 0]), torch.tensor([0, 1.5, 0.0])
    first = torch.stack([sure, right, wrong, torch.tensor([0.1, 0.0, 0.0])])
    last = torch.stack([sure, sure, sure, sure])
    thresholds = calibrate(torch.stack([first, last]), labels, 0.0)
    assert choose(torch.stack([first, last]), thresholds).exit.tolist() == [0, 0, 1, 1]
    loose = calibrate(torch.stack([first, last]), labels, 0.25)
    assert choose(torch.stack([first, last]), loose).exit.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: model(()), "exits is \\[\\]"),
        (lambda: model((1, 1)), "rising"),
        (lambda: model((0, 4)), "0 to 3"),
        (lambda: calibrate(torch.zeros(2, 3, 4), torch.zeros(3), -1), "tolerance is -1"),
        (lambda: calibrate(torch.zeros(2, 3, 4), torch.zeros(2), 0), "logits is"),
        (lambda: joint_loss(torch.zeros(2, 3, 4), torch.zeros(3).long(), [1.0]), "1 entries for 2 heads"),
    ],
)
def test_wrong_arguments_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
