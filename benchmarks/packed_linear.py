"""Time QuantizedLinear against nn.Linear: when is it worth computing from packed codes?

    python benchmarks/packed_linear.py

For each shape and number of rows, the best of many calls on one thread: a dense layer in bfloat16
and in float32, the packed layer (its int4 operator up to four rows, dequantising above), and the
packed layer made to dequantise always. Calls of the four are interleaved, so that another job on
the machine slows all alike. Only ratios within one run are comparable.
"""

import argparse
import json
import os
import platform
import sys
from datetime import date
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn

from reference.hardware.latency import compare
from reference.layers import FEW_ROWS, QuantizedLinear
from reference.quantization.grid import QuantizationSpec
from reference.quantization.round_to_nearest import quantize_layer

#: outputs, inputs, group size: the shipped model's layers, and two of the sizes of large models.
SHAPES = ((256, 256, 128), (768, 256, 128), (1024, 1024, 128), (4096, 4096, 128))
ROWS = (1, 4, 16, 64)
RESULT = Path(__file__).parent / "results" / "packed_linear.json"


@torch.inference_mode()
def measure(outputs: int, inputs: int, group_size: int, rows: int, seconds: float) -> dict:
    """One row of the result."""
    generator = torch.Generator().manual_seed(0)
    dense = nn.Linear(inputs, outputs, bias=False)
    dense.weight.data = 0.02 * torch.randn(outputs, inputs, generator=generator)
    half = nn.Linear(inputs, outputs, bias=False, dtype=torch.bfloat16)
    half.weight.data = dense.weight.data.bfloat16()
    weight = quantize_layer(half.weight.data, QuantizationSpec(4, symmetric=True, group_size=group_size))
    packed, always = QuantizedLinear(weight), QuantizedLinear(weight).exact()
    x = torch.randn(rows, inputs, generator=generator)
    x_half = x.bfloat16()
    functions = {
        "float32": lambda: dense(x),
        "bfloat16": lambda: half(x_half),
        "packed": lambda: packed(x_half),
        "dequantise": lambda: always(x_half),
    }
    times = compare(functions, repeats=5, warmup=1, seconds=seconds)
    best = {name: found.best for name, found in times.items()}
    return {
        "outputs": outputs,
        "inputs": inputs,
        "group_size": group_size,
        "rows": rows,
        "way": "int4 operator" if rows <= FEW_ROWS else "dequantise",
        "milliseconds": {name: round(1e3 * value, 4) for name, value in best.items()},
        "times_faster_than_bfloat16": round(best["bfloat16"] / best["packed"], 3),
        "times_faster_than_float32": round(best["float32"] / best["packed"], 3),
        "bytes": {"bfloat16": half.weight.nbytes, "packed": weight.nbytes},
    }


def cpu() -> str:
    """The processor's name, as Linux gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, 1 thread"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each shape and number of rows")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    values = [measure(*shape, rows, arguments.seconds) for shape in SHAPES for rows in ROWS]
    record = {
        "name": "packed_linear",
        "what": "Milliseconds of one linear layer, 4-bit symmetric against dense; best of many interleaved calls",
        "values": values,
        "command": " ".join(["python", "benchmarks/packed_linear.py", *sys.argv[1:]]),
        "device": cpu(),
        "date": date.today().isoformat(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "load": [round(load, 2) for load in os.getloadavg()],
        "seed": 0,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")
    for row in values:
        size = f"{row['outputs']}×{row['inputs']} rows {row['rows']}"
        print(f"{size:24} {row['milliseconds']}  {row['times_faster_than_bfloat16']}× bfloat16")


if __name__ == "__main__":
    main()
