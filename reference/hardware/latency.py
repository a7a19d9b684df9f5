"""Time calls honestly: warm, often, with the spread shown, inputs that are not in the cache, rivals in turns.

Compare two times only as a ratio from one run on one machine: `compare` alternates the candidates, so that another job
on the machine slows all alike. On a GPU, where a launch takes longer than a small kernel, `graph_latencies` replays
captured calls between two events.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import torch

Input = TypeVar("Input")


class Latency(NamedTuple):
    """Seconds of one call: the best, the median, and the middle half of the repeats.

    Chapter: quantization/post_training, advanced/hardware_aware
    """

    best: float
    median: float
    low: float
    high: float


def summary(seconds: Sequence[float]) -> Latency:
    """Best, median and middle half of measured times, at least 4.

    Raises:
        ValueError: there are fewer than 4.

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

    Raises:
        ValueError: ``inputs`` is empty.

    Chapter: advanced/hardware_aware
    """
    if not inputs:
        raise ValueError("inputs is empty; it may have one entry or more")
    following = itertools.cycle(inputs)
    return lambda: function(next(following))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use ``count`` threads inside the block, and as many as before after it.

    Chapter: advanced/hardware_aware
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def graph_latencies(
    functions: Mapping[str, Callable[[int], object]], *, copies: int, replays: int = 30, warmup: int = 3
) -> dict[str, Latency]:
    """Time small CUDA kernels in turns: ``copies`` calls of each are captured in a graph, and graphs are replayed.

    A replay has no launch cost between its calls, and events on the device time it. Call ``i`` is given ``i``, so
    that it can use its own copy of the weight; ``copies`` times the bytes of one call should be at least four times
    the device's last cache.

    Args:
        functions: name → call of an index below ``copies``; a call may allocate, and must not copy to the host.
        copies: calls in a graph.
        replays: timed replays of each graph, 4 or more.
        warmup: untimed replays of each before.

    Returns:
        name → seconds of one call.

    Raises:
        RuntimeError: there is no CUDA device.

    Chapter: advanced/kernels
    """
    if not torch.cuda.is_available():
        raise RuntimeError("graph_latencies times CUDA kernels; torch.cuda.is_available() is False")
    graphs = {}
    for name, function in functions.items():
        for i in range(min(copies, 2)):  # compiles and tunes outside the capture
            function(i)
        torch.cuda.synchronize()
        graphs[name] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graphs[name]):
            for i in range(copies):
                function(i)
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(warmup + replays):
        for name, graph in graphs.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            if turn >= warmup:
                times[name].append(start.elapsed_time(end) / 1000 / copies)
    return {name: summary(values) for name, values in times.items()}
