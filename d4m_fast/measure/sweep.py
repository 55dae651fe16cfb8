"""Larger and larger batches, until they no longer pay."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Point:
    """Result of a batch in a sweep.

    Attributes:
        seconds: of a call; None where the batch could not be run.
        error: why not.
    """

    batch: int
    seconds: float | None
    error: str = ""

    @property
    def rate(self) -> float:
        """Images per second; 0 where the batch could not be run."""
        return 0.0 if self.seconds is None else self.batch / self.seconds


def sweep(
    batches: Iterable[int], measure: Callable[[int], Point], is_over: Callable[[Sequence[Point]], bool]
) -> Iterator[Point]:
    """Yield the point of each batch, until `is_over` of all points so far, or a batch that could not be run."""
    points: list[Point] = []
    for batch in batches:
        points.append(measure(batch))
        yield points[-1]
        if points[-1].seconds is None or is_over(points):
            return


def best_rate(points: Iterable[Point]) -> float:
    """Return the images per second of the fastest batch; 0 where there is none."""
    return max((point.rate for point in points), default=0.0)
