"""Stores of latents: every real image's latent, float16, sorted by class, written in one pass over the source."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from d4m_fast.errors import DamageError, DataError, OutOfMemoryError
from d4m_fast.fingerprints import fingerprint
from d4m_fast.flow.stream import Stream
from d4m_fast.flow.workers import Workers
from d4m_fast.runs.latent_files import LatentFiles
from d4m_fast.sources.records import Item
from d4m_fast.storage import files
from d4m_fast.storage.state import LATENTS, read_state, write_state

INDEX, PROGRESS = "index.json", "progress.json"
CHECKPOINT_SECONDS = 10.0  # so much work an interruption costs; a checkpoint syncs every file written to since the last
_MISPLACED = "made by something else than its name says"


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
    """

    items: list[Item]
    latents: np.ndarray
    failures: list[Failure]
    first_frames: int = 0


class LatentStore:
    """A directory of `latent_files.LatentFiles` and `index.json`, written last.

    Rows are written where they belong, so the source may come in any order, and an interrupted pass goes on from
    `position`. Rows of images left out stay zero and are listed as failures.

    Args:
        made_by: all that the bytes depend on, images per "batch" among it.

    Raises:
        DamageError: the files of a complete or an interrupted pass are not what was written.
    """

    def __init__(self, root: Path, made_by: dict[str, Any], items: Sequence[Item], shape: tuple[int, ...]) -> None:
        self.path = files.make_directory(root)
        files.sweep(root)
        self.made_by = made_by
        self._saved = time.monotonic()
        # The index is written last, so where it is there the store is complete and the progress does not count.
        index = _read(root / INDEX, made_by)
        progress = _read(root / PROGRESS, made_by) if index is None else None
        self.complete = index is not None
        if progress is not None and not LatentFiles.from_json(root, progress).all_there():
            progress = None  # somebody removed a file; the other files are of no use
        saved_state = progress if index is None else index
        if saved_state is None:
            files.remove(root / PROGRESS)  # or a position would outlive the rows before it
            self._files = LatentFiles(root, Counter(item.class_id for item in items), shape)
            self._files.allocate()
        else:
            self._files = LatentFiles.from_json(root, saved_state)
        if progress is not None:
            self._files.require_written()
        start: dict[str, Any] = {"position": 0, "failures": [], "first_frames": 0, "out_of_memory": []}
        self._state = start if saved_state is None else {name: saved_state[name] for name in start}
        self._failed_ranks: dict[int, list[int]] = {}  # of images left out, by class
        self._note_failures(self._state["failures"])

    @property
    def position(self) -> int:
        """Number of items, in source order, that need not be encoded again."""
        return int(self._state["position"])

    @property
    def batch(self) -> int:
        """Images per batch from `position` on."""
        reductions = self._state["out_of_memory"]
        return int(reductions[-1]["now"] if reductions else self.made_by["batch"])

    @property
    def failures(self) -> list[Failure]:
        """The real images that could not be used, in source order."""
        failures = []
        for entry in self._state["failures"]:
            item = Item(entry["class_id"], entry["rank"], entry["origin"])
            failures.append(Failure(item, entry["reason"]))
        return failures

    @property
    def first_frames(self) -> int:
        """Number of animated images that gave their first frame only."""
        return int(self._state["first_frames"])

    def usable(self, class_id: int) -> int:
        """Return the number of a class's images that are good."""
        return self._files.counts[class_id] - len(self._failed_ranks.get(class_id, ()))

    def bytes_of(self, class_id: int) -> int:
        """Return the size of a class's latents, images left out included."""
        return self._files.bytes_of(class_id)

    def fill(self, batches: Stream[EncodedBatch], workers: Workers) -> Stream[EncodedBatch]:
        """Write batches on their way through, save the position now and then, and mark the end.

        One thread writes, while others make the next batches; those before a failure are written.
        """

        def items() -> Iterator[EncodedBatch]:
            self._saved = time.monotonic()
            yield from workers.map(self._write_batch, batches, threads=1, depth=2, name="store")
            self._finish()

        return Stream(len(batches), items())

    def halve_batch(self, error: OutOfMemoryError) -> None:
        """Go on with half the batch, and record that.

        Raises:
            OutOfMemoryError: it was one image.
        """
        if self.batch == 1:
            raise error.for_one_image() from error
        entry = {"position": self.position, "batch": self.batch, "now": self.batch // 2, "error": error.reason}
        self._state["out_of_memory"].append(entry)

    def load(self, class_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Return ranks (n,) and latents (n, C, h, w) float16 of a class's good images.

        Raises:
            DamageError: the file is not the one that was written.
        """
        if not self.complete:
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
        failures, total = self._state["failures"], sum(self._files.counts.values())
        if len(failures) > max_bad_fraction * total:
            raise DataError(
                f"{len(failures):,} of {total:,} images cannot be used, more than --max-bad-fraction"
                f" {max_bad_fraction:g} allows; the first: {failures[0]['reason']}"
            )

    def _write_batch(self, batch: EncodedBatch) -> EncodedBatch:
        self._write_rows(batch)
        if time.monotonic() - self._saved > CHECKPOINT_SECONDS:
            self._checkpoint()
            self._saved = time.monotonic()
        return batch

    def _write_rows(self, batch: EncodedBatch) -> None:
        """Put a batch's rows in their places; durable at the next checkpoint."""
        rows = batch.latents.astype(np.float16)
        for start, stop in _adjacent_items(batch.items):
            first = batch.items[start]
            self._files.write(first.class_id, first.rank, rows[start:stop])
        failures = []
        for failure in batch.failures:
            item = failure.item
            self._files.clear(item.class_id, item.rank)  # an earlier pass, whose checkpoint was lost, may have a row
            entry = {"class_id": item.class_id, "rank": item.rank, "origin": item.origin, "reason": failure.reason}
            failures.append(entry)
        self._state["failures"] += failures
        self._note_failures(failures)
        self._state["first_frames"] += batch.first_frames
        self._state["position"] += len(batch.items) + len(batch.failures)

    def _note_failures(self, failures: Sequence[dict[str, Any]]) -> None:
        for failure in failures:
            self._failed_ranks.setdefault(failure["class_id"], []).append(failure["rank"])

    def _checkpoint(self) -> None:
        """Make all rows so far durable, and only then record the position after them."""
        self._files.sync()
        self._write_state(PROGRESS)

    def _finish(self) -> None:
        """Write the index that marks the artifact complete."""
        self._checkpoint()  # first, because the index may not fit on the disk any more
        self._write_state(INDEX)
        files.remove(self.path / PROGRESS)
        self.complete = True

    def _write_state(self, name: str) -> None:
        # Position and checksums in one file, so that they cannot be of different moments.
        write_state(self.path / name, LATENTS, {**self._state, **self._files.to_json(), "made_by": self.made_by})


def _adjacent_items(items: Sequence[Item]) -> Iterator[tuple[int, int]]:
    """Yield start and stop of items whose rows lie side by side in one class's file, to write them at once."""
    start = 0
    for stop, item in enumerate(items, 1):
        successor = items[stop] if stop < len(items) else None
        if successor is None or (successor.class_id, successor.rank) != (item.class_id, item.rank + 1):
            yield start, stop
            start = stop


def _read(path: Path, made_by: dict[str, Any]) -> dict[str, Any] | None:
    state = read_state(path, LATENTS)
    if state is not None and state["made_by"] != made_by:
        raise LATENTS.damage(path, _MISPLACED)
    return state


def folder_name(made_by: Mapping[str, Any]) -> str:
    """Return the name of the directory of latents that were made by this, with the images per batch at its end."""
    without_batch = {name: value for name, value in made_by.items() if name != "batch"}
    return f"{fingerprint(without_batch)[:16]}-{made_by['batch']}"


def damaged_files(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield the files of a latents directory that are not as they were written, each with the reason."""
    for name in (INDEX, PROGRESS):
        try:
            state = read_state(root / name, LATENTS)
        except DamageError as error:
            yield root / name, error.reason
            return
        if state is None:
            continue
        if folder_name(state["made_by"]) != root.name:
            yield root / name, _MISPLACED
        else:
            yield from LatentFiles.from_json(root, state).damaged(complete=name == INDEX)
        return
