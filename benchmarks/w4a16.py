"""Time w4a16 on a GPU against bfloat16 and torch's own 4-bit kernel; one JSON line per case.

    PYTHONPATH=. python benchmarks/w4a16.py --output w4a16.jsonl

Each case runs over copies of the weight that together exceed the L2 cache four times, in one CUDA graph, so that
weights come from memory and launches cost nothing; kernel and peers alternate within the same process. Times are
microseconds per call. `fraction_of_copy` is the bytes that the product needs (weight, scale, zero point, x, y, each
once) per second, over what a plain copy moves on this card.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from reference.kernels.w4a16 import w4a16

SHAPES = [(4096, 4096), (11008, 4096), (14336, 4096), (8192, 8192)]
ROWS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
REPLAYS = 30


def replays(call: Callable[[int], Tensor], copies: int) -> Callable[[], float]:
    """Capture ``call(0) … call(copies - 1)`` once; the result replays them and returns microseconds per call."""
    for i in range(2):
        call(i % copies)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(copies):
            call(i)

    def once() -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1000 / copies

    return once


def spread(times: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(times, n=10)
    return {"median": statistics.median(times), "p20": cuts[1], "p80": cuts[7], "n": len(times)}


def copy_ceiling() -> float:
    """GB/s read and written by copying 1 GiB."""
    source = torch.randint(0, 255, (2**30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    once = replays(lambda i: target.copy_(source), 2)
    return 2 * source.numel() / statistics.median(once() for _ in range(10)) / 1000


def pack(codes: Tensor) -> Tensor:
    shifts = 4 * torch.arange(8, device=codes.device, dtype=torch.int32)
    return (codes.view(codes.shape[0], -1, 8) << shifts).sum(-1, dtype=torch.int32)


def measure(rows: int, outputs: int, columns: int, group_size: int, copies: int, ceiling: float) -> dict:
    groups = columns // group_size
    codes = torch.randint(0, 16, (outputs, columns), dtype=torch.int32, device="cuda")
    scale = (torch.rand((outputs, groups), device="cuda") * 0.01).bfloat16()
    zero_point = torch.randint(0, 16, (outputs, groups), dtype=torch.uint8, device="cuda")
    x = torch.randn((copies, rows, columns), device="cuda", dtype=torch.bfloat16)
    spread_out = [t.float().repeat_interleave(group_size, 1) for t in (scale, zero_point)]
    weight = spread_out[0] * (codes - spread_out[1])
    # torch's kernel: W = (u - 8) s + z with z in units of the weight; even columns in the high nibble of a byte.
    nibbles = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8)
    shift = (8 - zero_point.float()) * scale.float()
    scale_and_shift = torch.stack((scale.float(), shift), -1).transpose(0, 1).contiguous().bfloat16()

    ours = [(pack(codes), scale.clone(), zero_point.clone()) for _ in range(copies)]
    theirs = [(torch.ops.aten._convert_weight_to_int4pack(nibbles, 8), scale_and_shift.clone()) for _ in range(copies)]
    dense = [weight.bfloat16() for _ in range(min(copies, 4 + copies // 4))]
    calls: dict[str, Callable[[int], Tensor]] = {
        "w4a16": lambda i: w4a16(x[i], *ours[i], group_size=group_size),
        "int4pack_mm": lambda i: torch.ops.aten._weight_int4pack_mm(x[i], theirs[i][0], group_size, theirs[i][1]),
        "bfloat16": lambda i: F.linear(x[i], dense[i % len(dense)]),
    }
    expected = x[0].double() @ weight.double().T
    errors = {name: ((call(0).double() - expected).norm() / expected.norm()).item() for name, call in calls.items()}
    timers = {name: replays(call, copies) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(REPLAYS):
        for name, once in timers.items():
            times[name].append(once())
    moved = outputs * columns // 2 + 3 * outputs * groups + 2 * rows * (columns + outputs)
    median = {name: statistics.median(values) for name, values in times.items()}
    gbps = moved / median["w4a16"] / 1000
    return {
        "shape": {"M": rows, "N": outputs, "K": columns},
        "group_size": group_size,
        "dtype": "bfloat16",
        "copies": copies,
        "bytes": moved,
        "flops": 2 * rows * outputs * columns,
        "time_us": {name: spread(values) for name, values in times.items()},
        "gbps": gbps,
        "fraction_of_copy": gbps / ceiling,
        "speedup_over": {name: median[name] / median["w4a16"] for name in ("int4pack_mm", "bfloat16")},
        "relative_error": errors,
        "ok": errors["w4a16"] < 2**-8 + 2e-6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("w4a16.jsonl"), help="file to append lines to")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="rows of x (M)")
    parser.add_argument("--group-size", type=int, default=128, help="32, 64, 128 or 256 (what torch's kernel takes)")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/w4a16.py needs an NVIDIA GPU: torch.cuda.is_available() is False")
    import triton

    properties = torch.cuda.get_device_properties(0)
    ceiling = copy_ceiling()
    about = {
        "device": properties.name,
        "date_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "command": " ".join(sys.argv),
        "copy_gbps": ceiling,
    }
    for outputs, columns in SHAPES:
        copies = max(4, -(-4 * properties.L2_cache_size // (outputs * columns // 2)))
        for rows in arguments.rows:
            row = about | measure(rows, outputs, columns, arguments.group_size, copies, ceiling)
            with arguments.output.open("a") as file:
                file.write(json.dumps(row) + "\n")
            took = row["time_us"]["w4a16"]["median"]
            print(
                f"{row['shape']} {took:.1f} us, {row['fraction_of_copy']:.0%} of copy, {row['speedup_over']}",
                flush=True,
            )


if __name__ == "__main__":
    main()
