"""Every error that is foreseen, and the exit code that says so.

D4MError                1  the run failed
├── DataError           1  the images cannot be used
├── ModelError          1  the model directory cannot be used
├── NonFiniteError      1  a network returned NaN, infinity, or what cannot be kept
├── UsageError          2  an option or a combination of options makes no sense
├── SetAsideError       3  a run is done but for groups that failed again and again
├── RunDirectoryError   4  the run directory belongs to another config, or is in use
├── DamageError         5  an artifact does not match its checksum
├── OutOfMemoryError    6  a batch does not fit the device, or not even one image does
├── PreflightError      6  no disk, no permission, no such device, a missing extra
└── OutputError         6  everything is done and kept, but the result cannot be printed
    └── ClosedPipeError 141  its reader has gone

Exit code 0 is success, 3 also a finished run with quarantined images, 129, 130 and 143 an interrupted one, and 70 what
nobody has foreseen, with its traceback in a file. `endings.py` has those of the system's and Python's own errors.
"""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Mapping
from typing import Any

TRIAL = "a trial on random numbers, before anything is encoded"
"""What a NonFiniteError says of networks that were only tried."""

EXIT_QUARANTINED = 3
_MOST_SHOWN = 3  # groups, in one line
EXIT_UNEXPECTED = 70  # EX_SOFTWARE of sysexits.h
EXIT_SIGHUP = 129
EXIT_SIGINT = 130
EXIT_SIGTERM = 143

EXHAUSTED = re.compile(
    r"out of memory|(can't|cannot|unable to|failed to|could not) (allocate|mmap)|not enough memory|insufficient memory"
    r"|bad[ _]alloc|bad_array_new_length|ALLOC_FAILED|could not create a memory|failed to map segment"
    r"|can't start new thread|thread creation failed|resource temporarily unavailable|too many open files",
    re.I,
)
"""What PyTorch's allocators, oneDNN's, the C++ and Rust libraries, the dynamic loader and Python say when the machine
gives no memory, thread or file."""


UNFORESEEN = (ArithmeticError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError)
"""What comes out of libraries and devices, and may be the fault of what was worked on."""


def said_by(error: BaseException) -> str:
    """Return an error's message; where its `__str__` fails, a note of that."""
    return str(traceback.TracebackException.from_exception(error, limit=0))


def wants_of_machine(error: BaseException) -> bool:
    """Whether something failed for want of memory, threads or open files, which no other input would mend."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN):
        return True
    if isinstance(error, MemoryError) or EXHAUSTED.search(said_by(error)) is not None:
        return True
    return any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)  # PyTorch's, which may say anything


class D4MError(Exception):
    """Base of the foreseen errors; the message is one line that says what is wrong, where, and what to do."""

    exit_code = 1

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel between processes: exceptions do by the arguments of `__init__`, which here are not the message."""
        return _restored, (type(self), self.args), self.__dict__


def _restored(kind: type[D4MError], args: tuple[Any, ...]) -> D4MError:
    return kind.__new__(kind, *args)


class DataError(D4MError):
    """The images cannot be used."""


class ModelError(D4MError):
    """The model directory cannot be used."""


class NonFiniteError(D4MError):
    """A network returned NaN or infinity, or numbers that cannot be kept.

    Args:
        network: its name.
        images: what it was computing, in words.
        timestep: of the noise schedule, where one is known.
        advice: what to do.
    """

    def __init__(
        self,
        network: str,
        images: str,
        timestep: float | None = None,
        *,
        advice: str = "nothing of this batch is kept: try --precision fp32, another --engine or other weights, and the"
        " same command goes on",
    ) -> None:
        when = "" if timestep is None else f", at timestep {timestep:g}"
        super().__init__(f"{network}: no finite number (NaN or infinity) in {images}{when}; {advice}")


class OutOfMemoryError(D4MError):
    """A batch does not fit the device's memory; a smaller one may.

    Attributes:
        stage: "encode", "denoise" or "decode".
        reason: the library's own words, one line.
    """

    exit_code = 6

    def __init__(self, stage: str, reason: str, advice: str = "") -> None:
        super().__init__(f"{stage}: out of memory ({reason}){advice}")
        self.stage = stage
        self.reason = reason

    def for_one_image(self) -> OutOfMemoryError:
        """Return the same error with advice, for when there is nothing smaller to try."""
        advice = "; not even one image fits: take a smaller --resolution or a device with more memory"
        return OutOfMemoryError(self.stage, self.reason, advice)


class UsageError(D4MError):
    """An option or a combination of options makes no sense."""

    exit_code = 2


class SetAsideError(D4MError):
    """A run is done but for groups that failed again and again.

    Args:
        run: its directory.
        reasons: why the last try of each failed, by the group's id.
    """

    exit_code = EXIT_QUARANTINED

    def __init__(self, run: object, reasons: Mapping[int, str]) -> None:
        shown = "; ".join(f"group {number} ({reason})" for number, reason in list(reasons.items())[:_MOST_SHOWN])
        more = f"; and {len(reasons) - _MOST_SHOWN} more" if len(reasons) > _MOST_SHOWN else ""
        super().__init__(
            f"{run}: set aside after failing again and again: {shown}{more}; all else is kept, and the same command"
            " tries these again"
        )


class RunDirectoryError(D4MError):
    """The run directory belongs to another config, or is in use."""

    exit_code = 4


class DamageError(D4MError):
    """An artifact does not match its checksum.

    Attributes:
        reason: what is wrong, without path and advice.
    """

    exit_code = 5

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = message if reason is None else reason


class PreflightError(D4MError):
    """Something of the machine is missing: disk, permission, a device, an extra."""

    exit_code = 6


class OutputError(D4MError):
    """A result cannot be printed on stdout; everything it tells of is done and kept."""

    exit_code = 6


class ClosedPipeError(OutputError):
    """Nobody reads stdout any more, as below `| head -1`; the code is that of a program ended by SIGPIPE."""

    exit_code = 141


def require(condition: bool, message: str) -> None:
    """Refuse an option with exit code 2 where a condition of it does not hold."""
    if not condition:
        raise UsageError(message)
