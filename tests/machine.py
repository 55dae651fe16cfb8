"""Runs of the command line in a forked process whose machine is short of something."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import stat
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from driving import HANGS, Ran

from d4m_fast import cli

NOBODY = 65534
RunOn = Callable[..., Ran]
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user or to mount")


@dataclass(frozen=True)
class Machine:
    """What a process finds.

    Attributes:
        stdout, stderr: "kept", "full", "closed", or "unread": a pipe that nobody reads.
        flock, fsync_directory, fsync_file, rename: numbers of the errors that these calls answer with; 0 for none.
        limits: of `resource`, by name; the soft one alone.
        user: to become; 0 stays.
        variables: of the environment; None takes one away.
        gone: the current directory was removed.
        before: what is done in the process before the command.
    """

    stdout: str = "kept"
    stderr: str = "kept"
    flock: int = 0
    fsync_directory: int = 0
    fsync_file: int = 0
    rename: int = 0
    limits: Mapping[str, int] = field(default_factory=dict)
    user: int = 0
    variables: Mapping[str, str | None] = field(default_factory=dict)
    gone: bool = False
    before: Callable[[], object] = lambda: None


def run_on(machine: Machine, scratch: Path, *args: object) -> Ran:
    """`d4m-fast ARGS` on such a machine; a code below zero is a signal's."""
    out, err = scratch / "stdout", scratch / "stderr"
    for file in (out, err):
        file.write_bytes(b"")
    child = os.fork()
    if child == 0:
        _child(machine, scratch, [str(arg) for arg in args])
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return Ran(code, out.read_text(errors="replace"), err.read_text(errors="replace"))


def _child(machine: Machine, scratch: Path, args: list[str]) -> None:
    code = 99
    try:
        _redirect(1, machine.stdout, scratch / "stdout")
        _redirect(2, machine.stderr, scratch / "stderr")
        sys.stdout = None if machine.stdout == "closed" else sys.__stdout__
        sys.stderr = None if machine.stderr == "closed" else sys.__stderr__
        _starve(machine, scratch)
        sys.argv = ["d4m-fast", *args]
        with ExitStack() as patches:
            _refuse(machine, patches)
            machine.before()
            code = _main()
    except BaseException:
        os.write(2, traceback.format_exc().encode())
        raise
    finally:
        os._exit(code)


def _main() -> int:
    try:
        cli.main()
    except SystemExit as ended:
        return int(ended.code or 0)


def _redirect(descriptor: int, kind: str, kept: Path) -> None:
    if kind == "closed":
        os.close(descriptor)
        return
    if kind == "unread":
        reader, writer = os.pipe()
        os.close(reader)
    else:
        writer = os.open("/dev/full" if kind == "full" else kept, os.O_WRONLY)
    os.dup2(writer, descriptor)
    os.close(writer)


def _starve(machine: Machine, scratch: Path) -> None:
    from signal import alarm

    alarm(HANGS)  # its signal ends the process
    if machine.gone:
        (scratch / "gone").mkdir()
        os.chdir(scratch / "gone")
        (scratch / "gone").rmdir()
    for name, value in machine.variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if machine.user:
        os.setgroups([])
        os.setgid(machine.user)
        os.setuid(machine.user)
    for name, limit in machine.limits.items():
        number = getattr(resource, name)
        resource.setrlimit(number, (limit, resource.getrlimit(number)[1]))


def _refuse(machine: Machine, patches: ExitStack) -> None:
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        is_directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        _answer(machine.fsync_directory if is_directory else machine.fsync_file)
        fsync(descriptor)

    def replaced(old: Any, new: Any) -> None:
        _answer(machine.rename, new)
        replace(old, new)

    patches.enter_context(mock.patch.object(os, "fsync", synced))
    patches.enter_context(mock.patch.object(os, "replace", replaced))
    if machine.flock:
        patches.enter_context(mock.patch.object(fcntl, "flock", lambda *_: _answer(machine.flock)))


def _answer(number: int, path: Any = None) -> None:
    if number:
        raise OSError(number, os.strerror(number), *([] if path is None else [str(path)]))


REFUSED_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
REFUSED_SYNCS = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EISDIR)
