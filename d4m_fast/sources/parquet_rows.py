"""The images of parquet files by row, in any order: from row groups in memory, or from a copy in the order of rows.

A row can only be had with its row group, so a set whose rows are in no order of classes would be decoded once for every
few images. Such a set is copied once: its images' bytes, row by row, into one file for each parquet file.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from d4m_fast.errors import PreflightError
from d4m_fast.sources.index_cache import IndexCache, pack, unpack
from d4m_fast.sources.parquet_files import ParquetFile
from d4m_fast.sources.positioned import PositionedFiles, State, state_of
from d4m_fast.storage import files
from d4m_fast.storage.state import INDEX

MOST_HELD_BYTES = 1 << 30  # of row groups in memory, of all threads together
_MOST_GROUP_BYTES = MOST_HELD_BYTES // 8
_MOST_REPEATS = 2  # decodings of each row group on average, above which a set is copied


@dataclass(frozen=True, slots=True)
class RowIndex:
    """Sizes and checksums of the images of a parquet file, by row.

    Attributes:
        sizes: (n,) int64; -1 where a row has no image.
        checksums: (n,) int64, CRC-32.
        copied: whether the cache holds a copy of the images.
    """

    path: Path
    state: State
    sizes: np.ndarray
    checksums: np.ndarray
    copied: bool

    @property
    def offsets(self) -> np.ndarray:
        """Starts of the rows in a copy, (n,) int64."""
        sizes = np.maximum(self.sizes, 0)
        return np.asarray(np.cumsum(sizes) - sizes)

    def to_json(self) -> dict[str, Any]:
        """Return the fields of a state file."""
        return {"sizes": pack(self.sizes), "checksums": pack(self.checksums), "copied": self.copied}

    @classmethod
    def from_json(cls, path: Path, state: State, value: Mapping[str, Any]) -> RowIndex:
        """Return the index that `to_json` described."""
        return cls(path, state, unpack(value["sizes"]), unpack(value["checksums"]), value["copied"])


def index_rows(path: Path, column: str, cache: IndexCache) -> RowIndex:
    """Return sizes and checksums of a file's images, from the cache where it was read in the state it is in."""
    state = state_of(path)
    saved = cache.load(path, state)
    if saved is not None:
        return RowIndex.from_json(path, state, saved)
    file = ParquetFile(path)
    sizes, checksums = np.full(file.metadata.num_rows, -1, np.int64), np.zeros(file.metadata.num_rows, np.int64)
    for row, data in enumerate(_images(file, column)):
        if data is not None:
            sizes[row], checksums[row] = len(data), zlib.crc32(data)
    index = RowIndex(path, state, sizes, checksums, copied=False)
    if state_of(path) == state:  # else it may be of two files; reading says that it changed
        cache.save(path, state, index.to_json())
    return index


def _images(file: ParquetFile, column: str) -> Iterator[bytes | None]:
    for group in range(len(file.group_rows)):
        yield from file.images(group, column)


class Rows(Protocol):
    """Images by row, counted through all files; any thread may ask."""

    def read(self, row: int) -> bytes: ...


class HeldGroups:
    """Images in row groups, of which those used last are held in memory, up to `MOST_HELD_BYTES`."""

    def __init__(self, indexes: Sequence[RowIndex], column: str) -> None:
        self._indexes, self._column = tuple(indexes), column
        self._lock = threading.Lock()  # pyarrow's reader is of one thread; decoding the images takes most of the time
        self._files: dict[int, ParquetFile] = {}
        self._held: OrderedDict[int, list[bytes | None]] = OrderedDict()
        self._held_bytes = 0
        self.groups = Groups.of(indexes)

    def __reduce__(self) -> tuple[Any, ...]:
        return HeldGroups, (self._indexes, self._column)

    def read(self, row: int) -> bytes:
        """Return the bytes of an image.

        Raises:
            DataError: the row group is damaged.
            PreflightError: the file is not what was indexed.
        """
        group = int(self.groups.of_rows(np.array([row]))[0])
        with self._lock:
            if group not in self._held:
                self._load(group)
            self._held.move_to_end(group)
            data = self._held[group][row - int(self.groups.starts[group])]
        assert data is not None  # rows without an image are not asked for
        return data

    def _load(self, group: int) -> None:
        number = int(self.groups.files[group])
        index = self._indexes[number]
        if number not in self._files:
            self._files[number] = ParquetFile(index.path)
        if state_of(index.path) != index.state:
            raise changed(index.path)
        self._held[group] = list(self._files[number].images(int(self.groups.in_file[group]), self._column))
        self._held_bytes += int(self.groups.sizes[group])
        while self._held_bytes > MOST_HELD_BYTES and len(self._held) > 1:
            dropped, _ = self._held.popitem(last=False)
            self._held_bytes -= int(self.groups.sizes[dropped])


class Copies:
    """Images in copies of parquet files, which are made when the first image is read."""

    def __init__(self, indexes: Sequence[RowIndex], column: str, cache: IndexCache) -> None:
        self._indexes, self._column, self._cache = tuple(indexes), column, cache
        self._lock = threading.Lock()
        self._files: PositionedFiles | None = None
        self._starts = np.cumsum([0, *(len(index.sizes) for index in indexes)])
        self._offsets = [index.offsets for index in indexes]

    def __reduce__(self) -> tuple[Any, ...]:
        return Copies, (self._indexes, self._column, self._cache)

    def read(self, row: int) -> bytes:
        """Return the bytes of an image.

        Raises:
            DamageError: they are not what was copied.
            PreflightError: there is no room for a copy, or it cannot be read.
        """
        copies = self._open()
        number = int(np.searchsorted(self._starts, row, "right")) - 1
        at = row - int(self._starts[number])
        index = self._indexes[number]
        data = copies.read(number, int(self._offsets[number][at]), int(index.sizes[at]))
        if zlib.crc32(data) != int(index.checksums[at]):
            raise INDEX.damage(copies.paths[number], f"the image of row {at:,} is not what was copied")
        return data

    def _open(self) -> PositionedFiles:
        with self._lock:
            if self._files is None:
                cache = self._cache
                if cache.root is None:
                    folder = Path(tempfile.mkdtemp(prefix="d4m-fast-"))
                    weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
                    cache = IndexCache(folder, cache.form)
                copies = _copied(self._indexes, self._column, cache)
                self._files = PositionedFiles(copies, list(map(state_of, copies)))
            return self._files


def rows_of(indexes: Sequence[RowIndex], column: str, order: np.ndarray, cache: IndexCache) -> tuple[Rows, str]:
    """Return the images of files for reading in an order, and a line about the copy that this needs; or none.

    Args:
        order: (n,) rows as they will be asked for.
    """
    held_groups = HeldGroups(indexes, column)
    if not held_groups.groups.must_be_copied(order):
        return held_groups, ""
    size = sum(int(np.maximum(index.sizes, 0).sum()) for index in indexes)
    place = "the temporary folder" if cache.root is None else str(cache.root)
    line = f"rows in no order of classes: their images, {size / 1e9:.2f} GB, are copied to {place} when they are read"
    return Copies(indexes, column, cache), line


def _copied(indexes: Sequence[RowIndex], column: str, cache: IndexCache) -> list[Path]:
    """Return the copies of files, made now as far as they are missing.

    Raises:
        PreflightError: there is no room for them.
    """
    assert cache.root is not None
    missing = [index for index in indexes if not _is_copied(index, cache)]
    room = sum(int(np.maximum(index.sizes, 0).sum()) for index in missing)
    files.require_room(files.Need(cache.root, room, "copies of images that lie in no order of classes"))
    for index in missing:
        _copy(index, column, cache)
    return [cache.file(index.path, ".images") for index in indexes]


def _is_copied(index: RowIndex, cache: IndexCache) -> bool:
    copy = cache.file(index.path, ".images")
    return index.copied and copy.is_file() and copy.stat().st_size == np.maximum(index.sizes, 0).sum()


def _copy(index: RowIndex, column: str, cache: IndexCache) -> None:
    files.make_directory(cache.file(index.path, "").parent)
    images = (data for data in _images(ParquetFile(index.path), column) if data is not None)
    files.write_pieces(cache.file(index.path, ".images"), images)
    if state_of(index.path) != index.state:
        raise changed(index.path)
    cache.save(index.path, index.state, replace(index, copied=True).to_json())


@dataclass(frozen=True, slots=True)
class Groups:
    """Row groups of several files.

    Attributes:
        starts: (g,) the first row of each, counted through all files.
        sizes: (g,) bytes of their images.
        files, in_file: (g,) the number of each one's file, and its number in it.
    """

    starts: np.ndarray
    sizes: np.ndarray
    files: np.ndarray
    in_file: np.ndarray

    @classmethod
    def of(cls, indexes: Sequence[RowIndex]) -> Groups:
        """Return the row groups of files."""
        starts, sizes, numbers, in_file, first_row = list[int](), list[int](), list[int](), list[int](), 0
        for number, index in enumerate(indexes):
            at = 0
            for group, rows in enumerate(ParquetFile(index.path).group_rows):
                starts.append(first_row + at)
                sizes.append(int(np.maximum(index.sizes[at : at + rows], 0).sum()))
                numbers.append(number)
                in_file.append(group)
                at += rows
            first_row += at
        return cls(np.array(starts), np.array(sizes), np.array(numbers), np.array(in_file))

    def of_rows(self, rows: np.ndarray) -> np.ndarray:
        """Return the group of each row."""
        return np.searchsorted(self.starts, rows, "right") - 1

    def must_be_copied(self, order: np.ndarray) -> bool:
        """Return whether reading rows in an order would decode the groups too often, or hold too large ones."""
        if self.sizes.max(initial=0) > _MOST_GROUP_BYTES and self.sizes.sum() > MOST_HELD_BYTES:
            return True
        visits = self.of_rows(order)
        visits = visits[np.flatnonzero(np.diff(visits, prepend=-1))]
        return self._decodings(visits) > _MOST_REPEATS * len(self.starts)

    def _decodings(self, visits: np.ndarray) -> int:
        """Return how many groups are decoded for a series of visits, with those used last in memory."""
        held_groups: OrderedDict[int, None] = OrderedDict()
        held_bytes = decodings = 0
        for group in visits.tolist():
            if group not in held_groups:
                decodings += 1
                held_groups[group] = None
                held_bytes += int(self.sizes[group])
                while held_bytes > MOST_HELD_BYTES and len(held_groups) > 1:
                    dropped, _ = held_groups.popitem(last=False)
                    held_bytes -= int(self.sizes[dropped])
            held_groups.move_to_end(group)
        return decodings


def changed(path: Path) -> PreflightError:
    """Return the error of a file that was written to while it is read."""
    return PreflightError(f"{path}: changed since it was indexed; leave it alone while it is read, and run again")
