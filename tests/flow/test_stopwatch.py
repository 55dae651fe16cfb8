"""The stopwatch counts every second once per thread, whoever shares it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest

from d4m_fast.flow import stopwatch as timing
from d4m_fast.flow.stopwatch import Stopwatch


class Clock:
    """Time that passes when told to, in each thread for itself."""

    def __init__(self) -> None:
        self._local = threading.local()

    def perf_counter(self) -> float:
        return getattr(self._local, "now", 0.0)

    def sleep(self, seconds: float) -> None:
        self._local.now = self.perf_counter() + seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


def test_nested_time_is_counted_once(clock: Clock) -> None:
    watch = Stopwatch()
    with watch("write"):
        clock.sleep(1)
        with watch("decode"):
            clock.sleep(2)
            with watch.waiting("queue"):
                clock.sleep(4)
        with watch("decode"):
            clock.sleep(8)
        clock.sleep(16)
    assert watch.seconds == {"decode": 10, "write": 17}
    assert watch.waits == {"queue": 4}
    assert watch.events == []


def test_items_are_booked_without_their_consumer(clock: Clock) -> None:
    def items() -> Iterator[int]:
        for i in range(3):
            clock.sleep(1)
            yield i

    watch = Stopwatch()
    for _ in watch.each("encode", items()):
        clock.sleep(100)
    assert watch.seconds == {"encode": 3}


def test_a_stage_that_fails_is_booked(clock: Clock) -> None:
    watch = Stopwatch()
    with contextlib.suppress(ValueError), watch("outer"):
        with contextlib.suppress(KeyError), watch("inner"):
            clock.sleep(1)
            raise KeyError
        clock.sleep(2)
        raise ValueError
    assert watch.seconds == {"inner": 1, "outer": 2}


def test_threads_do_not_nest_in_each_other(clock: Clock) -> None:
    """All threads are inside a stage while each books others; a stopwatch with one shared depth would mix them up."""
    watch, together = Stopwatch(trace=True), threading.Barrier(4)

    def work() -> None:
        with watch("outer"):
            together.wait()
            for _ in range(250):
                with watch("inner"):
                    clock.sleep(1)
                with watch.waiting("queue"):
                    clock.sleep(2)
            clock.sleep(3)
            together.wait()

    threads = [threading.Thread(target=work, name=f"worker-{i}") for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert watch.seconds == {"inner": 1000, "outer": 12}
    assert watch.waits == {"queue": 2000}
    assert len(watch.events) == 4 * 501
    assert {e.thread for e in watch.events} == {f"worker-{i}" for i in range(4)}


def test_events_hold_what_is_nested(clock: Clock) -> None:
    watch = Stopwatch(trace=True)
    clock.sleep(1)
    with watch("outer"), watch.waiting("queue"):
        clock.sleep(2)
    found = [(e.stage, e.start, e.seconds, e.waiting) for e in watch.events]
    assert found == [("queue", 1, 2, True), ("outer", 1, 2, False)]


def test_the_mark_is_opened_round_each_stage() -> None:
    open_now: list[str] = []

    @contextlib.contextmanager
    def mark(stage: str) -> Iterator[None]:
        open_now.append(stage)
        yield
        open_now.pop()

    watch = Stopwatch(mark=mark)
    with watch("outer"), watch("inner"), watch.waiting("queue"):
        assert open_now == ["outer", "inner"]
    assert open_now == []
