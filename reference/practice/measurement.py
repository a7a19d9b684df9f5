r"""Quality, bytes and speed, each against the model before.

The loss of a compressed model is the rise of its perplexity. With :math:`\ell_t` the nats of token :math:`t` before and
:math:`\ell'_t` after, and :math:`d_t = \ell'_t - \ell_t`, it is :math:`e^{\bar d} - 1`. The same tokens are scored twice, so
what is hard about the text cancels in :math:`d_t`, and the standard error of :math:`\bar d` is far below that of either mean.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reference import checkpoint
from reference.calibration import batches
from reference.data import text
from reference.evaluation import token_losses
from reference.hardware.latency import compare
from reference.models import loading
from reference.models.families import family_of_type
from reference.trade_offs import decode_step

#: Tokens whose differences are averaged before their spread is taken; neighbours are not independent.
BLOCK = 128


class Rise(NamedTuple):
    """How much the perplexity rose: ``fraction`` of what it was, its standard ``error`` (NaN below two blocks of tokens).

    Example:
        >>> found = Rise(fraction=0.03, error=0.001)
        >>> found.fraction - 2 * found.error > 0.02  # above a limit of 2 %, and not by chance
        True

    Chapter: practice/quantization_workflow
    """

    fraction: float
    error: float


def rise(before: Tensor, after: Tensor, block: int = BLOCK) -> Rise:
    r"""Rise of the perplexity from the losses of the same tokens under two models.

    Args:
        before, after: nats ``[tokens]``, of :func:`reference.evaluation.token_losses`.
        block: neighbours that are averaged before the spread over the text is taken.

    Returns:
        :math:`e^{\bar d} - 1`, and :math:`e^{\bar d}` times the standard error of :math:`\bar d` over whole blocks.

    Raises:
        ValueError: shapes differ, or there are no tokens.

    Example:
        >>> before = torch.tensor([1.0, 5.0, 2.0, 8.0])
        >>> found = rise(before, before + math.log(1.1), block=2)
        >>> round(found.fraction, 4), found.error < 1e-6  # the same for every token: no spread
        (0.1, True)

    Chapter: practice/quantization_workflow
    """
    if before.shape != after.shape or before.ndim != 1 or not len(before):
        raise ValueError(f"before is {tuple(before.shape)} and after {tuple(after.shape)}; both must be [tokens]")
    difference = (after.double() - before.double()).nan_to_num(nan=torch.inf)
    mean = float(difference.mean())
    factor = math.exp(mean) if mean < 700 else math.inf
    blocks = difference[: len(difference) // block * block].view(-1, block).mean(1)
    error = float(blocks.std()) / len(blocks) ** 0.5 if len(blocks) > 1 else math.nan
    return Rise(factor - 1, factor * error)


def read_texts(
    names: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, part: str = "evaluation", limit: int = 0
) -> dict[str, Tensor]:
    """Token ids of texts by name, int64 ``[tokens]``, cut to ``limit`` if it is not 0.

    Args:
        names: as :func:`reference.data.text.read`.
        tokenizer: of the model.
        part: "evaluation" or "calibration".
        limit: tokens of each text, from its start.

    Raises:
        ValueError: a name that :func:`reference.data.text.read` does not know, twice the same, or none.

    Example:
        >>> from reference.models import tutorial
        >>> tokenizer = tutorial.tokenizer()
        >>> ids = read_texts(["code"], tokenizer, limit=8)["code"]
        >>> len(ids), text.read("code").startswith(tokenizer.decode(ids))
        (8, True)

    Chapter: none (reads texts)
    """
    if not names or len(set(names)) < len(names):
        raise ValueError(f"texts are {list(names)}; one or more are needed, each once")
    found = {name: text.encode(text.read(name, part), tokenizer) for name in names}
    return {name: ids[:limit] if limit else ids for name, ids in found.items()}


def draw(texts: Mapping[str, Tensor], sequences: int, window: int, seed: int = 0) -> list[Tensor]:
    """Calibration batches, as many sequences from each text.

    Args:
        texts: token ids by name.
        sequences: in all; rounded up to as many from each text.
        window: tokens each.
        seed: of the draw.

    Returns:
        int64 ``[batch, length]`` each, text after text.

    Example:
        >>> texts = {"code": torch.arange(100), "prose": torch.arange(500, 600)}
        >>> [(tuple(batch.shape), int(batch.min()) >= 500) for batch in draw(texts, sequences=3, window=10)]
        [((2, 10), False), ((2, 10), True)]

    Chapter: practice/quantization_workflow
    """
    share = -(-sequences // len(texts))
    drawn = [batches(ids, sequences=share, length=min(window, len(ids)), seed=seed) for ids in texts.values()]
    return [batch for batches_of_text in drawn for batch in batches_of_text]


def nats(
    model: PreTrainedModel, texts: Mapping[str, Tensor], window: int, progress: Callable[[list], Iterable] = iter
) -> dict[str, Tensor]:
    """Losses of each text's tokens, the window moving by half of itself.

    Args:
        model: in evaluation mode.
        texts: token ids by name.
        window: tokens that the model sees at once.
        progress: wraps the list of windows.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8,
        ...                      num_hidden_layers=1, num_attention_heads=2)
        >>> found = nats(LlamaForCausalLM(config).eval(), {"mine": torch.arange(20) % 8}, window=8)
        >>> len(found["mine"]), bool((found["mine"] > 0).all())  # all tokens but the first
        (19, True)

    Chapter: none (a loop over texts)
    """
    return {
        name: token_losses(model, ids, window=window, stride=max(1, window // 2), progress=progress)
        for name, ids in texts.items()
    }


def rises(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """:func:`rise` of each text as JSON-ready dictionaries.

    Args:
        before, after: losses by text, nats ``[tokens]``.

    Example:
        >>> before = {"code": torch.zeros(4), "prose": torch.zeros(4)}
        >>> after = {"code": torch.zeros(4), "prose": torch.full((4,), math.log(1.5))}
        >>> {name: round(found["fraction"], 4) for name, found in rises(before, after).items()}
        {'code': 0.0, 'prose': 0.5}

    Chapter: none (a loop over texts)
    """
    return {name: rise(before[name], after[name])._asdict() for name in before}


def worst(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Any]:
    """The largest rise over texts, its error, and the rises of all: ``{"rise", "error", "texts"}``.

    Example:
        >>> before = {"code": torch.zeros(4), "prose": torch.zeros(4)}
        >>> after = {"code": torch.zeros(4), "prose": torch.full((4,), math.log(1.5))}
        >>> round(worst(before, after)["rise"], 4)
        0.5

    Chapter: none (a loop over texts)
    """
    found = rises(before, after)
    name = max(found, key=lambda name: found[name]["fraction"])
    return {"rise": found[name]["fraction"], "error": found[name]["error"], "texts": found}


@torch.no_grad()
def decoding_gap(model: PreTrainedModel, ids: Tensor) -> float:
    """Mean difference, in nats a token, between computing tokens one by one with a cache and all at once.

    The two may take different operators: a quality that was measured on prompts need not be that of what is written.

    Args:
        model: as it will serve.
        ids: int64 ``[tokens]``, 2 or more.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8,
        ...                      num_hidden_layers=1, num_attention_heads=2)
        >>> decoding_gap(LlamaForCausalLM(config).eval(), torch.arange(8)) < 1e-4
        True

    Chapter: practice/quantization_workflow
    """
    whole = model(input_ids=ids[None, :-1]).logits[0].float().log_softmax(-1)
    cache, single = None, []
    for token in ids[:-1]:
        out = model(input_ids=token.view(1, 1), past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        single.append(out.logits[0, -1].float().log_softmax(-1))
    picked = ids[1:, None]
    return float((whole.gather(1, picked) - torch.stack(single).gather(1, picked)).abs().mean())


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes, once.

    Example:
        >>> 0.01 < seconds(lambda: time.sleep(0.02))
        True

    Chapter: none (plumbing)
    """
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@torch.no_grad()
def speeds(models: Mapping[str, PreTrainedModel], window: int, *, repeats: int = 9) -> dict[str, dict[str, float]]:
    """Tokens a second of several models, timed in turns.

    Args:
        models: by name.
        window: tokens of a prompt.
        repeats: rounds.

    Returns:
        Name → ``"prompt"``, tokens a second where all tokens of a window are computed at once, and ``"decoding"``, one
        new token for one sequence whose cache holds half a window; medians.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8,
        ...                      num_hidden_layers=1, num_attention_heads=2)
        >>> found = speeds({"tiny": LlamaForCausalLM(config).eval()}, window=64, repeats=4)["tiny"]
        >>> found["prompt"] > found["decoding"] > 0  # 64 tokens at once, or one
        True

    Chapter: practice/quantization_workflow
    """
    calls: dict[str, Callable[[], object]] = {}
    for name, model in models.items():
        ids = torch.arange(window)[None] % model.config.vocab_size
        calls[f"{name} prompt"] = lambda model=model, ids=ids: model(input_ids=ids, use_cache=False)  # type: ignore[misc]
        calls[f"{name} decoding"] = decode_step(model, 1, context=max(1, window // 2))
    times = compare(calls, repeats=repeats, warmup=2)
    return {
        name: {"prompt": window / times[f"{name} prompt"].median, "decoding": 1 / times[f"{name} decoding"].median}
        for name in models
    }


def load(folder: Path) -> PreTrainedModel:
    """The model of a folder, compressed or not, as it would be served here.

    Example:
        >>> from reference.models.tutorial import PATH
        >>> model = load(PATH)
        >>> type(model).__name__, model.config.num_hidden_layers
        ('LlamaForCausalLM', 6)

    Chapter: none (loading)
    """
    compressed = "quantization_config" in json.loads((folder / "config.json").read_text())
    return checkpoint.load(folder) if compressed else loading.load_float(folder)


def checked_model(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model that can be measured here: one that predicts tokens, in float.

    Raises:
        ValueError: an encoder, a model without a tokenizer, or one that is quantised already.

    Example:
        >>> from reference.models.tutorial import PATH
        >>> tokenizer = checked_model(PATH)
        >>> tokenizer.decode(tokenizer("x = 1")["input_ids"])
        'x = 1'

    Chapter: none (checks)
    """
    loading.model_class(folder)
    config: Any = loading.float_config(folder)
    if family_of_type(config.model_type).head is None:
        raise ValueError(
            f"{str(folder)!r} is an encoder ({config.model_type}): it predicts no tokens, so there is no perplexity to hold. "
            "Compress it with the quantize command and judge it by its task"
        )
    tokenizer = loading.load_tokenizer(folder)
    if tokenizer is None:
        raise ValueError(f"model folder {str(folder)!r} has no tokenizer, so its loss on a text cannot be measured")
    return tokenizer


def check_window(
    folder: Path, window: int, texts: Mapping[str, Tensor], trained: Mapping[str, Tensor], least: int
) -> None:
    """Refuse a window that the model or the texts are too short for, before any work.

    Args:
        folder: of the model.
        window: tokens that the model sees at once.
        texts: to measure on; they hold two tokens or more.
        trained: to calibrate and train on; they hold ``least`` tokens or more.
        least: tokens of the window that training draws, 0 where nothing is trained.

    Raises:
        ValueError: which of them it is.

    Example:
        >>> from reference.models.tutorial import PATH
        >>> check_window(PATH, 256, {"mine": torch.arange(300)}, {}, least=0)
        >>> check_window(PATH, 10_000, {"mine": torch.arange(300)}, {}, least=0)
        Traceback (most recent call last):
            ...
        ValueError: window is 10000; it may be 2 to 512, the model's positions

    Chapter: none (checks)
    """
    longest = getattr(loading.float_config(folder), "max_position_embeddings", None)
    widest = max(window, least)
    if window < 2 or (longest is not None and widest > longest):
        raise ValueError(
            f"window is {widest if window >= 2 else window}; it may be 2 to {longest}, the model's positions"
        )
    for name, ids in texts.items():
        if len(ids) < 2:
            raise ValueError(f"text {name!r} has {len(ids)} tokens; 2 are needed to predict one")
    for name, ids in trained.items():
        if len(ids) < least:
            raise ValueError(
                f"calibration text {name!r} has {len(ids)} tokens; training draws windows of {least} from it"
            )
