"""Every public name shows an example in its docstring; the examples run, and say what comes out."""

import doctest
import importlib
import warnings

import function_links
import pytest

PUBLIC = [name for name, _ in function_links.public()]
ROOMS = sorted({name.rpartition(".")[0] for name in PUBLIC})


def examples(module: str) -> dict[str, doctest.DocTest]:
    """Name → its examples, for the names that a module defines itself, methods among them."""
    loaded = importlib.import_module(module)
    found = doctest.DocTestFinder(recurse=True).find(loaded, module)
    return {test.name: test for test in found if test.examples}


@pytest.mark.parametrize("module", ROOMS)
def test_examples_run(module):
    """Without a warning, and none is skipped."""
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    lines: list[str] = []
    for test in examples(module).values():
        assert not any(doctest.SKIP in example.options for example in test.examples), test.name
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            runner.run(test, out=lines.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(lines)


def test_every_public_name_has_an_example():
    """In its own docstring, or, of a class, in that of a method."""
    shown = {name for module in ROOMS for name in examples(module)}
    missing = [name for name in PUBLIC if not any(each == name or each.startswith(f"{name}.") for each in shown)]
    assert not missing, f"{len(missing)} public names without an example: {', '.join(missing)}"
