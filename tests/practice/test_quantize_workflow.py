"""``workflow quantize``: the first that meets the target, what happens where none does, kills, and refusals."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line import intercepted
from forked import Forked

from reference import checkpoint, evaluation
from reference.evaluation import size_on_disk
from reference.models import loading
from reference.practice import measurement, quantization, quantization_steps
from reference.practice.retraining import Recipe
from reference.practice.work import unfinished

SMALL = ["--group-size", 32, "--sequences", 8, "--steps", 6, "--tokens", 400]
QUICK = [*SMALL, "--method", "round_to_nearest", "--method", "gptq"]


def perplexity(model: torch.nn.Module, text: Path, folder: Path) -> float:
    ids = torch.tensor(loading.load_tokenizer(folder)(text.read_text())["input_ids"])[:400]
    return evaluation.perplexity(model, ids, window=32, stride=16)


def test_the_answer_is_the_first_that_meets_the_target(
    run: Callable, llama: Path, sentence: Path, tmp_path: Path
) -> None:
    result = run("quantize", llama, "--max-loss", "1%", "--output", tmp_path / "out", "--json", *QUICK)
    assert (result.code, result.err) == (0, "")
    report = result.json
    sweep = result.steps["Post-training sweep"]["rows"]
    assert [row["verdict"] == "the answer" for row in sweep] == [False] * (len(sweep) - 1) + [True]
    assert all(row["rise"] > 0.01 for row in sweep[:-1])
    assert sweep[-1]["candidate"] == report["answer"]
    assert (report["met"], report["found"]["rise"] <= 0.01) == (True, True)
    # What is written is what is reported, by another way to the same numbers.
    loaded, before = checkpoint.load(tmp_path / "out"), loading.load_float(llama)
    rise = perplexity(loaded, sentence, llama) / perplexity(before, sentence, llama) - 1
    assert report["found"]["rise"] == pytest.approx(rise, rel=1e-4, abs=1e-6)
    assert report["found"]["bytes"] == size_on_disk(tmp_path / "out")["total"]
    assert report["found"]["ratio"] == pytest.approx(
        size_on_disk(llama)["total"] / size_on_disk(tmp_path / "out")["total"]
    )
    assert json.loads((tmp_path / "out/report.json").read_text()) == report
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert loading.load_tokenizer(tmp_path / "out") is not None


@pytest.mark.parametrize("given", [True, False])
def test_every_option_arrives(
    run: Callable, sentence: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    seen = intercepted(monkeypatch, quantization, "run")
    limits = [
        "--max-bytes",
        "4kB",
        "--min-ratio",
        2.5,
        "--bits",
        2,
        "--bits",
        8,
        "--method",
        "gptq",
        "--group-size",
        -1,
    ]
    training = ["--tokens", 400, "--sequences", 5, "--steps", 6, "--rate", 3e-3, "--seed", 7]
    more = [*limits, *training] if given else []
    assert run("quantize", "mine", "--max-loss", "3%", "--output", tmp_path / "out", *more).code == 130
    assert seen["arguments"] == ("mine", tmp_path / "out")
    limited = tuple(seen[name] for name in ("max_loss", "max_bytes", "min_ratio"))
    assert limited == ((0.03, 4000, 2.5) if given else (0.03, None, None))
    texts = {"texts": (str(sentence),), "calibration": (str(sentence),), "window": 32}
    mine = {"bits": (2, 8), "methods": ("gptq",), "group_size": None, "tokens": 400, "sequences": 5, "seed": 7}
    recipe = seen["settings"].recipe
    assert seen["settings"] == quantization.Settings(**texts, **(mine if given else {}), recipe=recipe)
    assert recipe == (Recipe(6, 4, 32, 3e-3) if given else Recipe(200, 4, 32, 1e-3))


def test_in_words_it_says_each_decision(run: Callable, llama: Path, tmp_path: Path) -> None:
    result = run("quantize", llama, "--max-loss", "50%", "--output", tmp_path / "out", *QUICK)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("Target met (at most 50.00% of perplexity lost) by W")
    assert all(f"{title}: " in result.out for title in quantization_steps.TITLES)


def test_a_limit_on_the_size_leaves_out_what_is_larger(run: Callable, llama: Path, tmp_path: Path) -> None:
    options = ["--max-loss", "1%", "--min-ratio", 2.3, "--output", tmp_path / "out", "--json", *QUICK]
    result = run("quantize", llama, *options)
    sweep = result.steps["Post-training sweep"]
    assert "too large to be tried" in sweep["decision"]
    assert all(row["times smaller"] >= 2.3 for row in sweep["rows"])
    assert {row["candidate"][:4] for row in sweep["rows"]} <= {"W3A1", "W4A1"}


def test_where_the_sweep_misses_training_takes_over(run: Callable, llama: Path, tmp_path: Path) -> None:
    common = ["--min-ratio", 2.3, "--bits", 3, "--json", *QUICK]
    first = run("quantize", llama, "--max-loss", "0%", "--output", tmp_path / "a", *common, "--steps", 0)
    least = min(row["rise"] for row in first.steps["Post-training sweep"]["rows"])
    assert first.code == 1
    assert "switched off" in first.steps["Quantization-aware training"]["decision"]
    assert first.json["found"]["rise"] == pytest.approx(least)  # the best of the sweep is written
    limit = f"{90 * least:.4f}%"
    result = run("quantize", llama, "--max-loss", limit, "--output", tmp_path / "b", *common, "--steps", 30)
    start, trained = result.steps["Quantization-aware training"]["rows"]
    assert start["rise"] == pytest.approx(least)
    assert trained["rise"] < 0.9 * least
    assert trained["bytes"] == start["bytes"]
    assert (result.code, result.json["met"], result.json["answer"]) == (0, True, trained["candidate"])
    layers = [m for m in checkpoint.load(tmp_path / "b").modules() if hasattr(m, "spec")]
    assert {layer.spec.bits for layer in layers} == {3}


def test_an_impossible_target_ends_with_the_best_and_code_1(run: Callable, llama: Path, tmp_path: Path) -> None:
    options = ["--max-loss", "1%", "--max-bytes", "9kB", "--output", tmp_path / "out", "--json", *QUICK]
    result = run("quantize", llama, *options)
    assert result.code == 1
    assert result.err.count("\n") == 1
    assert result.err.startswith(
        "Target missed (at most 1.00% of perplexity lost in at most 9,000 bytes). The best found is W3A16"
    )
    assert (result.json["met"], result.json["answer"]) == (False, "W3A16 round_to_nearest")
    assert [row["verdict"] for row in result.steps["Post-training sweep"]["rows"]] == ["too large"]
    assert checkpoint.load(tmp_path / "out") is not None


def test_an_answer_that_another_draw_refutes_is_passed_over(
    run: Callable, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check's draw (seed 1) is spoiled: GPTQ at 4 bits then solves for tokens that never come."""
    honest = measurement.draw

    def draw(texts: dict, sequences: int, window: int, seed: int = 0) -> list:
        drawn = honest(texts, sequences, window, seed)
        return [torch.full_like(ids, 7) for ids in drawn] if seed == 1 else drawn

    monkeypatch.setattr(measurement, "draw", draw)
    loose = ["--bits", 4, "--method", "gptq", "--json", *SMALL]
    found = run("quantize", llama, "--max-loss", "90%", "--output", tmp_path / "a", *loose).steps
    sweep, check = found["Post-training sweep"]["rows"][0], found["Calibration check"]["rows"]
    assert check[1]["rise"] > sweep["rise"]
    between = 50 * (check[1]["rise"] + sweep["rise"])
    options = ["--max-loss", f"{between:.4f}%", "--output", tmp_path / "b", *loose, "--bits", 8]
    result = run("quantize", llama, *options)
    verdicts = {row["candidate"]: row["verdict"] for row in result.steps["Post-training sweep"]["rows"]}
    assert verdicts == {"W4A16 gptq": "not on another draw", "W8A16 gptq": "the answer"}
    assert result.json["answer"] == "W8A16 gptq"


def test_it_works_on_opt(run: Callable, opt: Path, tmp_path: Path) -> None:
    options = ["--max-loss", "5%", "--bits", 4, "--bits", 8, "--output", tmp_path / "out", "--json", *SMALL]
    result = run("quantize", opt, *options, "--method", "awq+gptq", "--method", "round_to_nearest")
    assert (result.code, result.err) == (0, "")
    assert result.json["found"]["rise"] <= 0.05
    assert checkpoint.load(tmp_path / "out").config.model_type == "opt"


# --- kills ----------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a signal that cannot be caught")
def test_it_goes_on_after_sigkill_to_the_same_answer(llama: Path, sentence: Path, tmp_path: Path) -> None:
    texts = ["--text", sentence, "--calibration", sentence, "--window", 32, "--batch", 4]
    options = [*QUICK, "--bits", 3, "--max-loss", "0%", "--min-ratio", 2.3, "--steps", 60]

    def command(output: str) -> list[object]:
        return ["workflow", "quantize", llama, *texts, "--output", tmp_path / output, *options]

    program = [sys.executable, "-m", "reference", *map(str, command("whole"))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    whole = subprocess.run(program, check=False, env=environment, capture_output=True, text=True)
    assert whole.returncode == 1, whole.stderr
    process = Forked(None, *command("cut"))
    folder = unfinished(tmp_path / "cut")
    until = time.monotonic() + 240
    while not list(folder.glob("*_state/state.json")) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    process.kill()
    assert process.poll() == -signal.SIGKILL, "it had ended before"
    assert list(folder.glob("*_state/state.json")), "killed in the middle of the training"
    assert not (tmp_path / "cut").exists()
    other = Forked(None, *command("cut"), "--seed", 5).wait()
    assert other.code == 2
    assert "holds an unfinished run that differs in options" in other.err
    kept = folder / "sweep_w3a16_gptq.safetensors"
    begun = kept.stat().st_mtime_ns
    resumed = Forked(None, *command("cut"))
    while resumed.poll() is None:
        if kept.exists():
            assert kept.stat().st_mtime_ns == begun  # the sweep is not done again
        time.sleep(0.05)
    assert resumed.poll() == 1
    assert not folder.exists()
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes(), name
    reports = [json.loads((tmp_path / run / "report.json").read_text()) for run in ("whole", "cut")]
    assert reports[0]["found"] == reports[1]["found"]


def test_a_run_that_ended_but_was_not_tidied_is_its_report(run: Callable, llama: Path, tmp_path: Path) -> None:
    options = ["--max-loss", "50%", "--output", tmp_path / "out", "--json", *QUICK]
    first = run("quantize", llama, *options).json
    folder = unfinished(tmp_path / "out")
    folder.mkdir()
    (folder / "fingerprint.json").write_text(json.dumps(first["fingerprint"]))
    assert run("quantize", llama, *options).json == first
    assert not folder.exists()
    again = run("quantize", llama, *options)
    assert again.code == 2
    assert "is not empty" in again.err


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--max-loss", "2"], "--max-loss is '2'"),
        (["--max-loss", "2%", "--max-bytes", "5 things"], "--max-bytes is '5 things'"),
        (["--max-loss", "2%", "--min-ratio", "0.5"], "min_ratio is 0.5"),
        (["--max-loss", "2%", "--bits", "1"], "bits are [1]"),
        (["--max-loss", "2%", "--method", "magic"], "methods are ['magic']"),
        (["--max-loss", "2%", "--group-size", "48"], "48"),
        (["--max-loss", "2%", "--text", "nowhere.txt"], "text 'nowhere.txt'"),
        (["--max-loss", "2%", "--window", "4096"], "window is 4096; it may be 2 to 128"),
        ([], "max-loss"),
    ],
)
def test_wrong_input_is_named_and_nothing_is_left(
    run: Callable, llama: Path, tmp_path: Path, options: list, words: str
) -> None:
    result = run("quantize", llama, "--output", tmp_path / "out", "--group-size", 32, *options)
    assert result.code == 2
    assert words in result.err
    assert result.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_holds_something_is_left_alone(run: Callable, llama: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("mine")
    result = run("quantize", llama, "--max-loss", "2%", "--output", tmp_path / "out", *QUICK)
    assert (result.code, (tmp_path / "out/mine").read_text()) == (2, "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_model_without_a_perplexity_is_refused(run: Callable, llama: Path, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4
    )
    BertModel(config).save_pretrained(tmp_path / "bert")
    result = run("quantize", tmp_path / "bert", "--max-loss", "2%", "--output", tmp_path / "out")
    assert result.code == 2
    assert "is an encoder (bert): it predicts no tokens" in result.err


def test_an_error_in_the_middle_keeps_nothing_of_a_fresh_run(
    llama: Path, sentence: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("no")

    monkeypatch.setattr(quantization_steps, "quantize_folder", fail)
    settings = quantization_steps.Settings(
        texts=(str(sentence),), calibration=(str(sentence),), window=32, group_size=32,
        recipe=Recipe(0),
    )  # fmt: skip
    with pytest.raises(ValueError, match="no"):
        quantization.run(str(llama), tmp_path / "out", max_loss=math.pi, settings=settings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["quantize", "prune"])
def test_help_says_what_each_step_decides_and_what_the_exit_code_means(
    capfd: pytest.CaptureFixture, command: str
) -> None:
    from reference import cli

    cli.main(["workflow", command, "--help"])
    shown = " ".join(capfd.readouterr().out.split())
    assert all(f"{number} " in shown for number in range(1, 5))
    assert "Exit code 1 says that the target was missed" in shown
    assert f"python -m reference workflow {command} tutorial --max-loss" in shown
    assert "goes on where it was" in shown
