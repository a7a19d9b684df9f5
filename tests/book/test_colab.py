"""The first code cell of every chapter: it installs the package on Colab, and only there."""

import os
import subprocess
import sys
import types
from pathlib import Path

import address
import installed
import pytest
from packaging.requirements import Requirement

CELL = address.colab_cell(address.address())


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """What a clone has of the package, as a git repository of its own."""
    folder = installed.copy_package(tmp_path_factory.mktemp("checkout"))
    who = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q", "-b", "main"], ["add", "-A"], [*who, "commit", "-q", "-m", "test"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


def run_cell(monkeypatch, on_colab):
    """Execute the cell's text here; the commands that it would have run."""
    commands = []
    monkeypatch.setattr(subprocess, "run", lambda command, **options: commands.append((command, options)))
    modules = {"google": types.ModuleType("google"), "google.colab": types.ModuleType("google.colab")}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module if on_colab else None)
    scope: dict = {}
    exec(compile(CELL, "colab_cell", "exec"), scope)
    return commands, scope


def test_on_colab_it_installs_from_the_repository(monkeypatch):
    commands, _ = run_cell(monkeypatch, on_colab=True)
    ((command, options),) = commands
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    requirement = Requirement(command[-1])
    assert requirement.name == "model-compression-reference"
    assert requirement.url == f"git+{address.address()}"
    # Without it post_training cannot load what it wrote in transformers, and production has no server to start.
    assert requirement.extras == {"serving"}
    assert options["check"]


def test_elsewhere_it_installs_nothing(monkeypatch):
    commands, _ = run_cell(monkeypatch, on_colab=False)
    assert commands == []


def test_glue_prints_where_the_book_is_not_installed(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "myst_nb", None)
    _, scope = run_cell(monkeypatch, on_colab=False)
    scope["glue"]("loss", 0.5, display=False)
    assert capsys.readouterr().out == "loss = 0.5\n"


def test_glue_is_the_books_where_it_is_installed(monkeypatch):
    import myst_nb

    _, scope = run_cell(monkeypatch, on_colab=False)
    assert scope["glue"] is myst_nb.glue


def test_the_cell_works_in_a_fresh_environment(checkout, tmp_path):
    """The whole cell, with a real pip; git is told that the address is the local checkout.

    The new environment sees this one's packages, as Colab's does its own, so that nothing is downloaded.
    """
    site = installed.environment(tmp_path / "venv")
    fake = tmp_path / "colab" / "google" / "colab"
    fake.mkdir(parents=True)
    (fake.parent / "__init__.py").touch()
    (fake / "__init__.py").touch()
    environment = os.environ | {
        "PYTHONPATH": str(tmp_path / "colab"),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{checkout.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": address.address(),
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads this variable the other way round: no isolation
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    (tmp_path / "cell.py").write_text(CELL + "\nimport reference\nprint(reference.__file__)\n")
    python = tmp_path / "venv" / "bin" / "python"
    outcome = subprocess.run([python, "cell.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    assert Path(outcome.stdout.split()[-1]).is_relative_to(site)
    assert (site / "reference" / "models" / "tutorial" / "model.safetensors").is_file()
    assert list((site / "reference" / "kernels").glob("*.py"))
    assert (site / "reference" / "data" / "text" / "manifest.json").is_file()
    assert (site / "reference" / "recorded" / "post_training_methods.json").is_file()
