"""Say in one line what is missing before an environment is made. Runs on any Python, so it is plain."""

import sys


def problem(version, modules):
    """What is missing, or None."""
    if not (3, 10) <= version < (3, 14):
        return "Python 3.10 to 3.13 is needed, this is {}.{}: name another, such as make PYTHON=python3.12".format(
            *version
        )
    for module, package in (("venv", "python3-venv"), ("ensurepip", "python3-venv")):
        if not modules(module):
            return "missing: Python's module {} (Debian and Ubuntu: apt install {})".format(module, package)  # noqa: UP032
    return None


def importable(name):
    """Whether the module can be imported."""
    try:
        __import__(name)
    except ImportError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(problem(sys.version_info[:2], importable))
