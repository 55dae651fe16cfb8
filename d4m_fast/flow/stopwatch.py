"""Measure the seconds that each stage works, and that it waits."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
Mark = Callable[[str], contextlib.AbstractContextManager[object]]


@dataclass(frozen=True, slots=True)
class Event:
    """An interval that a thread spent in a stage, or waiting at a queue.

    Attributes:
        start: by `time.perf_counter`, so that several stopwatches' events fit together.
        seconds: with those of the stages and waits nested in it.
        thread: name of the thread.
    """

    stage: str
    start: float
    seconds: float
    thread: str
    waiting: bool


class _Thread(threading.local):
    nested = 0.0  # seconds booked so far inside what this thread is timing


class Stopwatch:
    """Seconds per stage and per queue, added up over all threads, which may share a stopwatch.

    A stage's time contains neither the stages nor the waits nested in it in the same thread. Stages that run side by
    side are booked each, so that the sum may exceed the time on the wall.

    Args:
        trace: record every stage and wait as an event, too.
        mark: opened round each stage by its name, for a profiler that watches the device.

    Attributes:
        seconds: by stage.
        waits: by queue, the seconds that threads waited there.
        events: in the order they ended; empty without `trace`.
    """

    def __init__(self, *, trace: bool = False, mark: Mark = contextlib.nullcontext) -> None:
        self.seconds: dict[str, float] = {}
        self.waits: dict[str, float] = {}
        self.events: list[Event] = []
        self._trace = trace
        self._mark = mark
        self._thread = _Thread()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        with self._mark(stage), self._timed(self.seconds, stage):
            yield

    @contextlib.contextmanager
    def waiting(self, queue: str) -> Iterator[None]:
        """Book the time inside as waiting at a queue."""
        with self._timed(self.waits, queue):
            yield

    def each(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, with the time it takes to produce each booked on `stage`."""
        iterator = iter(items)
        while True:
            with self(stage):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def add(self, seconds: Mapping[str, float], waits: Mapping[str, float]) -> None:
        """Book what another stopwatch has measured."""
        for book, more in ((self.seconds, seconds), (self.waits, waits)):
            for name, value in more.items():
                book[name] = book.get(name, 0.0) + value

    @contextlib.contextmanager
    def _timed(self, book: dict[str, float], name: str) -> Iterator[None]:
        # What is timed inside adds itself to `nested`, which is taken off afterwards.
        outer_nested, self._thread.nested = self._thread.nested, 0.0
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            exclusive_seconds = seconds - self._thread.nested
            self._thread.nested = outer_nested + seconds  # all of it is nested in what this thread timed outside
            with self._lock:
                book[name] = book.get(name, 0.0) + exclusive_seconds
                if self._trace:
                    thread, waiting = threading.current_thread().name, book is self.waits
                    self.events.append(Event(name, start, seconds, thread, waiting))
