"""Both LeNets through the three stages of Deep Compression, three seeds, everything counted.

    python studies/deep_compression.py     # about four minutes on one core

Writes ``book/data/deep_compression.json``. Each net and seed is written as soon as it is done; a second start
goes on with what is missing.
"""

import copy
import datetime
import json
import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from reference.codebook_layers import CodebookConv2d, CodebookLinear
from reference.coding import huffman
from reference.coding.sparse_index import relative
from reference.coding.weight_sharing import share
from reference.data import digits
from reference.evaluation import accuracy
from reference.files import atomic_write
from reference.models.vision import LeNet5, LeNet300
from reference.pruning import magnitude
from reference.pruning.masks import Masks
from reference.training import fit, trapezoid

SEEDS = (0, 1, 2)
RESULT = Path(__file__).resolve().parents[1] / "book/data/deep_compression.json"
DECAY = 1e-4
# layer → density, bits of a code; epochs of training, of each round of retraining, of centroids
NETS: dict[str, dict] = {
    "LeNet-300-100": {
        "class": LeNet300, "epochs": (15, 5, 3), "rounds": 3,
        "layers": {"fc1": (0.06, 5), "fc2": (0.09, 5), "fc3": (0.26, 5)},
    },
    "LeNet-5": {
        "class": LeNet5, "epochs": (8, 2, 1), "rounds": 2,
        "layers": {"conv1": (0.5, 6), "conv2": (0.1, 5), "fc1": (0.04, 4), "fc2": (0.2, 5)},
    },
}  # fmt: skip


def fall(step: int, total: int) -> float:
    """The rate rises for 20 steps and falls over the last 70 %."""
    return trapezoid(step, total, warmup=20, decay=0.7)


def learn(model: nn.Module, data: tuple, epochs: int, rate: float, seed: int, **options) -> None:
    optimizer = options.pop("optimizer", None) or torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=DECAY)
    fit(model, *data, epochs=epochs, optimizer=optimizer, seed=seed, schedule=fall, **options)


def prune(model: nn.Module, plan: dict, data: tuple, seed: int) -> Masks:
    """Cut and retrain in rounds; the density falls by the same factor each time."""
    rounds = plan["rounds"]
    masks = None
    for turn in range(1, rounds + 1):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=DECAY)
        weights = dict(model.named_parameters())
        cut = {
            f"{name}.weight": magnitude.mask(weights[f"{name}.weight"], 1 - density ** (turn / rounds))
            for name, (density, _) in plan["layers"].items()
        }
        if masks is not None:
            masks.release()
        masks = Masks(model, cut, optimizer)
        learn(model, data, plan["epochs"][1], 1e-3, seed + 10 * turn, optimizer=optimizer, after_step=masks)
    assert masks is not None
    return masks


def share_layers(model: nn.Module, plan: dict, masks: dict) -> nn.Module:
    """A copy whose layers hold codebooks."""
    shared = copy.deepcopy(model)
    for name, (_, bits) in plan["layers"].items():
        layer = getattr(shared, name)
        tensor = share(layer.weight, masks[f"{name}.weight"], bits)
        stand_in = (
            CodebookLinear.from_linear(layer, tensor)
            if isinstance(layer, nn.Linear)
            else CodebookConv2d.from_conv(layer, tensor)
        )
        setattr(shared, name, stand_in)
    return shared


def layer_bytes(tensor) -> dict:
    """The two Huffman streams and the codebook of a layer, for the index width that makes them shortest."""
    positions = tensor.mask.flatten().nonzero().squeeze(1)
    found: list[dict] = []
    for width in range(1, 9):
        fields, filler = relative(positions, width, tensor.codes.numel())
        codes = np.zeros(len(fields), np.uint8)
        codes[~filler.numpy()] = tensor.codes.flatten()[positions].numpy()
        found.append({
            "index_bits": width, "kept": len(positions), "entries": len(fields),
            "values": len(huffman.encode(codes)), "positions": len(huffman.encode(fields.numpy().astype(np.uint8))),
            "codebook": 4 * (len(tensor.codebook) - 1), "weights": tensor.codes.numel(),
        })  # fmt: skip
    return min(found, key=lambda one: one["values"] + one["positions"])


def one(name: str, seed: int) -> dict:
    plan, train, test = NETS[name], digits.load("train"), digits.load("test")
    torch.manual_seed(seed)
    began = time.perf_counter()
    model = plan["class"]()
    learn(model, train, plan["epochs"][0], 1e-3, seed)
    result = {"dense": accuracy(model, *test)}
    longer = copy.deepcopy(model)  # the control: as many epochs as the pruned net, in the same rounds, no mask
    for turn in range(1, plan["rounds"] + 1):
        learn(longer, train, plan["epochs"][1], 1e-3, seed + 10 * turn)
    result["dense, trained on"] = accuracy(longer, *test)
    masks = prune(model, plan, train, seed)
    result["pruned"], kept = accuracy(model, *test), masks.state_dict()
    masks.release()
    shared = share_layers(model, plan, kept)
    result["shared"] = accuracy(shared, *test)
    centroids = torch.optim.Adam(shared.parameters(), lr=2e-4)
    learn(shared, train, plan["epochs"][2], 0.0, seed + 99, optimizer=centroids)
    result["shared, centroids trained"] = accuracy(shared, *test)
    result["layers"] = {layer: layer_bytes(getattr(shared, layer).tensor) for layer in plan["layers"]}
    result["parameters"] = sum(p.numel() for p in model.parameters())
    result["biases"] = 4 * sum(p.numel() for p in model.parameters() if p.ndim == 1)
    parts = sum(x["values"] + x["positions"] + x["codebook"] for x in result["layers"].values())
    result["parts"] = parts + result["biases"]
    sys.stderr.write(f"{name}, seed {seed}: {time.perf_counter() - began:.0f} s {result}\n")
    return result


def main() -> None:
    torch.set_num_threads(1)
    settings = {name: {k: v for k, v in plan.items() if k != "class"} for name, plan in NETS.items()}
    settings = json.loads(json.dumps(settings))
    values: dict = {"settings": settings, "runs": {name: {} for name in NETS}}
    if RESULT.exists():
        before = json.loads(RESULT.read_text())["values"]
        values = before if before["settings"] == settings else values
    for name in NETS:
        for seed in SEEDS:
            if str(seed) not in values["runs"][name]:
                values["runs"][name][str(seed)] = one(name, seed)
                write(values)


def write(values: dict) -> None:
    record = {
        "name": RESULT.stem,
        "what": "LeNet-300-100 and LeNet-5 on the digits stand-in: accuracy on 4,000 test images after each stage of "
        "Deep Compression, bytes of each part, three seeds",
        "values": values,
        "command": "python studies/deep_compression.py",
        "device": f"{platform.machine()} CPU, one thread",
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "seed": list(SEEDS),
        "cheap": False,
    }
    atomic_write(RESULT, (json.dumps(record, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
