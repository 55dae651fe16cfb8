"""Processes by more than their number, which is given out again: whether the one that wrote a file has ended."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class MachineProcess:
    """A process of a machine.

    Attributes:
        host: name of the machine, for people.
        machine: of one start of one machine and one space of process numbers (a container has its own).
        start: in ticks after the machine's start, as Linux counts them; empty where it cannot be told.
    """

    host: str
    machine: str
    pid: int
    start: str


def this_process() -> MachineProcess:
    """Return this process."""
    return MachineProcess(platform.node(), _machine(), os.getpid(), _start(os.getpid()) or "")


def is_dead(process: MachineProcess) -> bool:
    """Return whether a process is known to have ended; of another machine's, nothing is known."""
    if process.machine != _machine():
        return False
    start = _start(process.pid)
    if start is not None:
        return start != process.start
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it is there, another user's
        return False
    return bool(process.start)  # Linux tells a start of any process that runs, but of none that only waits to be reaped


@cache
def _machine() -> str:
    try:
        boot, space = _BOOT.read_text().strip(), os.readlink("/proc/self/ns/pid")
    except OSError:
        boot, space = platform.node(), ""
    return f"{boot} {space}".strip()


def _start(pid: int) -> str | None:
    """Return the start of a process that runs; None of one that has ended, or where Linux's /proc is not at hand."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The second field, the program's name in brackets, may hold blanks and brackets: count from the last of those.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]
