"""Time the GPTQ solver over its floor, and its memory over its inputs.

    python benchmarks/gptq.py

The floor is what no implementation of the algorithm avoids: two Cholesky factorisations and one
inverse of the Hessian, and one matrix product for each block of columns, here with nothing else.
Floor and solver take turns on one thread in one process, so that another job on the machine slows
both; the best of several turns counts. Only ratios within one run are comparable. Peak memory is
measured in a process of its own: the largest resident size, minus what was resident with both
inputs in place before the call.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import torch
from packed_linear import cpu
from torch import Tensor

from reference.quantization import gptq
from reference.quantization.grid import QuantizationSpec

#: outputs, inputs, turns.
SHAPES = ((1024, 1024, 20), (2048, 2048, 8), (4096, 4096, 4), (4096, 11008, 1))
BLOCK = 128
GRID = QuantizationSpec(4, symmetric=True, group_size=128)
#: Settings that do more than the usual one, timed at one size.
VARIANTS: dict[str, tuple[QuantizationSpec, dict[str, bool]]] = {
    "g128": (GRID, {}),
    "one grid a row": (QuantizationSpec(4), {}),
    "g128, act-order": (GRID, {"act_order": True}),
    "g128, act-order, static groups": (GRID, {"act_order": True, "static_groups": True}),
}
VARIANTS_AT = (2048, 2048, 8)
RESULT = Path(__file__).parent / "results" / "gptq.json"


def problem(outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
    """A weight and the Hessian of inputs of unequal size, made without large temporaries."""
    generator = torch.Generator().manual_seed(0)
    size = torch.rand(inputs, generator=generator) * 3 + 0.1
    total = gptq.HessianAccumulator(inputs)
    for _ in range(0, 2 * inputs, 512):
        total.add(torch.randn(512, inputs, generator=generator) * size)
    return torch.empty(outputs, inputs).normal_(generator=generator), total.hessian


def floor(hessian: Tensor, weight: Tensor) -> tuple[float, float]:
    """Seconds of the factorisations of a damped Hessian, and of the block products."""
    start = time.perf_counter()
    factor, info = hessian.mT, torch.empty((), dtype=torch.int32)
    torch.linalg.cholesky_ex(factor, out=(factor, info))
    torch.cholesky_inverse(factor, out=factor)
    torch.linalg.cholesky_ex(factor, upper=True, out=(factor, info))
    middle = time.perf_counter()
    assert not info
    for begin in range(0, len(weight), BLOCK):
        end = begin + BLOCK
        weight[end:].addmm_(factor[begin:end, end:].T, weight[begin:end], alpha=-1e-9)
    return middle - start, time.perf_counter() - middle


def measure(outputs: int, inputs: int, turns: int, variants: dict) -> list[dict]:
    """Best times of the floor and of the solver in each variant, in turns."""
    weight, hessian = problem(outputs, inputs)
    transposed, damping = weight.T.contiguous(), 0.01 * hessian.diagonal().mean()
    factors = products = float("inf")
    best = dict.fromkeys(variants, float("inf"))
    for _ in range(turns):
        damped = hessian.clone()
        damped.diagonal().add_(damping)
        first, second = floor(damped, transposed)
        del damped
        factors, products = min(factors, first), min(products, second)
        for name, (spec, options) in variants.items():
            start = time.perf_counter()
            gptq.solve(weight, hessian, spec, block_size=BLOCK, **options)
            best[name] = min(best[name], time.perf_counter() - start)
    return [
        {
            "outputs": outputs,
            "inputs": inputs,
            "setting": name,
            "turns": turns,
            "milliseconds": {
                "factorisations": round(1e3 * factors, 2),
                "block products": round(1e3 * products, 2),
                "solver": round(1e3 * seconds, 2),
            },
            "solver_over_floor": round(seconds / (factors + products), 3),
        }
        for name, seconds in best.items()
    ]


def status(field: str) -> int:
    """A field of ``/proc/self/status`` in KiB; ``ru_maxrss`` would count the parent, from before ``exec``."""
    words = Path("/proc/self/status").read_text().split()
    return int(words[words.index(f"{field}:") + 1])


def peak(outputs: int, inputs: int) -> dict:
    """Memory of one call in this process, in MiB; for a process that has done nothing else."""
    gptq.solve(*problem(256, 256), GRID)  # libraries allocate their buffers
    weight, hessian = problem(outputs, inputs)
    resident = status("VmRSS")
    gptq.solve(weight, hessian, GRID, block_size=BLOCK)
    used = (status("VmHWM") - resident) / 1024
    allowed = 4 * (outputs * inputs + 2 * inputs**2 + BLOCK * outputs) / 2**20
    return {"working_mib": round(used, 1), "allowed_mib": round(allowed, 1)}


def peak_elsewhere(outputs: int, inputs: int) -> dict:
    """:func:`peak` in a fresh process."""
    command = [sys.executable, __file__, "--peak", str(outputs), str(inputs)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, default=len(SHAPES), help="how many of the sizes, smallest first")
    parser.add_argument("--peak", type=int, nargs=2, help="print the memory of one size in this process")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak:
        print(json.dumps(peak(*arguments.peak)))
        return
    values = []
    for shape in SHAPES[: arguments.sizes]:
        variants = VARIANTS if shape == VARIANTS_AT else {"g128": VARIANTS["g128"]}
        rows = measure(*shape, variants)
        rows[0]["memory"] = peak_elsewhere(*shape[:2])
        values += rows
        for row in rows:
            size = f"{row['outputs']}×{row['inputs']}, {row['setting']}"
            print(f"{size:45} {row['solver_over_floor']}× the floor", row["milliseconds"], row.get("memory", ""))
    record = {
        "name": "gptq",
        "what": "GPTQ of one linear layer at 4 bits over its floor (factorisations and block products); best of turns",
        "values": values,
        "command": " ".join(["python", "benchmarks/gptq.py", *sys.argv[1:]]),
        "device": cpu(),
        "date": date.today().isoformat(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "load": [round(load, 2) for load in os.getloadavg()],
        "seed": 0,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
