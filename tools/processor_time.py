"""The conftest.py of the run of the notebooks: starts apart, and the processor time of each one's kernel in the report.

Elapsed time depends on what else the machine is doing. A kernel with one thread takes its processor
time on an idle core, so that is what a chapter's limit is about.
"""

import resource
import time
from collections.abc import Generator

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Workers begin two seconds apart: kernels that start in the same instant can choose the same port, and one dies."""
    worker = getattr(config, "workerinput", None)
    if worker is not None:
        time.sleep(2 * int(worker["workerid"].removeprefix("gw")))


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
