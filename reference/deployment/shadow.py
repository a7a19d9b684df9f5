r"""Shadow comparison: the same requests to the model in service and to the one that is to replace it.

Users see the answers of the first only. For each request we keep averages, not tokens: tokens of one text depend on
each other, requests hardly do, and what decides later (:mod:`reference.deployment.canary`) needs independent numbers.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

#: Tokens of one forward pass, unless a single request is longer.
TOGETHER = 512
#: Probability that reported log-probabilities of 32 bits cannot tell from 0, once they are added up.
_ROUNDING = 1e-6


class Shadow(NamedTuple):
    """One number a request, float64 ``[requests]`` each.

    ``kl``: Kullback–Leibler divergence of the candidate from the current model, nats a token. ``same``: share of
    positions with the same most likely token. ``extra``: bits a byte of text that the candidate needs more.

    Example:
        >>> found = Shadow(torch.tensor([0.0, 0.25]), torch.tensor([1.0, 0.5]), torch.tensor([0.0, 0.125]))
        >>> found.extra.mean().item()  # bits a byte that the candidate needs more
        0.0625

    Chapter: deployment/production
    """

    kl: Tensor
    same: Tensor
    extra: Tensor


@torch.no_grad()
def shadow(current: nn.Module, candidate: nn.Module, requests: Sequence[Tensor], sizes: Sequence[int]) -> Shadow:
    r"""Let both models predict every next token of each request.

    .. math:: D = \frac1T \sum_t \sum_v p_{tv} \log\frac{p_{tv}}{q_{tv}}, \qquad
              \Delta = \frac{1}{B \ln 2} \sum_t \log\frac{p_t(x_{t+1})}{q_t(x_{t+1})}

    Args:
        current: maps ``[batch, length]`` ids to an output with ``logits``; :math:`p` comes from it.
        candidate: the same, :math:`q`.
        requests: int64 ``[length]`` each, at least 2 tokens.
        sizes: bytes :math:`B` that the tokens of each request after its first spell.

    Returns:
        Three numbers a request, on the models' device.

    Raises:
        ValueError: there is no request, a request has one token, or sizes are missing or not positive.

    Example:
        >>> from types import SimpleNamespace
        >>> bigram = torch.tensor([[1.0, 3.0], [1.0, 1.0]]).log()  # a model of two tokens: the next by the last
        >>> current = lambda input_ids: SimpleNamespace(logits=bigram[input_ids])
        >>> uniform = lambda input_ids: SimpleNamespace(logits=torch.zeros(*input_ids.shape, 2))
        >>> found = shadow(current, uniform, [torch.tensor([0, 1, 1])], sizes=[2])
        >>> round(float((2 * found.extra[0]).exp2()), 3)  # 3/4 against 1/2 once, 1/2 against 1/2 once
        1.5

    Chapter: deployment/production
    """
    if not requests or len(requests) != len(sizes):
        raise ValueError(
            f"there are {len(requests)} requests and {len(sizes)} sizes; they may be equally many, and some"
        )
    if min(sizes) < 1 or min(len(ids) for ids in requests) < 2:
        raise ValueError("a request has fewer than 2 tokens, or none that spells a byte; leave it out")
    rows = []
    for several in _of_equal_length(requests):
        texts = torch.stack([requests[i] for i in several])
        p = current(input_ids=texts).logits.double().log_softmax(-1)
        q = candidate(input_ids=texts).logits.double().log_softmax(-1)
        kl = (p.exp() * (p - q)).sum(-1).mean(1)
        same = (p.argmax(-1) == q.argmax(-1)).double().mean(1)
        following = texts[:, 1:, None]
        worse = p[:, :-1].gather(2, following).sum((1, 2)) - q[:, :-1].gather(2, following).sum((1, 2))
        spelt = torch.tensor([sizes[i] for i in several]).to(worse)
        rows.append(torch.stack((kl, same, worse / (spelt * math.log(2)))))
    return Shadow(*torch.cat(rows, dim=1).unbind(0))


def _of_equal_length(requests: Sequence[Tensor]) -> list[list[int]]:
    """Neighbours that one forward pass takes: a packed layer is unpacked once for all of them."""
    groups: list[list[int]] = []
    for i, ids in enumerate(requests):
        last = groups[-1] if groups else []
        if last and len(requests[last[0]]) == len(ids) and (len(last) + 1) * len(ids) <= TOGETHER:
            last.append(i)
        else:
            groups.append([i])
    return groups


def logprob_divergence(current: Sequence[Mapping[str, float]], candidate: Sequence[Mapping[str, float]]) -> float:
    """Divergence that can be told from the few most likely tokens that a server reports, nats a token.

    Tokens that either side does not report are one outcome together. Merging outcomes never increases the divergence,
    so this is a lower bound; with all tokens reported it is the divergence itself.

    Args:
        current: for each position, token → log-probability: ``choices[0].logprobs.top_logprobs`` of a completion.
        candidate: the same for the same positions of the same text.

    Returns:
        The mean over positions; infinite where the candidate reports as impossible what the current model expects. Its
        rest is taken to be a millionth at least: reported numbers, rounded to float32, tell no less.

    Raises:
        ValueError: positions differ in number, there are none, or one reports nothing in common.

    Example:
        >>> current = [{"a": math.log(0.5), "b": math.log(0.5)}]
        >>> logprob_divergence(current, current)
        0.0
        >>> candidate = [{"a": math.log(0.25), "c": math.log(0.7)}]  # b is not reported: it is part of the rest
        >>> round(math.exp(2 * logprob_divergence(current, candidate)), 3)  # ½ ln(½ / ¼) + ½ ln(½ / ¾)
        1.333

    Chapter: deployment/production
    """
    if len(current) != len(candidate) or not current:
        raise ValueError(f"there are {len(current)} and {len(candidate)} positions; they may be equally many, and some")
    total = 0.0
    for ours, theirs in zip(current, candidate, strict=True):
        common = sorted(set(ours) & set(theirs))
        if not common:
            raise ValueError("the two sides report no common token at a position; ask for more log-probabilities")
        pairs = [(math.exp(ours[token]), math.exp(theirs[token])) for token in common]
        pairs.append((max(0.0, 1 - sum(p for p, _ in pairs)), max(_ROUNDING, 1 - sum(q for _, q in pairs))))
        total += max(0.0, sum(p * math.log(p / q) if q > 0 else math.inf for p, q in pairs if p > 0))
    return total / len(current)
