"""Background threads between stages: bounded, in order, and ended with their block."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from d4m_fast.errors import D4MError
from d4m_fast.flow.stopwatch import Stopwatch
from d4m_fast.flow.stream import Stream

T = TypeVar("T")
R = TypeVar("R")
_END: Any = object()  # an item of no stream, not even None


class Workers:
    """The background threads of a run, as a context; leaving it drops queued work and waits for work in progress.

    An error in a thread is raised where its result is asked for. Its work is booked on the stopwatch as a stage, and
    the waits for it as a queue, both under the thread's name.
    """

    def __init__(self, watch: Stopwatch) -> None:
        self._watch = watch
        self._pools: list[ThreadPoolExecutor] = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        # All are told to end before any is waited for, because one may wait for the results of another.
        for pool in self._pools:
            pool.shutdown(wait=False, cancel_futures=True)
        for pool in self._pools:
            pool.shutdown()

    def ahead(self, items: Stream[T], depth: int, name: str) -> Stream[T]:
        """Return the same items, up to `depth` of them made by a thread before they are asked for."""
        return Stream(len(items), self._ahead(iter(items), depth, name))

    def map(self, function: Callable[[T], R], items: Stream[T], *, threads: int, depth: int, name: str) -> Stream[R]:
        """Return `function` of each item, in order; at most `depth` are pending or done when the next is asked for.

        The items themselves are made in the thread that asks for results. If making one fails, the results before it
        come first.
        """
        return Stream(len(items), self._map(function, items, threads, depth, name))

    def _ahead(self, iterator: Iterator[T], depth: int, name: str) -> Iterator[T]:
        pool = self._pool(1, name)  # one thread, so that the items stay in order
        pending = deque(pool.submit(self._work, name, next, iterator, _END) for _ in range(depth))
        while (item := self._wait(pending.popleft(), name)) is not _END:
            pending.append(pool.submit(self._work, name, next, iterator, _END))
            yield item

    def _map(self, function: Callable[[T], R], items: Stream[T], threads: int, depth: int, name: str) -> Iterator[R]:
        pending: deque[Future[R]] = deque()
        for future in self._submitted(function, items, threads, name):
            pending.append(future)
            # A result that is ready goes on at once, because the next item may take long to make.
            while pending and (len(pending) > depth or pending[0].done()):
                yield self._wait(pending.popleft(), name)
        for future in pending:
            yield self._wait(future, name)

    def _submitted(self, function: Callable[[T], R], items: Stream[T], threads: int, name: str) -> Iterator[Future[R]]:
        """Yield the future of each item; of an item that cannot be made, one that has failed already."""
        pool = self._pool(threads, name)
        try:
            for item in items:
                yield pool.submit(self._work, name, function, item)
        except D4MError as error:
            failure: Future[R] = Future()
            failure.set_exception(error)
            yield failure

    def _work(self, name: str, function: Callable[..., R], *args: Any) -> R:
        with self._watch(name):
            return function(*args)

    def _wait(self, future: Future[R], name: str) -> R:
        if future.done():  # a wait of no time would be an event in every trace
            return future.result()
        with self._watch.waiting(name):
            return future.result()

    def _pool(self, threads: int, name: str) -> ThreadPoolExecutor:
        self._pools.append(ThreadPoolExecutor(threads, thread_name_prefix=name))
        return self._pools[-1]
