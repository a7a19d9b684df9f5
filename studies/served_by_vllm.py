"""The folders that the command line writes, in vLLM: which it loads, whether it computes what we do, and how fast.

    make vllm                               # once: .venv-vllm
    python studies/served_by_vllm.py        # about eight minutes on one core

vLLM runs in its own environment, in a process that `tools/ask_vllm.py` holds. What it computes is compared with
`checkpoint.load` of the same folder in 32 bits, token by token of held-out text; what the float model differs by, in bfloat16,
is the measure. Times are of a wide model of random weights, as in `studies/serving.py`. Writes ``book/data/vllm.json``.
"""

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

import recording
import serving
import torch

from reference import checkpoint, cli
from reference.data import text
from reference.models import tutorial

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "book/data/vllm.json"
ASK = ROOT / "tools/ask_vllm.py"
PYTHON = ROOT / ".venv-vllm/bin/python"
WINDOW, WINDOWS = 256, 16
#: Prompts answered together, tokens of a prompt and of its answer, repeats.
BATCHES, PROMPT, ANSWER, REPEATS = (1, 4, 16, 64), 16, 16, 11
#: A processor with matrix instructions (AMX) multiplies 4-bit weights by inputs of 8 bits, unless vLLM is told not to.
SIXTEEN = {"VLLM_CPU_INT4_W4A8": "0"}
GPTQ = ("--method", "gptq", "--format", "gptq", "--group-size", "64")
#: What is written, and the options of `python -m reference quantize tutorial` that write it.
FOLDERS: dict[str, tuple[str, ...]] = {
    "float": (),
    "W4A16": ("--bits", "4", "--group-size", "128"),
    "W4A16, affine": ("--bits", "4", "--group-size", "128", "--affine"),
    "W4A16, whole rows": ("--bits", "4", "--group-size", "-1"),
    "W3A16": ("--bits", "3", "--group-size", "128"),
    "W8A16": ("--bits", "8", "--group-size", "128"),
    "W4A16, one block of 8 bits": ("--bits", "4", "--group-size", "128", "--bits-for", "model.layers.0.*=8"),
    "W8A8, per token": ("--bits", "8", "--group-size", "-1", "--activations", "per_token"),
    "W8A8, static": ("--bits", "8", "--group-size", "-1", "--activations", "static"),
    "W8A8, per tensor": ("--bits", "8", "--group-size", "-1", "--activations", "per_tensor"),
    "GPTQ": (*GPTQ, "--bits", "4"),
    "GPTQ, affine": (*GPTQ, "--bits", "4", "--affine"),
    "GPTQ, act-order, static groups": (*GPTQ, "--bits", "4", "--act-order"),
    "GPTQ, act-order, moving groups": (*GPTQ, "--bits", "4", "--act-order", "--moving-groups"),
    "GPTQ, 8 bits": (*GPTQ, "--bits", "8"),
    "AWQ": ("--method", "awq", "--format", "awq", "--bits", "4", "--group-size", "64", "--affine"),
}


def written(work: Path, name: str) -> Path:
    """The folder of one row of `FOLDERS`."""
    folder = work / name.replace(", ", "-").replace(" ", "_")
    if name == "float":
        checkpoint.save(tutorial.load(dtype=torch.bfloat16), folder, tokenizer=tutorial.tokenizer())
    else:
        calibrated = {"--method", "static"} & set(FOLDERS[name])
        options = ["--no-evaluate", *(["--sequences", "32"] if calibrated else []), *FOLDERS[name]]
        cli.main(["quantize", "tutorial", *options, "--output", str(folder)])
    return folder


def ask(work: Path, folders: dict[str, Path], environment: dict[str, str] = SIXTEEN, **request) -> tuple[str, dict]:
    """What vLLM's process answers about the folders: its version, and name → answer."""
    question, answer = work / "request.json", work / "answer.json"
    request = {"dtype": "bfloat16", "length": 512} | request
    question.write_text(json.dumps({"folders": {name: str(path) for name, path in folders.items()}} | request))
    command = [PYTHON, ASK, question, answer]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment)  # type: ignore[arg-type]
    found = json.loads(answer.read_text())
    return found["version"], found["folders"]


def scored(folder: Path, dtype: torch.dtype, windows: torch.Tensor) -> torch.Tensor:
    """Our log-probability of each token of each window but its first, in nats."""
    with torch.no_grad():
        logits = checkpoint.load(folder, dtype=dtype)(input_ids=windows).logits[:, :-1].double()
    return logits.log_softmax(-1).gather(-1, windows[:, 1:, None])[..., 0]


def rms(differences: torch.Tensor) -> float:
    return differences.square().mean().sqrt().item()


def agreement(folders: dict[str, Path], answers: dict[str, dict], windows: torch.Tensor) -> dict[str, dict]:
    """Losses of vLLM and ours on the same tokens, and the root mean square of their differences, in nats.

    "ours, rounded" is how far our own numbers move when we, too, compute in bfloat16.
    """
    rows = {}
    for name, answer in answers.items():
        row = {"options": " ".join(FOLDERS[name])}
        if "error" in answer:
            rows[name] = row | {"error": answer["error"]}
            continue
        theirs = torch.tensor(answer["logprobs"], dtype=torch.float64)
        ours = scored(folders[name], torch.float32, windows)
        rounded = scored(folders[name], torch.bfloat16, windows)
        rows[name] = row | {
            "multiplies": answer["multiplies"],
            "loss": -theirs.mean().item(), "ours": -ours.mean().item(),
            "difference": rms(theirs - ours), "ours, rounded": rms(rounded - ours),
        }  # fmt: skip
        print(name, rows[name], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    if not PYTHON.exists():
        parser.error("no .venv-vllm: run make vllm first")
    torch.set_num_threads(1)
    ids = text.encode(text.read("code"), tutorial.tokenizer())[: WINDOW * WINDOWS]
    windows = torch.as_tensor(ids).reshape(WINDOWS, WINDOW)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        folders = {name: written(work, name) for name in FOLDERS}
        version, answers = ask(work, folders, tokens=windows.tolist())
        rows = agreement(folders, answers, windows)
        few = {name: folders[name] for name in ("W4A16", "GPTQ")}
        _, answers = ask(work, few, {}, tokens=windows.tolist())
        eight = {f"{name}, as vLLM chooses": row for name, row in agreement(few, answers, windows).items()}
        wide = {name: serving.export(work, name) for name in serving.GRIDS}
        # 4-bit weights twice: with inputs of 16 bits, and as vLLM chooses on this processor. All in one process, in turn.
        served = {name: wide[name] for name in ("float", "W8A8", "W4A16")} | {"as vLLM chooses": wide["W4A16"]}
        settings = {"W4A16": SIXTEEN, "as vLLM chooses": {"VLLM_CPU_INT4_W4A8": "1"}}
        work_done = {"batches": BATCHES, "prompt": PROMPT, "answer": ANSWER, "repeats": REPEATS, "settings": settings}
        _, seconds = ask(work, served, {}, **work_done)
    recording.write(
        RESULT,
        what="What vLLM, on a CPU, says to the folders that the command line writes: the class that multiplies by a weight, loss in "
        f"nats a token on {WINDOWS} windows of {WINDOW} tokens beside ours, or why it refuses; and processor seconds of a wide "
        f"model of random weights for prompts of {PROMPT} and answers of {ANSWER} tokens, by the number of prompts answered together",
        values={
            "vllm": version,
            "folders": rows | eight,
            "amx": torch.cpu._is_amx_tile_supported(),
            "seconds": seconds,
            "answer": ANSWER,
        },
        command="python studies/served_by_vllm.py",
        device=recording.ONE_THREAD,
        seed=0,
        packages=("transformers", "compressed-tensors"),
    )


if __name__ == "__main__":
    main()
