r"""The gradients of many fully connected networks, written out with batched products.

For layers :math:`z_l = W_l a_{l-1} + b_l`, :math:`a_l = \max(z_l, 0)` and cross-entropy of the last :math:`z_L`:

.. math:: \delta_L = \frac{\mathrm{softmax}(z_L) - e_y}{B}, \qquad
   \delta_{l-1} = (W_l^\top \delta_l) \odot [a_{l-1} > 0], \qquad
   \frac{\partial L}{\partial W_l} = \sum_{\text{batch}} \delta_l\, a_{l-1}^\top, \qquad
   \frac{\partial L}{\partial b_l} = \sum_{\text{batch}} \delta_l

It does what :func:`reference.pruning.parallel_training.gradients` does for any network, in fewer passes over memory.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional


def chain_gradients(
    model: nn.Module, states: Mapping[str, Tensor], images: Tensor, labels: Tensor
) -> tuple[dict[str, Tensor], Tensor]:  # fmt: skip
    """Gradient of the mean cross-entropy of each fully connected network on its own batch.

    Args:
        model: linear layers with biases and ReLU between them, and nothing else; only the order of its parameters is
            used: weight and bias of each layer in turn, from first to last.
        states: name → ``[models, …]``.
        images: ``[models, batch, …]``, flattened to the inputs of the first layer.
        labels: int64 ``[models, batch]``.

    Returns:
        name → ``[models, …]`` and the losses ``[models]``.

    Raises:
        KeyError: ``states`` lacks a parameter.
        ValueError: the parameters are not those of such a chain.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 2))
        >>> states = {"0.weight": torch.zeros(1, 2, 1), "0.bias": torch.zeros(1, 2)}  # both classes equally likely
        >>> slopes, losses = chain_gradients(model, states, torch.tensor([[[3.0]]]), torch.tensor([[0]]))
        >>> slopes["0.weight"].flatten().tolist()  # (softmax - one-hot) times the input
        [-1.5, 1.5]
        >>> bool(losses[0].exp().round(decimals=3) == 2)
        True

    Chapter: pruning/lottery_ticket
    """
    names = [name for name, _ in model.named_parameters()]
    weights, biases = [states[name] for name in names[::2]], [states[name] for name in names[1::2]]
    inputs = [images[0, 0].numel(), *(weight.shape[1] for weight in weights)]
    wanted = [(w.shape[:2], (*w.shape[:2], n)) for w, n in zip(weights, inputs, strict=False)]
    if len(weights) != len(biases) or [(b.shape, w.shape) for w, b in zip(weights, biases, strict=True)] != wanted:
        raise ValueError(
            f"states holds {[(n, tuple(v.shape)) for n, v in states.items()]}; it must hold weight [models, out, in] "
            f"and bias [models, out] of each layer in turn, the first with {inputs[0]} inputs"
        )
    activations = [images.flatten(2)]
    for depth, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        z = torch.baddbmm(bias[:, None], activations[-1], weight.transpose(1, 2))
        activations.append(z if depth + 1 == len(weights) else z.relu_())
    logits = activations.pop()
    losses = functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(1)
    slope = logits.softmax(2)
    slope.scatter_add_(2, labels[..., None], torch.full_like(slope[..., :1], -1))
    slope /= labels.shape[1]
    found = {}
    for depth in range(len(weights) - 1, -1, -1):
        found[names[2 * depth]] = torch.bmm(slope.transpose(1, 2), activations[depth])
        found[names[2 * depth + 1]] = slope.sum(1)
        if depth:
            slope = torch.bmm(slope, weights[depth]).mul_(activations[depth] > 0)
    return {name: found[name] for name in names}, losses
