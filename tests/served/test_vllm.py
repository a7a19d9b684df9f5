"""vLLM itself, on a CPU, loads what the command line writes, and computes what we compute.

`make vllm` installs it beside the book's environment and sets VLLM=required: then a missing vLLM is a failure. `make test` skips
with the reason. vLLM computes in 16 bits; what that costs the float model is the measure for all others.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from urllib.request import urlopen

import book_paths
import pytest
import safetensors.torch
import torch

from reference import checkpoint, cli
from reference.data import text
from reference.deployment import load
from reference.models import tutorial

ROOT = book_paths.ROOT
PYTHON = ROOT / ".venv-vllm/bin/python"
WINDOW, WINDOWS = 128, 8
#: Folder → options of the command line.
LOADED: dict[str, list[str]] = {
    "grouped": ["--bits", "4", "--group-size", "128"],
    "affine": ["--bits", "4", "--group-size", "128", "--affine"],
    "skipped": ["--bits", "4", "--group-size", "128", "--skip", "*.layers.2.*", "--skip", "*.o_proj"],
    "integers": ["--bits", "8", "--group-size", "-1", "--activations", "per_token", "--method", "smoothquant"],
    "gptq": ["--bits", "4", "--group-size", "64", "--format", "gptq", "--method", "gptq", "--act-order"],
    "awq": ["--bits", "4", "--group-size", "64", "--format", "awq", "--method", "awq", "--affine"],
}
#: 8-bit inputs in the first block alone: less rounding piles up, so smaller faults show.
ONE_BLOCK = [*LOADED["integers"], "--skip", "*.layers.[1-5].*"]
#: Folder → options, and what vLLM says on any device; "split" leaves a layer in float that it joins to two others.
REFUSED = {
    "split": (["--bits", "4", "--group-size", "128", "--skip", "*.q_proj"], "different quantization schemes for the shards"),
    "per_tensor": (["--bits", "8", "--group-size", "-1", "--activations", "per_tensor"], "No compressed-tensors compatible scheme"),
    "gptq_affine": (["--bits", "4", "--format", "gptq", "--affine"], "sym=False"),
    "moving": (
        ["--bits", "4", "--group-size", "64", "--format", "gptq", "--method", "gptq", "--act-order", "--moving-groups"],
        "desc_act=True",
    ),
}  # fmt: skip

if not (ROOT / ".venv-vllm/.installed").exists() and os.environ.get("VLLM") != "required":
    pytest.skip("no .venv-vllm: make vllm installs vLLM (two minutes) and runs this", allow_module_level=True)

four_bits = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "NO AVX", "AVX2"),
    reason="vLLM 0.32 has its product of 4-bit weights for processors with AVX-512 only",
)
EACH = [pytest.param(name, marks=() if name == "integers" else four_bits) for name in LOADED]


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    ids = text.encode(text.read("code"), tutorial.tokenizer())[: WINDOW * WINDOWS]
    return torch.as_tensor(ids).reshape(WINDOWS, WINDOW)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All of `LOADED` and `REFUSED`, the float model, one with one block of integers, and two whose scales were damaged."""
    work = tmp_path_factory.mktemp("folders")
    made = {"float": work / "float"}
    checkpoint.save(tutorial.load(dtype=torch.bfloat16), made["float"], tokenizer=tutorial.tokenizer())
    refused = {name: options for name, (options, _) in REFUSED.items()}
    for name, options in (LOADED | {"one block": ONE_BLOCK} | refused).items():
        made[name] = work / name
        few = ["--sequences", "16"] if "--method" in options else []
        cli.main(["quantize", "tutorial", "--no-evaluate", *few, *options, "--output", str(made[name])])
    made["damaged"] = damaged(made["grouped"], "model.layers.3.mlp.up_proj", 1.25)
    made["one block, damaged"] = damaged(made["one block"], "model.layers.0.mlp.up_proj", 1.02)
    return made


def damaged(folder: Path, layer: str, factor: float) -> Path:
    """A copy beside it with the scales of one layer times the factor."""
    copy = Path(shutil.copytree(folder, folder.with_name(f"{folder.name}, {layer} times {factor}")))
    tensors = safetensors.torch.load_file(copy / "model.safetensors")
    tensors[f"{layer}.weight_scale"] *= factor
    safetensors.torch.save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    return copy


@pytest.fixture(scope="module")
def answers(
    folders: dict[str, Path], tokens: torch.Tensor, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict]:
    """What vLLM says to each folder: asked in 16-bit floats, and in bfloat16 where it has integer products for that only."""
    work = tmp_path_factory.mktemp("vllm")
    integers = ("integers", "one block", "one block, damaged")
    asked = {
        "float16": {name: str(folder) for name, folder in folders.items() if name not in integers},
        "bfloat16": {"float, bfloat16": str(folders["float"])} | {name: str(folders[name]) for name in integers},
    }
    answers = {}
    for dtype, some in asked.items():
        request = {"folders": some, "dtype": dtype, "length": 2 * WINDOW, "tokens": tokens.tolist()}
        (work / "request.json").write_text(json.dumps(request))
        command = [PYTHON, ROOT / "tools/ask_vllm.py", work / "request.json", work / "answer.json"]
        sixteen = os.environ | {"VLLM_CPU_INT4_W4A8": "0"}  # else AMX multiplies 4-bit weights by inputs of 8 bits
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, env=sixteen)
        assert done.returncode == 0, done.stderr[-3000:]
        answers |= json.loads((work / "answer.json").read_text())["folders"]
    return answers


@torch.no_grad()
def ours(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    """Our log-probabilities, computed in 32 bits."""
    logits = checkpoint.load(folder, dtype=torch.float32)(input_ids=tokens).logits[:, :-1].double()
    return logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]


def theirs(answer: dict) -> torch.Tensor:
    assert "error" not in answer, answer
    return torch.tensor(answer["logprobs"], dtype=torch.float64)


def difference(answer: dict, folder: Path, tokens: torch.Tensor) -> float:
    """Root mean square of vLLM's log-probabilities less ours from the same folder."""
    return (theirs(answer) - ours(folder, tokens)).square().mean().sqrt().item()


def test_vllm_computes_the_float_model_to_its_rounding(folders, answers, tokens):
    short = difference(answers["float"], folders["float"], tokens)
    bfloat16 = difference(answers["float, bfloat16"], folders["float"], tokens)
    assert 0 < short < bfloat16 / 4 < 0.01  # eleven bits against eight


@pytest.mark.parametrize("name", EACH)
def test_vllm_computes_what_we_compute_from_the_same_folder(name, folders, answers, tokens):
    noise = difference(answers["float, bfloat16" if name == "integers" else "float"], folders["float"], tokens)
    # an input that bfloat16 moves over a half is another integer: that adds to the rounding of the float model
    assert difference(answers[name], folders[name], tokens) < (5 if name == "integers" else 2) * noise


@four_bits
def test_a_damaged_folder_would_be_noticed(folders, answers, tokens):
    noise = difference(answers["float"], folders["float"], tokens)
    assert difference(answers["damaged"], folders["grouped"], tokens) > 4 * noise


def part(fault: torch.Tensor, found: torch.Tensor) -> float:
    """How much of a fault is in what was found. Rounding has no direction, a fault has one: this projects on it."""
    return float((found * fault).sum() / fault.square().sum())


@pytest.mark.parametrize(
    "layer", [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
)
def test_no_fault_of_five_percent_hides_in_the_rounding_of_integers(layer, folders, answers, tokens):
    """The part is above 0 without one: a fault also rounds other inputs otherwise, away from ours as vLLM's are."""
    whole = ours(folders["one block"], tokens)
    fault = ours(damaged(folders["one block"], f"model.layers.0.{layer}", 1.05), tokens) - whole
    assert abs(part(fault, theirs(answers["one block"]) - whole)) < 0.5


def test_a_fault_of_two_percent_is_noticed(folders, answers, tokens):
    whole = ours(folders["one block"], tokens)
    fault = ours(folders["one block, damaged"], tokens) - whole
    assert abs(part(fault, theirs(answers["one block"]) - whole)) < 0.25
    assert 0.75 < part(fault, theirs(answers["one block, damaged"]) - whole) < 1.25


@pytest.mark.parametrize("name", EACH)
def test_vllm_multiplies_packed_weights(name, answers):
    wanted = "CPUInt8ScaledMMLinearKernel" if name == "integers" else "CPUWNA16LinearKernel"
    assert answers[name]["multiplies"] == wanted


@pytest.mark.parametrize("name", REFUSED)
def test_vllm_refuses_what_we_say_it_refuses(name, answers, tmp_path, run):
    assert REFUSED[name][1] in answers[name]["error"]
    few = ["--sequences", 2] if "--method" in REFUSED[name][0] else []
    told = run("quantize", "tutorial", "--no-evaluate", *few, *REFUSED[name][0], "--output", tmp_path / "x")
    assert "vLLM will not load this folder" in told.err


def test_the_server_answers_our_load_generator(folders, tmp_path):
    """What `vllm serve` starts, and the requests that the chapter on production sends.

    The command `vllm` itself looks for a package of that name, and the build for CPUs has another one.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", folders["integers"], "--enforce-eager"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--gpu-memory-utilization", "0.1"]  # here: of the memory
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
    }
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | quiet, start_new_session=True)
    try:
        address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 600
        while not healthy(address):
            waiting = server.poll() is None and time.monotonic() < deadline
            assert waiting, (tmp_path / "log").read_text()[-3000:]
            time.sleep(1)
        prompts = ["def read(path):", "import os"]
        answers, _ = load.generate(address, str(folders["integers"]), prompts, tokens=8, concurrency=2, seconds=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)
    assert [(answer.error, answer.tokens) for answer in answers] == [("", 8), ("", 8)]
    assert all(answer.text.strip() for answer in answers)


def healthy(address: str) -> bool:
    try:
        with urlopen(f"{address}/health", timeout=5):
            return True
    except OSError:
        return False
