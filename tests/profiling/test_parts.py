"""The parts of a profile, each against something that is known."""

from __future__ import annotations

import contextlib
import statistics
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from d4m_fast.config.profile import ProfileConfig
from d4m_fast.engine.runtime import marks
from d4m_fast.errors import DataError
from d4m_fast.flow.stopwatch import Event, Stopwatch
from d4m_fast.measure import clock as clocks
from d4m_fast.measure import peak as peaks
from d4m_fast.measure.memory import PeakMemory
from d4m_fast.measure.peak import Peak, measure_peak
from d4m_fast.profiling.compare import compare
from d4m_fast.profiling.measure import Row, Task, measure
from d4m_fast.profiling.trace import chrome_trace

CPU = torch.device("cpu")


class Clock:
    """Time that passes when told to."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


def row(latencies: tuple[float, ...], batch: int = 4, flops: int | None = 8 * 10**9) -> Row:
    return Row("unet", "torch", batch, flops, 9.0, latencies, 1, {}, {})


def test_percentiles_are_the_usual_ones() -> None:
    latencies = tuple(np.random.default_rng(0).exponential(size=57).tolist())
    cuts = statistics.quantiles(latencies, n=100, method="inclusive")
    found = row(latencies).to_json(100)["latency_seconds"]
    assert found == pytest.approx({"p50": cuts[49], "p90": cuts[89], "p99": cuts[98]})


def test_rates_are_those_of_the_median_call() -> None:
    value = row((0.5, 0.5, 100.0)).to_json(peak=32)
    assert (value["images_per_second"], value["gflops"], value["share_of_peak"]) == (8, 16, 0.5)
    assert (value["warmup_seconds"], value["repeats"]) == (9, 3)
    assert row((1.0,), flops=None).to_json(32)["share_of_peak"] is None


def test_the_first_call_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(clocks, "time", clock)
    numbers = []

    def call(number: int) -> None:
        numbers.append(number)
        clock.now += 0.25 if number else 100

    found = measure(Task("text", "torch", 1, None, call), CPU, PeakMemory(CPU), Stopwatch(), (1.5, 2))
    assert (found.warmup, found.latencies) == (100, (0.25,) * 6)
    assert numbers == [0, 1, 2, 3, 4, 5, 6]
    found = measure(Task("text", "torch", 1, None, call), CPU, PeakMemory(CPU), Stopwatch(), (0.1, 3))
    assert len(found.latencies) == 3


def test_peak_memory_is_of_the_stretch_since_it_was_reset() -> None:
    memory, size = PeakMemory(CPU), 64 << 20
    if memory.of != "process":
        pytest.skip("this kernel's mark of a process's size cannot be set back")
    memory.reset()
    before = memory.bytes()
    block = np.ones(size, np.uint8)
    assert memory.bytes() - before > 0.9 * size
    del block
    memory.reset()
    assert memory.bytes() - before < 0.5 * size


@pytest.mark.parametrize("problems", [peaks._products, peaks._convolutions])
def test_peaks_count_their_operations_as_pytorch_does(problems: Any) -> None:
    for flop, call in islice(problems(torch.device("meta"), torch.float32), 6):
        with FlopCounterMode(display=False) as counter:
            call()
        assert counter.get_total_flops() == flop


def test_the_peak_is_the_best_of_the_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock by which every call takes as long as is said."""
    seconds = iter([0.01] * 5 + [0.02] * 5 + [0.4, 0.2, 0.3, 0.3, 0.3])
    monkeypatch.setattr(peaks, "time_call", lambda *_: next(seconds))
    calls = iter([(10**9, lambda: None), (10**10, lambda: None), (10**9, lambda: None), (10**15, lambda: None)])
    assert peaks._best(calls, CPU, 0.1) == pytest.approx(500)
    assert Peak(1, 5).or_better(Peak(2, 3)) == Peak(2, 5)
    assert Peak(2, 5).best == 5


def test_a_measured_peak_is_that_of_a_machine() -> None:
    found = measure_peak(CPU, torch.float32, 0)
    assert 0.1 < found.matrix_product < 1e5
    assert 0.1 < found.convolution < 1e5


EVENTS = (
    Event("inner", 11.0, 1.0, "main", False),
    Event("queue", 12.5, 0.25, "main", True),
    Event("outer", 10.5, 3.0, "main", False),
    Event("write", 11.0, 9.0, "writer", False),
)


def test_a_trace_is_a_chrome_trace() -> None:
    """Required fields and types of the Trace Event Format's JSON objects, for the two kinds of event used."""
    trace = chrome_trace(EVENTS)
    assert trace["displayTimeUnit"] in ("ms", "ns")
    for event in trace["traceEvents"]:
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int)
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name")
            assert isinstance(event["args"]["name"], str)
        else:
            assert event["ph"] == "X"
            assert event["ts"] >= 0 and event["dur"] >= 0
            assert isinstance(event["cat"], str)


def test_a_trace_keeps_times_threads_and_nesting() -> None:
    events = chrome_trace(EVENTS)["traceEvents"]
    named = {e["args"]["name"]: e["tid"] for e in events if e["name"] == "thread_name"}
    found = {e["name"]: (e["ts"], e["dur"], e["tid"]) for e in events if e["ph"] == "X"}
    main, writer = named["main"], named["writer"]
    assert main != writer
    assert found == {
        "outer": (0, 3e6, main),
        "inner": (0.5e6, 1e6, main),
        "wait: queue": (2e6, 0.25e6, main),
        "write": (0.5e6, 9e6, writer),
    }
    assert chrome_trace(())["traceEvents"][0]["args"]["name"] == "d4m-fast"


def made(rates: dict[tuple[str, int], float], **machine: Any) -> dict[str, Any]:
    stages: dict[str, list[dict[str, Any]]] = {}
    for (stage, batch), rate in rates.items():
        stages.setdefault(stage, []).append({"engine": "torch", "batch": batch, "images_per_second": rate})
    return {"machine": {"device": "a", "threads": 1, **machine}, "precision": "fp32", "stages": stages}


def test_rows_are_compared_one_by_one() -> None:
    old = made({("unet", 1): 10, ("unet", 8): 40, ("text", 1): 5})
    new = made({("unet", 1): 9, ("unet", 8): 35.9, ("decode", 1): 5})
    found = compare(old, new, 0.9, ProfileConfig(stages=("unet", "decode")))
    assert [c.batch for c in found.changes] == [1, 8]
    assert [c.ratio for c in found.changes] == pytest.approx([0.9, 0.8975])
    assert [c.batch for c in found.slower] == [8]
    assert (found.missing, found.added) == ((("text", "torch", 1),), (("decode", "torch", 1),))
    assert found.lost == ()
    assert compare(old, new, 0.9, ProfileConfig()).lost == found.missing
    assert compare(old, new, 0.9, ProfileConfig(engines=("onnx",))).lost == ()
    assert found.differences == ()
    assert compare(old, old, 1.0, ProfileConfig()).slower == ()


def test_other_machines_are_named() -> None:
    old, new = made({("unet", 1): 1}), made({("unet", 1): 1}, device="b", threads=2)
    assert compare(old, new, 0.9, ProfileConfig()).differences == (
        'device: "a" then, "b" now',
        "threads: 1 then, 2 now",
    )


def test_profiles_without_a_common_row_are_refused() -> None:
    with pytest.raises(DataError, match="no row in common"):
        compare(made({("unet", 1): 1}), made({("unet", 2): 1}), 0.9, ProfileConfig())


def test_ranges_are_marked_for_gpus_only() -> None:
    assert marks(CPU) is contextlib.nullcontext
    assert marks(torch.device("cuda", 0)) is torch.cuda.nvtx.range
