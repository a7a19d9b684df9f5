"""The conftest.py of the run of the notebooks: the processor time of each one's kernel goes into the report.

Elapsed time depends on what else the machine is doing. A kernel with one thread takes its processor
time on an idle core, so that is what a chapter's limit is about.
"""

import resource
from collections.abc import Generator

import pytest


def processor_seconds() -> float:
    """User and system time of the processes that this one has started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    before = processor_seconds()
    try:
        return (yield)
    finally:
        item.user_properties.append(("processor", processor_seconds() - before))
