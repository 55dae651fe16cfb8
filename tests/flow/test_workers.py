from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from driving import worker_threads

from d4m_fast.errors import DataError
from d4m_fast.flow.stopwatch import Stopwatch
from d4m_fast.flow.stream import Stream
from d4m_fast.flow.workers import Workers


@pytest.fixture
def watch() -> Stopwatch:
    return Stopwatch()


@pytest.fixture
def workers(watch: Stopwatch) -> Iterator[Workers]:
    with Workers(watch) as opened:
        yield opened
    assert worker_threads() == []


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def numbers(count: int, pulled: list[int]) -> Stream[int]:
    def items() -> Iterator[int]:
        for i in range(count):
            pulled.append(i)
            yield i

    return Stream(count, items())


def failing(count: int, error: BaseException) -> Stream[int]:
    def items() -> Iterator[int]:
        yield from range(count)
        raise error

    return Stream(count + 1, items())


def test_ahead_gives_the_same_items_by_another_thread(workers: Workers) -> None:
    threads: list[str] = []

    def items() -> Iterator[int]:
        for i in range(20):
            threads.append(threading.current_thread().name)
            yield i

    stream = workers.ahead(Stream(20, items()), 3, "made")
    assert len(stream) == 20
    assert list(stream) == list(range(20))
    assert {name.rpartition("_")[0] for name in threads} == {"made"}


def test_ahead_is_as_far_ahead_as_it_may_be(workers: Workers) -> None:
    pulled: list[int] = []
    stream = iter(workers.ahead(numbers(20, pulled), 3, "made"))
    assert pulled == []
    for taken in range(1, 10):
        next(stream)
        until(lambda taken=taken: len(pulled) >= taken + 3)  # type: ignore[misc]
        time.sleep(0.002)
        assert len(pulled) == taken + 3


def test_map_keeps_the_order_whatever_is_done_first(workers: Workers) -> None:
    rng = random.Random(0)
    pauses = [rng.random() / 100 for _ in range(40)]

    def slow(i: int) -> int:
        time.sleep(pauses[i])
        return 10 * i

    stream = workers.map(slow, numbers(40, []), threads=4, depth=6, name="slow")
    assert len(stream) == 40
    assert list(stream) == [10 * i for i in range(40)]


def test_map_is_bounded_and_several_at_a_time(workers: Workers) -> None:
    pulled, going, most, gate = list[int](), set[int](), list[int](), threading.Event()

    def work(i: int) -> int:
        going.add(i)
        most.append(len(going))
        gate.wait(60)
        going.discard(i)
        return i

    stream = iter(workers.map(work, numbers(50, pulled), threads=3, depth=5, name="work"))
    taker = threading.Thread(target=lambda: next(stream))
    taker.start()
    until(lambda: len(pulled) == 6 and len(going) == 3)
    time.sleep(0.01)
    assert (len(pulled), len(going)) == (6, 3)
    gate.set()
    taker.join()
    assert list(stream) == list(range(1, 50))
    assert max(most) == 3


def test_what_is_done_comes_out_before_more_is_asked_for(workers: Workers) -> None:
    """So that a group can be committed while the next one is made."""
    pulled, done = list[int](), threading.Event()

    def items() -> Iterator[int]:
        for i in range(10):
            pulled.append(i)
            yield i
            if i == 0:
                done.wait(60)

    def first(i: int) -> int:
        done.set()
        return i

    stream = iter(workers.map(first, Stream(10, items()), threads=1, depth=8, name="w"))
    assert next(stream) == 0
    assert len(pulled) <= 2


@pytest.mark.parametrize("error", [DataError("bad"), KeyboardInterrupt(), RuntimeError("bad")])
def test_what_a_thread_raises_is_raised_in_its_turn(workers: Workers, error: BaseException) -> None:
    def work(i: int) -> int:
        if i == 5:
            raise error
        return i

    mapped = workers.map(work, numbers(9, []), threads=3, depth=4, name="work")
    for stream in (workers.ahead(failing(5, error), 2, "made"), mapped):
        found: list[int] = []
        with pytest.raises(type(error)):
            for i in stream:
                found.append(i)
        assert found == list(range(5))


def test_results_come_before_the_failure_of_what_came_after_them(workers: Workers) -> None:
    def slow(i: int) -> int:
        time.sleep(0.01)
        return i

    found: list[int] = []
    with pytest.raises(DataError, match="end"):
        for i in workers.map(slow, failing(4, DataError("end")), threads=1, depth=9, name="work"):
            found.append(i)
    assert found == [0, 1, 2, 3]


def test_an_interruption_waits_for_nothing(workers: Workers) -> None:
    found: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        for i in workers.map(lambda i: i, failing(4, KeyboardInterrupt()), threads=1, depth=9, name="work"):
            found.append(i)
    assert len(found) < 4


def test_leaving_in_the_middle_ends_every_thread(watch: Stopwatch) -> None:
    """One thread waits for another's result, which waits for what will never come; what is queued is dropped."""
    begun, gate = list[int](), threading.Event()

    def work(i: int) -> int:
        begun.append(i)
        if i > 0:
            gate.wait(60)
        return i

    with Workers(watch) as workers:
        inner = workers.map(work, numbers(50, []), threads=2, depth=8, name="inner")
        stream = iter(workers.ahead(inner, 3, "outer"))
        assert next(stream) == 0
        until(lambda: len(begun) == 3)
        threading.Timer(0.05, gate.set).start()
    assert worker_threads() == []
    assert len(begun) < 12


def test_work_and_waiting_are_booked(watch: Stopwatch, workers: Workers) -> None:
    def slow(i: int) -> int:
        time.sleep(0.01)
        return i

    assert len(list(workers.map(slow, numbers(5, []), threads=1, depth=1, name="slow"))) == 5
    assert watch.seconds["slow"] >= 0.05
    assert 0.02 < watch.waits["slow"] <= watch.seconds["slow"] + 1
