"""Peak resident memory of quantising a Llama checkpoint whose weights are many times larger than a block.

    python benchmarks/memory.py --gigabytes 1

A synthetic checkpoint (bfloat16, sharded) is written to a temporary folder, and quantised in a process of its own, one
thread, whose peak is read from the kernel (VmHWM). Beside it stand the peak of its anonymous memory, sampled every 10 ms
(pages of mapped files, which hold libraries and finished blocks, can be dropped by the kernel at any time; anonymous
ones cannot), and what a process holds that only imports torch and transformers. Prints one JSON object and writes it to ``benchmarks/results/memory.json``.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "memory.json"
SHAPE = {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16, "num_key_value_heads": 16}
TOKENS = (16, 256)  # calibration sequences, and tokens in each

PEAK = """
def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
"""
IMPORTS = (
    PEAK
    + """
from transformers import LlamaForCausalLM
from reference import pipeline
print(peak())
"""
)
RUN = (
    PEAK
    + """
import json, sys
from pathlib import Path
import torch
from reference import pipeline
from reference.calibration import batches
from reference.quantization.grid import QuantizationSpec
folder, output, method, sequences, length = sys.argv[1:]
tokens = torch.randint(0, 1000, (int(sequences) * int(length) * 2,), generator=torch.Generator().manual_seed(0))
drawn = batches(tokens, sequences=int(sequences), length=int(length))
needs = {}
threading.Thread(target=sample, daemon=True).start()
pipeline.quantize_folder(
    Path(folder), Path(output), QuantizationSpec(4, symmetric=True, group_size=128), method=method,
    calibration=None if method == "round_to_nearest" else drawn, announce=needs.update,
)
print(json.dumps({"peak": peak(), "anonymous_peak": highest, "announced": needs}))
"""
)


def write_model(folder: Path, gigabytes: float) -> int:
    """A random Llama of about this size, written shard by shard; returns the bytes of its weights."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, wide = SHAPE["hidden_size"], SHAPE["intermediate_size"]
    block = 2 * (4 * hidden * hidden + 3 * hidden * wide + 2 * hidden)
    config = LlamaConfig(vocab_size=1000, num_hidden_layers=round(gigabytes * 1e9 / block), **SHAPE)
    config.architectures, config.dtype = ["LlamaForCausalLM"], torch.bfloat16
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    folder.mkdir()
    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    groups: dict[str, dict] = {}
    for name, shape in shapes.items():
        part = name.split(".")[2] if ".layers." in name else "rest"
        groups.setdefault(part, {})[name] = shape
    index = {}
    for part, members in groups.items():
        tensors = {
            name: torch.ones(shape, dtype=torch.bfloat16) if len(shape) == 1
            else (torch.randn(shape, generator=generator) * 0.02).bfloat16()
            for name, shape in members.items()
        }  # fmt: skip
        file = f"model-{part}.safetensors"
        save_file(tensors, folder / file, {"format": "pt"})
        index |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return sum(2 * shape.numel() for shape in shapes.values())


def run(script: str, *arguments: object) -> str:
    """Standard output's last line of a script in a process of its own."""
    root = str(Path(__file__).resolve().parent.parent)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout.splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[1.0, 2.0])
    parser.add_argument("--methods", nargs="+", default=["round_to_nearest", "gptq"])
    arguments = parser.parse_args()
    imports = json.loads(run(IMPORTS))
    rows = []
    for gigabytes in arguments.gigabytes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            size = write_model(folder / "float", gigabytes)
            for method in arguments.methods:
                found = json.loads(run(RUN, folder / "float", folder / method, method, *TOKENS))
                rows.append(
                    {
                        "method": method, "float_bytes": size, **found,
                        "peak_over_float": found["peak"] / size,
                        "peak_above_imports_over_float": (found["peak"] - imports["peak"]) / size,
                        "anonymous_above_imports_over_float": (found["anonymous_peak"] - imports["anonymous"]) / size,
                    }
                )  # fmt: skip
                print(json.dumps(rows[-1]), file=sys.stderr)
    import torch

    result = {
        "command": "python " + " ".join(sys.argv), "machine": platform.machine(), "torch": torch.__version__,
        "imports": imports, "shape": SHAPE, "calibration": TOKENS, "rows": rows,
    }  # fmt: skip
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
