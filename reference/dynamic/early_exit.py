"""Early exit: heads between the blocks of an encoder answer the inputs that they are sure of, and the rest goes on.

Rows that have left are taken out of the batch, so that the blocks behind are not computed for them. This is for
classification, where a row has one answer; a generating model would also have to fill the key-value cache of blocks that
a token skipped, since later tokens read it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.masking_utils import create_bidirectional_mask

from reference.models.minilm import Classifier


class Answer(NamedTuple):
    """``logits`` ``[rows, classes]``, and ``exit`` ``[rows]``: index of the head that gave them, the last one's included.

    Example:
        >>> answer = Answer(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 2]))
        >>> answer.exit.tolist()  # the first row left at the first head
        [0, 2]

    Chapter: advanced/dynamic
    """

    logits: Tensor
    exit: Tensor


class EarlyExit(nn.Module):
    """A classifier with more heads, each on the mean of the hidden states after some number of blocks.

    A row leaves at the first head whose entropy is below the head's threshold, strictly. Threshold 0 never lets a row
    leave, and the head is not computed; with all at 0 the classifier is the one that was given, bit for bit.

    Args:
        classifier: with its own head, the last.
        exits: blocks before each new head, rising, from 0 (the embeddings alone) to less than the number of blocks.
        seed: of the new heads' weights.

    Raises:
        ValueError: ``exits`` is empty, does not rise, or is out of range.

    Source: Teerapittayanon et al. 2016, "BranchyNet", section III; Xin et al. 2020, "DeeBERT", section 3.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(vocab_size=8, hidden_size=4, intermediate_size=8,
        ...                     num_hidden_layers=2, num_attention_heads=1)
        >>> model = EarlyExit(Classifier(BertModel(config), classes=3), exits=[1]).eval()
        >>> ids, mask = torch.tensor([[1, 2], [3, 4]]), torch.ones(2, 2, dtype=torch.int64)
        >>> before = model(ids, mask).exit.tolist()
        >>> _ = model.thresholds.fill_(9.0)  # above ln 3, the largest entropy there is
        >>> before, model(ids, mask).exit.tolist()
        ([1, 1], [0, 0])

    Chapter: advanced/dynamic
    """

    thresholds: Tensor

    def __init__(self, classifier: Classifier, exits: Sequence[int], seed: int = 0) -> None:
        super().__init__()
        depth = classifier.encoder.config.num_hidden_layers
        if not exits or list(exits) != sorted(set(exits)) or exits[0] < 0 or exits[-1] >= depth:
            raise ValueError(f"exits is {list(exits)}; it may be rising numbers of blocks from 0 to {depth - 1}")
        self.classifier, self.exits = classifier, tuple(exits)
        last = classifier.head
        heads = [nn.Linear(last.in_features, last.out_features) for _ in exits]
        generator = torch.Generator().manual_seed(seed)
        for head in heads:
            nn.init.normal_(head.weight, std=0.02, generator=generator)
            nn.init.zeros_(head.bias)
        self.heads = nn.ModuleList(heads)
        self.register_buffer("thresholds", torch.zeros(len(self.exits)))

    def all_logits(self, token_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """What every head says, computing every block, for training and calibration.

        Args:
            token_ids: int64 ``[rows, length]``.
            attention_mask: 1 for tokens, 0 for padding, of the same shape.

        Returns:
            ``[heads, rows, classes]``, the classifier's own head last.
        """
        hidden, mask = self._embed(token_ids, attention_mask)
        found = []
        for number, block in enumerate(self.classifier.encoder.encoder.layer):
            if number in self.exits:
                found.append(self.heads[self.exits.index(number)](_mean(hidden, attention_mask)))
            hidden = block(hidden, mask)
        return torch.stack([*found, self.classifier.head(_mean(hidden, attention_mask))])

    @torch.no_grad()
    def forward(self, token_ids: Tensor, attention_mask: Tensor) -> Answer:
        """Answers of a batch; blocks are computed for the rows that are still in it."""
        hidden, mask = self._embed(token_ids, attention_mask)
        rows = torch.arange(len(token_ids), device=token_ids.device)
        logits = hidden.new_empty(len(token_ids), self.classifier.head.out_features)
        left_at = torch.full_like(rows, len(self.exits))
        for number, block in enumerate(self.classifier.encoder.encoder.layer):
            which = self.exits.index(number) if number in self.exits else -1
            if which >= 0 and self.thresholds[which] > 0:
                found = self.heads[which](_mean(hidden, attention_mask))
                leaves = entropy(found) < self.thresholds[which]
                if leaves.any():
                    logits[rows[leaves]] = found[leaves]
                    left_at[rows[leaves]] = which
                    stays = ~leaves
                    rows, hidden, attention_mask = rows[stays], hidden[stays], attention_mask[stays]
                    mask = mask if mask is None else mask[stays]
                    if not len(rows):
                        return Answer(logits, left_at)
            hidden = block(hidden, mask)
        logits[rows] = self.classifier.head(_mean(hidden, attention_mask))
        return Answer(logits, left_at)

    def _embed(self, token_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor | None]:
        encoder = self.classifier.encoder
        hidden = encoder.embeddings(input_ids=token_ids)
        mask = create_bidirectional_mask(encoder.config, hidden, attention_mask)
        assert mask is None or isinstance(mask, Tensor)  # flex attention alone has another kind
        return hidden, mask


def _mean(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    mask = attention_mask.unsqueeze(-1).to(hidden)
    return (hidden * mask).sum(1) / mask.sum(1)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the softmax, nats, over the last axis.

    Args:
        logits: ``[..., classes]``; large ones do not overflow.

    Returns:
        float32 ``[...]``, from 0 to ln(classes).

    Example:
        >>> entropy(torch.tensor([[0.0, 0.0], [1000.0, 0.0]])).exp().round(decimals=3).tolist()  # of two, and of one
        [2.0, 1.0]

    Chapter: advanced/dynamic
    """
    log_probability = logits.float().log_softmax(-1)
    return -(log_probability.exp() * log_probability).sum(-1)


def joint_loss(logits: Tensor, labels: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """Weighted mean of the heads' cross-entropies.

    Args:
        logits: ``[heads, rows, classes]`` of :meth:`EarlyExit.all_logits`.
        labels: int64 ``[rows]``.
        weights: one a head, not negative; all alike if None.

    Returns:
        A scalar, nats a row.

    Raises:
        ValueError: the number of weights is not that of the heads.

    Source: Teerapittayanon et al. 2016, "BranchyNet", section III-B.

    Example:
        >>> labels = torch.tensor([0])
        >>> logits = torch.tensor([[[0.0, 0.0]], [[50.0, 0.0]]])  # the first head knows nothing, the last all
        >>> [round(float(joint_loss(logits, labels, weights).exp()), 3) for weights in ([0, 1], [1, 0])]
        [1.0, 2.0]

    Chapter: advanced/dynamic
    """
    shares = torch.ones(len(logits)) if weights is None else torch.tensor([*weights])
    if len(shares) != len(logits):
        raise ValueError(f"weights has {len(shares)} entries for {len(logits)} heads")
    losses = torch.stack([functional.cross_entropy(rows.float(), labels) for rows in logits])
    return (losses * shares.to(losses)).sum() / shares.sum().to(losses)


def choose(logits: Tensor, thresholds: Tensor) -> Answer:
    """The answers that :class:`EarlyExit` gives, from the logits of all heads.

    Args:
        logits: ``[heads, rows, classes]``, the last head's included.
        thresholds: nats ``[heads - 1]``.

    Returns:
        ``logits`` ``[rows, classes]`` and ``exit`` int64 ``[rows]``.

    Example:
        >>> logits = torch.tensor([[[9.0, 0.0], [0.1, 0.0]], [[0.0, 5.0], [0.0, 5.0]]])  # [heads, rows, classes]
        >>> answer = choose(logits, torch.tensor([0.1]))
        >>> answer.exit.tolist(), answer.logits.argmax(1).tolist()  # the first row never asks the second head
        ([0, 1], [0, 1])

    Chapter: advanced/dynamic
    """
    leaves = entropy(logits[:-1]) < thresholds[:, None]
    certain = torch.cat([leaves, torch.ones_like(leaves[:1])]).int()
    first = certain.argmax(0)
    return Answer(logits[first, torch.arange(logits.shape[1])], first)


def calibrate(logits: Tensor, labels: Tensor, tolerance: float) -> Tensor:
    r"""Thresholds that let as many rows leave as a loss of accuracy allows, head after head.

    Let :math:`E` heads be before the last. At each, rows that are still there are ordered by entropy, and the longest run
    of the surest is found on which the head has at most :math:`\text{tolerance}\cdot n / E` right answers fewer than the
    last head has. So on these rows the accuracy falls by at most ``tolerance``; on others it may fall by more.

    Args:
        logits: ``[heads, rows, classes]`` on labelled rows that nothing was trained on.
        labels: int64 ``[rows]``.
        tolerance: fraction of the rows, 0 or more.

    Returns:
        Nats ``[heads - 1]``.

    Raises:
        ValueError: ``tolerance`` is negative, or shapes do not fit.

    Example:
        >>> logits = torch.tensor([[[9.0, 0.0], [0.0, 2.0], [1.0, 0.0]], [[9.0, 0.0], [0.0, 9.0], [0.0, 9.0]]])
        >>> labels = torch.tensor([0, 1, 1])  # the first head is wrong where it is least sure
        >>> choose(logits, calibrate(logits, labels, tolerance=0.0)).exit.tolist()
        [0, 0, 1]
        >>> choose(logits, calibrate(logits, labels, tolerance=0.5)).exit.tolist()  # one of three may be lost
        [0, 0, 0]

    Chapter: advanced/dynamic
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance is {tolerance}; it may be 0 or more")
    if logits.ndim != 3 or len(labels) != logits.shape[1] or len(logits) < 2:
        raise ValueError(
            f"logits is {list(logits.shape)}, labels {list(labels.shape)}; [heads, rows, classes] and [rows]"
        )
    right = (logits.argmax(-1) == labels).long()
    sure = entropy(logits)
    allowed = tolerance * len(labels) / (len(logits) - 1)
    rows = torch.arange(len(labels))
    thresholds = torch.zeros(len(logits) - 1)
    for head in range(len(logits) - 1):
        order = rows[sure[head, rows].argsort(stable=True)]
        values = sure[head, order]
        lost = (right[-1, order] - right[head, order]).cumsum(0)
        # A threshold lies between two different entropies, so rows that tie stay together.
        ends = torch.cat([values[1:] > values[:-1], values.new_ones(min(1, len(values)), dtype=torch.bool)])
        fits = (ends & (lost <= allowed)).nonzero()
        if len(fits):
            count = int(fits[-1]) + 1
            following = values[count] if count < len(values) else values[-1] + 1
            thresholds[head] = (values[count - 1] + following) / 2
            rows = order[~(values < thresholds[head])]
    return thresholds
