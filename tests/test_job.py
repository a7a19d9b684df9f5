"""Long runs that are killed: they go on to the same bytes, and never mix with another run."""

import copy
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
from command_line import goes_on_after_sigkill
from tiny_models import llama

from reference import workflow
from reference.calibration import batches
from reference.job import Job, digest
from reference.quantization.grid import QuantizationSpec

SPEC = QuantizationSpec(3, group_size=16)


def inputs() -> list[torch.Tensor]:
    return batches(torch.randint(0, 64, (400,), generator=torch.Generator().manual_seed(1)), sequences=8, length=16)


class Killed(Exception):
    """Stands in for a kill: nothing of ours catches it."""


def dies_after(blocks: int) -> "type":
    class Progress:
        left = blocks

        def __call__(self, items: list) -> Iterator:
            for item in items:
                if Progress.left == 0:
                    raise Killed
                Progress.left -= 1
                yield item

    return Progress


@pytest.mark.parametrize("method", ["gptq", "awq+gptq", "smoothquant+gptq"])
def test_a_run_cut_anywhere_ends_with_the_same_bytes(method: str, tmp_path: Path) -> None:
    whole = workflow.quantize(llama(), SPEC, method=method, calibration=inputs()).state_dict()
    steps = 3 if method == "gptq" else 6
    for cut in range(steps):
        folder, seen = tmp_path / f"{cut}", []
        with pytest.raises(Killed):
            workflow.quantize(
                llama(), SPEC, method=method, calibration=inputs(), progress=dies_after(cut)(), job=Job(folder, {})
            )
        job = Job(folder, {})
        found = sorted(path.name for path in folder.glob("*.safetensors"))
        assert len(found) == cut
        put = job.put
        job.put = lambda step, *rest, put=put, seen=seen: (seen.append(step), put(step, *rest))  # type: ignore[method-assign]
        resumed = workflow.quantize(llama(), SPEC, method=method, calibration=inputs(), job=job).state_dict()
        assert len(seen) == steps - cut  # what was done is not done again
        assert resumed.keys() == whole.keys()
        assert all(torch.equal(resumed[name], whole[name]) for name in whole), cut


def test_moved_groups_survive_a_cut(tmp_path: Path) -> None:
    options = {"method": "gptq", "calibration": inputs(), "act_order": True, "static_groups": False}
    whole = workflow.quantize(llama(), SPEC, **options).state_dict()
    assert any(name.endswith("group_index") for name in whole)
    with pytest.raises(Killed):
        workflow.quantize(llama(), SPEC, **options, progress=dies_after(2)(), job=Job(tmp_path / "job", {}))
    resumed = workflow.quantize(llama(), SPEC, **options, job=Job(tmp_path / "job", {})).state_dict()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_another_run_is_refused_and_named(tmp_path: Path) -> None:
    Job(tmp_path / "job", {"model": "a", "text": "b"})
    Job(tmp_path / "job", {"model": "a", "text": "b"})
    with pytest.raises(ValueError, match=r"differs in text \(was b, is c\)"):
        Job(tmp_path / "job", {"model": "a", "text": "c"})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="is in the way"):
        Job(tmp_path / "other", {})
    assert (tmp_path / "other" / "thesis.txt").read_text() == "mine"


def test_steps_come_back_with_their_notes_and_damage_is_named(tmp_path: Path) -> None:
    job = Job(tmp_path / "job", {})
    assert job.get("one") is None
    job.put("one", {"a": torch.arange(6).reshape(2, 3).T, "b": torch.tensor(1.5)}, {"loss": 0.25})
    tensors, notes = job.get("one") or ({}, {})
    assert torch.equal(tensors["a"], torch.arange(6).reshape(2, 3).T)
    assert tensors["b"].item() == 1.5
    assert notes == {"loss": 0.25}
    job.path("one").write_bytes(job.path("one").read_bytes()[:-4])
    with pytest.raises(ValueError, match="one.safetensors' is damaged"):
        job.get("one")
    job.remove()
    assert not (tmp_path / "job").exists()


def test_a_digest_sees_every_change(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"abc")
    variants: Iterable = [
        (file,), (torch.zeros(4),), (torch.zeros(2, 2),), (torch.zeros(4, dtype=torch.float64),), (b"x",),
        (torch.tensor([0.0, 0, 0, 1e-30]),), (b"x", b"y"), (torch.tensor(0.0),), (torch.zeros(1),), (torch.zeros(0, 4),),
    ]  # fmt: skip
    found = [digest(*parts) for parts in variants]
    assert len(set(found)) == len(found)
    file.write_bytes(b"abd")
    assert digest(file) != found[0]
    assert digest(torch.zeros(4)) == copy.copy(found[1])
    assert digest(torch.zeros(8)[::2]) == found[1]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a signal that cannot be caught")
def test_the_command_goes_on_after_sigkill_to_the_same_files(tmp_path: Path) -> None:
    """One real kill, at a moment that the number of finished blocks decides; benchmarks/kills.py does twenty at random."""
    arguments = [
        "quantize",
        "tutorial",
        "--method",
        "gptq",
        "--bits",
        "3",
        "--no-evaluate",
        "--sequences",
        "8",
        "--window",
        "128",
    ]
    goes_on_after_sigkill(tmp_path, arguments, "gptq.*")
