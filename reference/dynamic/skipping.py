"""Token skipping: the feed-forward part of a block is computed only for the tokens that a router picks.

Mixture-of-depths with two choices that keep it causal and exact: attention runs for every token, so a key-value cache has
no holes, and a token is picked by its own score against a fixed threshold, not by its rank among tokens that come later.

    tensor       shape               what
    ============ =================== =========================================================
    hidden       [batch, length, d]  what the feed-forward part reads
    score        [batch, length]     router(hidden)
    picked       [batch, length]     score >= threshold
    output       [batch, length, d]  mlp(hidden) where picked, else 0: the residual passes alone
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from reference.models.families import blocks

MOMENTUM = 0.9  # of the thresholds' running mean in training


class TokenSkippingMLP(nn.Module):
    r"""A feed-forward part and the router that decides for which tokens it is computed.

    While training, the ``capacity`` share of a batch's tokens with the highest scores is picked, and the output is
    :math:`m\,\mathrm{mlp}(x)` with

    .. math:: m = [\text{picked}] + p - \mathrm{stop}(p), \qquad p = \sigma(r(x)).

    The value of :math:`m` is exactly 0 or 1; its gradient is that of :math:`p`, so a router learns, by first order, for
    which tokens the loss falls where the output is added. In evaluation only rows above the threshold are multiplied; with
    ``threshold`` at minus infinity the layer is the dense one, bit for bit.

    Args:
        mlp: maps ``[..., d]`` to ``[..., d]``, row by row.
        router: maps ``[..., d]`` to ``[..., 1]``.
        capacity: share of the tokens that is computed while training, ``0 < capacity <= 1``.

    Raises:
        ValueError: ``capacity`` is out of range.

    Source: Raposo et al. 2024, "Mixture-of-Depths", section 3, for picking tokens by a router whose score is in the
    gradient's path; the threshold in place of the rank is their section 3.5's aim by other means.

    Example:
        >>> router = nn.Linear(1, 1)
        >>> router.weight.data, router.bias.data = torch.tensor([[1.0]]), torch.tensor([0.0])
        >>> layer = TokenSkippingMLP(nn.Identity(), router, capacity=0.5).eval()
        >>> _ = layer.threshold.fill_(2.0)
        >>> layer(torch.tensor([[[1.0], [3.0]]]))  # the first token scores 1: nothing is added to its residual
        tensor([[[0.],
                 [3.]]])

    Chapter: advanced/dynamic
    """

    threshold: Tensor

    def __init__(self, mlp: nn.Module, router: nn.Module, capacity: float) -> None:
        super().__init__()
        if not 0 < capacity <= 1:
            raise ValueError(f"capacity is {capacity}; it may be above 0 and up to 1")
        self.mlp, self.router, self.capacity = mlp, router, capacity
        self.register_buffer("threshold", torch.tensor(float("-inf")))

    def forward(self, hidden: Tensor) -> Tensor:
        if self.training:
            return self._train(hidden)
        if self.threshold == float("-inf"):
            return self.mlp(hidden)
        rows = hidden.reshape(-1, hidden.shape[-1])
        picked = (self.router(rows).float().squeeze(-1) >= self.threshold).nonzero().squeeze(-1)
        output = torch.zeros_like(rows)
        if len(picked):
            output[picked] = self.mlp(rows[picked]).to(output.dtype)
        return output.view_as(hidden)

    def _train(self, hidden: Tensor) -> Tensor:
        score = self.router(hidden).float()
        cut = cut_at(score.detach(), self.capacity)
        first = bool(self.threshold.isinf())
        self.threshold.copy_(cut if first else MOMENTUM * self.threshold + (1 - MOMENTUM) * cut)
        soft = score.sigmoid()
        gate = (score >= cut).to(soft) + (soft - soft.detach())
        return gate.to(hidden.dtype) * self.mlp(hidden)


def cut_at(score: Tensor, capacity: float) -> Tensor:
    """A score above which a ``capacity`` share of the tokens lies, rounded up to whole tokens.

    It lies halfway between the last token that is picked and the first that is not, so that the last digits of a score,
    which depend on how many rows are multiplied at once, decide nothing.

    Args:
        score: of any shape.
        capacity: ``0 < capacity <= 1``; where no token is left out the result is minus infinity, below all scores to come.

    Returns:
        A scalar, dtype of ``score``.

    Example:
        >>> cut_at(torch.tensor([1.0, 4.0, 2.0, 3.0]), 0.5), cut_at(torch.tensor([1.0, 4.0]), 1.0)
        (tensor(2.5000), tensor(-inf))

    Chapter: advanced/dynamic
    """
    flat = score.flatten()
    picked = math.ceil(capacity * len(flat))
    if picked == len(flat):
        return flat.new_tensor(float("-inf"))
    last, first = flat.topk(picked + 1).values[-2:]
    return (last + first) / 2


def skip_tokens(
    model: PreTrainedModel, capacity: float, *, first: int = 1, routers: Iterable[nn.Module] | None = None
) -> PreTrainedModel:
    """Put a router in front of the feed-forward part of every block from ``first`` on, in place.

    Thresholds start at minus infinity: until they are trained or set, the model computes what it did.

    Args:
        model: a causal model whose blocks have one module ``mlp`` (Llama, Mistral, Qwen, Gemma, Phi-3).
        capacity: see :class:`TokenSkippingMLP`.
        first: block that is the first to skip.
        routers: one module a block, as :func:`fit_routers` makes them; linear layers with weights 0 if None, so that all
            tokens start equal.

    Returns:
        ``model``.

    Raises:
        ValueError: a block has no ``mlp``, ``first`` is not a block, or ``capacity`` is out of range.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8,
        ...                      num_hidden_layers=2, num_attention_heads=2)
        >>> model = skip_tokens(LlamaForCausalLM(config), capacity=0.5)
        >>> [type(block.mlp).__name__ for block in model.model.layers]
        ['LlamaMLP', 'TokenSkippingMLP']

    Chapter: advanced/dynamic
    """
    found = blocks(model)
    if not 0 <= first < len(found):
        raise ValueError(f"first is {first}; it may be 0 to {len(found) - 1}")
    given = None if routers is None else iter(routers)
    for number, block in enumerate(found):
        mlp = _feed_forward(block, number)
        if number < first:
            continue
        if given is None:
            linear = nn.Linear(model.config.hidden_size, 1)
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
            router: nn.Module = linear
        else:
            router = next(given)
        weight = next(mlp.parameters())
        block.mlp = TokenSkippingMLP(mlp, router.to(weight), capacity).to(weight.device).train(model.training)
    return model


@torch.no_grad()
def fit_routers(
    model: PreTrainedModel, tokens: list[Tensor], *, first: int = 1, penalty: float = 0.03
) -> list[nn.Linear]:
    r"""Routers that predict how much a block's feed-forward part would add, by ridge regression, without training.

    The target is :math:`\lVert f(x) \rVert / \lVert h \rVert`, the norm of the part's output over that of the residual
    stream behind it; the inputs are what the part reads. A token with a low prediction is one that it hardly changes.

    Args:
        model: a causal model whose blocks have one module ``mlp``; it is not changed.
        tokens: calibration ids ``[batch, length]``.
        first: block of the first router.
        penalty: added to the covariance, as a share of its mean diagonal; above 0.

    Returns:
        Linear layers ``d → 1`` for the blocks from ``first`` on, for :func:`skip_tokens`.

    Raises:
        ValueError: a block has no ``mlp``, or ``penalty`` is not positive.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8,
        ...                      num_hidden_layers=2, num_attention_heads=2)
        >>> model, ids = LlamaForCausalLM(config).eval(), torch.arange(32).view(4, 8) % 8
        >>> [router] = fit_routers(model, [ids])
        >>> router.weight.shape, router.bias.shape
        (torch.Size([1, 8]), torch.Size([1]))

    Chapter: advanced/dynamic
    """
    if not penalty > 0:
        raise ValueError(f"penalty is {penalty}; it must be positive")
    routers = []
    for number, block in list(enumerate(blocks(model)))[first:]:
        mlp = _feed_forward(block, number)
        inputs: list[Tensor] = []
        added: list[Tensor] = []
        stream: list[Tensor] = []
        handles = [
            mlp.register_forward_hook(_recorder(inputs, added)),
            block.register_forward_hook(_recorder(None, stream)),
        ]
        try:
            for ids in tokens:
                model(input_ids=ids)
        finally:
            for handle in handles:
                handle.remove()
        x = torch.cat(inputs).double()
        target = torch.cat(added).double().norm(dim=1) / torch.cat(stream).double().norm(dim=1)
        mean, level = x.mean(0), target.mean()
        covariance = (x - mean).T @ (x - mean) / len(x)
        ridge = penalty * covariance.diagonal().mean() * torch.eye(len(mean), dtype=x.dtype, device=x.device)
        weight = torch.linalg.solve(covariance + ridge, (x - mean).T @ (target - level) / len(x))
        router = nn.Linear(len(mean), 1)
        router.weight.copy_(weight[None])
        router.bias.fill_(float(level - mean @ weight))
        routers.append(router)
    return routers


def _recorder(inputs: list[Tensor] | None, outputs: list[Tensor]) -> Callable[[nn.Module, tuple, Any], None]:
    """A hook that keeps the rows of a module's input and output."""

    def hook(_: nn.Module, args: tuple, output: Any) -> None:
        result = output[0] if isinstance(output, tuple) else output
        outputs.append(result.flatten(0, -2))
        if inputs is not None:
            inputs.append(args[0].flatten(0, -2))

    return hook


def _feed_forward(block: nn.Module, number: int) -> nn.Module:
    mlp = getattr(block, "mlp", None)
    if not isinstance(mlp, nn.Module):
        raise ValueError(f"block {number} has no module 'mlp'; token skipping knows Llama-like blocks")
    return mlp


@torch.no_grad()
def set_thresholds(model: nn.Module, tokens: list[Tensor], capacity: float) -> dict[str, float]:
    """Set every threshold to the score that a ``capacity`` share of calibration tokens reaches, block after block.

    A block is calibrated with the tokens skipped in the blocks before it, as it will see them.

    Args:
        model: of :func:`skip_tokens`, in evaluation mode.
        tokens: batches of ids ``[batch, length]``.
        capacity: share of the tokens to compute; 1 turns skipping off.

    Returns:
        name → share of the calibration tokens that reach the threshold.

    Raises:
        ValueError: ``capacity`` is out of range, or the model skips nothing.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8,
        ...                      num_hidden_layers=2, num_attention_heads=2)
        >>> model, ids = LlamaForCausalLM(config).eval(), torch.arange(8).view(1, 8)
        >>> model = skip_tokens(model, 0.5, routers=fit_routers(model, [ids]))
        >>> set_thresholds(model, [ids], 0.5)
        {'model.layers.1.mlp': 0.5}

    Chapter: advanced/dynamic
    """
    if not 0 < capacity <= 1:
        raise ValueError(f"capacity is {capacity}; it may be above 0 and up to 1")
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, TokenSkippingMLP)}
    if not layers:
        raise ValueError("the model has no TokenSkippingMLP; call skip_tokens first")
    for layer in layers.values():
        layer.threshold.fill_(float("-inf"))
    shares = {}
    for name, layer in layers.items():
        scores: list[Tensor] = []
        handle = layer.register_forward_pre_hook(
            lambda module, args, scores=scores: scores.append(module.router(args[0]).float())
        )
        try:
            for ids in tokens:
                model(input_ids=ids)
        finally:
            handle.remove()
        score = torch.cat([value.flatten() for value in scores])
        layer.threshold.copy_(cut_at(score, capacity))
        shares[name] = float((score >= layer.threshold).float().mean())
    return shares
