"""stdout and stderr that can be full, closed or gone, and text that cannot steer a terminal.

A line on stderr that cannot be printed is dropped: the work it tells of goes on. A result that cannot be printed on
stdout is an error, once everything is kept.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable
from typing import Any

from d4m_fast.characters import is_unseen
from d4m_fast.errors import ClosedPipeError, OutputError


def printable(text: str) -> str:
    r"""Return a line that cannot act on a terminal: ESC is `\x1b`, a newline `\n`, a byte that is not UTF-8 `\xff`."""
    return _with_unseen(text, _escape)


def printable_json(text: str) -> str:
    """Return JSON of the same value, in which nothing acts on a terminal and everything can be encoded as UTF-8."""
    return _with_unseen(text, _json_escape)


def _with_unseen(text: str, escape: Callable[[str], str]) -> str:
    if text.isascii() and text.isprintable():
        return text
    return "".join(escape(character) if is_unseen(character) else character for character in text)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")  # repr lets blanks through as they are


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))


class LogStream(io.TextIOWrapper):
    """stderr, without a buffer; what it cannot take is dropped."""

    def __init__(self, descriptor: int) -> None:
        file: Any = io.FileIO(descriptor, "w", closefd=False)  # TextIOWrapper takes raw files, as `python -u` shows
        encoding = "utf-8" if sys.stderr is None else sys.stderr.encoding
        super().__init__(file, encoding, "backslashreplace", line_buffering=True, write_through=True)

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            return


class ResultStream(io.TextIOWrapper):
    """stdout; what it cannot take is an OutputError, and the rest is dropped."""

    def __init__(self, descriptor: int, encoding: str, *, closed: bool) -> None:
        buffer = io.BufferedWriter(io.FileIO(descriptor, "w", closefd=False))
        super().__init__(buffer, encoding, "backslashreplace")
        self._descriptor = descriptor
        self._closed = closed

    def write(self, text: str) -> int:
        if self._closed:
            raise OutputError("stdout: the result cannot be printed (it is closed)")
        try:
            return super().write(text)
        except OSError as error:
            raise self._lost(error) from error

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            raise self._lost(error) from error

    def _lost(self, error: OSError) -> OutputError:
        # What is still in the buffers would fail once more when the interpreter ends.
        _discard(self._descriptor)
        if error.errno == errno.EPIPE:
            return ClosedPipeError("stdout: the result cannot be printed (its reader has gone)")
        return OutputError(f"stdout: the result cannot be printed ({error.strerror})")


def _discard(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)


def install() -> bool:
    """Put these in the place of this process's stdout and stderr, unless a caller of ours has put others there.

    Closed descriptors are opened on the null device first: files of a run would else get their numbers, and a
    library's messages would be written into them.

    Returns:
        Whether stderr was this process's own.
    """
    closed = [descriptor for descriptor in (0, 1, 2) if not _is_open(descriptor)]
    for descriptor in closed:
        _discard(descriptor)
    owns_stderr = sys.stderr is None or sys.stderr is sys.__stderr__
    if owns_stderr:
        sys.stderr = LogStream(2)
    if sys.stdout is None or sys.stdout is sys.__stdout__:
        sys.stdout = ResultStream(1, "utf-8" if sys.stdout is None else sys.stdout.encoding, closed=1 in closed)
    return owns_stderr


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
