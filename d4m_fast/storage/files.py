"""Files that are whole or absent: temporary name, fsync, rename, fsync of the directory."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from d4m_fast.errors import PreflightError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

TEMPORARY = ".tmp-"
_GO_ON = "and run the same command again, it goes on where it stopped"
_ELSEWHERE = "choose another directory"
_REFUSALS = {
    errno.ENOSPC: f"no space left; free some {_GO_ON}",
    errno.EDQUOT: f"disk quota reached; free some {_GO_ON}",
    errno.EFBIG: f"file size limit reached; raise it {_GO_ON}",
    errno.EIO: f"input/output error; check the disk {_GO_ON}",
    errno.ESTALE: f"the server no longer knows it; mount it anew {_GO_ON}",
    errno.EMFILE: f"too many open files; raise the limit (ulimit -n) {_GO_ON}",
    errno.ENFILE: f"too many open files on this machine; close some {_GO_ON}",
    errno.ENOMEM: f"no memory left; free some {_GO_ON}",
    errno.EACCES: f"permission denied; {_ELSEWHERE}",
    errno.EPERM: f"not permitted; {_ELSEWHERE}",
    errno.EROFS: f"read-only file system; {_ELSEWHERE}",
    errno.ENAMETOOLONG: f"the name is too long; {_ELSEWHERE}",
    errno.ENOENT: f"cannot be created; {_ELSEWHERE}",
    errno.ENOTDIR: f"a file is in the way; {_ELSEWHERE}",
    errno.EEXIST: f"a file is in the way; {_ELSEWHERE}",
    errno.EISDIR: f"a directory is in the way; {_ELSEWHERE}",
    errno.ENOTEMPTY: f"a directory is in the way; {_ELSEWHERE}",
    errno.EXDEV: f"cannot be renamed, as it lies on another file system (mounted by itself?); {_ELSEWHERE}",
    errno.EBUSY: f"cannot be replaced, as it is in use (mounted by itself?); {_ELSEWHERE}",
}
MACHINE_ERRORS = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
        *(errno.EBUSY, errno.EAGAIN, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.ECONNRESET),
    }
)
"""Errors of the machine, not of a file: what cannot be read now may be read tomorrow, or by another user."""
# The answers of file systems that cannot sync files or directories (CIFS, FUSE, some NFS); a disk that fails answers
# otherwise.
_CANNOT_SYNC_FILE = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
_CANNOT_SYNC_DIRECTORY = _CANNOT_SYNC_FILE | {errno.EBADF, errno.EISDIR, errno.EACCES, errno.EPERM}
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES})
_KINDS = (
    (stat.S_ISDIR, "directory"),
    (stat.S_ISFIFO, "named pipe"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
    (stat.S_ISLNK, "link"),
)
log = logging.getLogger(__name__)


@contextlib.contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write below `path` into one line and exit code 6."""
    try:
        yield
    except OSError as error:
        place = str(path) if error.filename is None else os.fsdecode(error.filename)
        reason = f"{error if error.strerror is None else error.strerror}; {_ELSEWHERE}"
        if error.errno in _REFUSALS:
            reason = _REFUSALS[error.errno]
        raise PreflightError(f"{place}: {reason}") from error


def write_bytes(path: Path, data: Buffer, *, sync_name: bool = True) -> str:
    """Write a file whole, durably, or not at all; returns its SHA-256.

    Args:
        sync_name: False where the caller syncs the directory before it says that the file is there.

    Raises:
        PreflightError: no space, no permission, a read-only file system.
    """
    with new_file(path, sync_name=sync_name) as file:
        file.write(data)
    return hashlib.sha256(data).hexdigest()


def write_pieces(path: Path, pieces: Iterable[Buffer]) -> None:
    """Write a file of pieces that are made one by one, as `write_bytes` does."""
    with new_file(path) as file:
        for piece in pieces:
            file.write(piece)


@contextlib.contextmanager
def new_file(path: Path, *, sync_name: bool = True) -> Iterator[BinaryIO]:
    """Open a file for writing that gets its name, durably, when the block ends; if the block fails it is removed.

    Args:
        sync_name: False where the caller syncs the directory before it says that the file is there.

    Raises:
        PreflightError: no space, no permission, a read-only file system.
    """
    with refusing(path):
        temporary = _temporary(path)
        try:
            with _durable(temporary, path) as file:
                yield file
            os.replace(temporary, path)
        except BaseException:  # an interruption from the keyboard, too
            temporary.unlink(missing_ok=True)
            raise
        # Without this, a power cut may bring back the file that had the name before, or none.
        if sync_name:
            sync_directory(path.parent)


def publish_bytes(path: Path, data: Buffer) -> bool:
    """Write a file whole, durably, and only where there is none of its name; returns whether this call wrote it.

    Where the file system has no links (FAT, some FUSE), it looks before it renames: of two calls at one moment both
    may then write.

    Raises:
        PreflightError: no space, no permission, a read-only file system.
    """
    with refusing(path):
        temporary = _temporary(path)
        try:
            with _durable(temporary, path) as file:
                file.write(data)
            return _rename_where_there_is_none(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
            sync_directory(path.parent)


def _rename_where_there_is_none(temporary: Path, path: Path) -> bool:
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if is_there(path):
            return False
        os.replace(temporary, path)
    return True


def _temporary(path: Path) -> Path:
    """Return a name for a file until it is whole, of this call alone: other hosts have processes of our number.

    In the same directory, because a rename does not cross file systems. Sixty characters of the name at most, which
    are 240 bytes: a name of 255 bytes has no room for a prefix.
    """
    return path.with_name(f"{TEMPORARY}{secrets.randbelow(10**8):08d}-{path.name[-60:]}")


@contextlib.contextmanager
def _durable(temporary: Path, path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that is on the disk when the block ends; errors name the path that it is to get."""
    with temporary.open("wb") as file:
        yield file
        file.flush()
        _sync(file.fileno(), path)


def unlink(path: Path) -> None:
    """Remove a file that need not stay away after a power cut; it may be missing already."""
    with refusing(path):
        path.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Remove a file durably; it may be missing already."""
    with refusing(path):
        path.unlink(missing_ok=True)
        sync_directory(path.parent)


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading; refuse anything else at once, where opening a pipe would wait for ever.

    Raises:
        OSError: there is none, it may not be read, or it is a directory, a pipe, a socket or a device.
    """
    _require_regular(path.stat().st_mode, path)  # opening a device may already do something
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _require_regular(os.fstat(descriptor).st_mode, path)  # again: the name may have gone to another file meanwhile
        return os.fdopen(descriptor, "rb")
    except OSError:
        os.close(descriptor)
        raise


def _require_regular(mode: int, path: Path) -> None:
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"is a {kind_of(mode)}, not a file", str(path))


def kind_of(mode: int) -> str:
    """Return the word for what is no regular file, from its `st_mode`."""
    return next((name for is_kind, name in _KINDS if is_kind(mode)), "special file")


def refuse_machine_error(path: Path, error: OSError) -> None:
    """Refuse to judge what could not be read for want of a permission, or of something else that may be mended.

    Raises:
        PreflightError: it may be readable another time, or to another user.
    """
    if error.errno in MACHINE_ERRORS:
        raise PreflightError(f"{path}: cannot be read ({error.strerror}); mend that and run again") from error


def is_there(path: Path) -> bool:
    """Return whether something has this name; `os.path.exists` says no, too, where it is not allowed to look.

    Raises:
        PreflightError: it cannot be told.
    """
    try:
        path.lstat()
    except OSError as error:
        refuse_machine_error(path, error)
        return False
    return True


def entries(path: Path) -> list[Path]:
    """Return the entries of a directory, sorted; none where there is no directory.

    `Path.glob` passes over directories that it may not list.

    Raises:
        PreflightError: it cannot be told.
    """
    try:
        return sorted(path.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        refuse_machine_error(path, error)
        raise


def files_below(path: Path) -> Iterator[Path]:
    """Yield the files below a directory, in order; a link counts as a file and is not followed.

    Raises:
        PreflightError: it cannot be told what is there.
    """
    for entry in entries(path):
        if not entry.is_symlink() and entry.is_dir():
            yield from files_below(entry)
        else:
            yield entry


def read_regular(path: Path) -> bytes:
    """Return the bytes of a regular file; errors are those of `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable, where the file system can."""
    with refusing(path):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            if error.errno not in _CANNOT_SYNC_DIRECTORY:
                raise
            return
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in _CANNOT_SYNC_DIRECTORY:
                raise
        finally:
            os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make the bytes of a file durable, where the file system can."""
    with refusing(path), path.open("rb") as file:
        _sync(file.fileno(), path)


def _sync(descriptor: int, path: Path) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC_FILE:
            raise
        log.warning("%s: this file system cannot sync; a power cut may lose what was written last", path)


def make_directory(path: Path) -> Path:
    """Create a directory and its parents.

    Raises:
        PreflightError: it cannot be created or written to.
    """
    with refusing(path):
        path.mkdir(parents=True, exist_ok=True)  # which says nothing of a directory that is there but read-only
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "", str(path))
    return path


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that something will need at most below a path, besides those that it has there already."""

    path: Path
    size: int
    name: str


def require_room(*needs: Need) -> None:
    """Refuse what cannot fit, all needs of one file system together.

    Raises:
        PreflightError: a file system has too little room.
    """
    by_device: dict[int, list[Need]] = {}
    for need in needs:
        by_device.setdefault(_existing(need.path).stat().st_dev, []).append(need)
    for device_needs in by_device.values():
        path, size = device_needs[0].path, sum(need.size for need in device_needs)
        free = shutil.disk_usage(_existing(path)).free
        if free < size:
            names = " and ".join(need.name for need in device_needs if need.size)
            raise PreflightError(
                f"{path}: {names} need up to {size:,} bytes, {free:,} are free; free some or choose another place"
            )


def _existing(path: Path) -> Path:
    """Return the path, or the nearest of its parents that is there."""
    return next(filter(os.path.exists, (path.absolute(), *path.absolute().parents)))


def bytes_on_disk(path: Path) -> int:
    """Return the bytes that the files below a path occupy; 0 where there is no directory."""
    if not os.path.isdir(path):
        return 0
    return sum(512 * file.lstat().st_blocks for file in path.rglob("*"))  # POSIX counts blocks of 512 bytes


def sweep(path: Path, is_used: Callable[[], bool] = lambda: False) -> None:
    """Remove the half-written files of processes that were killed.

    Args:
        is_used: whether a process may be writing now; asked after the files were listed, so that none is taken from
            under one that begins meanwhile.
    """
    with refusing(path):
        leftovers = list(path.rglob(f"{TEMPORARY}*"))
        for leftover in [] if not leftovers or is_used() else leftovers:
            leftover.unlink(missing_ok=True)
