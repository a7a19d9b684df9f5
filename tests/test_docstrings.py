"""The examples in docstrings run, and say what comes out; how many public names have one only grows."""

import doctest
import importlib

import function_links
import pytest

WITH = sorted(name for name, path in function_links.modules().items() if ">>>" in path.read_text())
#: Public functions and classes with an example. A lower count is a loss; raise it when you add some.
LEAST = 57
#: Rooms in which every public function has one.
WHOLE = ("reference.quantization.grid", "reference.quantization.hqq", "reference.tensors")


def examples(module: str) -> dict[str, doctest.DocTest]:
    """Name → its examples, for the names that a module defines itself."""
    loaded = importlib.import_module(module)
    found = doctest.DocTestFinder(recurse=True).find(loaded, module)
    return {test.name: test for test in found if test.examples}


@pytest.mark.parametrize("module", WITH)
def test_examples_run(module):
    tests = examples(module)
    assert tests
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    lines: list[str] = []
    for test in tests.values():
        runner.run(test, out=lines.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(lines)


def test_the_count_only_grows():
    named = [name for module in WITH for name in examples(module)]
    assert len(named) >= LEAST, sorted(named)


@pytest.mark.parametrize("module", WHOLE)
def test_some_rooms_are_whole(module):
    loaded = importlib.import_module(module)
    public = [
        n
        for n, v in vars(loaded).items()
        if callable(v) and not n.startswith("_") and not isinstance(v, type) and v.__module__ == module
    ]
    assert public
    assert [name for name in public if f"{module}.{name}" not in examples(module)] == []
