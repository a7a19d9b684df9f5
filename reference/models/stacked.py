"""Several encoders of one shape, computed together: every parameter has one more dimension, the run.

Small models trained one by one leave a GPU idle: what takes the time is starting thousands of small kernels. Stacked,
R models start as many kernels as one. The arithmetic is that of :class:`reference.models.minilm.Classifier`.

    =============== ==================== ====================================================
    parameter       shape                rows of the first dimension
    =============== ==================== ====================================================
    attention       [4·layers, R, d, d]  query, key, value, output of layer 0, then of layer 1 …
    up              [layers, R, f, d]    first matrix of each feed-forward network
    down            [layers, R, d, f]    second
    biases          […, R, 1, out]       as their matrices
    scale, shift    [2·layers, R, 1, d]  norm after attention, norm after the network, …
    head            [1, R, classes, d]
    =============== ==================== ====================================================
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Names in a BertModel of the rows of each matrix, by layer.
ROWS = {
    "attention": ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
    "up": ("intermediate.dense",),
    "down": ("output.dense",),
}
NORMS = ("attention.output.LayerNorm", "output.LayerNorm")
PRUNABLE = tuple(ROWS)


class StackedEncoder(nn.Module):
    """R encoders with mean pooling and a linear head, which share their frozen embeddings.

    Args:
        state: of one :class:`transformers.BertModel`, names without a prefix; all runs start from it.
        seeds: of the runs' heads, one a run, as in :class:`reference.models.minilm.Classifier`.
        classes: outputs.
        heads: of attention.
        dropout: of hidden states and attention during training.
        eps: of the norms.
        dtype: activations and products are computed in; parameters stay float32.

    Raises:
        ValueError: a tensor is missing from ``state``, or there is no run.

    Source: Devlin et al. 2019, "BERT", and the shapes of ``transformers``.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(
        ...     hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=32)
        >>> runs = StackedEncoder(BertModel(config).state_dict(), seeds=[0, 1, 0], classes=3, heads=2).eval()
        >>> ids = torch.arange(4).expand(3, 1, 4)  # the same text for three runs
        >>> first, second, third = runs(ids, ids >= 0)
        >>> torch.allclose(first, third), torch.allclose(first, second)  # equal seeds, equal heads
        (True, False)

    Chapter: none (model)
    """

    words: Tensor
    positions: Tensor
    embedding_scale: Tensor
    embedding_shift: Tensor

    def __init__(
        self,
        state: Mapping[str, Tensor],
        seeds: list[int],
        *,
        classes: int,
        heads: int,
        dropout: float = 0.1,
        eps: float = 1e-12,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if not seeds:
            raise ValueError("seeds is empty; it must hold one run or more")
        self.layers = 1 + max((int(n.split(".")[2]) for n in state if n.startswith("encoder.layer.")), default=-1)
        missing = [n for n in self.names() if n not in state] if self.layers else ["encoder.layer.0"]
        if missing:
            raise ValueError(f"state lacks {len(missing)} tensors, the first {missing[0]!r}")
        self.runs, self.heads, self.dropout, self.eps, self.dtype = len(seeds), heads, dropout, eps, dtype

        def stacked(parts: tuple[str, ...], what: str) -> nn.Parameter:
            rows = [state[f"encoder.layer.{i}.{part}.{what}"].float() for i in range(self.layers) for part in parts]
            rows = [row if row.ndim == 2 else row.unsqueeze(0) for row in rows]
            return nn.Parameter(torch.stack(rows).unsqueeze(1).repeat(1, self.runs, 1, 1))

        for name, parts in ROWS.items():
            setattr(self, name, stacked(parts, "weight"))
            setattr(self, f"{name}_bias", stacked(parts, "bias"))
        self.scale, self.shift = stacked(NORMS, "weight"), stacked(NORMS, "bias")
        width = self.scale.shape[-1]
        drawn = [
            torch.empty(classes, width).normal_(0, 0.02, generator=torch.Generator().manual_seed(s)) for s in seeds
        ]
        self.head = nn.Parameter(torch.stack(drawn).unsqueeze(0))
        self.head_bias = nn.Parameter(torch.zeros(1, self.runs, 1, classes))
        embeddings = {n.split(".")[1]: state[n].float() for n in self.names() if n.startswith("embeddings.")}
        self.register_buffer("words", embeddings["word_embeddings"])
        positions = embeddings["position_embeddings"] + embeddings["token_type_embeddings"][0]
        self.register_buffer("positions", positions)
        self.register_buffer("embedding_scale", state["embeddings.LayerNorm.weight"].float())
        self.register_buffer("embedding_shift", state["embeddings.LayerNorm.bias"].float())

    def names(self) -> list[str]:
        """Names of the tensors of a BertModel that are read."""
        embeddings = ["word_embeddings.weight", "position_embeddings.weight", "token_type_embeddings.weight"]
        parts = [*sum(ROWS.values(), ()), *NORMS]
        return [f"embeddings.{name}" for name in [*embeddings, "LayerNorm.weight", "LayerNorm.bias"]] + [
            f"encoder.layer.{i}.{part}.{what}" for i in range(self.layers) for part in parts for what in ("weight", "bias")
        ]  # fmt: skip

    def weights(self) -> dict[str, Tensor]:
        """The matrices that are pruned, by name."""
        return {name: getattr(self, name) for name in PRUNABLE}

    def forward(self, token_ids: Tensor, real: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """Logits of a batch of each run.

        Args:
            token_ids: int64 ``[R, texts, length]``.
            real: bool of the same shape, True for tokens, False for padding.
            weights: take the place of :meth:`weights`, for example masked.

        Returns:
            float32 ``[R, texts, classes]``.
        """
        runs, texts, length = token_ids.shape
        width = self.words.shape[1]
        matrices = {n: w.to(self.dtype).unbind(0) for n, w in (weights or self.weights()).items()}
        biases = {n: getattr(self, f"{n}_bias").to(self.dtype).unbind(0) for n in ROWS}
        scales, shifts = self.scale.to(self.dtype).unbind(0), self.shift.to(self.dtype).unbind(0)

        x = functional.embedding(token_ids, self.words) + self.positions[:length]
        x = functional.layer_norm(x, (width,), self.embedding_scale, self.embedding_shift, self.eps)
        x = self._drop(x.to(self.dtype).view(runs, texts * length, width))
        visible = real.reshape(runs * texts, 1, 1, length)

        def linear(x: Tensor, name: str, row: int) -> Tensor:
            return torch.baddbmm(biases[name][row], x, matrices[name][row].transpose(1, 2))

        def split(x: Tensor) -> Tensor:
            return x.view(runs * texts, length, self.heads, width // self.heads).transpose(1, 2)

        def norm(x: Tensor, row: int) -> Tensor:
            return torch.addcmul(shifts[row], functional.layer_norm(x, (width,), eps=self.eps), scales[row])

        for layer in range(self.layers):
            query, key, value = (split(linear(x, "attention", 4 * layer + part)) for part in range(3))
            read = functional.scaled_dot_product_attention(
                query, key, value, attn_mask=visible, dropout_p=self.dropout if self.training else 0.0
            )
            read = read.transpose(1, 2).reshape(runs, texts * length, width)
            x = norm(x + self._drop(linear(read, "attention", 4 * layer + 3)), 2 * layer)
            inner = functional.gelu(linear(x, "up", layer))
            x = norm(x + self._drop(linear(inner, "down", layer)), 2 * layer + 1)
        kept = real.unsqueeze(-1).float()
        pooled = (x.view(runs, texts, length, width).float() * kept).sum(2) / kept.sum(2)
        return torch.baddbmm(self.head_bias[0], pooled, self.head[0].transpose(1, 2))

    def _drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, self.training) if self.dropout else x

    def state_of(self, run: int) -> dict[str, Tensor]:
        """Parameters of one run under the names of a :class:`reference.models.minilm.Classifier`, without embeddings."""
        found = {"head.weight": self.head[0, run], "head.bias": self.head_bias[0, run, 0]}
        for layer in range(self.layers):
            for name, parts in [*ROWS.items(), ("norm", NORMS)]:
                for i, part in enumerate(parts):
                    row, prefix = len(parts) * layer + i, f"encoder.encoder.layer.{layer}.{part}"
                    weight = self.scale[row, run, 0] if name == "norm" else getattr(self, name)[row, run]
                    bias = self.shift[row, run, 0] if name == "norm" else getattr(self, f"{name}_bias")[row, run, 0]
                    found |= {f"{prefix}.weight": weight, f"{prefix}.bias": bias}
        return {name: value.detach() for name, value in found.items()}
