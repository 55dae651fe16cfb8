"""Files of latents: one NumPy file per class, and a checksum of every row."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from d4m_fast.errors import DamageError
from d4m_fast.sources.records import Item
from d4m_fast.storage import files
from d4m_fast.storage.state import LATENTS

_CHECKSUM = "<u8"  # BLAKE2b of 64 bits: a changed row passes once in 2^64


class LatentFiles:
    """Files `<class id>.npy`, each (n, C, h, w) float16, row = rank in the class; rows not yet written are zeros.

    Attributes:
        counts: rows of each class.
        checksums: (n,) per class, of the rows as they were written.
    """

    def __init__(self, root: Path, counts: Mapping[int, int], shape: tuple[int, ...]) -> None:
        self._root = root
        self.counts = counts
        self._shape = shape
        self._headers = {class_id: _npy_header((count, *shape)) for class_id, count in counts.items()}
        self._row_bytes = 2 * int(np.prod(shape))
        self._unwritten = _checksum(bytes(self._row_bytes))  # of a row of zeros
        self._unsynced: set[int] = set()
        self.checksums = {class_id: np.full(count, self._unwritten, _CHECKSUM) for class_id, count in counts.items()}

    def file(self, class_id: int) -> Path:
        """Return the path of a class's file."""
        return self._root / f"{class_id:05d}.npy"

    def all_there(self) -> bool:
        """Return whether no file is missing."""
        return all(self.file(class_id).is_file() for class_id in self.counts)

    def bytes_of(self, class_id: int) -> int:
        """Return the size of a class's rows."""
        return self.counts[class_id] * self._row_bytes

    def allocate(self) -> None:
        """Make all files anew, full of zeros."""
        with files.refusing(self._root):
            for class_id, header in self._headers.items():
                with self.file(class_id).open("wb") as file:
                    file.write(header)
                    # Where the file system can leave holes, these zeros take no room until rows are written.
                    file.truncate(len(header) + self.bytes_of(class_id))

    def write(self, class_id: int, first: int, rows: np.ndarray) -> None:
        """Put rows (n, C, h, w) float16 in their places, the ranks from `first` on; durable after `sync`."""
        self._unsynced.add(class_id)
        # Of the rows in memory, so that a disk that stores something else is noticed when they are read.
        self.checksums[class_id][first : first + len(rows)] = [_checksum(row.tobytes()) for row in rows]
        with files.refusing(self._root), self.file(class_id).open("r+b") as file:
            file.seek(len(self._headers[class_id]) + first * self._row_bytes)
            file.write(rows.tobytes())

    def clear(self, class_id: int, rank: int) -> None:
        """Make a row zeros again."""
        self.write(class_id, rank, np.zeros((1, *self._shape), np.float16))

    def sync(self) -> None:
        """Make durable what was written since the last call."""
        for class_id in self._unsynced:
            files.sync_file(self.file(class_id))
        self._unsynced.clear()

    def read(self, class_id: int) -> np.ndarray:
        """Return all rows of a class, (n, C, h, w) float16.

        Raises:
            DamageError: the file is not the one that was written.
        """
        rows = self._bytes(class_id)
        self._require(class_id, rows, range(self.counts[class_id]))
        return np.frombuffer(rows, np.float16).reshape(self.counts[class_id], *self._shape)

    def are_written(self, items: Sequence[Item], checksums: np.ndarray) -> bool:
        """Return whether the rows of these items are as their checksums, at least as many, say; and note those."""
        ranks_by_class = dict[int, list[int]]()
        for item, checksum in zip(items, checksums, strict=False):
            self.checksums[item.class_id][item.rank] = checksum
            ranks_by_class.setdefault(item.class_id, []).append(item.rank)
        try:
            for class_id, ranks in ranks_by_class.items():
                self.require_rows(class_id, ranks)
        except DamageError:
            return False
        return True

    def require_rows(self, class_id: int, ranks: Iterable[int]) -> None:
        """Refuse a row that is not as its checksum says.

        Raises:
            DamageError: names the first.
        """
        self._require(class_id, self._bytes(class_id), ranks)

    def damaged(self) -> Iterator[tuple[Path, str]]:
        """Yield the files that are not as they were written, each with the reason."""
        for class_id in self.counts:
            try:
                self.read(class_id)
            except DamageError as error:
                yield self.file(class_id), error.reason

    def to_json(self) -> dict[str, Any]:
        """Return shape and checksums, for a state file."""
        rows = {}
        for class_id, checksums in self.checksums.items():
            rows[str(class_id)] = base64.b64encode(checksums.tobytes()).decode()
        return {"shape": list(self._shape), "rows": rows}

    @classmethod
    def from_json(cls, root: Path, value: Mapping[str, Any]) -> LatentFiles:
        """Return the files that `to_json` described."""
        checksums: dict[int, np.ndarray] = {}
        for class_id, text in value["rows"].items():
            # A copy, because an array over a buffer cannot be written to.
            checksums[int(class_id)] = np.frombuffer(binascii.a2b_base64(text), _CHECKSUM).copy()
        counts = {class_id: len(class_checksums) for class_id, class_checksums in checksums.items()}
        latent_files = cls(root, counts, tuple(value["shape"]))
        latent_files.checksums = checksums
        return latent_files

    def _bytes(self, class_id: int) -> memoryview:
        """Return the rows of a class as they lie in its file."""
        file, header = self.file(class_id), self._headers[class_id]
        with LATENTS.reading(file):
            data = files.read_regular(file)
        if not data.startswith(header) or len(data) != len(header) + self.bytes_of(class_id):
            raise LATENTS.damage(file, "its header or its size is another than was written")
        return memoryview(data)[len(header) :]

    def _require(self, class_id: int, rows: memoryview, ranks: Iterable[int]) -> None:
        """Refuse a row whose checksum is another than that of the row that was written."""
        for rank in ranks:
            row = rows[rank * self._row_bytes : (rank + 1) * self._row_bytes]
            if _checksum(row) != self.checksums[class_id][rank]:
                raise LATENTS.damage(self.file(class_id), f"row {rank:,} is not what was written")


def adjacent_items(items: Sequence[Item]) -> Iterator[tuple[int, int]]:
    """Yield start and stop of items whose rows lie side by side in one class's file, to write them at once."""
    start = 0
    for stop, item in enumerate(items, 1):
        successor = items[stop] if stop < len(items) else None
        if successor is None or (successor.class_id, successor.rank) != (item.class_id, item.rank + 1):
            yield start, stop
            start = stop


def _checksum(row: bytes | memoryview) -> int:
    return int.from_bytes(hashlib.blake2b(row, digest_size=8).digest(), "little")


def _npy_header(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f2", "fortran_order": False, "shape": shape})
    return buffer.getvalue()
