"""Collect what the three studies of the chapter found, and what they trained.

    python studies/dynamic_bits.py --results /tmp/dynamic
    python studies/dynamic_exits.py --results /tmp/dynamic
    python studies/dynamic_tokens.py --results /tmp/dynamic --payload /tmp/payload      # see there for the payload
    python studies/dynamic.py --results /tmp/dynamic

Writes ``book/data/dynamic.json`` and ``reference/dynamic/trained.safetensors`` (exit heads).
"""

import argparse
import json
import platform
from pathlib import Path

import recording
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[1]


def rounded(value: object) -> object:
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True)
    folder = parser.parse_args().results
    bits, exits = (json.loads((folder / f"{name}.json").read_text()) for name in ("bits", "exits"))
    runs = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*_[0-9].json"))}
    student = runs.pop("student_0")
    trained = load_file(folder / "heads.safetensors")
    save_file(trained, ROOT / "reference/dynamic/trained.safetensors")
    allocations = {
        key: value for key, value in bits.items() if key.startswith(("round_to_nearest", "gptq"))
    }  # fmt: skip
    for value in allocations.values():  # of 42 layers; which has how many is seen in the chapter
        chosen = list(value.pop("bits").values())
        value["layers_of_bits"] = {str(b): chosen.count(b) for b in sorted(set(chosen))}
    tables = bits["tables"]
    tables.pop("shuffled")
    recording.write(
        ROOT / "book/data/dynamic.json",
        what="Bits by layer under a byte budget; exit heads on the topics task; token skipping after training; losses "
        "of two models on requests",
        values=rounded({
            "bits": {"tables": tables, "seconds": bits["seconds"], "additivity": bits["additivity"],
                     "allocations": allocations},
            "exits": exits, "tokens": runs, "models": student,
        }),
        command="python studies/dynamic.py --results RESULTS",
        device=f"{platform.machine()} CPU, one core",
        seed=sorted({run["seed"] for run in runs.values()}),
        packages=("scipy", "transformers", "scikit-learn"),
    )  # fmt: skip


if __name__ == "__main__":
    main()
