"""The package outside its repository: a copy of what it is built from, its wheel, and an environment that has only that wheel."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ("pyproject.toml", "README.md", "LICENSE", "LICENSES", "reference", "kernels", "book/data")


def copy_package(folder: Path) -> Path:
    """What a clone has of the package; `folder`."""
    for name in PACKAGE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(ROOT / name, folder / name)
    return folder


def build(source: Path, target: Path) -> Path:
    """The wheel of the package in `source`, written below `target`; no network is asked."""
    options = ["-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True)
    (wheel,) = target.glob("*.whl")
    return wheel


def environment(folder: Path) -> Path:
    """A new virtual environment that sees the packages of this one, but not this checkout; its site-packages."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    # A folder named in a .pth is searched, but its own .pth files, such as an editable checkout's, are not read.
    (site / "ours.pth").write_text(str(Path(pytest.__file__).parent.parent) + "\n")
    return site


def install(wheel: Path, folder: Path) -> Path:
    """`environment(folder)` with the wheel in it; its Python."""
    site = environment(folder)
    options = ["-q", "--no-deps", "--no-index", "--no-warn-script-location", "--target", str(site)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(wheel)], check=True)
    return folder / "bin" / "python"


def outside(**more: str) -> dict[str, str]:
    """Variables for a process in that environment: nothing that leads to the checkout but the block on the network."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return kept | {"PYTHONPATH": str(ROOT / "tools" / "offline"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | more
