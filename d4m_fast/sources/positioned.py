"""Files that many threads read at any place: opened once each, and never other files than when they were indexed."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from d4m_fast.errors import DataError, PreflightError
from d4m_fast.storage import files

_MOST_OPEN = 256  # of one set; the usual limit of a process is 1,024

State = tuple[int, int, int, int]  # bytes, time of the last write and of the last change of status in ns, inode


def state_of(path: Path) -> State:
    """Return what changes when a file is written to or replaced.

    Raises:
        DataError: there is no such file.
        PreflightError: it may be readable another time, or to another user.
    """
    try:
        with files.open_regular(path) as file:
            return _state(os.fstat(file.fileno()))
    except OSError as error:
        files.refuse_machine_error(path, error)
        raise DataError(f"{path}: cannot be read ({error.strerror}); name a file that is there") from error


class PositionedFiles:
    """Files by number, read by any thread; none may change meanwhile.

    Args:
        states: of the files when they were indexed.
    """

    def __init__(self, paths: Sequence[Path], states: Sequence[State]) -> None:
        self.paths = tuple(paths)
        self._states = tuple(states)
        self._lock = threading.Lock()
        self._descriptors: dict[int, int] = {}

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Return `size` bytes of a file.

        Raises:
            PreflightError: the file cannot be read, or is not what was indexed.
        """
        path = self.paths[number]
        try:
            descriptor = self._descriptors.get(number)
            if descriptor is not None:
                return self._read(descriptor, number, offset, size)
            descriptor = self._open(path)
            try:
                return self._read(descriptor, number, offset, size)
            finally:
                self._keep(number, descriptor)
        except OSError as error:  # not a damaged image's: leaving out all that is in the file would change the result
            raise PreflightError(f"{path}: cannot be read ({error.strerror}); mend that, and run again") from error

    def __reduce__(self) -> tuple[Any, ...]:
        return PositionedFiles, (self.paths, self._states)  # descriptors and locks are of one process

    def __del__(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)

    def _open(self, path: Path) -> int:
        with files.open_regular(path) as file:
            return os.dup(file.fileno())

    def _keep(self, number: int, descriptor: int) -> None:
        """Keep a descriptor for the next read, unless another thread was faster or there are many."""
        with self._lock:
            if number not in self._descriptors and len(self._descriptors) < _MOST_OPEN:
                self._descriptors[number] = descriptor
                return
        os.close(descriptor)

    def _read(self, descriptor: int, number: int, offset: int, size: int) -> bytes:
        data = os.pread(descriptor, size, offset)
        while 0 < len(data) < size:  # one call returns 2 GiB at most, and may be interrupted
            piece = os.pread(descriptor, size - len(data), offset + len(data))
            if not piece:
                break
            data += piece
        if len(data) < size or _state(os.fstat(descriptor)) != self._states[number]:
            raise PreflightError(
                f"{self.paths[number]}: changed since it was indexed; leave it alone while it is read, and run again"
            )
        return data


def _state(status: os.stat_result) -> State:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
