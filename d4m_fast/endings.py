"""The one line and the exit code of every error that ends a command, of the system's and Python's own ones, too."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from d4m_fast import __version__
from d4m_fast.errors import EXIT_SIGINT, EXIT_UNEXPECTED, D4MError, PreflightError, said_by, wants_of_machine

DEBUG = "D4M_DEBUG"
_MACHINE = {
    errno.ENOSPC: "free some",
    errno.EDQUOT: "free some of the quota",
    errno.EFBIG: "raise the limit (ulimit -f)",
    errno.EIO: "check the disk",
    errno.EROFS: "choose another place",
    errno.ESTALE: "mount it anew",
    errno.EMFILE: "raise the limit (ulimit -n)",
    errno.ENFILE: "close some",
    errno.ENOMEM: "free some, or raise the limit (ulimit -v)",
    errno.EAGAIN: "raise the limits of processes and memory (ulimit -u, ulimit -v), or lower --threads",
    errno.ETXTBSY: "wait for the program that runs it",
}
"""Errors that are the machine's, whatever path they name, and what to do."""
_PATH = {
    errno.EACCES: "give yourself the permission, or choose another path",
    errno.EPERM: "choose another path",
    errno.ELOOP: "mend the links",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EISDIR: "name a file",
}
_NO_FILE = "too many open files"
# CPython's RuntimeError of a pthread_create that is refused, and what C and C++ libraries say of theirs
_NO_THREAD = ("can't start new thread", "thread creation failed", "resource temporarily unavailable")


@dataclass(frozen=True, slots=True)
class Ending:
    """Last line on stderr, and the exit code."""

    line: str
    code: int


def ending_of(error: BaseException) -> Ending | None:
    """Return how a command that raised this error ends; None where nobody has foreseen it."""
    if isinstance(error, D4MError):
        # Memory, threads or files ran out of the machine, whoever has put it in words.
        is_exhaustion = error.exit_code == D4MError.exit_code and _exhaustion(error) is not None
        return Ending(f"error: {error}", PreflightError.exit_code if is_exhaustion else error.exit_code)
    if isinstance(error, click.UsageError):
        command = "d4m-fast" if error.ctx is None else error.ctx.command_path
        return Ending(f"Error: {error.format_message().removesuffix('.')}; see {command} --help", error.exit_code)
    if isinstance(error, click.ClickException):
        return Ending(f"Error: {error.format_message()}", error.exit_code)
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        return Ending("interrupted; run the same command to go on", EXIT_SIGINT)
    if isinstance(error, OSError):
        return _of_system(error)
    return _of_exhaustion(error)


def _exhaustion(error: BaseException | None) -> BaseException | None:
    """Return the first error in a chain of causes that is for want of memory, threads or files; None if none is.

    Libraries put it in words of their own, for example when one of theirs cannot be imported.
    """
    while error is not None and not wants_of_machine(error):
        error = error.__cause__
    return error


def _of_system(error: OSError) -> Ending:
    """Return the ending of a system's error: one that names a path is the user's to mend, most others the machine's."""
    if error.errno is None:
        return Ending(f"error: {_words(error)}", D4MError.exit_code)
    place = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    code = PreflightError.exit_code if error.errno in _MACHINE or not place else D4MError.exit_code
    advice = _MACHINE.get(error.errno, _PATH.get(error.errno, "check it"))
    reason = os.strerror(error.errno) if error.strerror is None else error.strerror
    return Ending(f"error: {place}{reason}; {advice}", code)


def _of_exhaustion(raised: BaseException) -> Ending | None:
    """Return the ending of an error for want of memory, threads or files; None of any other."""
    error = _exhaustion(raised)
    if error is None:
        return None
    if any(words in said_by(error).lower() for words in _NO_THREAD):
        line = f"error: no more threads; {_MACHINE[errno.EAGAIN]}"
    elif _NO_FILE in said_by(error).lower():
        line = f"error: {_words(error)}; {_MACHINE[errno.EMFILE]}"
    else:
        line = f"error: out of memory ({_words(error)}); {_MACHINE[errno.ENOMEM]}, or lower --batch-size or --workers"
    return Ending(line, PreflightError.exit_code)


def _words(error: BaseException) -> str:
    """Return an error's message on one line, or its type where there is none."""
    text = " ".join(said_by(error).split())
    # One line of a terminal or a log; some libraries' messages are pages.
    return text[:400] if text else type(error).__name__


def report_unexpected(error: BaseException) -> Ending:
    """Write the traceback of what nobody has foreseen to a file; where none can be written, the line has it."""
    report = "\n".join(
        [
            f"d4m-fast {__version__}, Python {platform.python_version()}, {platform.platform()}",
            f"command: {sys.argv!a}",
            *traceback.format_exception(error),
        ]
    )
    line = f"unexpected: {type(error).__name__}: {_words(error)}"
    file = _write_report(report)
    if file is not None:
        return Ending(f"{line}; the traceback is in {file}; please report it", EXIT_UNEXPECTED)
    return Ending(f"{line}; please report it; no file could be written: {report!a}", EXIT_UNEXPECTED)


def _write_report(report: str) -> Path | None:
    """Write a report where the first directory takes it, and return its file; None where none does."""
    for directory in _report_directories():
        file = directory / f"crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
        with contextlib.suppress(OSError):  # the next directory may take it
            directory.mkdir(parents=True, exist_ok=True)
            # O_EXCL: in a directory of temporary files, another user's link of that name is not written through.
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as stream:
                stream.write(report)
            return file
    return None


def _report_directories() -> Iterator[Path]:
    """Yield the user's state directory, by the XDG convention, and that of temporary files."""
    state = os.environ.get("XDG_STATE_HOME", "")
    home = os.environ.get("HOME", "")
    if os.path.isabs(state):
        yield Path(state) / "d4m-fast"
    elif os.path.isabs(home):
        yield Path(home) / ".local" / "state" / "d4m-fast"
    with contextlib.suppress(OSError):
        yield Path(tempfile.gettempdir())


def debugging() -> bool:
    """Whether the traceback of every error is asked for."""
    return os.environ.get(DEBUG, "") not in ("", "0")
