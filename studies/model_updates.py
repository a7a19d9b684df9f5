"""What a new version of a model leaves of the compression of the old one; and training with compression in mind.

    python studies/tutorial_corpus.py --work /tmp/tutorial             # the training text (Debian's, on CPython 3.11)
    python studies/quantization_aware.py --export /tmp/tutorial --payload /tmp/payload
    python studies/model_updates.py --payload /tmp/payload --work /tmp/updates --collect book/data/model_updates.json

Version 1 is the shipped model; version 2 is version 1 after some hundred steps on documentation alone. Each method
compresses version 1, then version 2 with what was found on version 1 and with what is found anew. The second part trains
small models of the same family from scratch, and the shipped one a little further, with and without a penalty, and
compresses them. On the CPU, one thread, about ten minutes. A part that has a file in ``--work`` is not done again.
Seconds are those of the processor.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import recording
import torch
from model_updates_scratch import scratch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from reference import workflow
from reference.calibration import batches, walk_blocks
from reference.data import text
from reference.evaluation import agreement, bits_per_byte, token_losses
from reference.files import atomic_write
from reference.int8 import Int8Linear
from reference.models import tutorial
from reference.models.families import block_linears, blocks, family_of
from reference.pruning import magnitude
from reference.pruning.masks import Masks
from reference.quantization import gptq, grid, round_to_nearest
from reference.quantization.activations import ActivationSpec
from reference.quantization.channel_scale import fold, foldable
from reference.quantization.grid import QuantizationSpec
from reference.quantization.preparation import prepare
from reference.quantization.recovery import objective, parameter_groups
from reference.quantization.trained import TrainedLinear
from reference.tensors import QuantizedTensor
from reference.training import random_windows, train
from reference.transforms.awq import scale_block
from reference.transforms.smoothquant import smooth_block

DOMAINS = ("code", "documentation")
WINDOW, EVALUATED = 256, 3072  # tokens of a domain
CALIBRATION = 8  # sequences of a domain
W3 = QuantizationSpec(3, symmetric=True, group_size=128)
W2 = QuantizationSpec(2, symmetric=True, group_size=64)
W8 = QuantizationSpec(8, symmetric=True)
STATIC = ActivationSpec(granularity="static")
SPARSITY = 0.6
#: Steps: of the update; of training under quantisation, whole and short; of recovery under a mask, whole and short.
UPDATE, TRAINING, SHORT, RECOVERY = 300, 60, 15, 40


# ---- what is measured


@cache
def held_out(domain: str) -> tuple[Tensor, int]:
    """Token ids, and the bytes that all but the first spell."""
    tokenizer = tutorial.tokenizer()
    ids = text.encode(text.read(domain), tokenizer)[:EVALUATED]
    return ids, len(tokenizer.decode(ids[1:], clean_up_tokenization_spaces=False).encode())


@cache
def calibration() -> list[Tensor]:
    tokenizer, rows = tutorial.tokenizer(), []
    for domain in DOMAINS:
        ids = text.encode(text.read(domain, "calibration"), tokenizer)
        rows += batches(ids, sequences=CALIBRATION, length=WINDOW, seed=0)
    return rows


@torch.no_grad()
def measure(model: nn.Module, exact: nn.Module) -> dict:
    """Bits per byte, and divergence from the version's own float model, by domain."""
    found: dict = {"bits_per_byte": {}, "kl": {}}
    for domain in DOMAINS:
        ids, size = held_out(domain)
        losses = token_losses(model.eval(), ids, window=WINDOW, stride=WINDOW // 2)
        found["bits_per_byte"][domain] = bits_per_byte(losses, size)
        found["kl"][domain] = agreement(model, exact, ids, window=WINDOW).kl
    return found


def kept(path: Path, make: Callable[[], dict]) -> dict:
    """What the file holds; made and written if there is none."""
    if not path.is_file():
        started = time.process_time()
        found = make()
        atomic_write(path, json.dumps(found, indent=1).encode())
        print(f"{path.stem:36} {time.process_time() - started:6.1f} s  {json.dumps(found)[:150]}", flush=True)
    return json.loads(path.read_text())


def timed(make: Callable[[], nn.Module]) -> tuple[nn.Module, float]:
    """A model, and the processor's seconds that it took."""
    started = time.process_time()
    return make(), time.process_time() - started


# ---- training


def run(
    model: nn.Module,
    loss: Callable[[Tensor], Tensor],
    groups: list[dict],
    tokens: list[np.ndarray],
    share: list[float],
    steps: int,
    after: Callable[[], object] = lambda: None,
    batch: int = 4,
) -> nn.Module:
    """Train in place, in bfloat16 where autocast allows."""
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def loss_of_step(step: int) -> Tensor:
        windows = random_windows(tokens, share, batch=batch, length=WINDOW, seed=0, step=step)
        with torch.autocast("cpu", torch.bfloat16):
            return loss(windows)

    for _ in train(model, loss_of_step, [optimizer], steps=steps, warmup=max(1, steps // 10), decay=0.6):
        after()
    return model.eval()


def trained_groups(model: nn.Module, rate: float) -> list[dict]:
    return [{"params": [p for p in model.parameters() if p.requires_grad], "lr": rate}]


def version_2(options: argparse.Namespace) -> nn.Module:
    """The shipped model after more steps, on documentation alone."""
    path = options.work / "version_2.safetensors"
    model = tutorial.load()
    if not path.is_file():
        loss = objective(model, "cross_entropy")
        run(model, loss, trained_groups(model, 5e-4), options.tokens[1:], [1.0], UPDATE, batch=8)
        save_file({name: p.detach().contiguous() for name, p in model.named_parameters()}, path)
    model.load_state_dict(load_file(path), strict=False)
    return model.eval()


# ---- post-training quantization


Weights = Mapping[str, Tensor]


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: layer.get_parameter("weight").detach() for name, layer in block_linears(model)}


def with_weights(model: nn.Module, weights: Weights) -> nn.Module:
    """A copy whose blocks have other matrices."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in weights.items():
            model.get_submodule(name).get_parameter("weight").copy_(weight)
    return model


def rounded(weights: Weights, spec: QuantizationSpec, grids_of: Weights | None = None) -> dict[str, Tensor]:
    """Rounded to nearest, on the grids of other weights if given."""
    found = {}
    for name, weight in weights.items():
        scale, zero = grid.fit((grids_of or weights)[name], spec)
        found[name] = grid.dequantize(grid.quantize(weight, scale, zero, spec), scale, zero, spec)
    return found


@torch.no_grad()
def hessians(model: nn.Module) -> dict[str, Tensor]:
    """Of each layer's inputs in the float model."""
    found, handles = {}, []
    for name, layer in block_linears(model):
        found[name] = gptq.HessianAccumulator(layer.in_features)
        handles.append(layer.register_forward_pre_hook(lambda _, args, name=name: found[name].add(args[0], name)))
    for ids in calibration():
        model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: accumulator.hessian for name, accumulator in found.items()}


def solved(weights: Weights, of: Weights, spec: QuantizationSpec) -> dict[str, QuantizedTensor]:
    return {name: gptq.quantize_layer(weight, of[name], spec, name=name) for name, weight in weights.items()}


def values_of(tensors: Mapping[str, QuantizedTensor]) -> dict[str, Tensor]:
    return {name: tensor.dequantize(torch.float32) for name, tensor in tensors.items()}


@torch.no_grad()
def factors(model: nn.Module, method: str) -> dict[tuple[str, int], Tensor]:
    """The channel factors that AWQ or SmoothQuant finds, read off what they divided; by block and place."""
    changed, family = copy.deepcopy(model), family_of(model)

    def visit(path: str, block: nn.Module, calls: list) -> list[Tensor]:
        if method == "awq":
            return scale_block(block, calls, family.scalings, W3, clip=False, name=path)
        return smooth_block(block, calls, family.scalings, alpha=0.5, name=path)

    walk_blocks(changed, calibration(), visit)
    found = {}
    for index, (block, other) in enumerate(zip(blocks(model), blocks(changed), strict=True)):
        for scaling in family.scalings:
            before, after = (b.get_submodule(scaling.previous).get_parameter("weight") for b in (block, other))
            linears = [block.get_submodule(name) for name in scaling.linears]
            if not foldable(block.get_submodule(scaling.previous), linears):
                continue
            if before.ndim == 2:  # rows divided by one factor each; a scale of the columns has been undone
                columns = _column_factor(found, family, scaling, index, before.shape[1])
                before, after = (before * columns).norm(dim=1), after.norm(dim=1)
            found[scaling.previous, index] = before / after
    return found


def _column_factor(found: dict, family: object, scaling: object, index: int, width: int) -> Tensor:
    """What the columns of a linear layer were multiplied by on behalf of the norm in front of it."""
    for other in family.scalings:  # type: ignore[attr-defined]
        if scaling.previous in other.linears and (other.previous, index) in found:  # type: ignore[attr-defined]
            return found[other.previous, index]
    return torch.ones(width)


def folded(model: nn.Module, found: dict[tuple[str, int], Tensor]) -> nn.Module:
    """A copy that computes the same, with the factors moved from columns into what stands before."""
    model, family = copy.deepcopy(model), family_of(model)
    for index, block in enumerate(blocks(model)):
        for scaling in family.scalings:
            if (scaling.previous, index) in found:
                linears = [block.get_submodule(name) for name in scaling.linears]
                fold(block.get_submodule(scaling.previous), linears, found[scaling.previous, index])
    return model


def static_integers(model: nn.Module, ranges_of: nn.Module | None = None) -> nn.Module:
    """W8A8 with one step an input; the steps are those of another quantised model if given."""
    model = workflow.quantize(copy.deepcopy(model), W8, activations=STATIC, calibration=calibration())
    if ranges_of is not None:
        for name, layer in block_linears(model):
            assert isinstance(layer, Int8Linear)
            layer.input_scale.copy_(ranges_of.get_submodule(name).input_scale)  # type: ignore[operator]
    return model


def post_training(old: nn.Module, new: nn.Module, options: argparse.Namespace) -> dict:
    """Each method: version 1; version 2 with what was found on version 1, and with what is found on version 2."""
    result: dict = {}
    w1, w2 = weights_of(old), weights_of(new)

    hessians_1 = cache(lambda: hessians(old))
    awq_1 = cache(lambda: factors(old, "awq"))
    smooth_1 = cache(lambda: factors(old, "smoothquant"))
    static_1 = cache(lambda: static_integers(folded(old, smooth_1())))

    def compare(name: str, first: Callable, reused: Callable, redone: Callable) -> None:
        def make() -> dict:
            rows = {}
            for prepared in (hessians_1, awq_1, static_1):
                prepared()  # not part of the seconds of the one that reuses it
            for key, build, exact in (("version_1", first, old), ("reused", reused, new), ("redone", redone, new)):
                model, seconds = timed(build)
                rows[key] = {**measure(model, exact), "seconds": seconds}
            return rows

        result[name] = kept(options.work / f"ptq_{name}.json", make)

    compare(
        "round_to_nearest_w3",
        lambda: with_weights(old, rounded(w1, W3)),
        lambda: with_weights(new, rounded(w2, W3, w1)),
        lambda: with_weights(new, rounded(w2, W3)),
    )
    compare(
        "gptq_w3",
        lambda: with_weights(old, values_of(solved(w1, hessians(old), W3))),
        lambda: with_weights(new, values_of(solved(w2, hessians_1(), W3))),
        lambda: with_weights(new, values_of(solved(w2, hessians(new), W3))),
    )

    def awq(model: nn.Module, found: dict) -> nn.Module:
        scaled = folded(model, found)
        return with_weights(scaled, rounded(weights_of(scaled), W3))

    compare(
        "awq_w3",
        lambda: awq(old, factors(old, "awq")),
        lambda: awq(new, awq_1()),
        lambda: awq(new, factors(new, "awq")),
    )
    compare(
        "smoothquant_w8a8_static",
        lambda: static_integers(folded(old, factors(old, "smoothquant"))),
        lambda: static_integers(folded(new, smooth_1()), static_1()),
        lambda: static_integers(folded(new, factors(new, "smoothquant"))),
    )
    return result


def drift(old: nn.Module, new: nn.Module) -> dict:
    """How far the weights, the loudness of channels, and the masks have moved."""
    w1, w2 = weights_of(old), weights_of(new)
    moved = sum(float((w2[n] - w1[n]).square().sum()) for n in w1) / sum(float(w1[n].square().sum()) for n in w1)
    masks = {v: {n: magnitude.mask(w[n], SPARSITY) for n in w} for v, w in (("1", w1), ("2", w2))}
    both = sum(int((masks["1"][n] & masks["2"][n]).sum()) for n in w1)
    either = sum(int(masks["1"][n].sum()) for n in w1)
    codes = [
        (round_to_nearest.quantize_layer(w1[n], W3).codes == round_to_nearest.quantize_layer(w2[n], W3).codes)
        for n in w1
    ]
    return {
        "weights": moved**0.5,
        "mask_kept": both / either,
        "codes_kept": float(torch.cat([c.flatten() for c in codes]).double().mean()),
    }


# ---- training under quantisation, and pruning with recovery


def under_quantization(
    teacher: nn.Module, weights: Weights, start: Mapping[str, QuantizedTensor], steps: int, options: argparse.Namespace
) -> nn.Module:
    """Distil the version's own predictions into 2-bit weights; embedding and norms stay."""
    student = prepare(with_weights(teacher, weights), W2, start=start)
    if steps:
        groups = parameter_groups(student, 1e-3, step_rate=1e-3, rest_rate=0)
        run(student, objective(student, "distillation", teacher), groups, options.tokens, [0.5, 0.5], steps)
    return student.eval()


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    return {n: layer.weight.detach() for n, layer in block_linears(model) if isinstance(layer, TrainedLinear)}


def steps_of(model: nn.Module) -> dict[str, Tensor]:
    return {n: layer.scale.detach() for n, layer in block_linears(model) if isinstance(layer, TrainedLinear)}


def on_steps(weights: Weights, steps: Weights, spec: QuantizationSpec) -> dict[str, QuantizedTensor]:
    """Codes of weights on given symmetric steps."""
    found = {}
    for name, weight in weights.items():
        zero = torch.full_like(steps[name], spec.middle, dtype=torch.int32)
        codes = grid.quantize(weight, steps[name], zero, spec)
        found[name] = QuantizedTensor.from_codes(codes, steps[name], zero, spec)
    return found


def quantization_aware(old: nn.Module, new: nn.Module, options: argparse.Namespace) -> dict:
    """The trained steps, weights and training itself: kept, moved along, shortened, or done again."""
    w1, w2 = weights_of(old), weights_of(new)
    path, result = options.work / "qat_version_1.safetensors", {}

    def first() -> dict:
        start = solved(w1, hessians(old), W2)
        student, seconds = timed(lambda: under_quantization(old, w1, start, TRAINING, options))
        save_file(
            {f"w.{n}": w.contiguous() for n, w in trained_weights(student).items()}
            | {f"s.{n}": s.contiguous() for n, s in steps_of(student).items()}, path)  # fmt: skip
        before = measure(with_weights(old, values_of(start)), old)
        return {**measure(student, old), "before": before, "seconds": seconds}

    result["version_1"] = kept(options.work / "qat_version_1.json", first)
    held = load_file(path)
    weights, steps = ({n: held[f"{part}.{n}"] for n in w1} for part in "ws")
    moved = {n: weights[n] + (w2[n] - w1[n]) for n in w1}

    def add(name: str, build: Callable[[], nn.Module]) -> None:
        def make() -> dict:
            model, seconds = timed(build)
            return {**measure(model, new), "seconds": seconds}

        result[name] = kept(options.work / f"qat_{name}.json", make)

    add("old_codes", lambda: with_weights(new, values_of(on_steps(weights, steps, W2))))
    add("old_steps", lambda: with_weights(new, values_of(on_steps(w2, steps, W2))))
    add("moved_along", lambda: with_weights(new, values_of(on_steps(moved, steps, W2))))
    add("gptq", lambda: with_weights(new, values_of(solved(w2, hessians(new), W2))))
    add("moved_along_short", lambda: under_quantization(new, moved, on_steps(moved, steps, W2), SHORT, options))
    add("gptq_short", lambda: under_quantization(new, w2, solved(w2, hessians(new), W2), SHORT, options))
    add("redone", lambda: under_quantization(new, w2, solved(w2, hessians(new), W2), TRAINING, options))
    return result


def masked(model: nn.Module, masks: Weights, steps: int, options: argparse.Namespace, teacher: nn.Module) -> nn.Module:
    """A pruned copy, trained to predict what the version predicts."""
    model = copy.deepcopy(model)
    matrices = {f"{name}.weight": mask for name, mask in masks.items()}
    hold = Masks(model, matrices)
    if steps:
        loss = objective(model, "distillation", teacher)
        run(model, loss, trained_groups(model, 5e-4), options.tokens, [0.5, 0.5], steps, hold)
    return model.eval()


def pruning(old: nn.Module, new: nn.Module, options: argparse.Namespace) -> dict:
    """The mask and the recovery: kept, moved along, shortened, or done again."""
    w1, w2 = weights_of(old), weights_of(new)
    masks_1, masks_2 = ({n: magnitude.mask(w[n], SPARSITY) for n in w} for w in (w1, w2))
    path, result = options.work / "pruned_version_1.safetensors", {}

    def first() -> dict:
        model, seconds = timed(lambda: masked(old, masks_1, RECOVERY, options, old))
        save_file({n: p.detach().contiguous() for n, p in model.named_parameters()}, path)
        return {**measure(model, old), "before": measure(masked(old, masks_1, 0, options, old), old),
                "seconds": seconds}  # fmt: skip

    result["version_1"] = kept(options.work / "pruned_version_1.json", first)
    recovered = tutorial.load()
    recovered.load_state_dict(load_file(path), strict=False)
    moved = copy.deepcopy(new)
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            parameter += recovered.get_parameter(name) - old.get_parameter(name)

    def add(name: str, build: Callable[[], nn.Module]) -> None:
        def make() -> dict:
            model, seconds = timed(build)
            return {**measure(model, new), "seconds": seconds}

        result[name] = kept(options.work / f"pruned_{name}.json", make)

    add("old_model", lambda: recovered)
    add("old_mask", lambda: masked(new, masks_1, 0, options, new))
    add("new_mask", lambda: masked(new, masks_2, 0, options, new))
    add("moved_along", lambda: masked(moved, masks_1, 0, options, new))
    add("old_mask_recovered", lambda: masked(new, masks_1, RECOVERY, options, new))
    add("new_mask_recovered", lambda: masked(new, masks_2, RECOVERY, options, new))
    add("moved_along_short", lambda: masked(moved, masks_1, SHORT, options, new))
    return result


# ---- all


def parts(options: argparse.Namespace) -> Iterable[tuple[str, dict]]:
    old, new = tutorial.load(), version_2(options)
    yield (
        "versions",
        {
            "version_1": kept(options.work / "version_1.json", lambda: measure(old, old)),
            "version_2": kept(options.work / "version_2.json", lambda: measure(new, new)),
            "old_for_new": kept(options.work / "version_1_for_2.json", lambda: measure(old, new)),
            "drift": kept(options.work / "drift.json", lambda: drift(old, new)),
            "steps": UPDATE,
        },
    )
    yield "post_training", post_training(old, new, options)
    yield "quantization_aware", {**quantization_aware(old, new, options), "steps": TRAINING, "short": SHORT}
    yield "pruning", {**pruning(old, new, options), "steps": RECOVERY, "short": SHORT, "sparsity": SPARSITY}
    yield "from_scratch", scratch(options, kept)


def rounded_numbers(value: object) -> object:
    if isinstance(value, dict):
        return {key: rounded_numbers(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded_numbers(inner) for inner in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--payload", type=Path, required=True, help="folder that quantization_aware.py exported")
    parser.add_argument("--work", type=Path, required=True, help="folder of what is finished")
    parser.add_argument("--collect", type=Path, help="write the recorded file at the end")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    tensors = load_file(options.payload / "tokens.safetensors")
    options.tokens = [tensors[name].numpy() for name in DOMAINS]
    values = dict(parts(options))
    if options.collect:
        recording.write(
            options.collect,
            what="Compression of version 2 of the shipped model with what was found on version 1 and anew: bits per "
            "byte, divergence from version 2 and the processor's seconds; and small models that were trained with "
            "compression in mind",
            values=rounded_numbers(values),
            command="python studies/model_updates.py --payload PAYLOAD --work WORK --collect "
            "book/data/model_updates.json",
            device=recording.ONE_THREAD,
            seed=0,
        )


if __name__ == "__main__":
    main()
