"""Listeners to the progress of a request: the command line shows it, Python's functions hand it on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Sized(Protocol[T_co]):
    """Items of a stage, whose number is known before they are made."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[T_co]: ...


class Listener(ABC):
    """Listener to one request."""

    @abstractmethod
    def track(self, stage: str, items: Sized[T]) -> Iterator[T]:
        """Yield the items of a stage, and tell how far it is."""

    @abstractmethod
    def say(self, line: str) -> None:
        """Take a line about what is done, for whoever wants to know."""

    @abstractmethod
    def warn(self, line: str) -> None:
        """Take a line that is to be seen."""

    def follow(self, stage: str, items: Sized[object]) -> None:
        """Draw all items of a stage, and tell how far it is."""
        for _ in self.track(stage, items):
            pass


class Unheard(Listener):
    """Listener of a request whose progress nobody asked for."""

    def track(self, stage: str, items: Sized[T]) -> Iterator[T]:
        return iter(items)

    def say(self, line: str) -> None:
        pass

    def warn(self, line: str) -> None:
        pass
