"""Latents on the disk: one NumPy file per class, and a checksum of every row."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from d4m_fast.errors import DamageError
from d4m_fast.storage import files
from d4m_fast.storage.state import LATENTS

_CHECKSUM = "<u8"  # BLAKE2b of 64 bits: a changed row passes once in 2^64


class LatentFiles:
    """`<class id>.npy`, each (n, C, h, w) float16, row = rank in the class; rows not yet written are zeros.

    Attributes:
        counts: rows of each class.
        checksums: (n,) per class, of the rows as they were written.
    """

    def __init__(self, root: Path, counts: Mapping[int, int], shape: tuple[int, ...]) -> None:
        self._root = root
        self.counts = counts
        self._shape = shape
        self._headers = {c: _npy_header((n, *shape)) for c, n in counts.items()}
        self._row_bytes = 2 * int(np.prod(shape))
        self._empty = _checksum(bytes(self._row_bytes))
        self._touched: set[int] = set()
        self.checksums = {c: np.full(n, self._empty, _CHECKSUM) for c, n in counts.items()}

    def file(self, class_id: int) -> Path:
        return self._root / f"{class_id:05d}.npy"

    def all_there(self) -> bool:
        return all(self.file(class_id).is_file() for class_id in self.counts)

    def bytes_of(self, class_id: int) -> int:
        """Size of a class's rows."""
        return self.counts[class_id] * self._row_bytes

    def allocate(self) -> None:
        """Make all files anew, full of zeros."""
        with files.refusing(self._root):
            for class_id, header in self._headers.items():
                with self.file(class_id).open("wb") as file:
                    file.write(header)
                    file.truncate(len(header) + self.bytes_of(class_id))

    def write(self, class_id: int, first: int, rows: np.ndarray) -> None:
        """Put rows (n, C, h, w) float16 in their places, the ranks from `first` on; durable after `sync`."""
        self._touched.add(class_id)
        self.checksums[class_id][first : first + len(rows)] = [_checksum(row.tobytes()) for row in rows]
        with files.refusing(self._root), self.file(class_id).open("r+b") as file:
            file.seek(len(self._headers[class_id]) + first * self._row_bytes)
            file.write(rows.tobytes())

    def clear(self, class_id: int, rank: int) -> None:
        """Make a row zeros again."""
        self.write(class_id, rank, np.zeros((1, *self._shape), np.float16))

    def sync(self) -> None:
        """Make durable what was written since the last call."""
        for class_id in self._touched:
            files.sync_file(self.file(class_id))
        self._touched.clear()

    def read(self, class_id: int) -> np.ndarray:
        """All rows of a class, (n, C, h, w) float16.

        Raises:
            DamageError: the file is not the one that was written.
        """
        rows = self._bytes(class_id)
        self._require(class_id, rows, range(self.counts[class_id]))
        return np.frombuffer(rows, np.float16).reshape(self.counts[class_id], *self._shape)

    def require_written(self) -> None:
        """Check the rows written so far, of an encoding that was interrupted.

        Raises:
            DamageError: one of them is not as it was written.
        """
        for class_id in self.counts:
            self._require_written(class_id)

    def damaged(self, *, complete: bool) -> Iterator[tuple[Path, str]]:
        """The files that are not as they were written, each with the reason.

        Args:
            complete: whether all rows are there; else only those written so far are checked.
        """
        check = self.read if complete else self._require_written
        for class_id in self.counts:
            try:
                check(class_id)
            except DamageError as error:
                yield self.file(class_id), error.reason

    def to_json(self) -> dict[str, Any]:
        """Shape and checksums, for a state file."""
        rows = {str(c): base64.b64encode(sums.tobytes()).decode() for c, sums in self.checksums.items()}
        return {"shape": list(self._shape), "rows": rows}

    @classmethod
    def from_json(cls, root: Path, value: Mapping[str, Any]) -> LatentFiles:
        """What `to_json` gave."""
        checksums = {int(c): np.frombuffer(binascii.a2b_base64(text), _CHECKSUM) for c, text in value["rows"].items()}
        latent_files = cls(root, {c: len(sums) for c, sums in checksums.items()}, tuple(value["shape"]))
        latent_files.checksums = {c: sums.copy() for c, sums in checksums.items()}
        return latent_files

    def _bytes(self, class_id: int) -> memoryview:
        file, header = self.file(class_id), self._headers[class_id]
        with LATENTS.reading(file):
            data = files.read_regular(file)
        if not data.startswith(header) or len(data) != len(header) + self.bytes_of(class_id):
            raise LATENTS.damage(file, "its header or its size is another than was written")
        return memoryview(data)[len(header) :]

    def _require_written(self, class_id: int) -> None:
        written = np.flatnonzero(self.checksums[class_id] != self._empty)
        if len(written):
            self._require(class_id, self._bytes(class_id), written.tolist())

    def _require(self, class_id: int, rows: memoryview, ranks: Iterable[int]) -> None:
        for rank in ranks:
            row = rows[rank * self._row_bytes : (rank + 1) * self._row_bytes]
            if _checksum(row) != self.checksums[class_id][rank]:
                raise LATENTS.damage(self.file(class_id), f"row {rank:,} is not what was written")


def _checksum(row: bytes | memoryview) -> int:
    return int.from_bytes(hashlib.blake2b(row, digest_size=8).digest(), "little")


def _npy_header(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f2", "fortran_order": False, "shape": shape})
    return buffer.getvalue()
