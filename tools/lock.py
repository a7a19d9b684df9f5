"""Compute requirements.lock from pyproject.toml: `make lock`.

One lock for Python 3.10 to 3.13 and all platforms (`uv pip compile --universal`). torch needs care: its build
for Linux on the index asks for several gigabytes of CUDA packages, which a CPU build does not need. So torch
is left out of the resolution, its own plain requirements are named instead, and its pin is put first.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
TORCH = "torch==2.13.0"
TORCH_NEEDS = ["filelock", "typing-extensions", "sympy", "networkx", "jinja2", "fsspec", "setuptools"]
CONSTRAINTS = ["triton<3.8"]  # torch 2.13 is built with Triton 3.7
EXTRAS = ("hub", "triton", "serving", "book", "test")


def requirements(pyproject: dict) -> list[str]:
    """What the environment of `make` holds: the package's own requirements and those of the extras."""
    project = pyproject["project"]
    extras = [line for extra in EXTRAS for line in project["optional-dependencies"][extra]]
    return sorted({*project["dependencies"], *extras, *TORCH_NEEDS})


def compile_lock(lines: list[str]) -> str:
    """The resolved pins, one a line, without comments."""
    with tempfile.TemporaryDirectory() as folder:
        wanted, override, constraint = (Path(folder, name) for name in ("requirements.in", "override", "constraint"))
        wanted.write_text("\n".join(lines))
        override.write_text("torch; sys_platform == 'never'\n")
        constraint.write_text("\n".join(CONSTRAINTS))
        command = [sys.executable, "-m", "uv", "pip", "compile", str(wanted), "--universal", "--python-version", "3.10"]
        command += ["--override", str(override), "--constraint", str(constraint), "--no-header", "--no-annotate", "-q"]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "uv"], check=True)
    with (ROOT / "pyproject.toml").open("rb") as file:
        lines = requirements(tomllib.load(file))
    pins = [line for line in compile_lock(lines).splitlines() if line and not line.startswith("torch==")]
    (ROOT / "requirements.lock").write_text("\n".join([TORCH, *pins]) + "\n")
    print(f"requirements.lock: {len(pins) + 1} packages")


if __name__ == "__main__":
    main()
