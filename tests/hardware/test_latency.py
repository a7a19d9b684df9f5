"""Timing: order, turns, inputs, threads; and the CUDA path against a device made of counters."""

import time

import pytest
import torch

from reference.hardware import latency as module
from reference.hardware.latency import compare, graph_latencies, latency, rotated, summary, threads


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


def test_graphs_need_a_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU; the next test and benchmarks/kernels.py use it")
    with pytest.raises(RuntimeError, match="torch.cuda.is_available\\(\\) is False"):
        graph_latencies({"a": lambda i: i}, copies=2)


def test_graphs_are_replayed_in_turns_and_times_are_per_call(monkeypatch) -> None:
    """A stand-in for the device: events read a clock in milliseconds that replays advance."""
    clock, log = [0.0], []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = clock[0]

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return end.at - self.at

    class Graph:
        def __init__(self):
            self.calls = []

        def replay(self):
            log.append(self.calls[0][0])
            clock[0] += sum(cost for _, _, cost in self.calls)

    class Capture:
        current = None

        def __init__(self, graph):
            self.graph = graph

        def __enter__(self):
            Capture.current = self.graph

        def __exit__(self, *_):
            Capture.current = None

    cuda = module.torch.cuda
    for name, value in {"is_available": lambda: True, "synchronize": lambda: None, "Event": Event}.items():
        monkeypatch.setattr(cuda, name, value)
    monkeypatch.setattr(cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(cuda, "graph", Capture)

    def kernel(name: str, milliseconds: float):
        def call(i: int) -> None:
            if Capture.current is not None:
                Capture.current.calls.append((name, i, milliseconds))

        return call

    found = graph_latencies({"a": kernel("a", 2.0), "b": kernel("b", 6.0)}, copies=5, replays=4, warmup=1)
    assert log == ["a", "b"] * 5
    assert found["a"].median == pytest.approx(0.002)
    assert found["b"].best == pytest.approx(0.006)
