"""compress, decompress and inspect as a user calls them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from reference import cli
from reference.coding import container
from reference.models import tutorial
from reference.models.vision import LeNet300


@pytest.fixture
def run(capfd: pytest.CaptureFixture) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: object) -> tuple[int, str, str]:
        code = 0
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as error:
            code = int(error.code or 0)
        return code, *capfd.readouterr()

    return call


def files_of(file: Path) -> dict[str, bytes]:
    return container.load(file).files


def test_lossless_gives_back_the_shipped_model_bit_for_bit(tmp_path: Path, run: Callable) -> None:
    code, out, err = run("compress", "tutorial", tmp_path / "exact.dcz", "--lossless", "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["identical"] is True
    assert (report["lossless"], report["bits"], report["sparsity"]) == (True, None, 0)
    carried = sum(
        path.stat().st_size for path in tutorial.PATH.iterdir() if path.name in files_of(tmp_path / "exact.dcz")
    )
    assert report["bytes"] | {"container": 0} == {
        "tensors": (tutorial.PATH / "model.safetensors").stat().st_size, "files": carried, "container": 0,
    }  # fmt: skip
    assert report["ratio"] == (report["bytes"]["tensors"] + carried) / report["bytes"]["container"]
    assert report["bytes"]["container"] == (tmp_path / "exact.dcz").stat().st_size == sum(report["parts"].values())
    assert 1.45 < report["bytes"]["tensors"] / (report["bytes"]["container"] - report["parts"]["files"]) < 1.56
    assert run("decompress", tmp_path / "exact.dcz", tmp_path / "exact")[0] == 0
    original = load_file(tutorial.PATH / "model.safetensors")
    found = load_file(tmp_path / "exact" / "model.safetensors")
    assert set(original) == set(found)
    assert all(torch.equal(original[name].view(torch.int16), found[name].view(torch.int16)) for name in original)
    model, wanted = (
        AutoModelForCausalLM.from_pretrained(folder, dtype="auto") for folder in (tmp_path / "exact", tutorial.PATH)
    )
    ids = AutoTokenizer.from_pretrained(tmp_path / "exact")("def f(x):", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(model(ids).logits, wanted(ids).logits)


def test_shared_weights_survive_the_round_trip(tmp_path: Path, run: Callable) -> None:
    code, out, _ = run("compress", "tutorial", tmp_path / "s.dcz", "--bits", 4, "--sparsity", 0.2, "--json")
    assert code == 0
    report = json.loads(out)
    assert report["ratio"] > 3
    assert (report["lossless"], report["bits"], report["sparsity"]) == (False, 4, 0.2)
    assert run("decompress", tmp_path / "s.dcz", tmp_path / "s", "--json")[0] == 0
    dense = load_file(tmp_path / "s" / "model.safetensors")
    contents = container.load(tmp_path / "s.dcz").state_dict()
    assert all(torch.equal(dense[name], contents[name]) for name in contents)
    weight = dense["model.layers.0.mlp.up_proj.weight"]
    assert int((weight == 0).sum()) == round(0.2 * weight.numel())
    assert len(weight.unique()) <= 16
    original = load_file(tutorial.PATH / "model.safetensors")
    assert torch.equal(original["model.embed_tokens.weight"], dense["model.embed_tokens.weight"])
    code, out, _ = run("inspect", tmp_path / "s.dcz", "--json")
    row = json.loads(out)["layers"]["model.layers.0.mlp.up_proj.weight"]
    assert (row["bits"], round(row["sparsity"], 3)) == (4, 0.2)
    code, out, _ = run("inspect", tmp_path / "s.dcz")
    assert code == 0
    assert "4 bits" in out


@pytest.mark.parametrize("options", [["--lossless"], ["--bits", 4]])
def test_a_model_in_several_files_comes_back_in_one(
    tmp_path: Path, run: Callable, options: list, capfd: pytest.CaptureFixture
) -> None:
    torch.manual_seed(0)
    model = tiny_models.build("llama")
    model.save_pretrained(tmp_path / "model", max_shard_size="100KB")
    shards = sorted((tmp_path / "model").glob("*.safetensors"))
    assert len(shards) > 2
    capfd.readouterr()
    code, out, err = run("compress", tmp_path / "model", tmp_path / "m.dcz", *options, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["bytes"]["tensors"] == sum(shard.stat().st_size for shard in shards)
    assert set(files_of(tmp_path / "m.dcz")) == {
        "config.json",
        "generation_config.json",
    }  # no list of files that are gone
    assert run("decompress", tmp_path / "m.dcz", tmp_path / "out")[0] == 0
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values())
    same = {name: torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items()}
    assert {name for name, equal in same.items() if not equal} == (
        set() if options == ["--lossless"] else {name for name in same if "_proj" in name}
    )
    shards[1].write_bytes(shards[0].read_bytes())
    code, _, err = run("compress", tmp_path / "model", tmp_path / "twice.dcz", *options)
    assert code == 2
    assert f"is in two files, the second '{shards[1].name}'" in err


def test_a_file_of_weights_is_a_model_too(tmp_path: Path, run: Callable) -> None:
    torch.manual_seed(0)
    state = LeNet300().state_dict()
    save_file(state, tmp_path / "lenet.safetensors")
    code, out, _ = run("compress", tmp_path / "lenet.safetensors", tmp_path / "l.dcz", "--sparsity", 0.9, "--bits", 5)
    assert code == 0
    assert "times smaller" in out
    assert run("decompress", tmp_path / "l.dcz", tmp_path / "l")[0] == 0
    LeNet300().load_state_dict(load_file(tmp_path / "l" / "model.safetensors"))
    assert state["fc1.weight"].nbytes / (tmp_path / "l.dcz").stat().st_size > 20


def test_every_dtype_comes_back_as_it_was(tmp_path: Path, run: Callable) -> None:
    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool]
    state = {str(kind): (torch.randn(20, 30) * 3).to(kind) for kind in kinds}
    save_file(state, tmp_path / "m.safetensors")
    for name, options in (("exact", ["--lossless"]), ("shared", ["--bits", 2])):
        code, _, err = run("compress", tmp_path / "m.safetensors", tmp_path / f"{name}.dcz", *options)
        assert code == 0, err
        assert run("decompress", tmp_path / f"{name}.dcz", tmp_path / name)[0] == 0
        found = load_file(tmp_path / name / "model.safetensors")
        assert {key: value.dtype for key, value in found.items()} == {str(kind): kind for kind in kinds}
        if name == "exact":
            assert all(torch.equal(found[key], state[key]) for key in state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compress", "no/such", "x.dcz"], "no such model"),
        (["compress", "no.safetensors", "x.dcz"], "there is no file 'no.safetensors'"),
        (["compress", "tutorial", "x.dcz", "--bits", "9"], "--bits is 9"),
        (["compress", "tutorial", "x.dcz", "--sparsity", "1"], "--sparsity is 1"),
        (
            ["compress", "tutorial", "x.dcz", "--lossless", "--sparsity", "0.5"],
            " has no effect with --lossless, which keeps every tensor exactly",
        ),
        (
            ["compress", "tutorial", "x.dcz", "--lossless", "--bits", "4"],
            " has no effect with --lossless, which keeps every tensor exactly",
        ),
        (["compress", "tutorial", "x.dcz", "--skip", "*.layer.0.*"], "pattern '*.layer.0.*' fits no tensor"),
        (["compress", "tutorial", "there.dcz"], "'there.dcz' exists"),
        (["compress", "tutorial", "no/folder/x.dcz"], "there is no folder"),
        (["compress", "there.dcz.safetensors", "x.dcz"], "is not a safetensors file"),
        (["decompress", "no.dcz", "out"], "there is no file 'no.dcz'"),
        (["decompress", "there.dcz", "out"], "is not a container"),
        (["inspect", "there.dcz"], "is not a container"),
    ],
)
def test_wrong_input_is_one_line(
    tmp_path: Path, run: Callable, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("there.dcz", "there.dcz.safetensors"):
        Path(name).write_bytes(b"something else, long enough")
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there.dcz", "there.dcz.safetensors"]


def test_what_is_quantised_already_is_coded_exactly_or_not_at_all(tmp_path: Path, run: Callable, model: Path) -> None:
    """Scales are matrices too: pruned and shared, they would change every weight that they multiply."""
    assert run("quantize", model, "--output", tmp_path / "q", "--group-size", 64, "--no-evaluate")[0] == 0
    code, out, err = run("compress", tmp_path / "q", tmp_path / "q.dcz", "--bits", 5)
    assert (code, out) == (2, "")
    assert "is quantised already, and its scales bear no more loss; --lossless codes it exactly" in err
    assert not (tmp_path / "q.dcz").exists()
    assert run("compress", tmp_path / "q", tmp_path / "q.dcz", "--lossless")[0] == 0
    assert run("decompress", tmp_path / "q.dcz", tmp_path / "back")[0] == 0
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("q", "back"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_damage_is_named_and_leaves_nothing(tmp_path: Path, run: Callable) -> None:
    container.save(tmp_path / "x.dcz", {"fc.weight": torch.randn(30, 30)})
    data = bytearray((tmp_path / "x.dcz").read_bytes())
    data[-5] ^= 4
    (tmp_path / "x.dcz").write_bytes(data)
    code, _, err = run("decompress", tmp_path / "x.dcz", tmp_path / "out")
    assert code == 2
    assert "'fc.weight' is damaged" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../evil", "a/b", ".hidden", "model.safetensors", "a\\b"])
def test_carried_files_stay_in_their_folder(tmp_path: Path, run: Callable, name: str) -> None:
    container.save(tmp_path / "x.dcz", {"w": torch.zeros(2)}, files={name: b"x"})
    code, _, err = run("decompress", tmp_path / "x.dcz", tmp_path / "out")
    assert code == 2
    assert "no plain file name" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["interrupted", "damaged", "another tensor", "another name", "one too few"])
def test_what_could_not_be_compared_is_not_kept(
    tmp_path: Path, run: Callable, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    save_file({"a": torch.ones(20, 30), "b": torch.zeros(9)}, tmp_path / "m.safetensors")
    read = container.read

    def changed(file: Path) -> Iterator:
        for entry, contents, value in read(file):
            if what == "one too few" and entry.name == "b":
                return
            named = entry._replace(name="c") if what == "another name" else entry
            yield named, contents, value + 1 if what == "another tensor" else value
            if what == "interrupted":
                raise KeyboardInterrupt
            if what == "damaged":
                raise ValueError("'b' is damaged")

    monkeypatch.setattr(container, "read", changed)
    code, out, err = run("compress", tmp_path / "m.safetensors", tmp_path / "x.dcz", "--lossless")
    said = {"interrupted": "interrupted; nothing was written", "damaged": "error: 'b' is damaged"}
    assert (code, out) == (130 if what == "interrupted" else 2, "")
    assert err.startswith(said.get(what, "error: what was written does not decode to"))
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]
