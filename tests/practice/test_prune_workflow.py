"""``workflow prune``: gradual cuts of whole units, fine-tuning, and single zeros only where a kernel pays."""

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
from transformers import Gemma2ForCausalLM, LlamaForCausalLM, MistralForCausalLM

from reference import evaluation
from reference.evaluation import size_on_disk
from reference.models import loading
from reference.models.families import block_linears
from reference.practice import cuts, measurement, pruning, pruning_steps, sparse_kernels
from reference.practice.retraining import Recipe
from reference.practice.targets import Target
from reference.practice.work import unfinished
from reference.pruning import blocks, importance, schedules, structured

SMALL = [
    "--sequences",
    4,
    "--steps",
    4,
    "--final-steps",
    8,
    "--rounds",
    2,
    "--multiple",
    8,
    "--tokens",
    400,
    "--rate",
    2e-3,
]


def slow(weight: torch.Tensor, tokens: int, *_: object) -> list[dict]:
    """A machine on which no sparse format is faster."""
    return [{"format": "CSR", "tokens": tokens, "sparsity": s, "times as fast": 0.5} for s in (0.02, 0.9)]


@pytest.fixture
def no_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning_steps, "times_as_fast", slow)


@pytest.mark.usefixtures("no_gain")
def test_a_share_is_reached_along_the_cubic_and_the_model_is_really_smaller(
    run: Callable, llama: Path, sentence: Path, tmp_path: Path
) -> None:
    result = run(
        "prune", llama, "--max-loss", "500%", "--sparsity", 0.4, "--output", tmp_path / "out", "--json", *SMALL
    )
    assert (result.code, result.err) == (0, "")
    rounds = result.steps["Gradual pruning"]["rows"]
    for number, row in enumerate(rounds, start=1):
        wanted = schedules.gradual(number, initial=0, final=0.4, begin_step=0, n_updates=2)
        assert (
            wanted - 1e-9 <= row["removed"] < wanted + 0.25
        )  # a unit of heads is an eighth to a quarter of these blocks
    before, loaded = loading.load_float(llama), loading.load_float(tmp_path / "out")
    share = 1 - cuts.block_weights(loaded) / cuts.block_weights(before)
    assert result.json["found"]["removed"] == pytest.approx(share)
    assert share >= 0.4
    assert all((layer.weight != 0).any(1).all() for _, layer in block_linears(loaded))
    ids = torch.tensor(loading.load_tokenizer(llama)(sentence.read_text())["input_ids"])[:400]
    found = [evaluation.perplexity(model, ids, window=32, stride=16) for model in (before, loaded)]
    assert result.json["found"]["rise"] == pytest.approx(found[1] / found[0] - 1, rel=1e-4)
    assert result.json["found"]["bytes"] == size_on_disk(tmp_path / "out")["total"] < size_on_disk(llama)["total"]
    assert json.loads((tmp_path / "out/report.json").read_text()) == result.json
    page = (tmp_path / "out/report.html").read_text()
    assert all(f". {title}</h2>" in page for title in pruning_steps.TITLES)


@pytest.mark.parametrize("given", [True, False])
def test_every_option_arrives(
    run: Callable, sentence: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    seen = intercepted(monkeypatch, pruning, "run")
    limits = [
        "--max-bytes",
        "4kB",
        "--min-ratio",
        2.5,
        "--sparsity",
        0.3,
        "--rounds",
        3,
        "--multiple",
        8,
    ]
    training = ["--tokens", 400, "--sequences", 5, "--steps", 6, "--final-steps", 9, "--rate", 3e-3, "--seed", 7]
    more = [*limits, *training] if given else []
    assert run("prune", "mine", "--max-loss", "3%", "--output", tmp_path / "out", *more).code == 130
    assert seen["arguments"] == ("mine", tmp_path / "out")
    limited = tuple(seen[name] for name in ("max_loss", "max_bytes", "min_ratio", "sparsity"))
    assert limited == ((0.03, 4000, 2.5, 0.3) if given else (0.03, None, None, None))
    texts = {"texts": (str(sentence),), "calibration": (str(sentence),), "window": 32}
    mine = {"rounds": 3, "multiple": 8, "tokens": 400, "sequences": 5, "final_steps": 9, "seed": 7}
    recipe = seen["settings"].recipe
    assert seen["settings"] == pruning.Settings(**texts, **(mine if given else {}), recipe=recipe)
    assert recipe == (Recipe(6, 4, 32, 3e-3) if given else Recipe(50, 4, 32))
    most = ["--most", 0.7] if given else []
    assert run("prune", "mine", "--max-loss", "3%", "--output", tmp_path / "out", *most).code == 130
    assert seen["settings"].most == (0.7 if given else 0.5)


@pytest.mark.usefixtures("no_gain")
def test_a_size_in_bytes_is_reached(run: Callable, llama: Path, tmp_path: Path) -> None:
    result = run(
        "prune", llama, "--max-loss", "500%", "--min-ratio", 1.3, "--output", tmp_path / "out", "--json", *SMALL
    )
    assert (result.code, result.json["met"]) == (0, True)
    assert size_on_disk(llama)["total"] / size_on_disk(tmp_path / "out")["total"] >= 1.3


def test_a_size_that_is_met_already_asks_for_no_cut(llama: Path) -> None:
    dense = size_on_disk(llama)["total"]
    for most, sparsity, goal in ((10 * dense, None, None), (dense, None, None), (10 * dense, 0.2, 0.2)):
        assert pruning._goal(llama, dense, Target(math.inf, most), sparsity) == goal


@pytest.mark.usefixtures("no_gain")
def test_without_a_size_the_last_round_within_the_limit_is_the_answer(
    run: Callable, llama: Path, tmp_path: Path
) -> None:
    options = ["--rounds", 4, "--most", 0.8, "--final-steps", 0, "--json"]
    free = run("prune", llama, "--max-loss", "100000%", "--output", tmp_path / "a", *SMALL, *options)
    rises = [row["rise after"] for row in free.steps["Gradual pruning"]["rows"]]
    assert len(rises) >= 3
    assert free.json["found"]["removed"] >= 0.5
    over = next(i for i in range(1, len(rises)) if rises[i] > max(rises[:i]))
    limit = (rises[over] + max(rises[:over])) / 2
    result = run("prune", llama, "--max-loss", f"{100 * limit:.6f}%", "--output", tmp_path / "b", *SMALL, *options)
    rows = result.steps["Gradual pruning"]["rows"]
    assert [row["rise after"] for row in rows] == rises[: over + 1]  # it stops at the first that loses too much
    assert (result.code, result.json["answer"]) == (0, f"round {over}")
    assert result.json["found"]["rise"] <= limit


@pytest.mark.usefixtures("no_gain")
def test_fine_tuning_rescues_the_last_round(run: Callable, llama: Path, tmp_path: Path) -> None:
    common = ["--sparsity", 0.5, "--json", *SMALL]
    plain = run("prune", llama, "--max-loss", "0%", "--output", tmp_path / "a", *common, "--final-steps", 0)
    assert plain.code == 1
    untuned = plain.json["found"]["rise"]
    limit = f"{70 * untuned:.5f}%"
    result = run("prune", llama, "--max-loss", limit, "--output", tmp_path / "b", *common, "--final-steps", 60)
    before, after = result.steps["Fine-tuning"]["rows"]
    assert before["rise"] == pytest.approx(untuned)
    assert after["rise"] < 0.7 * untuned
    assert (result.code, result.json["answer"]) == (0, "round 2, fine-tuned")


@pytest.mark.usefixtures("no_gain")
def test_no_text_is_trained_on_twice(
    run: Callable, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each round and the fine-tuning draw windows of their own; the same few again would be learned by heart."""
    seeds: list[int] = []
    honest = pruning_steps.retrain

    def watched(*arguments: object, seed: int, **options: object) -> object:
        seeds.append(seed)
        return honest(*arguments, seed=seed, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(pruning_steps, "retrain", watched)
    run("prune", llama, "--max-loss", "500%", "--sparsity", 0.4, "--output", tmp_path / "out", "--json", *SMALL)
    assert len(seeds) == len(set(seeds)) == 3


@pytest.mark.usefixtures("no_gain")
def test_an_impossible_target_ends_with_the_best_and_code_1(run: Callable, llama: Path, tmp_path: Path) -> None:
    result = run("prune", llama, "--max-loss", "0%", "--sparsity", 0.6, "--output", tmp_path / "out", "--json", *SMALL)
    assert result.code == 1
    assert result.err.startswith(
        "Target missed (at most 0.00% of perplexity lost, 60% of the blocks removed). The best found is round 2"
    )
    assert loading.load_float(tmp_path / "out") is not None


def test_zeros_are_written_only_where_a_kernel_pays_and_the_limit_holds(
    run: Callable, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fast(weight: torch.Tensor, tokens: int, *_: object) -> list[dict]:
        shares = ((0.02, 1.5), (0.9, 3.0), (0.01, 0.9))
        return [{"format": "CSR", "tokens": tokens, "sparsity": s, "times as fast": t} for s, t in shares]

    made, with_zeros = [], pruning_steps.Steps.with_zeros
    monkeypatch.setattr(
        pruning_steps.Steps, "with_zeros", lambda self, *row: made.append(row) or with_zeros(self, *row)
    )
    monkeypatch.setattr(pruning_steps, "times_as_fast", fast)
    options = ["--sparsity", 0.1, "--json", *SMALL, "--final-steps", 30]
    result = run("prune", llama, "--max-loss", "50%", "--output", tmp_path / "out", *options)
    rows = {row["sparsity"]: row for row in result.steps["Sparse library check"]["rows"]}
    assert rows[0.01]["rise"] == "no gain"
    assert rows[0.9]["rise"] > 0.5 >= rows[0.02]["rise"]
    assert len(made) == 3  # each share that pays once, for one token and for 64 alike, and the answer
    assert result.json["answer"].endswith("2% zeros for CSR")
    for _, layer in block_linears(loading.load_float(tmp_path / "out")):
        assert int((layer.weight == 0).sum()) == round(0.02 * layer.weight.numel())


@pytest.mark.usefixtures("no_gain")
def test_heads_are_left_alone_where_the_family_cannot_lose_them(run: Callable, opt: Path, tmp_path: Path) -> None:
    result = run("prune", opt, "--max-loss", "900%", "--sparsity", 0.3, "--output", tmp_path / "out", "--json", *SMALL)
    assert result.code == 0
    assert {row["units"] for row in result.steps["Structured focus"]["rows"]} == {"neurons"}
    assert loading.load_float(tmp_path / "out").config.ffn_dim < 128


# --- the parts ------------------------------------------------------------------------------------


def test_the_cut_that_costs_least_a_weight_comes_first(llama: Path) -> None:
    model = loading.load_float(llama)
    ids = torch.randint(0, 256, (4, 32), generator=torch.Generator().manual_seed(0))
    found = cuts.cuts(model, [ids], 8000, 60_000, multiple=8)
    assert {cut.kind for cut in found} == {"neurons", "heads"}
    assert found[0].price <= found[1].price
    with torch.no_grad():
        base = float(model(input_ids=ids, labels=ids).loss)
        for cut in found:
            assert cut.weights == cuts.block_weights(model) - cuts.block_weights(cut.model)
            assert cut.loss == pytest.approx(float(cut.model(input_ids=ids, labels=ids).loss) - base, abs=1e-5)
    (neurons,) = (cut for cut in found if cut.kind == "neurons")
    assert 8000 <= neurons.weights < 8000 + 8 * 6 * 64
    assert neurons.model.config.intermediate_size % 8 == 0
    assert cuts.cuts(model, [ids], 8000, 100, multiple=8) == []


def test_both_kinds_are_scored_by_one_gradient_as_each_by_its_own(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, loss, graphs = loading.load_float(llama), cuts.next_token_loss, []
    batches = [torch.randint(0, 256, (4, 32), generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]

    def watched(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
        found = loss(model, ids)
        graphs.append(found.requires_grad)
        return found

    monkeypatch.setattr(cuts, "next_token_loss", watched)
    found = {cut.kind: cut.model for cut in cuts.cuts(model, batches, 8000, 60_000, multiple=8)}
    assert sum(graphs) == len(batches)
    for kind, groups in (("neurons", blocks.neurons(model)), ("heads", blocks.heads(model))):
        scores, units = importance.taylor_scores(model, groups, loss, batches), found[kind].config
        kept = units.intermediate_size if kind == "neurons" else units.num_key_value_heads
        keep = structured.keep_best(scores, 1 - kept / groups[0].size)
        alone = structured.shrink(model, groups, keep).state_dict()
        assert all(torch.equal(tensor, alone[name]) for name, tensor in found[kind].state_dict().items())


@pytest.mark.parametrize(
    ("kind", "queries", "left"),
    [
        (LlamaForCausalLM, 8, 4),  # a hidden size of 32 cannot be divided into 6 or 7 heads
        (Gemma2ForCausalLM, 8, 4),
        (MistralForCausalLM, 8, 6),  # its configuration takes any number
    ],
)
def test_fewer_heads_can_be_saved(kind: type, queries: int, left: int, tmp_path: Path) -> None:
    """Llama's configuration refuses 6 heads of a hidden size of 32, at the end of a round's training."""
    torch.manual_seed(0)
    settings = {"hidden_size": 32, "num_attention_heads": queries, "num_key_value_heads": queries // 2, "head_dim": 4}
    config = kind.config_class(vocab_size=16, intermediate_size=16, num_hidden_layers=1, **settings)
    model, ids = kind(config), torch.arange(32).view(2, 16) % 16
    [heads] = [cut for cut in cuts.cuts(model, [ids], 8, 10**6, multiple=8) if cut.kind == "heads"]
    assert (heads.model.config.num_attention_heads, heads.model.config.num_key_value_heads) == (left, left // 2)
    heads.model.save_pretrained(tmp_path)
    again = kind.from_pretrained(tmp_path)
    assert torch.equal(again(ids).logits, heads.model.eval()(ids).logits)


def test_each_format_removes_what_it_can_store() -> None:
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    assert int((~sparse_kernels.zeros(weight, "CSR", 0.75)).sum()) == round(0.75 * weight.numel())
    assert (sparse_kernels.zeros(weight, "2:4", 0.5).view(64, -1, 4).sum(-1) == 2).all()
    blocks = sparse_kernels.zeros(weight, "blocks", 0.75).view(4, 16, 6, 16).transpose(1, 2).flatten(2)
    assert torch.equal(blocks.all(2), blocks.any(2))
    assert int(blocks.any(2).sum()) == 6
    sums = weight.abs().view(4, 16, 6, 16).sum((1, 3))
    assert sums[blocks.any(2)].min() > sums[~blocks.any(2)].max()
    with pytest.raises(ValueError, match="it may be CSR, 2:4 or blocks"):
        sparse_kernels.zeros(weight, "COO", 0.5)
    with pytest.raises(ValueError, match="multiples of 16"):
        sparse_kernels.zeros(weight[:60], "blocks", 0.5)


def test_every_format_that_fits_is_timed() -> None:
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    rows = sparse_kernels.times_as_fast(weight, 4, (0.5, 0.9), repeats=4)
    assert [(row["format"], row["sparsity"]) for row in rows] == [
        ("2:4", 0.5), ("CSR", 0.5), ("CSR", 0.9), ("blocks", 0.5), ("blocks", 0.9)
    ]  # fmt: skip
    assert all(row["times as fast"] > 0 and row["tokens"] == 4 for row in rows)
    assert {row["format"] for row in sparse_kernels.times_as_fast(weight[:60], 4, repeats=4)} == {"2:4", "CSR"}


# --- kills and refusals ---------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a signal that cannot be caught")
def test_it_goes_on_after_sigkill_to_the_same_weights(llama: Path, sentence: Path, tmp_path: Path) -> None:
    texts = ["--text", sentence, "--calibration", sentence, "--window", 32, "--batch", 4]
    options = [*SMALL, "--max-loss", "500%", "--sparsity", 0.4, "--final-steps", 60]

    def command(output: str) -> list[object]:
        return ["workflow", "prune", llama, *texts, "--output", tmp_path / output, *options]

    program = [sys.executable, "-m", "reference", *map(str, command("whole"))]
    subprocess.run(program, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)
    process = Forked(None, *command("cut"))
    folder = unfinished(tmp_path / "cut")
    until = time.monotonic() + 240
    while not (folder / "tuned_state/state.json").is_file() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    process.kill()
    assert process.poll() == -signal.SIGKILL, "it had ended before"
    assert (folder / "tuned_state/state.json").is_file(), "killed in the middle of the fine-tuning"
    assert not (tmp_path / "cut").exists()
    resumed = Forked(None, *command("cut")).wait()
    assert resumed.code == 0, resumed.err
    assert not folder.exists()
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("whole", "cut")]
    titles = (
        "Gradual pruning",
        "Structured focus",
        "Fine-tuning",
    )  # the sparse check is timed, and may decide otherwise
    for title in titles:
        one, other = (next(step for step in found["steps"] if step["title"] == title) for found in reports)
        assert one == other


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--max-loss", "2%", "--sparsity", "1.5"], "sparsity is 1.5"),
        (["--max-loss", "2%", "--min-ratio", "30"], "leaves nothing of the blocks"),
        (["--max-loss", "2%", "--most", "1.0"], "most is 1.0"),
        (["--max-loss", "x"], "--max-loss is 'x'"),
    ],
)
def test_wrong_input_is_named_and_nothing_is_left(
    run: Callable, llama: Path, tmp_path: Path, options: list, words: str
) -> None:
    result = run("prune", llama, "--output", tmp_path / "out", *options)
    assert result.code == 2
    assert words in result.err
    assert result.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_multiple_that_leaves_nothing_to_cut_is_refused(run: Callable, opt: Path, tmp_path: Path) -> None:
    result = run("prune", opt, "--max-loss", "2%", "--output", tmp_path / "out", *SMALL, "--multiple", 512)
    assert result.code == 2
    assert "multiple is 512: no unit of the model can be cut" in result.err
    assert list(tmp_path.iterdir()) == []


def test_a_family_whose_units_are_not_known_is_refused(run: Callable, tmp_path: Path, llama: Path) -> None:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4
    )
    GPTNeoXForCausalLM(config).save_pretrained(tmp_path / "neox")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "neox" / name).write_bytes((llama / name).read_bytes())
    result = run("prune", tmp_path / "neox", "--max-loss", "2%", "--output", tmp_path / "out")
    assert result.code == 2
    assert "model is of type 'gpt_neox'" in result.err


def test_the_windows_are_those_of_calibration(llama: Path, sentence: Path) -> None:
    """What is held out must not choose: units are scored on the part for calibration."""
    tokenizer = measurement.checked_model(llama)
    held, seen = (
        measurement.read_texts(["code"], tokenizer, part=part)["code"] for part in ("evaluation", "calibration")
    )
    assert not torch.equal(held[:100], seen[:100])
