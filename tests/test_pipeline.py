"""From folder to folder: streaming, several processes, patterns, and what the report says."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from forked import together
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from reference import checkpoint, cli, pipeline, workflow
from reference.calibration import batches, working_memory
from reference.job import Job
from reference.layers import QuantizedLinear
from reference.models import loading
from reference.models.streaming import StreamedModel
from reference.quantization import CalibrationWarning
from reference.quantization.activations import ActivationSpec
from reference.quantization.grid import QuantizationSpec
from reference.ranks import ALONE, Ranks
from reference.rounding import Options, Rounding
from reference.transforms.smoothquant import search_alpha

SPEC = QuantizationSpec(3, symmetric=True, group_size=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "llama"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path, max_shard_size="50KB")
    return path


@pytest.fixture(scope="module")
def drawn() -> list[torch.Tensor]:
    tokens = torch.randint(0, 64, (4000,), generator=torch.Generator().manual_seed(1))
    return batches(tokens, sequences=12, length=24, batch=3)


def test_mixed_bits_and_layers_left_out_by_pattern(folder: Path, drawn: list, tmp_path: Path) -> None:
    errors = pipeline.quantize_folder(
        folder, tmp_path / "out", SPEC, method="gptq", calibration=drawn,
        bits={"*.mlp.*": 4, "*.down_proj": 8}, skip=("*.layers.1.*", "*.layers.0.self_attn.k_proj"),
    )  # fmt: skip
    model = checkpoint.load(tmp_path / "out")
    found = {name: module.spec.bits for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    attention = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    expected = {f"model.layers.{index}.{name}": 3 for index in (0, 2) for name in attention}
    expected |= {f"model.layers.{index}.mlp.{name}": 4 for index in (0, 2) for name in ("gate_proj", "up_proj")}
    expected |= {f"model.layers.{index}.mlp.down_proj": 8 for index in (0, 2)}
    del expected["model.layers.0.self_attn.k_proj"]
    assert found == expected
    assert errors.keys() == expected.keys()
    # Twice the levels, half the error: the order of the bits shows in the errors of one block.
    by_bits = {bits: max(errors[name].relative for name in expected if expected[name] == bits) for bits in (3, 4, 8)}
    assert by_bits[3] > by_bits[4] > 4 * by_bits[8]
    with pytest.raises(
        ValueError, match=r"pattern '\*\.up' fits no layer; they are called model\.layers\.0\.self_attn"
    ):
        pipeline.quantize_folder(folder, tmp_path / "no", SPEC, bits={"*.up": 4})
    with pytest.raises(ValueError, match="leaves all 21 linear layers in float"):
        pipeline.quantize_folder(folder, tmp_path / "no", SPEC, skip=("*",))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_reported_error_is_that_of_the_outputs(folder: Path, drawn: list, tmp_path: Path) -> None:
    """Of the first layers, whose inputs no rounding has changed, measured by running both models."""
    errors = pipeline.quantize_folder(folder, tmp_path / "out", SPEC, method="gptq", calibration=drawn)
    seen: dict[str, list[torch.Tensor]] = {"float": [], "rounded": []}
    models = {"float": loading.load_float(folder), "rounded": checkpoint.load(tmp_path / "out")}
    name = "model.layers.0.self_attn.q_proj"
    for kind, model in models.items():
        model.get_submodule(name).register_forward_hook(lambda *hook, kind=kind: seen[kind].append(hook[2]))
        with torch.no_grad():
            for ids in drawn:
                model(input_ids=ids)
    exact, rounded = (torch.cat(parts) for parts in seen.values())
    assert errors[name].of == "output"
    assert errors[name].relative == pytest.approx(((rounded - exact).norm() / exact.norm()).item(), rel=1e-4)
    weights = pipeline.quantize_folder(folder, tmp_path / "nearest", SPEC)
    exact_weight = models["float"].get_submodule(name).get_parameter("weight")
    loaded = checkpoint.load(tmp_path / "nearest").get_submodule(name)
    assert isinstance(loaded, QuantizedLinear)
    change = loaded.tensor.dequantize() - exact_weight
    assert weights[name].of == "weight"
    assert weights[name].relative == pytest.approx((change.norm() / exact_weight.norm()).item(), rel=1e-5)


def test_of_a_large_layer_the_error_is_that_of_evenly_spaced_outputs() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, model = torch.randn(1, 50, 8, generator=generator), LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=600, num_hidden_layers=1, num_attention_heads=1)
    )  # fmt: skip
    name = "model.layers.0.mlp.up_proj"
    weight = model.get_submodule(name).get_parameter("weight").detach().clone()
    rounding = Rounding(model, {name: QuantizationSpec(3)}, Options("gptq"), job=None, streamed=None, ranks=ALONE,
                        prepare=lambda block: None)  # fmt: skip
    rounding.observe((name,), inputs)
    rounded = rounding.solve((name,))[name]
    exact, change = (inputs @ rows[::3].float().T for rows in (weight, rounded - weight))  # 200 of 600, at most 256
    assert rounding.errors[name].relative == pytest.approx((change.norm() / exact.norm()).item(), rel=1e-4)
    every = ((inputs @ (rounded - weight).float().T).norm() / (inputs @ weight.T).norm()).item()
    assert rounding.errors[name].relative != pytest.approx(every, rel=1e-4)


def test_inspect_shows_the_errors(folder: Path, drawn: list, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    errors = pipeline.quantize_folder(folder, tmp_path / "out", SPEC, method="gptq", calibration=drawn)
    cli.main(["inspect", str(tmp_path / "out"), "--json"])
    layers = json.loads(capsys.readouterr().out)["layers"]
    assert {name: row["error"] for name, row in layers.items() if "error" in row} == {
        name: error.relative for name, error in errors.items()
    }
    cli.main(["inspect", str(tmp_path / "out")])
    assert f"{errors['model.layers.0.mlp.up_proj'].relative:.3g} of output" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["gptq", "awq+gptq", "smoothquant"])
def test_a_block_is_in_memory_only_while_it_is_worked_on(
    folder: Path, drawn: list, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []

    class Watched(StreamedModel):
        def enter(self, path: str) -> None:
            super().enter(path)
            linears = [p for name, p in self.model.named_parameters() if "_proj" in name]
            held.append(sum(not parameter.is_meta for parameter in linears))

    monkeypatch.setattr(pipeline, "StreamedModel", Watched)
    pipeline.quantize_folder(folder, tmp_path / "out", SPEC, method=method, calibration=drawn)
    assert held == [7] * (3 if method == "gptq" else 6)


def test_too_little_text_is_said_with_what_follows(folder: Path, tmp_path: Path) -> None:
    tokens = torch.arange(60)
    with pytest.warns(CalibrationWarning, match=r"has 60 tokens and 4 sequences of 20 are asked for: they overlap"):
        few = batches(tokens, sequences=4, length=20)
    with pytest.warns(
        CalibrationWarning, match=r"has 80 tokens, fewer than the 96 inputs of .*down_proj: its Hessian is"
    ):
        pipeline.quantize_folder(folder, tmp_path / "out", SPEC, method="gptq", calibration=few)


def test_working_memory_counts_what_waits(folder: Path, drawn: list) -> None:
    streamed = StreamedModel(folder)
    needs = working_memory(streamed.model, drawn)
    assert needs["block"] == 4 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 96 + 2 * 64)
    assert needs["activations"] == 12 * 24 * (3 * 64 + 96) * 4
    assert needs["hessian"] == 12 * 96**2


UNFIT = {
    "no such format": ("zip", QuantizationSpec(4, group_size=32), {}),
    "bits": ("awq", QuantizationSpec(3, group_size=32), {}),
    "other bits": ("gptq", QuantizationSpec(5, group_size=32), {}),
    "group index": ("compressed-tensors", QuantizationSpec(4, group_size=32), {"act_order": True, "static_groups": False}),
    "group index beside awq": ("awq", QuantizationSpec(4, group_size=32), {"act_order": True, "static_groups": False}),
    "integers": ("gptq", QuantizationSpec(8, symmetric=True), {"activations": ActivationSpec()}),
    "static integers": ("awq", QuantizationSpec(8, symmetric=True), {"activations": ActivationSpec("static")}),
    "restricted": ("compressed-tensors", QuantizationSpec(8, symmetric=True), {"activations": ActivationSpec(restricted=True)}),
    "affine tensor": ("compressed-tensors", QuantizationSpec(4, per_tensor=True), {}),
}  # fmt: skip


@pytest.mark.parametrize("case", UNFIT)
def test_what_the_format_cannot_hold_is_refused_before_the_first_block(
    folder: Path, drawn: list, tmp_path: Path, case: str
) -> None:
    format, spec, options = UNFIT[case]
    model = workflow.quantize(loading.load_float(folder), spec, method="gptq", calibration=drawn[:1], **options)
    with pytest.raises(ValueError, match="format is|format holds|can hold|cannot hold|restricted|affine") as late:
        checkpoint.save(model, tmp_path / "late", format)
    with pytest.raises(ValueError, match=re.escape(str(late.value))):
        pipeline.quantize_folder(
            folder, tmp_path / "early", spec, method="gptq", calibration=drawn[:1], format=format,
            progress=lambda _: pytest.fail("a block was begun"), **options,
        )  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_pruned_and_rounded_layers_are_held_against_the_format_too(folder: Path, drawn: list, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 bits; the awq format holds 4"):
        pipeline.prune_folder(
            folder, tmp_path / "out", 0.5, spec=QuantizationSpec(3), calibration=drawn, format="awq",
            progress=lambda _: pytest.fail("a block was begun"),
        )  # fmt: skip


@pytest.mark.parametrize("change", ["quantize", "prune"])
def test_how_a_model_generates_comes_along(folder: Path, tmp_path: Path, change: str) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(folder, mine)
    (mine / "generation_config.json").write_text('{"eos_token_id": [2, 5], "do_sample": true, "temperature": 0.7}')
    if change == "quantize":
        pipeline.quantize_folder(mine, tmp_path / "out", SPEC)
    else:
        pipeline.prune_folder(mine, tmp_path / "out", 0.5, method="magnitude")
    written = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (written.eos_token_id, written.do_sample, written.temperature) == ([2, 5], True, 0.7)
    assert LlamaForCausalLM.from_pretrained(tmp_path / "out").generation_config.eos_token_id == [2, 5]
    (mine / "generation_config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"generation_config\.json' is damaged"):
        pipeline.quantize_folder(mine, tmp_path / "again", SPEC)
    assert not (tmp_path / "again").exists()


def test_a_pattern_of_bits_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for wrong in ("*.down_proj", "*.down_proj=many"):
        with pytest.raises(SystemExit):
            cli.main(["quantize", "tutorial", "--output", str(tmp_path / "out"), "--bits-for", wrong])
        assert f"--bits-for is '{wrong}'; it should be PATTERN=BITS" in capsys.readouterr().err


def test_alpha_is_searched_once_for_the_model(
    folder: Path, drawn: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, inputs = QuantizationSpec(8, symmetric=True), ActivationSpec("per_tensor")
    options = {"method": "smoothquant", "activations": inputs, "calibration": drawn}
    best = search_alpha(loading.load_float(folder), drawn, weights=grid, activations=inputs).alpha
    pipeline.quantize_folder(folder, tmp_path / "searched", grid, alpha=None, **options)  # type: ignore[arg-type]
    pipeline.quantize_folder(folder, tmp_path / "given", grid, alpha=best, **options)  # type: ignore[arg-type]
    searched, given = (checkpoint.load(tmp_path / name).state_dict() for name in ("searched", "given"))
    assert all(torch.equal(searched[name], given[name]) for name in given)
    job = Job(tmp_path / "job", {})
    for _ in range(2):  # what the job holds is not searched again
        workflow.quantize(loading.load_float(folder), grid, alpha=None, job=job, **options)  # type: ignore[arg-type]
        monkeypatch.setattr(workflow, "search_alpha", None)
    with pytest.raises(ValueError, match="alpha is None; a search compares integer blocks"):
        workflow.quantize(loading.load_float(folder), grid, method="smoothquant", alpha=None, calibration=drawn)


class Killed(Exception):
    """Stands in for a kill after the first block."""


def killed(blocks: list) -> Iterator:
    yield blocks[0]
    raise Killed


@pytest.mark.filterwarnings("ignore::reference.quantization.CalibrationWarning")
@pytest.mark.parametrize("command", ["quantize", "prune"])
def test_what_is_unfinished_goes_on_with_the_same_model_text_and_options_only(
    folder: Path, drawn: list, tmp_path: Path, command: str
) -> None:
    """Blocks of two runs in one checkpoint would be noticed by nobody."""
    grid, output = QuantizationSpec(8, symmetric=True), tmp_path / "out"
    changes: dict[str, object] = {"damping": 0.02, "format": "gptq", "skip": ("*.o_proj",), "calibration": drawn[1:]}
    if command == "quantize":
        function, given = pipeline.quantize_folder, {"spec": grid, "method": "gptq", "calibration": drawn}
        changes |= {
            "spec": QuantizationSpec(4, symmetric=True), "bits": {"*.o_proj": 4}, "method": "awq+gptq", "act_order": True,
            "activations": ActivationSpec(), "static_groups": False, "alpha": 0.4,
        }  # fmt: skip
    else:
        function, given = pipeline.prune_folder, {"sparsity": 0.5, "method": "sparsegpt", "calibration": drawn}
        changes |= {"sparsity": 0.6, "method": "wanda", "spec": grid}
    with pytest.raises(Killed):
        function(folder, output, **given, progress=killed)
    for name, value in changes.items():
        what = "text" if name == "calibration" else "options"
        with pytest.raises(ValueError, match=rf"holds an unfinished run that differs in {what} "):
            function(folder, output, **given | {name: value})
    if command == "prune":
        with pytest.raises(ValueError, match="holds an unfinished run that differs in options "):
            function(folder, output, **given | {"sparsity": None, "pattern": (2, 4)})
    other = tmp_path / "other"
    model = loading.load_float(folder)
    with torch.no_grad():
        model.get_submodule("model.layers.2.mlp.down_proj").weight[0, 0] += 1
    model.save_pretrained(other, max_shard_size="50KB")
    with pytest.raises(ValueError, match="holds an unfinished run that differs in model "):
        function(other, output, **given)
    function(folder, output, **given)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


@pytest.mark.filterwarnings("ignore::reference.quantization.CalibrationWarning")
def test_of_a_run_that_failed_stays_what_took_long_and_would_not_fail_again(
    folder: Path, drawn: list, tmp_path: Path
) -> None:
    def run(error: BaseException, calibration: list | None) -> bool:
        def progress(blocks: list) -> Iterator:
            yield blocks[0]
            raise error

        method = "gptq" if calibration else "round_to_nearest"
        with pytest.raises(type(error)):
            pipeline.quantize_folder(
                folder, tmp_path / "out", SPEC, method=method, calibration=calibration, progress=progress
            )
        return (tmp_path / ".out.unfinished").is_dir()

    assert not run(Killed(), None)  # done again in a moment
    assert not run(ValueError("of the first run: it would come again"), drawn)
    assert run(Killed(), drawn)
    assert run(ValueError("of a later one: what was finished before it stays"), drawn)
    interrupt = KeyboardInterrupt()
    assert run(interrupt, drawn)
    assert str(interrupt).startswith("what was finished is kept in ")


def test_what_a_kill_left_after_the_last_rename_is_removed_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    output, unfinished = tmp_path / "out", tmp_path / ".out.unfinished"
    pipeline.quantize_folder(folder, output, SPEC)
    begun = json.loads((output / checkpoint.REPORT).read_text())["fingerprint"]
    for fingerprint, stays in ((begun, False), (begun | {"options": "others"}, True)):
        Job(unfinished, fingerprint)
        with pytest.raises(FileExistsError, match="is not empty"):
            pipeline.check_output(output)
        assert unfinished.is_dir() == stays


# --- several processes ------------------------------------------------------------------------------

RANKS = """
import sys
from pathlib import Path
import torch
from reference import pipeline, ranks
from reference.quantization.activations import ActivationSpec
from reference.quantization.grid import QuantizationSpec
folder, out, method = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
batches = list(torch.load(sys.argv[4], weights_only=True))
group = ranks.start()
inputs = ActivationSpec("static") if method == "smoothquant+gptq" else None
spec = QuantizationSpec(8 if inputs else 3, symmetric=True, group_size=None if inputs else 32)
pipeline.quantize_folder(folder, out, spec, method=method, activations=inputs, calibration=batches, ranks=group)
ranks.stop()
"""


@pytest.mark.parametrize("method", ["gptq", "awq+gptq", "smoothquant+gptq"])
def test_two_processes_write_the_bytes_of_one(folder: Path, drawn: list, tmp_path: Path, method: str) -> None:
    script, tokens = tmp_path / "run.py", tmp_path / "tokens.pt"
    script.write_text(RANKS)
    torch.save(drawn, tokens)
    one, two = tmp_path / "one", tmp_path / "two"
    together(1, script, folder, one, method, tokens)
    if method == "gptq":
        several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(cli.__file__).parent.parent)}
        command = [sys.executable, *several, str(script), str(folder), str(two), method, str(tokens)]
        both = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
        assert both.returncode == 0, both.stderr
    else:
        together(2, script, folder, two, method, tokens)
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in two.iterdir())
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)
    assert not list(tmp_path.glob(".*.unfinished"))


def test_ranks_share_whole_batches_and_refuse_too_few() -> None:
    items = list(range(7))
    shares = [Ranks(rank, 3).share(items) for rank in range(3)]
    assert sorted(item for share in shares for item in share) == items
    with pytest.raises(ValueError, match="2 calibration batches do not go round 3 processes"):
        Ranks(0, 3).share([1, 2])


def test_a_folder_that_does_not_name_its_type_is_streamed_in_the_stored_one(folder: Path, tmp_path: Path) -> None:
    loading.load_float(folder).to(torch.bfloat16).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("dtype") == "bfloat16"
    (tmp_path / "config.json").write_text(json.dumps(config))
    streamed = StreamedModel(tmp_path)
    streamed.enter("model.layers.0")
    assert streamed.streams
    assert {p.dtype for p in streamed.model.parameters()} == {loading.load_float(tmp_path).dtype} == {torch.bfloat16}


def test_workflow_needs_a_job_to_stream(folder: Path) -> None:
    streamed = StreamedModel(folder)
    with pytest.raises(ValueError, match="job is None; a streamed model needs one"):
        workflow.quantize(streamed.model, SPEC, streamed=streamed)
