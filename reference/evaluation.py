"""What a compressed model costs and keeps: loss, agreement, bytes, time."""

import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from .hardware.latency import Latency as Latency  # one way to time, reached from here too
from .hardware.latency import latency as latency


def windows(count: int, window: int, stride: int) -> list[tuple[int, int, int]]:
    """Where the windows of an evaluation lie: ``(begin, end, first scored token)``.

    Every token but the first is scored exactly once, by the first window that reaches it, so a
    token has at least ``window − stride`` tokens before it, once the text is long enough.
    With ``stride == window`` windows do not overlap and each one's first token, which nothing
    precedes, is not scored: the protocol of the papers.

    Args:
        count: tokens of the text, at least 2.
        window: tokens that the model sees at once, at least 2.
        stride: tokens by which the window moves, ``1 <= stride <= window``.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> windows(10, window=6, stride=3)
        [(0, 6, 1), (3, 9, 6), (6, 10, 9)]

    Chapter: quantization/post_training
    """
    if count < 2:
        raise ValueError(f"tokens has {count} entries; at least 2 are needed to predict one")
    if window < 2:
        raise ValueError(f"window is {window}; it may be 2 or more")
    if not 1 <= stride <= window:
        raise ValueError(f"stride is {stride}; it may be 1 to window ({window})")
    spans, scored = [], 1
    for begin in range(0, count, stride):
        end = min(begin + window, count)
        first = max(scored, begin + 1)
        if first < end:
            spans.append((begin, end, first))
        scored = end
        if end == count:
            break
    return spans


@torch.no_grad()
def token_losses(
    model: nn.Module,
    tokens: Tensor,
    *,
    window: int,
    stride: int,
    batch: int = 8,
    progress: Callable[[list], Iterable] = iter,
) -> Tensor:
    """Negative log-likelihood of each scored token, in nats; the model is put in evaluation mode meanwhile.

    Args:
        model: maps ``[batch, length]`` token ids to an output with ``logits``.
        tokens: int64 ``[count]``.
        window, stride: see :func:`windows`.
        batch: windows a forward pass; it changes the time, not the result.
        progress: wraps the list of batches, for a progress bar.

    Returns:
        float32 ``[scored]`` in the order of the text.

    Raises:
        ValueError: as :func:`windows`, or ``tokens`` is not one row, or holds an id outside the
            model's vocabulary.

    Example:
        >>> from types import SimpleNamespace
        >>> class Clueless(nn.Module):
        ...     def forward(self, input_ids):
        ...         return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 8))
        >>> losses = token_losses(Clueless(), torch.arange(5), window=4, stride=2)
        >>> [round(nats, 2) for nats in losses.tolist()]  # ln 8, for all tokens but the first
        [2.08, 2.08, 2.08, 2.08]

    Chapter: quantization/post_training
    """
    if tokens.ndim != 1:
        raise ValueError(f"tokens has shape {tuple(tokens.shape)}; it must be one row of ids, [count]")
    spans = windows(len(tokens), window, stride)
    _check_ids(model, tokens)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    batches: list[list[tuple[int, int, int]]] = []
    for span in spans:  # only windows of equal length share a batch
        same = batches and len(batches[-1]) < batch and _length(batches[-1][0]) == _length(span)
        batches[-1].append(span) if same else batches.append([span])
    losses: list[Tensor] = []
    with evaluating(model):
        for group in progress(batches):
            ids = torch.stack([tokens[begin:end] for begin, end, _ in group]).to(device)
            nats = next_token_losses(model(input_ids=ids).logits, ids).cpu()
            losses.extend(row[first - begin - 1 :] for row, (begin, _, first) in zip(nats, group, strict=True))
    return torch.cat(losses)


def next_token_losses(logits: Tensor, ids: Tensor) -> Tensor:
    """Negative log-likelihood of each token but the first, nats, summed over the vocabulary where it lies in a row.

    ``cross_entropy`` of ``logits.transpose(1, 2)`` is the same number, three times as slow and, on a CPU, with a
    vocabulary of thousands added up one by one: some ten times the rounding error, and always to the same side.

    Args:
        logits: ``[batch, length, vocabulary]`` of a model that has read ``ids``.
        ids: int64 ``[batch, length]``.

    Returns:
        float32 ``[batch, length − 1]``.

    Example:
        >>> next_token_losses(torch.zeros(1, 3, 8), torch.tensor([[5, 0, 7]])).exp().round()
        tensor([[8., 8.]])

    Chapter: none (plumbing of :func:`token_losses`)
    """
    following = functional.pad(ids[:, 1:], (0, 1)).flatten()  # of the last position anything: it is dropped
    nats = functional.cross_entropy(logits.float().flatten(0, 1), following, reduction="none")
    return nats.view(ids.shape)[:, :-1]


def _check_ids(model: nn.Module, tokens: Tensor) -> None:
    vocabulary = getattr(getattr(model, "config", None), "vocab_size", None)
    if vocabulary is not None and int(tokens.max()) >= vocabulary:
        raise ValueError(
            f"tokens holds id {int(tokens.max())}; the model knows {vocabulary}: another tokenizer's text?"
        )


def _length(span: tuple[int, int, int]) -> int:
    return span[1] - span[0]


def perplexity(
    model: nn.Module,
    tokens: Tensor,
    *,
    window: int,
    stride: int,
    batch: int = 8,
    progress: Callable[[list], Iterable] = iter,
) -> float:
    """``exp`` of the mean negative log-likelihood over the scored tokens.

    Args:
        model, tokens, window, stride, batch, progress: as :func:`token_losses`.

    Returns:
        1 or more; the number of equally likely tokens that would surprise as much.

    Raises:
        ValueError: as :func:`token_losses`.

    Example:
        >>> from types import SimpleNamespace
        >>> class Clueless(nn.Module):
        ...     def forward(self, input_ids):
        ...         return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 8))
        >>> round(perplexity(Clueless(), torch.arange(5), window=4, stride=2), 3)  # eight tokens to choose from
        8.0

    Chapter: quantization/post_training
    """
    losses = token_losses(model, tokens, window=window, stride=stride, batch=batch, progress=progress)
    return losses.double().mean().exp().item()


def bits_per_byte(losses: Tensor, text_bytes: int) -> float:
    """Bits that an ideal coder driven by the model would spend per byte of text.

    Unlike perplexity it does not depend on the tokenizer, so it compares with ``xz``.

    Args:
        losses: nats ``[scored]`` of :func:`token_losses`, with ``stride < window`` so that only
            the first token is missing.
        text_bytes: bytes of the text in UTF-8.

    Raises:
        ValueError: ``text_bytes`` is not positive.

    Example:
        >>> f'{bits_per_byte(torch.ones(3), text_bytes=9):.4f}'
        '0.4809'

    Chapter: quantization/post_training
    """
    if text_bytes <= 0:
        raise ValueError(f"text_bytes is {text_bytes}; it must be positive")
    return losses.double().sum().item() / (math.log(2) * text_bytes)


class Agreement(NamedTuple):
    """How far a model is from another one, averaged over predictions.

    ``top1``: fraction with the same most likely token. ``kl``: Kullback–Leibler divergence of the
    compressed from the original distribution, nats.

    Example:
        >>> from reference.models import tutorial
        >>> model, tokens = tutorial.load(), torch.arange(32)
        >>> agreement(model, model, tokens, window=16)
        Agreement(top1=1.0, kl=0.0)

    Chapter: overview
    """

    top1: float
    kl: float


@torch.no_grad()
def agreement(model: nn.Module, original: nn.Module, tokens: Tensor, *, window: int, batch: int = 8) -> Agreement:
    """Compare the predictions of ``model`` with those of ``original`` on the same text, both in evaluation mode.

    Args:
        model, original: as in :func:`token_losses`, on one device.
        tokens: int64 ``[count]``; a tail shorter than ``window`` is left out.
        window: tokens a forward pass.
        batch: windows at once.

    Raises:
        ValueError: the text is shorter than one window or holds an id that one of the models does not know, or the
            vocabularies differ.

    Example:
        >>> from reference.models import tutorial
        >>> original, rounded = tutorial.load(), tutorial.load(dtype=torch.bfloat16)
        >>> top1, kl = agreement(rounded, original, torch.arange(64), window=32)
        >>> top1 > 0.9, 0 < kl < 0.01
        (True, True)

    Chapter: overview
    """
    count = len(tokens) // window
    if count == 0:
        raise ValueError(f"tokens has {len(tokens)} entries; window {window} needs at least as many")
    _check_ids(model, tokens)
    _check_ids(original, tokens)
    same, divergence = 0.0, 0.0
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with evaluating(model), evaluating(original):
        for ids in tokens[: count * window].to(device).view(count, window).split(batch):
            ours = model(input_ids=ids).logits.float().log_softmax(-1)
            theirs = original(input_ids=ids).logits.float().log_softmax(-1)
            if ours.shape != theirs.shape:
                sizes = f"model predicts {ours.shape[-1]} tokens and original {theirs.shape[-1]}"
                raise ValueError(f"{sizes}; their predictions do not compare")
            same += (ours.argmax(-1) == theirs.argmax(-1)).double().sum().item()
            divergence += (theirs.exp() * (theirs - ours)).sum(-1).double().sum().item()
    return Agreement(same / (count * window), divergence / (count * window))


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, *, batch: int = 1024) -> float:
    """Share of images whose largest logit is that of their label; the model is put in evaluation mode meanwhile.

    Args:
        model: maps a batch of images to logits ``[n, classes]``.
        images: ``[n, …]``.
        labels: int64 ``[n]``.
        batch: images at once.

    Raises:
        ValueError: the numbers of images and labels differ, or there are none.

    Example:
        >>> images, labels = torch.eye(4), torch.tensor([0, 1, 2, 0])
        >>> accuracy(nn.Identity(), images, labels)  # the "logits" of image i are largest at class i
        0.75

    Chapter: none (plumbing: counts)
    """
    if len(images) != len(labels) or not len(images):
        raise ValueError(f"images and labels must be equally many and some, got {len(images)} and {len(labels)}")
    with evaluating(model):
        right = sum(
            int((model(x).argmax(1) == y).sum()) for x, y in zip(images.split(batch), labels.split(batch), strict=True)
        )
    return right / len(labels)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; after it each module has the mode that it had, also after an error.

    ``model.train(before)`` at the end would put a batch norm that was frozen by hand back into training.

    Args:
        model: any module.

    Example:
        >>> model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2).eval())
        >>> with evaluating(model):
        ...     [module.training for module in model]
        [False, False]
        >>> [module.training for module in model]
        [True, False]

    Chapter: none (plumbing: modes of modules)
    """
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def size_on_disk(directory: str | Path) -> dict[str, int]:
    """Bytes of the tensors in a checkpoint folder by kind, read from the files' headers.

    Args:
        directory: a folder of safetensors files.

    Returns:
        Bytes of ``weights`` (linear layers, packed or not), ``scales``, ``zero_points``,
        ``embeddings`` (input and output), ``other``, and ``total``, the size of the files themselves.

    Raises:
        ValueError: no safetensors file is there, or one is damaged.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import save_file
        >>> codes, scale = torch.zeros(8, 4, dtype=torch.int32), torch.ones(8, 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file({"up.weight_packed": codes, "up.weight_scale": scale}, Path(folder, "model.safetensors"))
        ...     sizes = size_on_disk(folder)
        >>> sizes["weights"], sizes["scales"], sizes["total"] > 128 + 32  # the file has a header too
        (128, 32, True)

    Chapter: quantization/post_training
    """
    sizes = dict.fromkeys(("weights", "scales", "zero_points", "embeddings", "other"), 0)
    for name, size in tensor_bytes(directory).items():
        sizes[_kind(name)] += size
    sizes["total"] = sum(file.stat().st_size for file in Path(directory).glob("*.safetensors"))
    return sizes


def tensor_bytes(directory: str | Path) -> dict[str, int]:
    """Bytes of each tensor of a checkpoint folder, by name, from the files' headers alone.

    Args:
        directory: a folder of safetensors files.

    Raises:
        ValueError: as :func:`size_on_disk`.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import save_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file({"norm.weight": torch.ones(5, dtype=torch.bfloat16)}, Path(folder, "model.safetensors"))
        ...     tensor_bytes(folder)
        {'norm.weight': 10}

    Chapter: none (reads headers)
    """
    files = sorted(Path(directory).glob("*.safetensors"))
    if not files:
        raise ValueError(f"{str(directory)!r} holds no .safetensors file")
    sizes = {}
    for file in files:
        for name, entry in _header(file).items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                sizes[name] = end - begin
    return sizes


def _header(file: Path) -> dict:
    with file.open("rb") as stream:
        try:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > file.stat().st_size:
                raise ValueError("header longer than the file")
            header = json.loads(stream.read(length))
            if not isinstance(header, dict):
                raise ValueError("header is no JSON object")
            return header
        except (struct.error, ValueError) as error:
            raise ValueError(f"{str(file)!r} is not a safetensors file: {error}") from error


def _kind(name: str) -> str:
    if name.endswith(("weight_scale", ".scales")):
        return "scales"
    if name.endswith(("weight_zero_point", ".qzeros")):
        return "zero_points"
    module = name.split(".")[-2:][0]
    if "embed" in name or name.startswith("lm_head") or module in ("wte", "wpe"):  # GPT-2's
        return "embeddings"
    norm = "norm" in name.lower() or module.startswith("ln_")
    if name.endswith((".weight", ".weight_packed", ".qweight")) and not norm:
        return "weights"
    return "other"
