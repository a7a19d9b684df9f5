"""Compare our GPTQ with the codes of the authors' class on the inputs recorded in ``tests/parity``.

    python studies/gptq_parity.py

Writes ``book/data/gptq_parity.json``: for each of the 27 recorded configurations the per cent of
equal codes, and the squared error of the layer's output over that of the authors' codes.
"""

import json
from pathlib import Path

import numpy as np
import torch

from reference.quantization import gptq
from reference.quantization.grid import QuantizationSpec

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "book/data/gptq_parity.json"
PROBLEMS = ("gptq_a", "gptq_b_dead_outlier")


def setting(config: dict) -> str:
    """What a configuration is, in words."""
    grouping = "tensor" if not config["perchannel"] else "row"
    if config["groupsize"] != -1:
        grouping = f"g{config['groupsize']}"
    words = [f"{config['bits']} bits", grouping, "symmetric" if config["sym"] else "affine"]
    words += [word for word, key in (("act-order", "actorder"), ("static groups", "static_groups")) if config[key]]
    words += ["clipping search"] * config["mse"] + [f"blocks of {config['blocksize']}"] * (config["blocksize"] != 128)
    words += [f"damping {config['percdamp']}"] * (config["percdamp"] != 0.01)
    return ", ".join(words)


def compare(stored: dict[str, np.ndarray], config: dict) -> dict:
    """One configuration: our codes against the recorded ones."""
    spec = QuantizationSpec(
        config["bits"],
        symmetric=config["sym"],
        group_size=None if config["groupsize"] == -1 else config["groupsize"],
        per_tensor=not config["perchannel"],
        clip_search=config["mse"],
    )
    weight, hessian = torch.from_numpy(stored["W"]).float(), torch.from_numpy(stored["H"])
    found = gptq.solve(
        weight, hessian, spec, damping=config["percdamp"], block_size=config["blocksize"],
        act_order=config["actorder"], static_groups=config["static_groups"],
    )  # fmt: skip
    group = torch.from_numpy(stored[f"{config['key']}_g_idx"]).long()
    error = found.scale[:, group] * (found.codes.float() - found.zero_point[:, group]) - weight
    squared = ((error.double() @ hessian.double()) * error.double()).sum().item()
    same = (found.codes.numpy() == stored[f"{config['key']}_codes"]).mean()
    return {
        "setting": setting(config),
        "equal_codes_percent": round(100 * float(same), 4),
        "error_over_authors": round(squared / config["objective_trace_EHE"], 6),
    }


def values() -> dict[str, dict]:
    """Every configuration of every recorded problem, on one thread; a second."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    result = {}
    for problem in PROBLEMS:
        settings = json.loads((ROOT / f"tests/parity/{problem}.json").read_text())
        with np.load(ROOT / f"tests/parity/{problem}.npz", allow_pickle=False) as file:
            stored = dict(file)
        result[problem] = {config["key"]: compare(stored, config) for config in settings["configs"]}
    torch.set_num_threads(threads)
    return result


def main() -> None:
    import recording  # a test imports this module for its values, from another folder

    recording.write(
        RESULT,
        what="Our GPTQ against the codes of the authors' class, 27 configurations of two layers",
        values=values(),
        command="python studies/gptq_parity.py",
        device=recording.ONE_THREAD,
        seed=0,
        cheap=True,
        check="studies.gptq_parity.values",
        tolerance=0.01,
        notes="The inputs and the authors' codes are in `tests/parity`; another BLAS may move codes that lie on a tie.",
    )


if __name__ == "__main__":
    main()
