"""The latents artifact: every real image's latent, fp16, bucketed by class, filled in one pass over the source."""

from __future__ import annotations

import hashlib
import io
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from d4m_fast.data import files
from d4m_fast.data.records import Item
from d4m_fast.data.stream import Stream
from d4m_fast.data.workers import Workers
from d4m_fast.errors import DamageError, DataError, OutOfMemoryError

CHECKPOINT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Failure:
    """A real image that could not be used, and why."""

    item: Item
    reason: str


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """Latents (n, C, h, w) float32 of `items`, in their order; `failures` are the batch's other images.

    Attributes:
        first_frames: how many of the items are the first frame of an animated image.
    """

    items: list[Item]
    latents: np.ndarray
    failures: list[Failure]
    first_frames: int = 0


class LatentStore:
    """A directory of `<class id>.npy`, row = rank in the class, and `index.json`, written last.

    Rows are written where they belong, so the source may come in any order, and an interrupted pass goes on from
    `position`. Rows of damaged images stay zero and are listed as failures. `made_by` says what fixes the bytes,
    images per "batch" among it.
    """

    def __init__(self, root: Path, made_by: dict[str, Any], items: Sequence[Item], shape: tuple[int, ...]) -> None:
        self.path = files.make_directory(root)
        files.sweep(root)
        self.made_by = made_by
        self._counts = Counter(item.class_id for item in items)
        self._shape = shape
        self._header = {c: _npy_header((n, *shape)) for c, n in self._counts.items()}
        self._touched: set[int] = set()
        self._saved = time.monotonic()
        self._index = _read(self.path / "index.json", made_by)
        saved = _read(self.path / "progress.json", made_by) if self._index is None else self._index
        if self._index is None and not all(self._file(c).is_file() for c in self._counts):
            saved = None  # somebody removed a file; what is left is of no use
        if saved is None:
            files.remove(self.path / "progress.json")  # or a position would outlive the rows before it
            self._allocate()
        self._state: dict[str, Any] = (
            {"position": 0, "failures": [], "first_frames": 0, "out_of_memory": []} if saved is None else saved
        )
        self._bad: dict[int, list[int]] = {}  # ranks of damaged images by class
        self._note(self._state["failures"])

    @property
    def complete(self) -> bool:
        return self._index is not None

    @property
    def position(self) -> int:
        """How many items, in source order, need not be encoded again."""
        return int(self._state["position"])

    @property
    def batch(self) -> int:
        """Images per batch from `position` on."""
        smaller = [entry["now"] for entry in self._state["out_of_memory"]]
        return int([self.made_by["batch"], *smaller][-1])

    @property
    def failures(self) -> list[Failure]:
        return [Failure(Item(f["class_id"], f["rank"], f["origin"]), f["reason"]) for f in self._state["failures"]]

    @property
    def first_frames(self) -> int:
        """How many animated images gave their first frame only."""
        return int(self._state["first_frames"])

    def usable(self, class_id: int) -> int:
        """How many of a class's images are good."""
        return self._counts[class_id] - len(self._bad.get(class_id, ()))

    def bytes_of(self, class_id: int) -> int:
        """Size of a class's latents, damaged images included."""
        return 2 * self._counts[class_id] * int(np.prod(self._shape))

    def fill(self, batches: Stream[EncodedBatch], workers: Workers) -> Stream[EncodedBatch]:
        """Write batches on their way through, save the position now and then, and mark the end.

        One thread writes, behind whoever makes the batches; those before a failure are written.
        """

        def items() -> Iterator[EncodedBatch]:
            self._saved = time.monotonic()
            yield from workers.map(self._keep, batches, threads=1, depth=2, name="store")
            self._finish()

        return Stream(len(batches), items())

    def after(self, error: OutOfMemoryError) -> None:
        """Go on with half the batch, and keep that on record.

        Raises:
            OutOfMemoryError: it was one image.
        """
        if self.batch == 1:
            raise error.for_one_image() from error
        entry = {"position": self.position, "batch": self.batch, "now": self.batch // 2, "error": error.reason}
        self._state["out_of_memory"].append(entry)

    def load(self, class_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Ranks (n,) and latents (n, C, h, w) float16 of a class's good images.

        Raises:
            DamageError: the file is not the one that was written.
        """
        path = self._file(class_id)
        with files.refusing(path):
            data = path.read_bytes() if path.is_file() else b""
        if self._index is None or hashlib.sha256(data).hexdigest() != self._index["sha256"][str(class_id)]:
            raise DamageError(f"{path}: damaged; remove {self.path} and run again to encode anew")
        rows = np.frombuffer(data, np.float16, offset=len(self._header[class_id]))
        rows = rows.reshape(self._counts[class_id], *self._shape)
        bad = self._bad.get(class_id, [])
        ranks = np.setdiff1d(np.arange(len(rows)), bad)
        return ranks, rows[ranks] if bad else rows

    def check_budget(self, max_bad_fraction: float) -> None:
        """Refuse a source with too many damaged images.

        Raises:
            DataError: their part is over the budget; names the first.
        """
        bad, total = len(self._state["failures"]), sum(self._counts.values())
        if bad > max_bad_fraction * total:
            first = self._state["failures"][0]
            raise DataError(
                f"{bad:,} of {total:,} images are damaged, more than --max-bad-fraction {max_bad_fraction:g} allows;"
                f" the first: {first['reason']}"
            )

    def _keep(self, batch: EncodedBatch) -> EncodedBatch:
        self._write(batch)
        if time.monotonic() - self._saved > CHECKPOINT_SECONDS:
            self._checkpoint()
            self._saved = time.monotonic()
        return batch

    def _write(self, batch: EncodedBatch) -> None:
        """Put a batch's rows in their places; durable at the next checkpoint."""
        rows = batch.latents.astype(np.float16)
        with files.refusing(self.path):
            for first, last in _runs(batch.items):
                self._write_rows(batch.items[first], rows[first:last])
        failures = [
            {"class_id": f.item.class_id, "rank": f.item.rank, "origin": f.item.origin, "reason": f.reason}
            for f in batch.failures
        ]
        self._state["failures"] += failures
        self._note(failures)
        self._state["first_frames"] += batch.first_frames
        self._state["position"] += len(batch.items) + len(batch.failures)

    def _note(self, failures: Sequence[dict[str, Any]]) -> None:
        for failure in failures:
            self._bad.setdefault(failure["class_id"], []).append(failure["rank"])

    def _checkpoint(self) -> None:
        """Make all rows so far durable, then say so."""
        for class_id in self._touched:
            files.sync_file(self._file(class_id))
        self._touched.clear()
        files.write_json(self.path / "progress.json", {**self._state, "made_by": self.made_by})

    def _finish(self) -> None:
        """Write the index that marks the artifact complete."""
        self._checkpoint()
        digests = {str(c): _digest(self._file(c)) for c in sorted(self._counts)}
        self._index = {**self._state, "sha256": digests, "made_by": self.made_by}
        files.write_json(self.path / "index.json", self._index)
        files.remove(self.path / "progress.json")

    def _file(self, class_id: int) -> Path:
        return self.path / f"{class_id:05d}.npy"

    def _write_rows(self, item: Item, rows: np.ndarray) -> None:
        self._touched.add(item.class_id)
        with self._file(item.class_id).open("r+b") as file:
            file.seek(len(self._header[item.class_id]) + item.rank * rows[0].nbytes)
            file.write(rows.tobytes())

    def _allocate(self) -> None:
        with files.refusing(self.path):
            for class_id, count in self._counts.items():
                header = self._header[class_id]
                with self._file(class_id).open("wb") as file:
                    file.write(header)
                    file.truncate(len(header) + 2 * count * int(np.prod(self._shape)))


def _runs(items: Sequence[Item]) -> Iterator[tuple[int, int]]:
    """Slices of items that lie side by side in one class's file."""
    first = 0
    for i, item in enumerate(items):
        following = items[i + 1] if i + 1 < len(items) else None
        if following is None or (following.class_id, following.rank) != (item.class_id, item.rank + 1):
            yield first, i + 1
            first = i + 1


def _npy_header(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f2", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _read(path: Path, made_by: dict[str, Any]) -> dict[str, Any] | None:
    if not path.exists():
        return None
    found: dict[str, Any] = files.read_json(path)
    if found.get("made_by") != made_by:
        raise DamageError(f"{path}: made by something else than its name says; remove {path.parent} and run again")
    return found


def _digest(path: Path) -> str:
    with files.refusing(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
