"""Routing: send each request to a small or a large model by what its beginning looks like, before either has run.

A cascade runs the small model first and pays for it even where its answer is thrown away; a router decides from features
that cost next to nothing, and can be wrong.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

PENALTIES = tuple(10.0**power for power in range(-2, 6))


@torch.no_grad()
def features(embedding: Tensor, token_ids: Tensor) -> Tensor:
    """What the router looks at: the mean of the prompt's token embeddings, and how often tokens repeat.

    Args:
        embedding: ``[vocabulary, d]`` of either model; rows are read, nothing is multiplied.
        token_ids: int64 ``[requests, length]``, beginnings of equal length.

    Returns:
        float32 ``[requests, d + 1]``.

    Raises:
        ValueError: ``token_ids`` is not a matrix.

    Example:
        >>> embedding = torch.tensor([[0.0], [1.0], [5.0]])
        >>> features(embedding, torch.tensor([[1, 2, 1], [0, 1, 2]]))  # mean, and share of tokens that repeat
        tensor([[2.3333, 0.5000],
                [2.0000, 0.0000]])

    Chapter: advanced/dynamic
    """
    if token_ids.ndim != 2:
        raise ValueError(f"token_ids has shape {tuple(token_ids.shape)}; it must be [requests, length]")
    ordered = token_ids.sort(-1).values
    repeats = (ordered[:, 1:] == ordered[:, :-1]).float().sum(-1, keepdim=True)
    repeated = repeats / max(1, token_ids.shape[1] - 1)
    return torch.cat([embedding.float()[token_ids].mean(1), repeated], -1)


@dataclass(frozen=True)
class Router:
    """Predicts by how much the large model is better, a linear function of standardised features.

    Args:
        mean, scale: of the features, ``[f]``.
        weight: ``[f]``.
        offset: prediction for a request of mean features.
        penalty: that :func:`fit` chose.

    Example:
        >>> router = Router(torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([3.0]), offset=0.5, penalty=1.0)
        >>> router(torch.tensor([[1.0], [5.0]]))  # 3 · (5 - 1) / 2 + 0.5
        tensor([0.5000, 6.5000])

    Chapter: advanced/dynamic
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    offset: float
    penalty: float

    def __call__(self, features: Tensor) -> Tensor:
        """Predicted gain ``[requests]`` of the large model over the small one, in the unit of the losses."""
        return ((features - self.mean) / self.scale) @ self.weight + self.offset


def fit(features: Tensor, small: Tensor, large: Tensor, penalties: tuple[float, ...] = PENALTIES) -> Router:
    r"""Ridge regression of the gain ``small - large`` on the features, the penalty chosen by leaving one out.

    With :math:`A = X (X^\top X + \lambda I)^{-1} X^\top` the error on a left-out row needs no second fit: it is
    :math:`(y_i - \hat y_i) / (1 - A_{ii})`; the mean takes :math:`1/n` of the leverage.

    Args:
        features: ``[requests, f]``.
        small, large: losses ``[requests]`` of the two models.
        penalties: values of :math:`\lambda` to choose from.

    Returns:
        The router, float32; one unit of its prediction is one of the losses.

    Raises:
        ValueError: lengths differ, or there are fewer than three requests.

    Source: Hoerl and Kennard 1970 for ridge regression; Allen 1974 for the left-out errors.

    Example:
        >>> x = torch.arange(8.0)[:, None]  # the large model is better by the feature itself
        >>> router = fit(x, small=10 + x[:, 0], large=torch.full((8,), 10.0))
        >>> router.penalty, round(float(router(torch.tensor([[3.5]]))), 2)
        (0.01, 3.5)

    Chapter: advanced/dynamic
    """
    if not len(features) == len(small) == len(large) or len(features) < 3:
        raise ValueError(
            f"features, small and large have {len(features)}, {len(small)}, {len(large)} rows; equal, 3 or more"
        )
    x = features.double()
    mean, scale = x.mean(0), x.std(0).clamp(min=1e-12)
    x = (x - mean) / scale
    gain = (small - large).double()
    offset = gain.mean()
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    projected = u.T @ (gain - offset)
    best: tuple[float, float] | None = None
    for penalty in penalties:
        shrink = s.square() / (s.square() + penalty)
        leverage = (u.square() * shrink).sum(1) + 1 / len(x)
        left_out = (gain - offset - u @ (shrink * projected)) / (1 - leverage)
        error = float(left_out.square().mean())
        if best is None or error < best[0]:
            best = error, penalty
    assert best is not None
    weight = vt.T @ (s / (s.square() + best[1]) * projected)
    return Router(mean.float(), scale.float(), weight.float(), float(offset), best[1])


class Curve(NamedTuple):
    """``share`` of the requests that the large model answers, ``loss`` and ``cost`` a request, each ``[requests + 1]``.

    Example:
        >>> found = Curve(np.array([0.0, 1.0]), np.array([3.0, 2.0]), np.array([1.0, 5.0]))
        >>> float(found.loss[0] - found.loss[-1])  # what the large model brings, for four units of cost
        1.0

    Chapter: advanced/dynamic
    """

    share: np.ndarray
    loss: np.ndarray
    cost: np.ndarray


def curve(
    score: Tensor, small: Tensor, large: Tensor, cost_small: float, cost_large: float, cost_router: float = 0.0
) -> Curve:
    """Mean loss and cost as more and more requests, those of the highest score first, go to the large model.

    Args:
        score: ``[requests]``: a router's prediction; ``small - large`` itself gives the oracle.
        small, large: losses ``[requests]``.
        cost_small, cost_large, cost_router: of one request, in any unit.

    Returns:
        ``requests + 1`` points, from none to all at the large model.

    Raises:
        ValueError: lengths differ.

    Example:
        >>> small, large = torch.tensor([3.0, 2.0]), torch.tensor([1.0, 2.0])
        >>> found = curve(small - large, small, large, cost_small=1.0, cost_large=5.0)
        >>> found.loss.tolist(), found.cost.tolist()  # half of the requests are enough
        ([2.5, 1.5, 1.5], [1.0, 3.0, 5.0])

    Chapter: advanced/dynamic
    """
    if not len(score) == len(small) == len(large):
        raise ValueError(f"score, small and large have {len(score)}, {len(small)}, {len(large)} entries; equally many")
    order = score.argsort(descending=True, stable=True)
    gain = (small - large).double()[order].cumsum(0).numpy()
    count = len(score)
    loss = (float(small.double().sum()) - np.concatenate([[0.0], gain])) / count
    share = np.arange(count + 1) / count
    return Curve(share, loss, cost_router + cost_small + share * (cost_large - cost_small))


def advantage(score: Tensor, small: Tensor, large: Tensor) -> float:
    """Mean loss by which a router is below the random one, over all shares; a random router's curve is a straight line.

    Args:
        score, small, large: as :func:`curve`.

    Returns:
        In the unit of the losses; 0 for a random router.

    Example:
        >>> small, large = torch.tensor([3.0, 2.0]), torch.tensor([1.0, 2.0])
        >>> advantage(small - large, small, large), advantage(large - small, small, large)  # oracle, and its opposite
        (0.25, -0.25)

    Chapter: advanced/dynamic
    """
    found = curve(score, small, large, 0.0, 1.0)
    line = found.loss[0] + found.share * (found.loss[-1] - found.loss[0])
    return float(np.trapezoid(line - found.loss, found.share))


def bootstrap(
    statistic: Callable[[Tensor], float], count: int, *, draws: int = 400, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of a statistic of requests drawn with replacement.

    Args:
        statistic: of int64 indices ``[count]``.
        count: requests.
        draws: repetitions.
        level: probability, above 0 and below 1.
        seed: of the draws.

    Returns:
        Lower and upper end.

    Raises:
        ValueError: ``level`` is out of range.

    Source: Efron 1979, "Bootstrap methods: another look at the jackknife".

    Example:
        >>> values = torch.tensor([1.0, 2.0, 3.0, 4.0])
        >>> low, high = bootstrap(lambda rows: float(values[rows].mean()), len(values))
        >>> 1 <= low < 2.5 < high <= 4
        True

    Chapter: advanced/dynamic
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it may be above 0 and below 1")
    generator = torch.Generator().manual_seed(seed)
    values = [statistic(torch.randint(count, (count,), generator=generator)) for _ in range(draws)]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


class RoutedModels(nn.Module):
    """Two models behind one call: a request is computed by one of them, and the other does not run for it.

    Args:
        small, large: map ``input_ids`` to an output with ``logits``; one vocabulary.
        router: see :func:`fit`, on features of the large model's embedding.
        threshold: requests whose predicted gain is above it go to the large model; infinity sends none, minus
            infinity all.
        prompt: tokens that the router looks at, the first of each request.

    Example:
        >>> from types import SimpleNamespace
        >>> class Model(nn.Embedding):  # a stand-in for a language model: its logits are its embeddings
        ...     get_input_embeddings = lambda self: self
        ...     forward = lambda self, input_ids: SimpleNamespace(logits=self.weight[input_ids])
        >>> small, large = (Model.from_pretrained(torch.tensor([[0.0], [1.0], [top]])) for top in (0.0, 5.0))
        >>> router = Router(torch.zeros(2), torch.ones(2), torch.ones(2), offset=0.0, penalty=1.0)
        >>> ids = torch.tensor([[2, 2], [2, 0]])  # predicted gains 5 + 1 and 2.5 + 0
        >>> RoutedModels(small, large, router, threshold=3.0, prompt=2)(ids)[:, :, 0]
        tensor([[5., 5.],
                [0., 0.]])

    Chapter: advanced/dynamic
    """

    def __init__(self, small: nn.Module, large: nn.Module, router: Router, threshold: float, prompt: int) -> None:
        super().__init__()
        self.small, self.large = small, large
        self.router, self.threshold, self.prompt = router, threshold, prompt

    def decide(self, token_ids: Tensor) -> Tensor:
        """Bool ``[requests]``, True for the large model."""
        embedding = self.large.get_input_embeddings().weight  # type: ignore[operator]
        return self.router(features(embedding, token_ids[:, : self.prompt])) > self.threshold

    @torch.no_grad()
    def forward(self, token_ids: Tensor) -> Tensor:
        """Logits ``[requests, length, vocabulary]`` of token ids ``[requests, length]``."""
        large = self.decide(token_ids)
        if large.all():
            return self.large(input_ids=token_ids).logits
        rest = self.small(input_ids=token_ids[~large]).logits
        logits = rest.new_empty(len(token_ids), *rest.shape[1:])
        logits[~large] = rest
        if large.any():
            logits[large] = self.large(input_ids=token_ids[large]).logits
        return logits
