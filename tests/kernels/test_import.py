"""The folder `kernels/` is imported as `reference.kernels`, and PyPI's package `kernels` keeps its own name.

transformers imports PyPI's `kernels` where it is installed. From the repository's root our folder hides it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

EVERYTHING = """
import os, runpy, sys

import transformers.integrations.hub_kernels  # imports names from `kernels` if it counts as installed
from transformers.utils import is_kernels_available
from transformers import LlamaForCausalLM

from reference.kernels import w4a16
from reference.kernels.w4a16 import w4a16 as function
assert w4a16.w4a16 is function
assert w4a16.__name__ == "reference.kernels.w4a16"

print("available", is_kernels_available())
print("file", os.path.realpath(getattr(sys.modules.get("kernels"), "__file__", "none")))

sys.argv = ["reference", "--help"]
try:
    runpy.run_module("reference", run_name="__main__", alter_sys=True)
except SystemExit as leave:
    print("exit", leave.code or 0)
else:
    print("exit 0")
"""

# Stands for anything that transformers takes from PyPI's `kernels`: a class, a function, a decorator with arguments.
OTHER_KERNELS = """
class Anything:
    def __call__(self, *arguments, **options):
        return arguments[0] if arguments and isinstance(arguments[0], type) else self

def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return Anything()
"""


def python(code: str, cwd: Path, path: list[Path]) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path)), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def other_kernels(tmp_path) -> Path:
    """A folder laid out as pip leaves PyPI's `kernels`, in a version that transformers accepts."""
    from transformers.utils.import_utils import KERNELS_MIN_VERSION

    site = tmp_path / "site"
    (site / "kernels").mkdir(parents=True)
    (site / "kernels" / "__init__.py").write_text(OTHER_KERNELS)
    metadata = site / f"kernels-{KERNELS_MIN_VERSION}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: kernels\nVersion: {KERNELS_MIN_VERSION}\n")
    return site


@pytest.mark.parametrize("place", ["root", "elsewhere"])
def test_all_imports_work_beside_the_other_kernels(other_kernels, place, tmp_path) -> None:
    """The checkout comes first on the path, as it does in the root; the other package is found all the same."""
    cwd = ROOT if place == "root" else tmp_path
    printed = python(EVERYTHING, cwd, [other_kernels] if place == "root" else [ROOT, other_kernels])
    assert "available True" in printed
    assert f"file {os.path.realpath(other_kernels / 'kernels' / '__init__.py')}" in printed
    assert "exit 0" in printed


@pytest.mark.parametrize("place", ["root", "elsewhere"])
def test_all_imports_work_without_the_other_kernels(place, tmp_path) -> None:
    with suppress(PackageNotFoundError):
        pytest.skip(f"kernels {version('kernels')} is installed here")
    printed = python(EVERYTHING, ROOT if place == "root" else tmp_path, [] if place == "root" else [ROOT])
    assert "available False" in printed
    assert "exit 0" in printed


@pytest.fixture
def second_checkout(tmp_path) -> Path:
    second = tmp_path / "second"
    for folder in ("reference", "kernels"):
        shutil.copytree(ROOT / folder, second / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    return second


def test_two_checkouts_on_the_path_make_way_for_the_other_kernels(second_checkout, other_kernels, tmp_path) -> None:
    """Each hides the other's folder `kernels`; neither may hand over to the other without end."""
    printed = python(EVERYTHING, tmp_path, [ROOT, second_checkout, other_kernels])
    assert "available True" in printed
    assert f"file {os.path.realpath(other_kernels / 'kernels' / '__init__.py')}" in printed
    assert "exit 0" in printed


def test_two_checkouts_on_the_path_import_where_there_are_no_other_kernels(second_checkout, tmp_path) -> None:
    with suppress(PackageNotFoundError):
        pytest.skip(f"kernels {version('kernels')} is installed here")
    code = "import kernels; print('version', kernels.__version__)"
    assert "version 0" in python(code, tmp_path, [ROOT, second_checkout])


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None  # importing it raises ImportError
import torch
from reference.kernels.w4a16 import w4a16
try:
    w4a16(torch.zeros(1, 8), torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, 1), group_size=8)
except ImportError as error:
    print(error)
"""


def test_without_triton_only_the_call_fails(tmp_path) -> None:
    assert "Triton, which is not installed; on Linux: pip install" in python(WITHOUT_TRITON, tmp_path, [ROOT])
