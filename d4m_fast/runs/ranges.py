"""Ranges of a source's items, the units of its encoding, and the records of what was encoded of each."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from d4m_fast.sources.records import Item
from d4m_fast.storage.state import Schema, publish_state, read_state, write_state

FOLDER = "ranges"  # in a folder of latents, until its index is written
RANGE_BATCHES = 8  # few enough that many processes share a small set, and that one is done in seconds on a GPU
_AGAIN = "remove {file} and run again to encode what it is of anew"
RANGE = Schema("latents range", 1, _AGAIN)
CHECKSUM = "<u8"


@dataclass(frozen=True, slots=True)
class Range:
    """Items from `start` up to `stop`, in the source's order: whole batches, so that their bytes depend on no cut."""

    number: int
    start: int
    stop: int


def ranges_of(items: int, batch: int) -> list[Range]:
    """Return the ranges of a source of so many items that is encoded in batches of this size."""
    length = RANGE_BATCHES * batch
    return [Range(start // length, start, min(start + length, items)) for start in range(0, items, length)]


class RangeClaims(Protocol):
    """The ranges that a process may encode; `claims.UnitClaims` are some."""

    def take(self) -> Iterator[int]: ...

    def work(self, units: Sequence[int]) -> None: ...

    def holds(self, unit: int) -> bool: ...

    def number_of(self, unit: int) -> int: ...

    def end(self, unit: int) -> None: ...


class OwnRanges:
    """Ranges that no other process can want."""

    def __init__(self, ranges: Iterable[int]) -> None:
        self._ranges = ranges

    def take(self) -> Iterator[int]:
        return iter(self._ranges)

    def work(self, units: Sequence[int]) -> None:
        """There is nobody to tell."""

    def holds(self, unit: int) -> bool:
        return True

    def number_of(self, unit: int) -> int:
        return 1

    def end(self, unit: int) -> None:
        """Nothing is to be given back."""


@dataclass
class RangeState:
    """Encoded part of a range.

    Attributes:
        position: of the first item that is not.
        checksums: of its items' rows, (stop - start,) in their order; meaningless from `position` on.
        failures: images left out, as they stand in the index.
        first_frames: number of animated images that gave their first frame only.
        out_of_memory: batches that did not fit.
    """

    range: Range
    position: int
    checksums: np.ndarray
    failures: list[dict[str, Any]] = field(default_factory=list)
    first_frames: int = 0
    out_of_memory: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def empty(cls, of: Range) -> RangeState:
        return cls(of, of.start, np.zeros(of.stop - of.start, CHECKSUM))

    def to_json(self) -> dict[str, Any]:
        """Return it for a state file."""
        return {
            "start": self.range.start,
            "stop": self.range.stop,
            "position": self.position,
            "rows": base64.b64encode(self.checksums.tobytes()).decode(),
            "failures": self.failures,
            "first_frames": self.first_frames,
            "out_of_memory": self.out_of_memory,
        }

    @classmethod
    def from_json(cls, of: Range, value: Mapping[str, Any]) -> RangeState:
        """Return what `to_json` wrote."""
        # A copy, because an array over a buffer cannot be written to.
        checksums = np.frombuffer(binascii.a2b_base64(value["rows"]), CHECKSUM).copy()
        names = ("failures", "first_frames", "out_of_memory")
        return cls(of, value["position"], checksums, **{name: value[name] for name in names})


class RangeFolder:
    """The records of ranges in a folder of latents: `<number>.json` of one that is done, else checkpoints.

    A checkpoint bears the number of the lease it was made under, so that a process that was taken over overwrites none
    of its successor's.
    """

    def __init__(self, root: Path, made_by: Mapping[str, Any]) -> None:
        self.path = root / FOLDER
        self._made_by = made_by

    def publish(self, state: RangeState, items: Sequence[Item]) -> bool:
        """Say that a range is done, whose rows must be durable before; returns False if another process has said so.

        Args:
            items: of the source; the record says whose its rows are, so that it can be verified without the source.
        """
        owners = _runs(items[state.range.start : state.range.stop])
        return publish_state(self._record(state.range), RANGE, {**self._fields(state), "items": owners})

    def save_checkpoint(self, state: RangeState, number: int) -> None:
        """Keep what is done of a range, whose rows must be durable before."""
        write_state(self.path / f"{state.range.number:05d}.part-{number:04d}", RANGE, self._fields(state))

    def done(self, of: Range) -> RangeState | None:
        """Return the record of a range; None if it is not done."""
        return self._read(self._record(of), of)

    def require_done(self, of: Range) -> RangeState:
        """Return the record of a range that was seen to be done."""
        state = self.done(of)
        if state is None:
            raise RANGE.damage(self._record(of), "it is missing")
        return state

    def checkpoints(self, of: Range) -> Iterator[RangeState]:
        """Yield what processes that ended, or lost the range, have kept of it."""
        for path in self.path.glob(f"{of.number:05d}.part-*"):
            state = self._read(path, of)
            if state is not None:
                yield state

    def drop_checkpoints(self, of: Range) -> None:
        for path in self.path.glob(f"{of.number:05d}.part-*"):
            path.unlink(missing_ok=True)

    def _record(self, of: Range) -> Path:
        return self.path / f"{of.number:05d}.json"

    def _fields(self, state: RangeState) -> dict[str, Any]:
        return {**state.to_json(), "made_by": self._made_by}

    def _read(self, path: Path, of: Range) -> RangeState | None:
        value = read_state(path, RANGE)
        if value is None:
            return None
        if value["made_by"] != self._made_by or (value["start"], value["stop"]) != (of.start, of.stop):
            raise RANGE.damage(path, "it is of another range, or of other latents")
        return RangeState.from_json(of, value)


def _runs(items: Sequence[Item]) -> list[list[int]]:
    """Return class, first rank and number of items whose rows lie side by side, in the order of the items."""
    runs = list[list[int]]()
    for item in items:
        if runs and runs[-1][0] == item.class_id and runs[-1][1] + runs[-1][2] == item.rank:
            runs[-1][2] += 1
        else:
            runs.append([item.class_id, item.rank, 1])
    return runs


def class_rows(record: Mapping[str, Any]) -> Iterator[tuple[int, list[int], np.ndarray]]:
    """Yield class, ranks and checksums of rows that lie side by side, from the record of a range that is done."""
    checksums, start = np.frombuffer(binascii.a2b_base64(record["rows"]), CHECKSUM), 0
    for class_id, first, count in record["items"]:
        yield class_id, list(range(first, first + count)), checksums[start : start + count]
        start += count
