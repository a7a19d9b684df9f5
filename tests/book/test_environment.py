"""pyproject.toml, requirements.lock, environment.yml and the installed packages do not contradict each other."""

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution

import book_paths
import check_python
import lock
import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = book_paths.ROOT
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
LOCK = [Requirement(line) for line in (ROOT / "requirements.lock").read_text().splitlines()]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())


def conda_disagreements(conda, project):
    """Where environment.yml and the [project] table of pyproject.toml differ."""
    plain = [entry for entry in conda["dependencies"] if isinstance(entry, str)]
    pip = [line for entry in conda["dependencies"] if isinstance(entry, dict) for line in entry["pip"]]
    found = []
    groups = ("hub", "serving", "book", "test")
    wanted = {Requirement(text) for group in groups for text in project["optional-dependencies"][group]}
    ours = {str(r) for r in wanted | {Requirement(text) for text in project["dependencies"]}}
    theirs = {str(Requirement(line)) for line in pip if not line.startswith("-e")}
    found += [f"only in pyproject.toml: {text}" for text in sorted(ours - theirs)]
    found += [f"only in environment.yml: {text}" for text in sorted(theirs - ours)]
    if "-e ." not in pip:
        found.append("the package itself is not installed")
    python = [entry.removeprefix("python") for entry in plain if re.match(r"python\b", entry)]
    if [SpecifierSet(text) for text in python] != [SpecifierSet(project["requires-python"])]:
        found.append(f"python is {python}, not {project['requires-python']}")
    return found


def test_conda_agrees_with_pyproject():
    assert conda_disagreements(CONDA, PROJECT) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("torch>=2.9", "torch>=2.8"),
        ("      - safetensors>=0.5\n", ""),
        ("pandas>=2.2", "pandas>=2.2\n      - requests>=2"),
        ("python>=3.10,<3.14", "python>=3.9,<3.14"),
        ("      - -e .\n", ""),
    ],
)
def test_a_disagreement_is_found(old, new):
    text = (ROOT / "environment.yml").read_text()
    assert old in text
    assert conda_disagreements(yaml.safe_load(text.replace(old, new)), PROJECT)


def environment(python):
    return default_environment() | {"python_version": python, "python_full_version": f"{python}.0"}


def pins(python):
    """Name → version of what the lock installs on this platform for one Python."""
    chosen = [r for r in LOCK if r.marker is None or r.marker.evaluate(environment(python))]
    names = [canonicalize_name(r.name) for r in chosen]
    assert len(names) == len(set(names)), f"two pins of one package for Python {python}"
    return {name: str(r.specifier).removeprefix("==") for name, r in zip(names, chosen, strict=True)}


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_satisfies_pyproject(python):
    locked = pins(python)
    wanted = [Requirement(text) for text in lock.requirements(PYPROJECT)]
    wanted = [r for r in wanted if r.marker is None or r.marker.evaluate(environment(python))]
    assert len(wanted) > 20
    bad = [f"{r}: {locked.get(canonicalize_name(r.name))}" for r in wanted if not _meets(r, locked)]
    assert bad == []


def _meets(requirement, locked):
    version = locked.get(canonicalize_name(requirement.name))
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def test_torch_stands_first():
    assert str(LOCK[0]) == lock.TORCH


def test_every_line_is_an_exact_pin():
    assert [str(r) for r in LOCK if [s.operator for s in r.specifier] != ["=="]] == []


@pytest.mark.parametrize("python", PYTHONS)
def test_no_locked_package_contradicts_requires_python(python):
    """Read from the installed packages, where the pin for `python` is the installed version."""
    assert SpecifierSet(PROJECT["requires-python"]).contains(f"{python}.0")
    checked, bad = 0, []
    for name, version in pins(python).items():
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            continue
        if installed.version.partition("+")[0] != version:
            continue
        checked += 1
        needed = installed.metadata["Requires-Python"]
        if needed and not SpecifierSet(needed).contains(f"{python}.0"):
            bad.append(f"{name}=={version} needs Python {needed}")
    assert checked > 50
    assert bad == []


@pytest.mark.parametrize("outside", ["3.9.0", "3.14.0"])
def test_other_pythons_are_excluded(outside):
    assert not SpecifierSet(PROJECT["requires-python"]).contains(outside)


@pytest.mark.parametrize(
    ("version", "modules", "words"),
    [
        ((3, 9), True, "Python 3.10 to 3.13 is needed, this is 3.9"),
        ((3, 14), True, "Python 3.10 to 3.13 is needed, this is 3.14"),
        ((3, 11), False, "python3-venv"),
    ],
)
def test_what_is_missing_is_named_in_one_line(version, modules, words):
    message = check_python.problem(version, lambda name: modules)
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize("python", PYTHONS)
def test_the_stated_pythons_are_accepted(python):
    assert check_python.problem(tuple(map(int, python.split("."))), lambda name: True) is None


def test_a_missing_interpreter_is_named(tmp_path):
    """make stops before it does anything, with the name of what is missing."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    outcome = subprocess.run(
        ["make", "PYTHON=no-such-python", "lint"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert outcome.returncode == 2
    assert "missing: no-such-python" in outcome.stdout + outcome.stderr
    assert not (tmp_path / ".venv").exists()
