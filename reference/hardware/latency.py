"""Time calls honestly: warm, often, with the spread shown, inputs that are not in the cache, rivals in turns.

Compare two times only as a ratio from one run on one machine: `compare` alternates the candidates, so that another job
on the machine slows all alike. On a GPU, where a launch takes longer than a small kernel, `captured` replays calls from a
graph between two events; its results are called in turns, as `compare` does.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import torch

Input = TypeVar("Input")


class Latency(NamedTuple):
    """Seconds of one call: the best, the median, and the middle half of the repeats, from ``low`` to ``high``.

    Example:
        >>> slow, fast = Latency(2.0, 2.5, 2.25, 3.0), Latency(1.0, 1.25, 1.0, 1.5)
        >>> slow.median / fast.median
        2.0

    Chapter: quantization/post_training, advanced/hardware_aware
    """

    best: float
    median: float
    low: float
    high: float


def summary(seconds: Sequence[float]) -> Latency:
    """Best, median and middle half of measured times, at least 4.

    Args:
        seconds: of one call each, in any order.

    Raises:
        ValueError: there are fewer than 4.

    Example:
        >>> summary([9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])  # one call was disturbed
        Latency(best=1.0, median=5.0, low=3.0, high=7.0)

    Chapter: advanced/hardware_aware
    """
    if len(seconds) < 4:
        raise ValueError(f"seconds has {len(seconds)} entries; a spread needs at least 4")
    count, ordered = len(seconds), sorted(seconds)
    return Latency(ordered[0], ordered[count // 2], ordered[count // 4], ordered[3 * count // 4])


def latency(function: Callable[[], object], *, repeats: int = 20, warmup: int = 3) -> Latency:
    """Time a call, with its spread.

    Compare two latencies only as a ratio from one run on one machine; better, use `compare`.

    Args:
        function: called ``warmup + repeats`` times.
        repeats: timed calls, at least 4.
        warmup: untimed calls before.

    Raises:
        ValueError: ``repeats`` is below 4.

    Example:
        >>> found = latency(lambda: sum(range(1000)), repeats=8)
        >>> 0 < found.best <= found.low <= found.median <= found.high
        True

    Chapter: quantization/post_training, advanced/hardware_aware
    """
    return compare({"": function}, repeats=repeats, warmup=warmup)[""]


def compare(
    functions: Mapping[str, Callable[[], object]], *, repeats: int = 20, warmup: int = 3, seconds: float = 0.0
) -> dict[str, Latency]:
    """Time several calls in turns, one of each per round, so that a disturbance meets all of them.

    Args:
        functions: name → call, not empty.
        repeats: rounds at least, 4 or more.
        warmup: untimed calls of each before.
        seconds: go on with rounds until so much time has passed.

    Returns:
        name → latency, each from the same number of rounds.

    Raises:
        ValueError: there is nothing to time, or ``repeats`` is below 4.

    Example:
        >>> found = compare({"short": lambda: sum(range(10)), "long": lambda: sum(range(50_000))}, repeats=8)
        >>> found["short"].best < found["long"].best
        True

    Chapter: advanced/hardware_aware
    """
    if not functions:
        raise ValueError("functions is empty; it may have one entry or more")
    if repeats < 4:
        raise ValueError(f"repeats is {repeats}; a spread needs at least 4")
    for function in functions.values():
        for _ in range(warmup):
            function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < repeats or time.perf_counter() < end:
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
        rounds += 1
    return {name: summary(values) for name, values in times.items()}


def rotated(function: Callable[[Input], object], inputs: Sequence[Input]) -> Callable[[], object]:
    """A call without arguments that takes the next of ``inputs`` each time, round and round.

    One weight that is read again and again stays in the cache, and the time is the cache's. Give copies that together
    are several times larger than it.

    Args:
        function: of one input.
        inputs: one or more, for example copies of a weight.

    Raises:
        ValueError: ``inputs`` is empty.

    Example:
        >>> call = rotated(lambda weight: 10 * weight, [1, 2])
        >>> [call() for _ in range(3)]
        [10, 20, 10]

    Chapter: advanced/hardware_aware
    """
    if not inputs:
        raise ValueError("inputs is empty; it may have one entry or more")
    following = itertools.cycle(inputs)
    return lambda: function(next(following))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use ``count`` threads inside the block, and as many as before after it.

    Args:
        count: 1 or more.

    Example:
        >>> with threads(1):
        ...     torch.get_num_threads()
        1

    Chapter: advanced/hardware_aware
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def captured(call: Callable[[int], object], copies: int) -> Callable[[], float]:
    """Capture ``call(0) … call(copies - 1)`` in a CUDA graph; the result replays it and gives seconds per call.

    A replay has no launch cost between its calls, and events on the device time it. Each call should use its own copy
    of the weight, and ``copies`` times its bytes should be at least four times the device's last cache.

    Args:
        call: of an index below ``copies``; it may allocate, and must not wait for the device.
        copies: calls in the graph.

    Returns:
        A call that replays the graph and gives seconds, the mean of its calls.

    Raises:
        RuntimeError: there is no CUDA device.

    Example:
        >>> weights = torch.ones(4, 8, 8)
        >>> if torch.cuda.is_available():  # a CPU has no graphs
        ...     weights = weights.cuda()
        ...     product = captured(lambda i: weights[i] @ weights[i], copies=4)
        ...     assert product() > 0  # seconds

    Chapter: advanced/kernels
    """
    _require_cuda("captured")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles and tunes outside the capture
        for i in range(min(2, copies)):
            call(i)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(copies):
            call(i)
    return lambda: _between_events(graph.replay) / copies


def launched(call: Callable[[int], object], copies: int) -> Callable[[], float]:
    """The same without a graph, for calls that wait for the device: seconds per call, launches included.

    Args:
        call: of an index below ``copies``; it may wait for the device.
        copies: calls at a time.

    Returns:
        A call that gives seconds, the mean of ``copies`` calls.

    Raises:
        RuntimeError: there is no CUDA device.

    Example:
        >>> weights = torch.ones(4, 8, 8)
        >>> if torch.cuda.is_available():
        ...     weights = weights.cuda()
        ...     waiting = launched(lambda i: float(weights[i].sum()), copies=4)
        ...     assert waiting() > 0  # seconds, the wait for each number included

    Chapter: advanced/kernels
    """
    _require_cuda("launched")
    call(0)
    torch.cuda.synchronize()

    def all_of_them() -> None:
        for i in range(copies):
            call(i)

    return lambda: _between_events(all_of_them) / copies


def _require_cuda(name: str) -> None:
    if not torch.cuda.is_available():
        raise RuntimeError(f"{name} times CUDA kernels; torch.cuda.is_available() is False")


def _between_events(work: Callable[[], object]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000
