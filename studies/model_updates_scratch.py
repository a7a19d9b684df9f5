"""The second part of ``model_updates.py``: small models, trained from scratch with and without compression in mind."""

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from reference.data import text
from reference.evaluation import bits_per_byte, token_losses
from reference.models import tutorial
from reference.models.families import block_linears
from reference.pruning import magnitude
from reference.pruning.masks import Masks
from reference.quantization import round_to_nearest
from reference.quantization.grid import QuantizationSpec
from reference.quantization.preparation import prepare
from reference.quantization.trained import TrainedLinear
from reference.regularizers import hoyer_penalty, kurtosis, kurtosis_penalty
from reference.training import random_windows, train

WINDOW, BATCH, EVALUATED = 256, 4, 3072
#: Steps at the full rate, and steps in which the rate falls to zero.
FIRST, LAST = 200, 100
RATE, STEP_RATE = 4e-3, 1e-3
#: Steps of the shipped model with a penalty, and their rate.
CONTINUED, CONTINUED_RATE = 60, 5e-4
#: Weights of the penalties in the loss.
KURTOSIS, HOYER = 1.0, 5.0
W3 = QuantizationSpec(3, symmetric=True, group_size=128)
BITS, SPARSITIES, LATE_SPARSITY = (4, 3, 2), (0.5, 0.7), 0.7
#: Name → how the first steps are taken, and how the last.
RUNS = {
    "plain": ("plain", "plain"),
    "kurtosis": ("kurtosis", "kurtosis"),
    "hoyer": ("hoyer", "hoyer"),
    "quantized_late": ("plain", "quantized"),
    "pruned_late": ("plain", "pruned"),
    "quantized": ("quantized", "quantized"),
}


def new_model() -> nn.Module:
    """The shipped model with two blocks of half the width, untrained."""
    config = LlamaConfig.from_pretrained(tutorial.PATH)
    config.num_hidden_layers, config.dtype = 2, torch.float32
    config.hidden_size, config.intermediate_size = 128, 384
    config.num_attention_heads, config.num_key_value_heads = 2, 1
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


def matrices(model: nn.Module) -> list[Tensor]:
    return [layer.get_parameter("weight") for _, layer in block_linears(model)]


def stage(model: nn.Module, kind: str, part: str, options: argparse.Namespace) -> nn.Module:
    """One of the two parts of a run; the model is trained in place, or a copy that rounds is."""
    if kind == "quantized" and not any(isinstance(layer, TrainedLinear) for _, layer in block_linears(model)):
        model = prepare(model, W3)
    masks = None
    if kind == "pruned":
        found = {
            f"{n}.weight": magnitude.mask(layer.weight.detach(), LATE_SPARSITY) for n, layer in block_linears(model)
        }
        masks = Masks(model, found)
    steps_apart = [p for n, p in model.named_parameters() if n.endswith("log_step")]
    rest = [p for n, p in model.named_parameters() if not n.endswith("log_step")]
    groups = [{"params": rest, "lr": RATE}, {"params": steps_apart, "lr": STEP_RATE}]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]], betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    offset, steps = (0, FIRST) if part == "first" else (FIRST, LAST)

    def loss_of_step(step: int) -> Tensor:
        ids = random_windows(options.tokens, [0.6, 0.4], batch=BATCH, length=WINDOW, seed=0, step=offset + step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        return loss + penalty(kind, model)

    warmup, decay = (20, 0.0) if part == "first" else (10, 1.0)
    for row in train(model, loss_of_step, [optimizer], steps=steps, warmup=warmup, decay=decay):
        if masks is not None:
            masks()
        if row["step"] % 50 == 0:
            print(f"  {kind} {part} {row['step']} {row['loss']:.3f}", flush=True)
    return model.eval()


def trained(first: str, last: str, options: argparse.Namespace) -> tuple[nn.Module, float]:
    """A run of two parts, each kept; and the processor's seconds of both."""
    model, seconds = new_model(), 0.0
    for part, kind, name in (("first", first, first), ("last", last, f"{first}_{last}")):
        path: Path = options.work / f"scratch_{part}_{name}.safetensors"
        if path.is_file():
            held = load_file(path)
            seconds += float(held.pop("seconds"))
            if kind == "quantized" and not any(isinstance(layer, TrainedLinear) for _, layer in block_linears(model)):
                model = prepare(model, W3)
            model.load_state_dict(held, strict=False)
            continue
        started = time.process_time()
        model = stage(model, kind, part, options)
        spent = time.process_time() - started
        held = {n: p.detach().contiguous() for n, p in model.named_parameters()}
        save_file(held | {"seconds": torch.tensor(spent, dtype=torch.float64)}, path)
        seconds += spent
    return model.eval(), seconds


@torch.no_grad()
def rate(model: nn.Module) -> dict[str, float]:
    """Bits per byte by domain."""
    tokenizer, found = tutorial.tokenizer(), {}
    for domain in text.DOMAINS:
        ids = text.encode(text.read(domain), tokenizer)[:EVALUATED]
        size = len(tokenizer.decode(ids[1:], clean_up_tokenization_spaces=False).encode())
        found[domain] = bits_per_byte(token_losses(model, ids, window=WINDOW, stride=WINDOW // 2), size)
    return found


@torch.no_grad()
def changed(model: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    model = copy.deepcopy(model)
    for _, layer in block_linears(model):
        layer.weight.copy_(change(layer.weight))
    return model


def result(first: str, last: str, options: argparse.Namespace) -> dict:
    model, seconds = trained(first, last, options)
    if last == "quantized":  # what it computes with is rounded already
        return {"round_to_nearest": {"3": rate(model)}, "seconds": seconds}
    if last == "pruned":
        return {"magnitude": {str(LATE_SPARSITY): rate(model)}, "seconds": seconds}
    return compressed(model, seconds, BITS, SPARSITIES)


def compressed(model: nn.Module, seconds: float, widths: tuple[int, ...], sparsities: tuple[float, ...]) -> dict:
    """Bits per byte as it is, rounded to nearest, and pruned by magnitude; and the shape of its weights."""
    found: dict = {"float": rate(model), "seconds": seconds}
    weights = [weight.detach() for weight in matrices(model)]
    found["kurtosis"] = float(torch.stack([kurtosis(weight) for weight in weights]).mean())
    found["hoyer"] = float(hoyer_penalty(weights))
    found["round_to_nearest"] = {
        str(bits): rate(changed(model, lambda w, bits=bits: round_to_nearest.quantize_layer(
            w, QuantizationSpec(bits, symmetric=True, group_size=128)).dequantize(torch.float32)))
        for bits in widths
    }  # fmt: skip
    found["magnitude"] = {
        str(sparsity): rate(changed(model, lambda w, sparsity=sparsity: w * magnitude.mask(w, sparsity)))
        for sparsity in sparsities
    }
    return found


def continued(kind: str, options: argparse.Namespace) -> dict:
    """The shipped model after some more steps with a penalty or without, and what compression then costs."""
    model, started = tutorial.load(), time.process_time()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=CONTINUED_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )

    def loss_of_step(step: int) -> Tensor:
        ids = random_windows(options.tokens, [0.6, 0.4], batch=BATCH, length=WINDOW, seed=0, step=step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        return loss + penalty(kind, model)

    for _ in train(model, loss_of_step, [optimizer], steps=CONTINUED, warmup=5, decay=0.6):
        pass
    return compressed(model.eval(), time.process_time() - started, (3,), (0.5,))


def penalty(kind: str, model: nn.Module) -> Tensor | float:
    if kind == "kurtosis":
        return KURTOSIS * kurtosis_penalty(matrices(model))
    return HOYER * hoyer_penalty(matrices(model)) if kind == "hoyer" else 0.0


def scratch(options: argparse.Namespace, kept: Callable[[Path, Callable[[], dict]], dict]) -> dict:
    runs = {
        name: kept(options.work / f"scratch_{name}.json", lambda pair=pair: result(*pair, options))
        for name, pair in RUNS.items()
    }
    more = {
        kind: kept(options.work / f"continued_{kind}.json", lambda kind=kind: continued(kind, options))
        for kind in ("plain", "kurtosis", "hoyer")
    }
    return {
        "runs": runs,
        "continued": more,
        "continued_steps": CONTINUED,
        "steps": FIRST + LAST,
        "penalties": {"kurtosis": KURTOSIS, "hoyer": HOYER},
    }
