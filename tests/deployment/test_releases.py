"""A switch happens or does not, whatever is killed in between."""

import json
import os
import random
import time

import pytest
import torch
from forked import Forked
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from reference.deployment import releases


def release(root, name):
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    save_file({"weight": torch.zeros(2)}, folder / "model.safetensors")


@pytest.fixture
def root(tmp_path):
    for name in ("v1", "v2", "v3"):
        release(tmp_path / "releases", name)
    return tmp_path / "releases"


@settings(max_examples=40, deadline=None)
@given(steps=st.lists(st.sampled_from(["v1", "v2", "v3", "back"]), max_size=12))
def test_any_sequence_follows_a_list(tmp_path_factory, steps):
    root = tmp_path_factory.mktemp("releases")
    for name in ("v1", "v2", "v3"):
        release(root, name)
    expected: list[str] = []
    for step in steps:
        if step != "back":
            expected += [] if expected[-1:] == [step] else [step]
            assert releases.promote(root, step) == root / step
        elif len(expected) > 1:
            expected.pop()
            assert releases.rollback(root) == root / expected[-1]
        else:
            with pytest.raises(ValueError, match="no earlier release"):
                releases.rollback(root)
        assert releases.history(root) == expected
    if expected:
        assert releases.current(root) == root / expected[-1]


def test_a_promotion_made_twice_is_one_and_goes_back_to_the_release_before(root):
    """A script that was cut off is started again."""
    for name in ("v1", "v2", "v2"):
        releases.promote(root, name)
    assert releases.history(root) == ["v1", "v2"]
    assert releases.rollback(root).name == "v1"


SWITCH = """
import sys
from pathlib import Path
from reference.deployment import releases
releases.promote(sys.argv[1], "v1")
Path(sys.argv[2]).touch()
for _ in range(100_000):
    releases.promote(sys.argv[1], "v2")
    releases.rollback(sys.argv[1])
"""


def test_killed_at_any_moment_a_release_is_in_service(root, tmp_path):
    """The switching process is killed again and again; what is read meanwhile and afterwards is always one of the two."""
    moments = random.Random(0)
    script, ready = tmp_path / "switch.py", tmp_path / "ready"
    script.write_text(SWITCH)
    for _ in range(5):
        process = Forked(script, root, ready)
        while not ready.exists() and process.poll() is None:
            time.sleep(0.005)
        end = time.monotonic() + moments.uniform(0.05, 0.2)
        seen = set()
        while time.monotonic() < end:
            seen.add(releases.current(root).name)
        assert process.poll() is None, process.wait()
        process.kill()
        assert seen <= {"v1", "v2"}
        assert seen
        assert releases.current(root).name in ("v1", "v2")
        ready.unlink()
        (root / releases.POINTER).unlink()  # the next round starts afresh


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_an_error_in_the_switch_leaves_what_was(root, monkeypatch, broken):
    releases.promote(root, "v1")
    before = sorted(os.listdir(root))

    def fail(*_):
        raise OSError("the disk is gone")

    target = (os, "fsync") if broken == "fsync" else (type(root), "replace")
    monkeypatch.setattr(*target, fail)
    with pytest.raises(OSError, match="the disk is gone"):
        releases.promote(root, "v2")
    monkeypatch.undo()
    assert releases.current(root).name == "v1"
    assert sorted(os.listdir(root)) == before


@pytest.mark.parametrize("name", ["v9", "../v1", "", ".", ".."])
def test_what_is_no_release_is_refused(root, name):
    release(root, "..")  # a checkpoint, but not below the folder of releases
    releases.promote(root, "v1")
    with pytest.raises(ValueError, match="name is"):
        releases.promote(root, name)
    assert releases.history(root) == ["v1"]


def test_a_release_with_a_damaged_file_is_refused(root):
    releases.promote(root, "v1")
    (root / "v2" / "model.safetensors").write_bytes(b"\xff" * 12)
    with pytest.raises(ValueError, match="is not a safetensors file"):
        releases.promote(root, "v2")
    (root / "v3" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds no .safetensors file"):
        releases.promote(root, "v3")
    assert releases.current(root).name == "v1"


@pytest.mark.parametrize("damage", ["", "[]", "{}", json.dumps({"history": []}), json.dumps({"history": [1]})])
def test_a_damaged_pointer_is_told(root, damage):
    (root / releases.POINTER).write_text(damage)
    with pytest.raises(ValueError, match="is damaged"):
        releases.current(root)


def test_nothing_is_in_service_at_first(root):
    assert releases.history(root) == []
    with pytest.raises(ValueError, match="promote one first"):
        releases.current(root)
