"""Time training many networks at once beside a loop over them: the CPU of this machine, or a GPU.

    python benchmarks/lottery_ticket.py                   # one core, about two minutes; also the book's record
    python benchmarks/lottery_ticket.py --device cuda     # writes results/lottery_ticket_cuda.json

Three networks, Adam, 60 images a step, an order of the images for each network, no masks. A loop trains one network
after the other with a module, autograd and ``torch.optim.Adam``, once as it comes and once in one kernel (``fused``).
Against it stands ``reference.pruning.parallel_training.train`` with the gradients of ``vmap``, and with those written
out by hand as batched matrix products (``chain_gradients``). All arms run in turns and the best time of each counts: another
job on the machine slows all alike.
"""

import argparse
import itertools
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn
from torch.nn import functional

from reference.pruning import parallel_training as parallel
from reference.pruning.chain_gradients import chain_gradients

FOLDER = Path(__file__).parent / "results"
BOOK = FOLDER.parents[1] / "book/data/parallel_training.json"
BATCH, IMAGES, RATE = 60, 2400, 1.2e-3
WIDTHS = {"LeNet-300-100": (784, 300, 100, 10), "quarter image": (196, 100, 10), "8 x 8 image": (64, 32, 10)}


def network(widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def loop(widths: tuple[int, ...], models: int, data: tuple[Tensor, Tensor], fused: bool) -> Callable[[int], None]:
    """Networks one after the other."""
    nets = [network(widths).to(data[0].device) for _ in range(models)]

    def run(steps: int) -> None:
        for seed, net in enumerate(nets):
            optimizer = torch.optim.Adam(net.parameters(), RATE, fused=fused or None)
            rows_of = parallel.orders_of([seed], len(data[0]), batch=BATCH)
            for _ in range(steps):
                rows = next(rows_of)[0].to(data[0].device)
                loss = functional.cross_entropy(net(data[0][rows]), data[1][rows])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()

    return run


def together(
    widths: tuple[int, ...], models: int, data: tuple[Tensor, Tensor], gradient: parallel.Gradient
) -> Callable[[int], None]:
    """All networks in one step."""
    nets = [network(widths).to(data[0].device) for _ in range(models)]
    states = parallel.stack(nets)

    def run(steps: int) -> None:
        parallel.train(nets[0], states, *data, steps=steps, seeds=range(models), rates=[RATE] * models, batch=BATCH,
                       gradient=gradient)  # fmt: skip

    return run


def measure(
    arms: dict[str, Callable[[int], None]], models: int, turns: int, steps: int, cuda: bool
) -> dict[str, float]:
    """Milliseconds for a step of one network, the best of the turns."""
    best = dict.fromkeys(arms, float("inf"))
    for turn in range(turns + 1):  # the first one warms up
        for name, run in arms.items():
            began = time.perf_counter()
            run(steps)
            if cuda:
                torch.cuda.synchronize()
            if turn:
                best[name] = min(best[name], (time.perf_counter() - began) / steps / models * 1000)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    cuda = options.device != "cpu"
    torch.set_num_threads(1)
    values = []
    for name, widths in WIDTHS.items():
        torch.manual_seed(0)
        data = (torch.rand(IMAGES, widths[0], device=options.device),
                torch.randint(0, widths[-1], (IMAGES,), device=options.device))  # fmt: skip
        for models in (1, 5, 20, 60):
            arms = {
                "loop": loop(widths, models, data, fused=False),
                "loop, fused": loop(widths, models, data, fused=True),
                "vmap": together(widths, models, data, parallel.gradients),
                "by hand": together(widths, models, data, chain_gradients),
            }
            found = measure(arms, models, options.turns, options.steps, cuda)
            row = {"network": name, "models": models, **{f"{arm}_ms": round(ms, 4) for arm, ms in found.items()},
                   "vmap_times_as_fast": round(found["loop"] / found["vmap"], 2),
                   "by_hand_times_as_fast": round(found["loop"] / found["by hand"], 2),
                   "by_hand_times_as_fast_as_fused": round(found["loop, fused"] / found["by hand"], 2)}  # fmt: skip
            sys.stderr.write(f"{row}\n")
            values.append(row)
    record = {
        "name": "lottery_ticket",
        "what": "Adam steps of one network of 60 images each, milliseconds, many trained in a loop and at once; best of "
        "interleaved runs",
        "values": {"rows": values},
        "command": "python benchmarks/lottery_ticket.py" + (f" --device {options.device}" if cuda else ""),
        "device": torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU, one thread",
        "date": date.today().isoformat(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "seed": 0,
        "cheap": False,
    }
    target = FOLDER / ("lottery_ticket_cuda.json" if cuda else "lottery_ticket.json")
    target.write_text(json.dumps(record, indent=1) + "\n")
    if not cuda:
        BOOK.write_text(json.dumps(record | {"name": BOOK.stem}, indent=1) + "\n")


if __name__ == "__main__":
    main()
