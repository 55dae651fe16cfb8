"""Sized iterables, which every stage takes and returns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from d4m_fast.flow.stopwatch import Stopwatch

T = TypeVar("T")


class Stream(Generic[T]):
    """An iterable that knows how many items it will yield, so that a progress bar can be put round it."""

    def __init__(self, length: int, items: Iterable[T]) -> None:
        self._length = length
        self._items = items

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[T]:
        return iter(self._items)

    def watched(self, watch: Stopwatch, stage: str) -> Stream[T]:
        """Return the same stream, with the time it takes to produce each item booked on `stage`."""
        return Stream(len(self), watch.each(stage, self))
