"""What vLLM says to a folder: log-probabilities of given tokens, which kernel multiplies, and the seconds of an answer.

    .venv-vllm/bin/python tools/ask_vllm.py REQUEST.json ANSWER.json

Runs in the environment that ``make vllm`` makes (vLLM cannot share the book's: it holds other versions of its libraries), and
imports nothing of the book. The request is an object: ``folders`` (name → path), ``dtype``, ``length``, and either ``tokens``
(windows of ids to score) or ``batches`` (numbers of prompts to answer together) with ``prompt``, ``answer``, ``repeats`` and
``settings`` (name → variables of the environment). The answer, name → what multiplies and the log-probabilities, or ``error``
with the last line of what vLLM raised; or name → batch → seconds.
"""

import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

# One process, no network, and no pinning to cores: the caller's thread count (OMP_NUM_THREADS) holds.
os.environ.update(
    HF_HUB_OFFLINE="1",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL="ERROR",
    VLLM_NO_USAGE_STATS="1",
)


def product(model: Any) -> str:
    """Which class of vLLM multiplies by the last weight of the model's first block: a kernel, or what holds it."""
    layer = [module for name, module in model.named_modules() if ".0." in name and hasattr(module, "quant_method")][-1]
    scheme = getattr(layer, "scheme", None)
    holder = scheme or layer.quant_method
    kernel = getattr(holder, "kernel", None) or getattr(layer.quant_method, "kernel", None)
    return type(kernel or holder).__name__


def scored(engine: Any, windows: list[list[int]]) -> list[list[float]]:
    """Log-probability of each token of each window but its first, in nats."""
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": window} for window in windows]
    answers = engine.generate(prompts, SamplingParams(max_tokens=1, prompt_logprobs=0), use_tqdm=False)
    return [
        [place[token].logprob for token, place in zip(window, answer.prompt_logprobs, strict=True) if place]
        for window, answer in zip(windows, answers, strict=True)
    ]


def timed(engines: dict[str, Any], batch: int, prompt: int, answer: int, repeats: int) -> dict[str, list[float]]:
    """Processor seconds in which each engine answers ``batch`` prompts together, the engines in turn in each repeat."""
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": [5 + (7 * i + j) % 4000 for j in range(prompt)]} for i in range(batch)]
    settings = SamplingParams(temperature=0, max_tokens=answer, ignore_eos=True)
    took: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(repeats):
        for name, engine in engines.items():
            begin = time.process_time()
            engine.generate(prompts, settings, use_tqdm=False)
            took[name].append(time.process_time() - begin)
    return took


def start(folder: str, request: dict, settings: dict[str, str]) -> Any:
    """A model of the folder, loaded under these settings of the environment."""
    from vllm import LLM, envs

    os.environ.update(settings)
    envs.disable_envs_cache()  # else the first engine's settings are everybody's
    return LLM(
        model=folder,
        dtype=request["dtype"],
        max_model_len=request["length"],
        gpu_memory_utilization=0.2,  # on a CPU: of its memory
        enforce_eager=True,  # no compilation: minutes, for a model that is asked once
        enable_prefix_caching=False,  # each repeat computes its prompts again
        disable_log_stats=True,
        seed=0,
    )


def score(request: dict) -> dict[str, dict]:
    """Of each folder, one after the other: which product it takes and what it computes, or why vLLM refuses it."""
    from vllm.distributed import cleanup_dist_env_and_memory

    answers = {}
    for name, folder in request["folders"].items():
        try:
            engine = start(folder, request, {})
            answers[name] = {
                "multiplies": engine.apply_model(product)[0],
                "logprobs": scored(engine, request["tokens"]),
            }
        except Exception as error:  # whatever it raises is the answer: a folder that it cannot serve
            lines = [line.strip() for line in str(error).splitlines() if "errors.pydantic.dev" not in line]
            answers[name] = {"error": f"{type(error).__name__}: {lines[-1] if lines else ''}"}
        engine = None
        gc.collect()
        cleanup_dist_env_and_memory()
    return answers


def time_answers(request: dict) -> dict[str, dict]:
    """Of each folder, all in memory and asked in turn: seconds by the number of prompts that are answered together."""
    engines = {
        name: start(folder, request, request["settings"].get(name, {})) for name, folder in request["folders"].items()
    }
    answers: dict[str, dict] = {name: {} for name in engines}
    for batch in request["batches"]:
        took = timed(engines, batch, request["prompt"], request["answer"], request["repeats"])
        for name, seconds in took.items():
            answers[name][str(batch)] = seconds
    return answers


def main(request_file: str, answer_file: str) -> None:
    import vllm

    request = json.loads(Path(request_file).read_text())
    answers = score(request) if "tokens" in request else time_answers(request)
    Path(answer_file).write_text(json.dumps({"version": vllm.__version__, "folders": answers}))


if __name__ == "__main__":
    main(*sys.argv[1:])
