"""Timing: order, turns, inputs, threads; and the CUDA path against a device made of counters."""

import time
from contextlib import contextmanager

import pytest
import torch

from reference.hardware import latency as module
from reference.hardware.latency import captured, compare, latency, launched, rotated, summary, threads


def test_latency_is_ordered_and_about_what_was_slept() -> None:
    calls = []

    def work() -> None:
        calls.append(1)
        time.sleep(0.002)

    result = latency(work, repeats=8, warmup=2)
    assert len(calls) == 10
    assert 0.002 <= result.best <= result.low <= result.median <= result.high
    with pytest.raises(ValueError, match="repeats is 3; a spread needs at least 4"):
        latency(work, repeats=3)


def test_the_best_is_not_the_median_and_the_spread_is_shown(monkeypatch) -> None:
    """Two slow calls out of eight move neither best nor median."""
    clock = iter([0.0, *[t for d in (5, 1, 2, 3, 9, 4, 2, 3) for t in (0.0, float(d))], 0.0])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    assert latency(lambda: None, repeats=8, warmup=0) == (1.0, 3.0, 2.0, 5.0)
    assert summary([1.0, 2.0, 3.0, 4.0]) == (1.0, 3.0, 2.0, 4.0)


def test_rivals_take_turns() -> None:
    order = []
    found = compare({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=4, warmup=1)
    assert order == ["a", "b"] + ["a", "b"] * 4
    assert list(found) == ["a", "b"]
    with pytest.raises(ValueError, match="functions is empty"):
        compare({})


def test_a_disturbance_meets_all(monkeypatch) -> None:
    """A machine that is twice as slow in its second half leaves the ratio of medians as it was."""
    now = [0.0]
    calls = [0]

    def busy(cost: float):
        def work() -> None:
            now[0] += cost * (2 if calls[0] >= 20 else 1)
            calls[0] += 1

        return work

    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    found = compare({"one": busy(1.0), "three": busy(3.0)}, repeats=20, warmup=0)
    for field in ("best", "median", "low", "high"):
        assert getattr(found["three"], field) / getattr(found["one"], field) == 3


def test_rounds_go_on_for_the_time_given() -> None:
    calls = []
    compare({"a": lambda: (calls.append(1), time.sleep(0.001))}, repeats=4, warmup=0, seconds=0.03)
    assert 4 < len(calls) <= 31


def test_inputs_go_round() -> None:
    seen = []
    call = rotated(seen.append, [1, 2, 3])
    for _ in range(7):
        call()
    assert seen == [1, 2, 3, 1, 2, 3, 1]
    with pytest.raises(ValueError, match="inputs is empty"):
        rotated(seen.append, [])


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()

    def inside() -> None:
        with threads(before + 1):
            assert torch.get_num_threads() == before + 1
            raise KeyError

    with pytest.raises(KeyError):
        inside()
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("timer", [captured, launched])
def test_device_timers_need_a_gpu(monkeypatch, timer) -> None:
    monkeypatch.setattr(module.torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match=f"{timer.__name__} times CUDA kernels"):
        timer(lambda i: i, 2)


def test_device_times_are_per_call(monkeypatch) -> None:
    """A stand-in for the device: events read a clock in milliseconds, which calls and replays advance."""
    clock = [0.0]
    seen: list[tuple[str, int]] = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = clock[0]

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return end.at - self.at

    class Stream:
        def wait_stream(self, other):
            pass

    class Graph:
        recording = None

        def __init__(self):
            self.calls = []

        def replay(self):
            clock[0] += 2.0 * len(self.calls)

    @contextmanager
    def graph(target):
        Graph.recording = target
        yield
        Graph.recording = None

    @contextmanager
    def stream(_):
        yield

    fakes = {"is_available": lambda: True, "synchronize": lambda: None, "Event": Event, "CUDAGraph": Graph}
    fakes |= {"graph": graph, "stream": stream, "Stream": Stream, "current_stream": Stream}
    for name, value in fakes.items():
        monkeypatch.setattr(module.torch.cuda, name, value)

    def kernel(i: int) -> None:
        if Graph.recording is not None:
            Graph.recording.calls.append(i)
            seen.append(("captured", i))
        else:
            clock[0] += 3.0
            seen.append(("run", i))

    once = captured(kernel, 4)
    assert seen == [("run", 0), ("run", 1), *(("captured", i) for i in range(4))]
    assert [once(), once()] == pytest.approx([0.002, 0.002])
    again = launched(kernel, 5)
    assert again() == pytest.approx(0.003)
    assert [i for kind, i in seen[6:]] == [0, 0, 1, 2, 3, 4]
