"""Training under quantisation against calibration alone, on the shipped model, at 4, 3 and 2 bits.

    python studies/tutorial_corpus.py --work /tmp/tutorial             # the training text (Debian's, on CPython 3.11)
    python studies/quantization_aware.py --export /tmp/tutorial --payload /tmp/payload
    python studies/quantization_aware.py --payload /tmp/payload --results /tmp/results --processes 6 --time-limit 280
    python studies/quantization_aware.py --results /tmp/results --collect book/data/quantization_aware.json

The third command takes the runs of ``quantization_aware_runs.py`` in order of importance, a few processes side by side on one GPU, while
others solve on the CPU what the runs start from. It first times some steps and takes as many a run as the time allows
(or ``--steps``). The rate of the 2-bit runs is the best of four on calibration text. A run that has a result is skipped,
so it goes on where it stopped. One run, also under ``torchrun --nproc-per-node 2``, with a checkpoint to resume from
and its loss curve beside it:

    python studies/quantization_aware.py --payload /tmp/payload --results /tmp/results --steps 300 --only 2_bits_g64
"""

import argparse
import fcntl
import functools
import itertools
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from threading import BrokenBarrierError
from typing import Any

import numpy as np
import recording
import torch
from accelerate import Accelerator
from quantization_aware_runs import SWEEP, Run, runs, sweep_name
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from reference import workflow
from reference.calibration import batches
from reference.data import text
from reference.distillation.generated_text import generate_windows
from reference.evaluation import agreement, bits_per_byte, token_losses
from reference.files import atomic_write
from reference.layers import QuantizedLinear
from reference.models import tutorial
from reference.models.families import block_linears, replace_module
from reference.quantization import low_cost
from reference.quantization.activations import ActivationSpec
from reference.quantization.grid import QuantizationSpec
from reference.quantization.preparation import convert, prepare, solved
from reference.quantization.recovery import objective, parameter_groups
from reference.quantization.trained import TrainedLinear, round_together
from reference.tensors import QuantizedTensor
from reference.terminal import ProgressBar
from reference.training import my_rows, random_windows, train

DOMAINS, SHARE = ("code", "documentation"), [0.6, 0.4]
WINDOW, STRIDE, COMPARED = 256, 128, 8192  # of the evaluation; the last is what post_training_methods.py measures
JUDGED = 32768  # calibration tokens of a domain that choose the rate
WANTED, TIMED = 32, 15  # runs that shall fit into the time limit; steps timed for that
STARTING = 30  # seconds before the first run
SPENT_TRAINING = 0.75  # of a process's time; the rest measures
CALIBRATION = 16  # sequences of a domain
EXPORTED = (3_600_000, 2_400_000)  # tokens of each domain
GENERATED = 4096  # windows
RANK = 8


#: Peak rate of AdamW for the matrices of a 2-bit run where no sweep has found another, and for the rest.
RATE, REST_RATE = 1e-3, 3e-4
#: Finer grids need less change: by bits, times the rate at 2.
BY_BITS = {2: 1.0, 3: 0.5, 4: 0.25}
STEP_RATE, SCALES_RATE, LOW_RANK_RATE = 1e-3, 2e-3, 2e-3


def rates(run: Run, options: argparse.Namespace) -> tuple[float, float, float]:
    """Peak rates of matrices, steps, and the rest."""
    rest = REST_RATE if run.rest else 0.0
    if run.recipe == "scales":
        return RATE, SCALES_RATE, rest
    if run.recipe.startswith(("low_rank", "nf4")):
        return LOW_RANK_RATE, STEP_RATE, rest
    return run.rate or best_rate(options) * BY_BITS[run.bits], STEP_RATE, rest


def best_rate(options: argparse.Namespace) -> float:
    """The best of the sweep on calibration text, once all of it is finished; :data:`RATE` alone."""
    paths = {rate: options.results / f"{sweep_name(rate)}.json" for rate in SWEEP}
    while not options.only and not all(path.is_file() for path in paths.values()):
        if time.monotonic() > options.stop:
            raise TimeoutError
        time.sleep(0.2)
    found = {rate: json.loads(path.read_text())["calibration"] for rate, path in paths.items() if path.is_file()}
    return min(found, key=lambda rate: sum(found[rate].values())) if found else RATE


# ---- data


def export(work: Path, payload: Path) -> None:
    """Tokens of the training text, spread over the whole of it, as uint16."""
    tokenizer = tutorial.tokenizer()
    payload.mkdir(parents=True, exist_ok=True)
    kept = {}
    for domain, most in zip(DOMAINS, EXPORTED, strict=True):
        documents = (work / f"train_{domain}.txt").read_text().split("\n\n\n\n")
        ids = [np.array(row.ids, dtype=np.uint16) for row in tokenizer.backend_tokenizer.encode_batch(documents)]
        order = np.random.default_rng(0).permutation(len(ids))
        kept[domain] = torch.from_numpy(np.concatenate([ids[i] for i in order])[:most].copy())
        print(f"{domain}: {len(kept[domain]):,} of {sum(map(len, ids)):,} tokens")
    save_file(kept, payload / "tokens.safetensors")


vocabulary = functools.cache(tutorial.tokenizer)


@functools.cache
def exact_model(device: torch.device) -> nn.Module:
    """The shipped model in float, the teacher of every run."""
    return tutorial.load().to(device).requires_grad_(False)


@functools.cache
def read_tokens(path: Path) -> list[np.ndarray]:
    tensors = load_file(path)
    return [tensors[name].numpy() for name in sorted(tensors)]


@functools.cache
def held_out(part: str, tokens: int | None = None) -> dict[str, tuple[Tensor, int]]:
    """Token ids and the bytes that they predict, by domain."""
    tokenizer, found = vocabulary(), {}
    for domain in DOMAINS:
        ids = text.encode(text.read(domain, part), tokenizer)[:tokens]
        found[domain] = (ids, len(tokenizer.decode(ids[1:], clean_up_tokenization_spaces=False).encode()))
    return found


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Only one process at a time, of those that name the same path."""
    with path.with_name(f".{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# ---- models


def solve(run: Run, folder: Path) -> Path:
    """The file of the shipped model as the run's solver leaves it; made once, since many runs start there."""
    path = start_file(run, folder)
    with alone(path):
        if not path.is_file():
            tokenizer, rows = tutorial.tokenizer(), []
            for domain in DOMAINS:
                ids = text.encode(text.read(domain, "calibration"), tokenizer)
                rows += batches(ids, sequences=CALIBRATION, length=WINDOW, seed=0)
            model = workflow.quantize(tutorial.load(), run.spec, method=run.start, calibration=rows)
            part = path.with_suffix(".part")
            save_file({k: v.contiguous() for k, v in model.state_dict().items() if "lm_head" not in k}, part)
            part.replace(path)
    return path


def start_file(run: Run, folder: Path) -> Path:
    return folder / f"{run.start}_{run.bits}_{run.group}_{run.symmetric}.safetensors"


def quantized(run: Run, folder: Path) -> nn.Module:
    """The shipped model, quantised by the run's solver."""
    model, tensors = tutorial.load(), load_file(solve(run, folder))
    for name, linear in list(block_linears(model)):
        weight = QuantizedTensor(tensors.pop(f"{name}.packed"), tensors.pop(f"{name}.scale"),
                                 tensors.pop(f"{name}.packed_zero_point", None), tuple(linear.weight.shape),
                                 run.spec)  # type: ignore[arg-type] # fmt: skip
        replace_module(model, name, QuantizedLinear(weight))
    model.load_state_dict(tensors, strict=False)  # norms, which AWQ and SmoothQuant rescale
    return model


def student(run: Run, folder: Path) -> nn.Module:
    """The model of a run before its first step."""
    if run.recipe == "float":
        return tutorial.load()
    if run.recipe == "nf4":
        return low_cost.add_low_rank(tutorial.load(), RANK, base=lambda _, linear: low_cost.NF4Linear(linear.weight))
    activations = ActivationSpec(bits=run.activation_bits, restricted=True) if run.activation_bits else None
    options = {"activations": activations, "scaled": run.scaled, "mask": run.mask, "depth": run.depth}
    if run.start == "lsq":
        return round_together(prepare(tutorial.load(), run.spec, start="lsq", **options))  # type: ignore[arg-type]
    model = quantized(run, folder)
    if run.recipe == "scales":
        return low_cost.train_scales(model)
    start = solved(model)
    if run.recipe == "low_rank":
        return low_cost.add_low_rank(model, RANK)
    if run.recipe == "low_rank_error":
        return low_cost.add_low_rank(tutorial.load(), RANK, from_error=True,
                                     base=lambda name, _: QuantizedLinear(start[name]))  # fmt: skip
    if run.start in ("gptq", "round_to_nearest"):
        model = tutorial.load()
    else:  # rescaled channels: the float weights behind the codes are gone, the rounded ones stand in
        for name, weight in start.items():
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            linear.weight = nn.Parameter(weight.dequantize(torch.float32))
            replace_module(model, name, linear)
    model = prepare(model, run.spec, start=start, **options)  # type: ignore[arg-type]
    round_together(model)
    if run.recipe == "fixed":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.endswith(("log_step", "zero_point")))
    return model


def bits_per_weight(model: nn.Module) -> float:
    """Stored bits of the blocks' linear layers, scales, zero points and thin matrices included."""
    stored, weights = 0, 0
    for _, layer in block_linears(model):
        weights += layer.in_features * layer.out_features
        base = layer.base if isinstance(layer, low_cost.LowRankLinear) else layer
        if isinstance(base, nn.Linear):
            stored += 2 * base.weight.numel()
        else:
            packed = isinstance(base, QuantizedLinear | low_cost.NF4Linear)
            stored += (base if packed else base.converted()).tensor.nbytes
        stored += layer.nbytes if isinstance(layer, low_cost.LowRankLinear) else 0
    return 8 * stored / weights


# ---- one run


@torch.no_grad()
def measure(model: nn.Module, texts: dict[str, tuple[Tensor, int]], teacher: nn.Module) -> dict:
    """Bits per byte of the whole text and of its first tokens, and the distance from the float model."""
    model.eval()
    result: dict = {"bits_per_byte": {}, "first_tokens": {}, "kl": {}, "top1": {}}
    tokenizer = vocabulary()
    for domain, (ids, size) in texts.items():
        losses = token_losses(model, ids, window=WINDOW, stride=STRIDE, batch=64)
        result["bits_per_byte"][domain] = bits_per_byte(losses, size)
        first = ids[1:COMPARED]
        length = len(tokenizer.decode(first, clean_up_tokenization_spaces=False).encode())
        result["first_tokens"][domain] = bits_per_byte(losses[: len(first)], length)
        close = agreement(model, teacher, ids[: 64 * WINDOW], window=WINDOW, batch=32)
        result["kl"][domain], result["top1"][domain] = close.kl, close.top1
    return result


def weight_gap(model: nn.Module) -> float:
    """Largest difference of a trained weight from the packed one that serves it."""
    gaps = [
        (layer.quantized_weight.detach() - layer.tensor().dequantize(torch.float32)).abs().max()
        for _, layer in block_linears(model)
        if isinstance(layer, TrainedLinear)
    ]
    return max(map(float, gaps), default=0.0)


def measured_once(run: Run, options: argparse.Namespace, what: str, measured: Callable[[], dict]) -> dict:
    """What several runs have in common, measured by the first of them."""
    path = options.results / f"{what}.measured"
    with alone(path):
        if not path.is_file():
            atomic_write(path, json.dumps(measured()).encode())
    return json.loads(path.read_text())


def before(run: Run) -> str:
    """Runs of the same name here start as the same function."""
    if run.recipe in ("float", "nf4", "low_rank_error"):
        return run.recipe
    return f"before_{run.start}_{run.bits}_{run.group}_{run.symmetric}_{run.activation_bits}"


def execute(run: Run, options: argparse.Namespace, accelerator: Accelerator, steps: int) -> dict:
    """Train and measure one run; raises TimeoutError when the time is up."""
    clock = [time.monotonic()]
    model, teacher = student(run, options.results).to(accelerator.device), exact_model(accelerator.device)
    texts = held_out("evaluation", options.evaluated)
    exact = measured_once(run, options, "float", lambda: measure(teacher, texts, teacher))
    clock.append(time.monotonic())
    result: dict = {"run": asdict(run), "steps": steps, "before": exact}
    if run.recipe != "float":
        result["before"] = measured_once(run, options, before(run), lambda: measure(model, texts, teacher))
    clock.append(time.monotonic())
    if run.recipe != "none":
        if run.text == "real":
            tokens, share = read_tokens(options.payload / "tokens.safetensors"), SHARE
        else:  # whole windows
            tokens = list(generated(options, teacher).numpy())
            share = [1 / len(tokens)] * len(tokens)
        rate, step_rate, rest_rate = result["rates"] = rates(run, options)
        optimizer = torch.optim.AdamW(
            parameter_groups(model, rate, step_rate=step_rate, rest_rate=rest_rate), betas=(0.9, 0.95),
            fused=accelerator.device.type == "cuda",
        )  # fmt: skip
        wrapped, optimizer = accelerator.prepare(model, optimizer)
        loss = objective(wrapped, run.loss, teacher)

        def loss_of_step(step: int) -> Tensor:
            windows = random_windows(
                tokens, share, batch=options.batch, length=options.length, seed=run.seed, step=step
            )
            with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=options.half):
                return loss(my_rows(windows, accelerator))

        curve, checkpoint = [], options.results / f"{run.name}.state" if options.only else None
        begun = time.monotonic()
        rows = train(
            wrapped, loss_of_step, [optimizer], steps=steps, warmup=max(1, steps // 20), decay=0.8,
            checkpoint=checkpoint, every=options.every, accelerator=accelerator,
        )  # fmt: skip
        silent = not options.only or not accelerator.is_main_process
        with ProgressBar(run.name, silent=silent) as progress:
            for _, row in zip(progress(list(range(steps))), rows, strict=False):
                curve.append(row["loss"])
                if time.monotonic() > options.stop:
                    raise TimeoutError
                if options.only and accelerator.is_main_process:
                    with (options.results / f"{run.name}.curve.jsonl").open("a") as file:
                        file.write(json.dumps(row) + "\n")
        result["milliseconds_a_step"] = 1000 * (time.monotonic() - begun) / max(1, len(curve))
        size = max(1, len(curve) // 60)
        result["curve"] = [float(np.mean(curve[i : i + size])) for i in range(0, len(curve), size)]
        accelerator.free_memory()
    clock.append(time.monotonic())
    result["bits_per_weight"] = bits_per_weight(model)
    result["weight_gap"] = weight_gap(model)
    if run.recipe != "none":
        model = convert(model) if run.recipe.startswith(("low_rank", "nf4")) else model
        result["after"] = measure(model, texts, teacher)
    if run.rate:  # of the sweep, which this text judges
        part = held_out("calibration", min(JUDGED, options.evaluated or JUDGED))
        result["calibration"] = {
            domain: bits_per_byte(token_losses(model, ids, window=WINDOW, stride=STRIDE, batch=64), size)
            for domain, (ids, size) in part.items()
        }
    clock.append(time.monotonic())
    result["seconds"] = dict(
        zip(("start", "before", "training", "after"), np.diff(clock).round(2).tolist(), strict=True)
    )
    return result


def generated(options: argparse.Namespace, teacher: nn.Module) -> Tensor:
    """Text of the float model's own, ``[windows, length]``."""
    path = options.results / "generated.safetensors"
    with alone(path):
        if not path.is_file():
            with torch.autocast(teacher.device.type, torch.bfloat16, enabled=options.half):  # type: ignore[arg-type]
                windows = generate_windows(teacher, options.generated, options.length, batch=options.generated)
            part = path.with_suffix(".part")
            save_file({"ids": windows}, part)
            part.replace(path)
    return load_file(path)["ids"]


# ---- many runs


def solver(options: argparse.Namespace, todo: list[Run], counter: Any) -> None:
    """Solve what runs start from, on the CPU, ahead of them."""
    torch.set_num_threads(1)
    for run in take(todo, counter):
        if time.monotonic() < options.stop:
            solve(run, options.results)


def take(todo: list[Run], counter: Any) -> Iterator[Run]:
    """The next of the list that no other process has taken."""
    while True:
        with counter.get_lock():
            index, counter.value = counter.value, counter.value + 1
        if index >= len(todo):
            return
        yield todo[index]


def worker(options: argparse.Namespace, todo: list[Run], counter: Any, paces: Any, barrier: Any) -> None:
    """Take runs from the list until it is empty or there is no time for another."""
    torch.set_num_threads(1)
    accelerator, longest = Accelerator(cpu=options.device == "cpu"), 0.0
    say(options, "imported")
    steps = options.steps or agreed_steps(options, accelerator, paces, barrier)
    later: list[Run] = []
    for run in itertools.chain(take(todo, counter), [None]):
        ready = [waiting for waiting in later if run is None or start_file(waiting, options.results).is_file()]
        later = [waiting for waiting in later if waiting not in ready]
        if run is not None and run.recipe == "none" and not start_file(run, options.results).is_file():
            later.append(run)  # do not wait for the solver
        elif run is not None:
            ready.append(run)
        for chosen in ready:
            path, left = options.results / f"{chosen.name}.json", options.stop - time.monotonic()
            if path.is_file() or left < (5 if chosen.recipe == "none" else max(longest, 5)):
                continue
            started = time.monotonic()
            try:
                result = execute(chosen, options, accelerator, steps)
            except TimeoutError:
                say(options, f"{chosen.name}: no time left")
                continue
            except (RuntimeError, ValueError) as error:  # one recipe must not take the others with it
                say(options, f"{chosen.name}: {error}")
                continue
            if chosen.recipe != "none":
                longest = max(longest, time.monotonic() - started)
            atomic_write(path, json.dumps(result).encode())
            shown = result.get("after", result["before"])["bits_per_byte"]
            say(options, f"{chosen.name:36} {shown['code']:.4f} {shown['documentation']:.4f}  "
                f"{result.get('milliseconds_a_step', 0):.1f} ms a step, {result['seconds']}")  # fmt: skip


def agreed_steps(options: argparse.Namespace, accelerator: Accelerator, paces: Any, barrier: Any) -> int:
    """Steps a run, so that :data:`WANTED` runs of all processes fit the time: timed while all processes step."""
    model, teacher = tutorial.load(), tutorial.load().to(accelerator.device)
    model = round_together(prepare(model, QuantizationSpec(2, symmetric=True, group_size=128))).to(accelerator.device)
    loss = objective(model, "distillation", teacher)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.0), fused=accelerator.device.type == "cuda")
    ids = torch.zeros(options.batch, options.length, dtype=torch.int64, device=accelerator.device)
    with suppress(BrokenBarrierError):
        barrier.wait(60)
    for number in range(5 + TIMED):
        if number == 5:
            started = time.monotonic()
        with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=options.half):
            value = loss(ids)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        value.item()
    paces[os.getpid() % len(paces)] = pace = (time.monotonic() - started) / TIMED
    with suppress(BrokenBarrierError):
        barrier.wait(30)
        pace = max(paces)
    free = (options.time_limit - STARTING) * SPENT_TRAINING * options.processes
    steps = int(min(1000, max(50, free / (WANTED * pace) // 25 * 25)))
    say(options, f"{1000 * pace:.1f} ms a step in each of {options.processes} processes: {steps} steps a run")
    return steps


def say(options: argparse.Namespace, words: str) -> None:
    print(f"{time.monotonic() - options.begun:6.1f} s  {words}", flush=True)


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"


def collect(options: argparse.Namespace) -> None:
    """One file of everything that has a result."""
    found = {run.name: options.results / f"{run.name}.json" for run in runs()}
    values = {name: _rounded(json.loads(path.read_text())) for name, path in found.items() if path.is_file()}
    options.only = "what there is"
    best = sweep_name(best_rate(options))
    if best in values:
        values = {"2_bits_g128": values[best], **values}
    exact = _rounded(json.loads((options.results / "float.measured").read_text()))
    recording.write(
        options.collect,
        what="Bits per byte of the shipped model on the whole held-out text before and after training under "
        "quantisation, by run; 'before' is what the solver that it starts from gives",
        values={"float": exact, "runs": values},
        command=f"python studies/quantization_aware.py --payload PAYLOAD --results RESULTS --processes "
        f"{options.processes} --solvers {options.solvers} --batch {options.batch} --time-limit {options.time_limit:g}",
        device=device_name(),
        seed=sorted({value["run"]["seed"] for value in values.values()}),
    )


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--payload", type=Path, help="folder of the training tokens")
    parser.add_argument("--export", type=Path, help="folder that tutorial_corpus.py filled: write the payload from it")
    parser.add_argument("--results", type=Path, help="folder of results, one file a run")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--solvers", type=int, default=5, help="processes that solve, on the CPU")
    parser.add_argument("--steps", type=int, default=0, help="of a run; 0 takes as many as the time limit allows")
    parser.add_argument("--batch", type=int, default=16, help="windows a step")
    parser.add_argument("--length", type=int, default=512, help="tokens a window")
    parser.add_argument("--time-limit", type=float, default=1e9, help="seconds after which no run is begun")
    parser.add_argument("--only", help="only the run of this name, resumably; works under torchrun")
    parser.add_argument("--every", type=int, default=100, help="steps between two checkpoints, with --only")
    parser.add_argument("--evaluated", type=int, help="tokens of a domain that are measured (all)")
    parser.add_argument("--generated", type=int, default=GENERATED, help="windows that the model writes")
    parser.add_argument("--full", dest="half", action="store_false", help="float32 in place of bfloat16 autocast")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu"))
    parser.add_argument("--collect", type=Path, help="write the recorded file from the results, at the end")
    parser.add_argument(
        "--rates", type=json.loads, default={}, help='other peak rates, as \'{"2": 1e-3, "steps": 1e-3}\''
    )
    options = parser.parse_args()
    options.begun = time.monotonic()
    options.stop = options.begun + options.time_limit
    return options


def main() -> None:
    options = parse()
    if options.export:
        export(options.export, options.payload)
        return
    options.results.mkdir(parents=True, exist_ok=True)
    if options.only:
        (run,) = [run for run in runs() if run.name == options.only]
        accelerator = Accelerator(cpu=options.device == "cpu")
        result = execute(run, options, accelerator, options.steps or 300)
        if accelerator.is_main_process:
            atomic_write(options.results / f"{run.name}.json", json.dumps(result).encode())
        accelerator.end_training()
    elif options.payload:
        many(options)
    if options.collect:
        collect(options)


def many(options: argparse.Namespace) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    context = multiprocessing.get_context("spawn")  # a forked process cannot use the GPU once its parent has looked
    starts = {solve_key: run for run in reversed(runs()) if (solve_key := needs(run))}
    solvers = [run for run in runs() if run in starts.values()]
    counter, solved_counter = context.Value("i", 0), context.Value("i", 0)
    paces, barrier = context.Array("d", options.processes), context.Barrier(options.processes)
    processes = [
        context.Process(target=solver, args=(options, solvers, solved_counter)) for _ in range(options.solvers)
    ]
    processes += [
        context.Process(target=worker, args=(options, runs(), counter, paces, barrier))
        for _ in range(options.processes)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    say(options, f"{len(list(options.results.glob('*.json')))} results")


def needs(run: Run) -> tuple | None:
    """What a run's solver depends on; None where it needs none."""
    solved_by = run.recipe not in ("float", "nf4") and run.start != "lsq"
    return (run.start, run.bits, run.group, run.symmetric) if solved_by else None


if __name__ == "__main__":
    main()
