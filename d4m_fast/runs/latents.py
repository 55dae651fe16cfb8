"""Stores of latents: every real image's latent, float16, sorted by class, written range by range of the source."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from d4m_fast.errors import DataError, OutOfMemoryError
from d4m_fast.fingerprints import fingerprint
from d4m_fast.flow.stream import Stream
from d4m_fast.flow.workers import Workers
from d4m_fast.runs.latent_files import LatentFiles, adjacent_items
from d4m_fast.runs.ranges import RangeClaims, RangeFolder, RangeState, ranges_of
from d4m_fast.sources.records import Item
from d4m_fast.storage import files
from d4m_fast.storage.lease_files import holders
from d4m_fast.storage.state import LATENTS, Schema, read_state, write_state

INDEX, LAYOUT = "index.json", "layout.json"
OLD_PROGRESS = "progress.json"  # of versions that encoded in one pass; what they left half done is encoded anew
CHECKPOINT_SECONDS = 10.0  # so much work an interruption costs; a checkpoint syncs every file written to since the last
LAYOUT_SCHEMA = Schema("latents layout", 1, LATENTS.remedy)
MISPLACED = "made by something else than its name says"


@dataclass(frozen=True, slots=True)
class Failure:
    """A real image that could not be used, and why."""

    item: Item
    reason: str


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """Latents (n, C, h, w) float32 of `items`, in their order; `failures` are the batch's other images.

    Attributes:
        first_frames: number of items that are the first frame of an animated image.
        first: position in the source of the batch's first item.
    """

    items: list[Item]
    latents: np.ndarray
    failures: list[Failure]
    first_frames: int = 0
    first: int = 0

    def __len__(self) -> int:
        return len(self.items) + len(self.failures)


class LatentStore:
    """A directory of `latent_files.LatentFiles` and `index.json`, written last; opened under its lock.

    Until the index is there, `ranges` holds what is done. Rows are written where they belong, so the source may come in
    any order, from any number of processes. Rows of images left out stay zero and are listed as failures.

    Args:
        made_by: all that the bytes depend on, images per "batch" among it.

    Attributes:
        complete: whether the index is there.
        done: numbers of the ranges that are done.

    Raises:
        DamageError: the state files are not what was written.
    """

    def __init__(self, root: Path, made_by: dict[str, Any], items: Sequence[Item], shape: tuple[int, ...]) -> None:
        self.path = files.make_directory(root)
        self.made_by = made_by
        self.ranges = ranges_of(len(items), made_by["batch"])
        self.done = set[int]()
        self._items = items
        self._folder = RangeFolder(root, made_by)
        self._open = dict[int, RangeState]()  # of ranges that this process works on, in the order it took them
        self._states = dict[int, RangeState]()  # of those that are done
        self._saved = time.monotonic()
        self._batch: int = made_by["batch"]
        self._failed_ranks = dict[int, list[int]]()  # of images left out, by class
        self._index: dict[str, Any] | None = None
        index = _read(root / INDEX, LATENTS, made_by)
        self.complete = index is not None
        files.sweep(root, lambda: bool(holders(self._folder.path)))
        if index is not None:
            self._files = LatentFiles.from_json(root, index)
            self._adopt_index(index)
        else:
            self._files = LatentFiles(root, Counter(item.class_id for item in items), shape)
            self._lay_out(shape)
            self.refresh()

    @property
    def batch(self) -> int:
        """Images per batch from now on."""
        return self._batch

    @property
    def failures(self) -> list[Failure]:
        """The real images that could not be used, in source order."""
        failures = []
        for entry in self._entries("failures"):
            item = Item(entry["class_id"], entry["rank"], entry["origin"])
            failures.append(Failure(item, entry["reason"]))
        return failures

    @property
    def first_frames(self) -> int:
        """Number of animated images that gave their first frame only."""
        if self._index is not None:
            return int(self._index["first_frames"])
        return sum(state.first_frames for state in self._states.values())

    @property
    def missing(self) -> list[int]:
        """Numbers of the ranges that are not done."""
        return [] if self.complete else [each.number for each in self.ranges if each.number not in self.done]

    def missing_of(self, class_ids: Container[int]) -> list[int]:
        """Return the numbers of the ranges with images of these classes that are not done."""
        return [number for number in self.missing if self._has_any_of(number, class_ids)]

    def ranges_of(self, class_ids: Container[int]) -> list[int]:
        """Return the numbers of the ranges with images of these classes."""
        return [each.number for each in self.ranges if self._has_any_of(each.number, class_ids)]

    def state_of(self, number: int) -> RangeState:
        """Return what was encoded of a range that is done, as long as there is no index."""
        return self._states[number]

    def _has_any_of(self, number: int, class_ids: Container[int]) -> bool:
        return any(class_id in class_ids for class_id in self._classes_by_range[number])

    @cached_property
    def _classes_by_range(self) -> list[set[int]]:
        spans = (self._items[each.start : each.stop] for each in self.ranges)
        return [{item.class_id for item in items} for items in spans]

    @property
    def ranges_folder(self) -> Path:
        """Folder of the records and leases of ranges, until all are done."""
        return self._folder.path

    def range_at(self, position: int) -> int:
        """Return the number of the range that has this position in the source."""
        return position // (self.ranges[0].stop - self.ranges[0].start)

    def usable(self, class_id: int) -> int:
        """Return the number of a class's images that are good."""
        return self._files.counts[class_id] - len(self._failed_ranks.get(class_id, ()))

    def bytes_of(self, class_id: int) -> int:
        """Return the size of a class's latents, images left out included."""
        return self._files.bytes_of(class_id)

    def refresh(self) -> None:
        """Take notice of the ranges that other processes have done since, or of the index."""
        index = _read(self.path / INDEX, LATENTS, self.made_by)
        if index is not None and not self.complete:
            self.complete = True
            self._files = LatentFiles.from_json(self.path, index)
            self._adopt_index(index)
        for each in [] if self.complete else self.ranges:
            if each.number not in self._states:
                state = self._folder.done(each)
                if state is not None:
                    self._adopt(state)

    def spans(self, claims: RangeClaims) -> Iterator[tuple[int, int]]:
        """Yield where each batch to encode begins and ends in the source; ranges are taken when they are needed.

        Ranges that were begun before, when memory ran out, come first.
        """
        for number in [*self._open]:
            yield from self._spans_of(self._open[number])
        for number in claims.take():
            if number in self._open or number in self.done:
                continue
            claims.work([number])
            self._open[number] = self._begun(number)
            yield from self._spans_of(self._open[number])

    def fill(self, batches: Stream[EncodedBatch], workers: Workers, claims: RangeClaims) -> Stream[EncodedBatch]:
        """Write batches on their way through, keep checkpoints now and then, and commit each range at its end.

        One thread writes, while others make the next batches; those before a failure are written.
        """

        def write(batch: EncodedBatch) -> EncodedBatch:
            self._write_batch(batch, claims)
            return batch

        def items() -> Iterator[EncodedBatch]:
            self._saved = time.monotonic()
            yield from workers.map(write, batches, threads=1, depth=2, name="store")

        return Stream(len(batches), items())

    def halve_batch(self, error: OutOfMemoryError) -> None:
        """Go on with half the batch, and record that with the range that is worked on.

        Raises:
            OutOfMemoryError: it was one image.
        """
        if self.batch == 1:
            raise error.for_one_image() from error
        state = next(iter(self._open.values()))
        entry = {"position": state.position, "batch": self.batch, "now": self.batch // 2, "error": error.reason}
        state.out_of_memory.append(entry)
        self._batch //= 2

    def finish(self) -> None:
        """Write the index that marks the artifact complete, if all ranges are done; under the directory's lock."""
        self.refresh()
        if self.complete or self.missing:
            return
        lists = {name: self._entries(name) for name in ("failures", "out_of_memory")}
        totals = {"position": len(self._items), "first_frames": self.first_frames, **lists}
        write_state(self.path / INDEX, LATENTS, {**totals, **self._files.to_json(), "made_by": self.made_by})
        self.complete = True
        shutil.rmtree(self._folder.path, ignore_errors=True)
        files.remove(self.path / LAYOUT)

    def load(self, class_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Return ranks (n,) and latents (n, C, h, w) float16 of a class's good images.

        Raises:
            DamageError: the file is not the one that was written, or not all of it was.
        """
        if self.missing_of({class_id}):
            raise LATENTS.damage(self.path / INDEX, "the encoding was not finished")
        rows = self._files.read(class_id)
        failed_ranks = self._failed_ranks.get(class_id, [])
        ranks = np.setdiff1d(np.arange(len(rows)), failed_ranks)
        return ranks, rows[ranks] if failed_ranks else rows  # without a copy where none is left out

    def check_budget(self, max_bad_fraction: float) -> None:
        """Refuse a source of which too many images are left out.

        Raises:
            DataError: their part is over the budget; names the first.
        """
        failures, total = self._entries("failures"), sum(self._files.counts.values())
        if len(failures) > max_bad_fraction * total:
            raise DataError(
                f"{len(failures):,} of {total:,} images cannot be used, more than --max-bad-fraction"
                f" {max_bad_fraction:g} allows; the first: {failures[0]['reason']}"
            )

    def _lay_out(self, shape: tuple[int, ...]) -> None:
        """Make the files of all classes, unless they are there."""
        layout = _read(self.path / LAYOUT, LAYOUT_SCHEMA, self.made_by)
        if layout is not None and self._files.all_there():
            return
        # Somebody removed a file; then the others are of no use. The marks go first, or they would outlive the rows.
        for name in (LAYOUT, OLD_PROGRESS):
            files.remove(self.path / name)
        shutil.rmtree(self._folder.path, ignore_errors=True)
        self._files.allocate()
        files.make_directory(self._folder.path)
        counts = {str(class_id): count for class_id, count in self._files.counts.items()}
        write_state(
            self.path / LAYOUT, LAYOUT_SCHEMA, {"shape": list(shape), "counts": counts, "made_by": self.made_by}
        )

    def _adopt_index(self, index: Mapping[str, Any]) -> None:
        self._index = dict(index)
        self._failed_ranks = {}
        self._note_failures(index["failures"])
        self._note_batch(index["out_of_memory"])

    def _adopt(self, state: RangeState) -> None:
        """Take in the record of a range that is done."""
        self.done.add(state.range.number)
        self._states[state.range.number] = state
        for item, checksum in zip(self._items[state.range.start : state.range.stop], state.checksums, strict=True):
            self._files.checksums[item.class_id][item.rank] = checksum
        self._note_failures(state.failures)
        self._note_batch(state.out_of_memory)

    def _entries(self, name: str) -> list[dict[str, Any]]:
        """Return the "failures" or batches "out_of_memory" of all ranges that are done, in the source's order."""
        if self._index is not None:
            return list(self._index[name])
        states = (self._states[number] for number in sorted(self._states))
        return list(chain.from_iterable(getattr(state, name) for state in states))

    def _begun(self, number: int) -> RangeState:
        """Return what is done of a range already: what a process that ended kept last, if its rows are still there."""
        each, best = self.ranges[number], RangeState.empty(self.ranges[number])
        for state in self._folder.checkpoints(each):
            items = self._items[each.start : state.position]
            if state.position > best.position and self._files.are_written(items, state.checksums):
                best = state
        return best

    def _spans_of(self, state: RangeState) -> Iterator[tuple[int, int]]:
        position = state.position
        while position < state.range.stop:
            stop = min(position + self.batch, state.range.stop)
            yield position, stop
            position = stop

    def _write_batch(self, batch: EncodedBatch, claims: RangeClaims) -> None:
        number = self.range_at(batch.first)
        state = self._open.get(number)
        if state is None or not claims.holds(number):  # another process has taken it over
            self._open.pop(number, None)
            claims.end(number)
            return
        self._write_rows(batch, state)
        is_done = state.position == state.range.stop
        if not is_done and time.monotonic() - self._saved <= CHECKPOINT_SECONDS:
            return
        self._files.sync()  # all rows so far are durable, and only then the position after them is recorded
        self._saved = time.monotonic()
        if is_done:
            is_first = self._folder.publish(state, self._items)
            self._folder.drop_checkpoints(state.range)
            del self._open[number]
            self._adopt(state if is_first else self._folder.require_done(state.range))
            claims.end(number)
        else:
            self._folder.save_checkpoint(state, claims.number_of(number))

    def _write_rows(self, batch: EncodedBatch, state: RangeState) -> None:
        """Put a batch's rows in their places; durable at the next checkpoint."""
        rows = batch.latents.astype(np.float16)
        for start, stop in adjacent_items(batch.items):
            first = batch.items[start]
            self._files.write(first.class_id, first.rank, rows[start:stop])
        for failure in batch.failures:
            item = failure.item
            self._files.clear(item.class_id, item.rank)  # an earlier try, whose checkpoint was lost, may have a row
            entry = {"class_id": item.class_id, "rank": item.rank, "origin": item.origin, "reason": failure.reason}
            state.failures.append(entry)
        for place, item in enumerate(self._items[state.position : state.position + len(batch)], state.position):
            state.checksums[place - state.range.start] = self._files.checksums[item.class_id][item.rank]
        state.first_frames += batch.first_frames
        state.position += len(batch)

    def _note_batch(self, reductions: Sequence[dict[str, Any]]) -> None:
        self._batch = min([self._batch, *(entry["now"] for entry in reductions)])

    def _note_failures(self, failures: Sequence[dict[str, Any]]) -> None:
        for failure in failures:
            self._failed_ranks.setdefault(failure["class_id"], []).append(failure["rank"])


def _read(path: Path, schema: Schema, made_by: Mapping[str, Any]) -> dict[str, Any] | None:
    state = read_state(path, schema)
    if state is not None and state["made_by"] != made_by:
        raise schema.damage(path, MISPLACED)
    return state


def folder_name(made_by: Mapping[str, Any]) -> str:
    """Return the name of the directory of latents that were made by this, with the images per batch at its end."""
    without_batch = {name: value for name, value in made_by.items() if name != "batch"}
    return f"{fingerprint(without_batch)[:16]}-{made_by['batch']}"
