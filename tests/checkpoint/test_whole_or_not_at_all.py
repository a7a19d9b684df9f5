"""What is written appears whole or not at all, and what cannot be written is refused first."""

import errno
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from checkpoints import LAYER, tiny_llama
from torch import nn

from reference import checkpoint, training, workflow
from reference.coding import container
from reference.files import atomic_directory
from reference.job import Job
from reference.quantization.grid import QuantizationSpec


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="format is 'zip'; it may be compressed-tensors"):
        checkpoint.save(tiny_llama(), tmp_path / "out", "zip")


def test_an_output_that_holds_something_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("mine")
    with pytest.raises(FileExistsError, match="full' is not empty"):
        checkpoint.save(tiny_llama(), tmp_path / "full")
    with pytest.raises(FileExistsError, match="notes' is a file"):
        checkpoint.save(tiny_llama(), tmp_path / "full" / "notes")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["full", "notes"]
    (tmp_path / "empty").mkdir()
    checkpoint.save(tiny_llama(), tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").is_file()


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_a_failure_in_the_middle_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    model = tiny_llama()

    def fail(folder: Path) -> None:
        assert (Path(folder) / "model.safetensors").is_file(), "the weights are already written"
        raise error

    monkeypatch.setattr(model.generation_config, "save_pretrained", fail)
    with pytest.raises(type(error)):
        checkpoint.save(model, tmp_path / "new" / "parent" / "out")
    assert list(tmp_path.iterdir()) == [], "not even the parent folders that it made"


def test_replace_brings_the_old_folder_back_when_the_exchange_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "old").touch()
    rename = Path.rename

    def fail_second(self: Path, other: Path) -> Path:
        if ".tmp-" in self.name:
            raise OSError("no")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", fail_second)
    with pytest.raises(OSError, match="no"), atomic_directory(target, replace=True) as folder:
        (folder / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["target", "old"]
    monkeypatch.undo()
    with atomic_directory(target, replace=True) as folder:
        (folder / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["target", "new"]


def test_a_link_to_an_empty_folder_is_fine_and_the_current_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(FileExistsError, match=r"output '\.' is the folder that this runs in"), atomic_directory("."):
        pytest.fail("would be replaced under our feet")
    assert Path.cwd() == tmp_path / "here"
    assert Path(".").is_dir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    with atomic_directory(tmp_path / "link") as folder:
        (folder / "file").touch()
    assert (tmp_path / "there" / "file").is_file()


def test_a_disk_that_cannot_hold_it_is_refused_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match=r"disk full: .*out' needs [\d,]+ bytes, and 1,000 are free"):
        checkpoint.save(tiny_llama(), tmp_path / "new" / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KiB; only root may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)]
    try:
        done = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        done = False
    if not done:
        pytest.skip("a file system cannot be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_fills_up_while_writing_leaves_nothing(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    usage = shutil.disk_usage(small_disk)
    with pytest.raises(OSError, match="disk full: .* needs"):
        checkpoint.save(tiny_llama(tied=False), small_disk / "out")
    # The room was there when it was looked at, and then another process took it.
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**12))
    with pytest.raises(OSError, match=r"disk full while writing .*out'.*nothing is left of it"):
        checkpoint.save(tiny_llama(tied=False), small_disk / "out")
    with pytest.raises(OSError, match="disk full while writing"), atomic_directory(small_disk / "out") as folder:
        (folder / "large").write_bytes(bytes(2**20))
    assert list(small_disk.iterdir()) == []


def test_each_writer_names_what_did_not_fit_on_the_disk(small_disk: Path) -> None:
    large = torch.randn(2**18)
    with pytest.raises(OSError, match=r"disk full while writing '.*step\.safetensors' .*nothing is left of it"):
        Job(small_disk / "job", {}).put("step", {"large": large}, {})
    with pytest.raises(OSError, match=r"disk full while writing '.*small\.dcz' .*nothing is left of it"):
        container.save(small_disk / "small.dcz", {"large": large})
    layer = nn.Linear(512, 512)
    with pytest.raises(OSError, match=r"disk full while writing '.*state' .*nothing is left of it"):  # by safetensors
        training.save_state(small_disk / "state", layer, [torch.optim.AdamW(layer.parameters())], step=1)
    assert [path.name for path in small_disk.rglob("*")] == ["job", "fingerprint.json"]


def test_any_other_error_of_the_system_passes_unchanged(tmp_path: Path) -> None:
    with pytest.raises(PermissionError) as caught, atomic_directory(tmp_path / "out"):
        raise PermissionError(errno.EACCES, "no")
    assert caught.value.errno == errno.EACCES
    assert list(tmp_path.iterdir()) == []


def test_a_group_index_and_affine_per_tensor_are_refused_by_name(tmp_path: Path) -> None:
    model = tiny_llama()
    workflow.quantize(model, QuantizationSpec(4, per_tensor=True))
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.q_proj is affine with one scale per tensor"):
        checkpoint.save(model, tmp_path / "out")
    model = tiny_llama()
    workflow.quantize(model, QuantizationSpec(4, symmetric=True, group_size=64))
    layer = model.get_submodule(LAYER)
    assert isinstance(layer, nn.Module)
    layer.group_index = torch.arange(256, dtype=torch.int32) // 64
    with pytest.raises(ValueError, match=f"{LAYER} has groups out of order"):
        checkpoint.save(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
