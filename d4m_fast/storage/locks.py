"""Locks of directories: by `flock`, or by a file with its holder's name where there is no `flock`."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from d4m_fast.errors import PreflightError, RunDirectoryError
from d4m_fast.storage import files

# Stays when the lock ends: if it were removed, one process could hold the old file and another a new one.
LOCK = ".lock"
OWNER = ".lock.owner"  # beside LOCK: on one file system one host may have `flock` and another not
LOCK_FILES = frozenset({LOCK, OWNER})
_NO_FLOCK = frozenset({errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL})
_NOT_WRITABLE = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_POLL_SECONDS = 0.05
_SAY_SECONDS = 5.0  # of waiting, after which the log says so
log = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(directory: Path, *, read_only: bool = False, wait: float = 0.0) -> Iterator[None]:
    """Lock a directory for this process; the lock ends with the process, however that ends.

    Where the file system has no `flock` (Lustre, some NFS), the lock is a file with host, process and its start; the
    lock of a process that has ended on this host is taken over.

    Args:
        read_only: nothing is to be written, so that a directory that cannot be written to is no hindrance; it is then
            read without a lock, and the log says so.
        wait: seconds to wait for another process that holds it.

    Raises:
        RunDirectoryError: another process holds it, and went on to.
        PreflightError: the lock cannot be made, or something else has its name.
    """
    with contextlib.ExitStack() as releases:
        descriptor = _open_lock_file(directory / LOCK, read_only)
        if descriptor is not None:
            releases.callback(os.close, descriptor)
            if not _flock(directory, descriptor, read_only, wait):
                _hold_owner_file(directory, releases, read_only, wait)
        yield


def _open_lock_file(path: Path, read_only: bool) -> int | None:
    """Return a descriptor of the lock file; None where it can be neither made nor read, and need not be."""
    _require_lock_file(path)
    flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o666)
    except OSError as error:
        if not read_only or error.errno not in _NOT_WRITABLE:
            with files.refusing(path):
                raise
    try:
        return os.open(path, os.O_RDONLY | flags)
    except OSError:
        log.warning("%s: cannot be written to; read without a lock, so no run may be writing to it now", path.parent)
        return None


def _require_lock_file(path: Path) -> None:
    """Look before opening: opening a pipe may wait for ever, and opening a device may do something."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError:
        with files.refusing(path):
            raise
    if not stat.S_ISREG(mode):
        raise PreflightError(f"{path}: is a {files.kind_of(mode)}, not a lock file; remove it")


def _flock(directory: Path, descriptor: int, read_only: bool, wait: float) -> bool:
    """Lock by `flock`, shared among readers, and return True; return False where the file system has no `flock`.

    A reader's descriptor may be for reading alone, with which NFS gives no exclusive lock.
    """
    start, said = time.monotonic(), False
    try:
        while True:
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_SH if read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                waited = time.monotonic() - start
                if waited >= wait:
                    raise
                if waited > _SAY_SECONDS and not said:
                    log.warning("%s: in use by another process; waiting for it", directory)
                    said = True
                time.sleep(_POLL_SECONDS)  # not by a blocking call: it would wait for ever
    except BlockingIOError as error:
        raise RunDirectoryError(
            f"{directory}: in use by another run; wait for it or choose another directory"
        ) from error
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            with files.refusing(directory / LOCK):
                raise
        log.warning("%s: no flock on this file system; locked by %s instead", directory, OWNER)
        return False


def _hold_owner_file(directory: Path, releases: contextlib.ExitStack, read_only: bool, wait: float) -> None:
    """Lock by a file that names its holder; a reader that cannot write it goes without a lock."""
    from filelock import SoftFileLock, Timeout

    path = directory / OWNER
    _require_lock_file(path)
    lock = SoftFileLock(path, timeout=wait, is_singleton=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise RunDirectoryError(
            f"{directory}: in use by {_owner(path)}, as {path} says; wait for it, or remove that file if it is no more"
        ) from error
    except OSError as error:
        if read_only and error.errno in _NOT_WRITABLE:
            return
        with files.refusing(path):
            raise
    releases.callback(lock.release)


def _owner(path: Path) -> str:
    """Return who holds an owner file: its first two lines are process and host, by filelock's format."""
    try:
        with files.open_regular(path) as file:
            lines = file.read(1000).decode(errors="replace").split("\n")
    except OSError:
        lines = []
    return f"process {lines[0]} on {lines[1]}" if len(lines) > 1 and lines[0].isdecimal() else "another run"
