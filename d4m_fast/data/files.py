"""Files that are whole or absent: temporary name, fsync, rename, fsync of the directory."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING

from d4m_fast.errors import PreflightError, RunDirectoryError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

TEMPORARY = ".tmp-"
_REFUSALS = {
    errno.ENOSPC: "no space left; free some and run the same command again, it goes on where it stopped",
    errno.EDQUOT: "disk quota reached; free some and run the same command again, it goes on where it stopped",
    errno.EFBIG: "file size limit reached; raise it and run the same command again, it goes on where it stopped",
    errno.EIO: "input/output error; check the disk and run the same command again, it goes on where it stopped",
    errno.EACCES: "permission denied; choose another directory",
    errno.EPERM: "not permitted; choose another directory",
    errno.EROFS: "read-only file system; choose another directory",
    errno.ENAMETOOLONG: "the name is too long; choose another directory",
    errno.ENOENT: "cannot be created; choose another directory",
    errno.ENOTDIR: "a file is in the way; choose another directory",
    errno.EEXIST: "a file is in the way; choose another directory",
}
PASSING = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
        *(errno.EBUSY, errno.EAGAIN, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.ECONNRESET),
    }
)
"""The machine's troubles, not a file's: what cannot be read now may be read tomorrow, or by another user."""
_KINDS = (
    (stat.S_ISDIR, "directory"),
    (stat.S_ISFIFO, "named pipe"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
)


@contextlib.contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write below `path` into one line and exit code 6."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        raise PreflightError(f"{error.filename or path}: {_REFUSALS[error.errno]}") from error


def write_bytes(path: Path, data: Buffer, *, sync_name: bool = True) -> str:
    """Write a file whole, durably, or not at all; returns its SHA-256.

    Args:
        sync_name: False where the caller syncs the directory before it says that the file is there.

    Raises:
        PreflightError: no space, no permission, a read-only file system.
    """
    with refusing(path):
        temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if sync_name:
            sync_directory(path.parent)
    return hashlib.sha256(data).hexdigest()


def remove(path: Path) -> None:
    """Durably."""
    with refusing(path):
        path.unlink(missing_ok=True)
        sync_directory(path.parent)


def open_regular(path: Path) -> BufferedReader:
    """A regular file, opened for reading; anything else is refused at once, where opening a pipe would wait for ever.

    Raises:
        OSError: there is none, it may not be read, or it is a directory, a pipe, a socket or a device.
    """
    _require_regular(path.stat().st_mode, path)  # opening a device may already do something
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _require_regular(os.fstat(descriptor).st_mode, path)
        return os.fdopen(descriptor, "rb")
    except OSError:
        os.close(descriptor)
        raise


def _require_regular(mode: int, path: Path) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "special file")
        raise OSError(errno.EINVAL, f"is a {kind}, not a file", str(path))


def read_regular(path: Path) -> bytes:
    """The bytes of a regular file; errors are those of `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def sync_directory(path: Path) -> None:
    with refusing(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_file(path: Path) -> None:
    with refusing(path), path.open("rb") as file:
        os.fsync(file.fileno())


def make_directory(path: Path) -> Path:
    """Create a directory and its parents.

    Raises:
        PreflightError: it cannot be created or written to.
    """
    with refusing(path):
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "", str(path))
    return path


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that something will take at most below a path, besides what is there."""

    path: Path
    size: int
    what: str


def require_room(*needs: Need) -> None:
    """Refuse what cannot fit, all needs of one file system together.

    Raises:
        PreflightError: a file system has too little room.
    """
    by_device: dict[int, list[Need]] = {}
    for need in needs:
        by_device.setdefault(_existing(need.path).stat().st_dev, []).append(need)
    for together in by_device.values():
        path, wanted = together[0].path, sum(need.size for need in together)
        free = shutil.disk_usage(_existing(path)).free
        if free < wanted:
            what = " and ".join(need.what for need in together if need.size)
            raise PreflightError(
                f"{path}: {what} need up to {wanted:,} bytes, {free:,} are free; free some or choose another place"
            )


def _existing(path: Path) -> Path:
    """The path, or the nearest of its parents that is there."""
    return next(p for p in (path.absolute(), *path.absolute().parents) if os.path.exists(p))


def taken(path: Path) -> int:
    """Bytes on the disk below a path."""
    return sum(512 * file.lstat().st_blocks for file in path.rglob("*")) if os.path.isdir(path) else 0


def sweep(path: Path) -> None:
    """Remove what an earlier run that was killed left half written."""
    with refusing(path):
        for leftover in path.rglob(f"{TEMPORARY}*"):
            leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a directory for this process; the lock goes with the process, however it ends.

    Raises:
        RunDirectoryError: another process holds it.
    """
    with refusing(directory):
        file = (directory / ".lock").open("a")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunDirectoryError(
                f"{directory}: in use by another run; wait for it or choose another directory"
            ) from error
        yield
