"""Distill with a fault at one step of what it does to the disk; as a script, one process imports and forks do the runs.

Every step is one system call's worth: a file opened for writing, each write (half of it is done when the fault comes),
each fsync of a file or a directory, each rename (a fault comes before it; a kill also after it), mkdir and unlink.
Threads write side by side, so a step is known by its name and by how many of that name came before it.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

KILL = "SIGKILL"
ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO}


class Fault:
    """Counts the steps below a directory, writes down their names, and strikes at one of them."""

    def __init__(self, root: Path, kind: str | None, at: tuple[str, int], log: Path | None) -> None:
        self._root = str(root)
        self._kind = kind
        self._at = at
        self._log = log
        self.lock = threading.RLock()
        self.steps: list[tuple[str, int]] = []

    def step(self, call: str, path: Any, before: Callable[[], object] = lambda: None) -> None:
        """`before` is done if this is where the fault strikes."""
        if not str(path).startswith(self._root):
            return
        with self.lock:
            name = f"{call} {self._label(Path(path))}"
            self.steps.append((name, sum(before_it == name for before_it, _ in self.steps)))
            if self.steps[-1] == self._at and self._kind is not None:
                before()
                self._strike(path)

    def _label(self, path: Path) -> str:
        """A file by its role, the same in every run: numbers and temporary prefixes away."""
        if str(path) == self._root:
            return "ROOT"
        name = re.sub(r"^\.tmp-\d+-", "tmp:", path.name)
        parent = "ROOT" if str(path.parent) == self._root else path.parent.name
        return f"{parent}/{re.sub(r'[0-9a-f]{16}', 'HASH', name)}"

    def _strike(self, path: Any) -> None:
        if self._kind == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        number = ERRORS[str(self._kind)]
        raise OSError(number, os.strerror(number), str(path))

    def save(self) -> None:
        if self._log is not None:
            self._log.write_text(json.dumps(self.steps))


class Watched:
    """A file open for writing."""

    def __init__(self, file: Any, path: Path, fault: Fault) -> None:
        self._file, self._path, self._fault = file, path, fault

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: bytes) -> int:
        self._fault.step("write", self._path, lambda: self._half(data))
        return int(self._file.write(data))

    def truncate(self, size: int) -> int:
        self._fault.step("truncate", self._path)
        return int(self._file.truncate(size))

    def _half(self, data: bytes) -> None:
        self._file.write(data[: len(data) // 2])
        self._file.flush()


def install(fault: Fault) -> None:
    """Put a fault between the program and the operating system, in this process."""
    opened, made, unlinked, synced, replaced = Path.open, Path.mkdir, Path.unlink, os.fsync, os.replace
    linked = os.link

    def open_(self: Path, mode: str = "r", *args: Any, **named: Any) -> Any:
        writes = bool(set("wa+x") & set(mode)) and self.name != ".lock"
        if writes:
            fault.step(f"open({mode})", self)
        file = opened(self, mode, *args, **named)
        return Watched(file, self, fault) if writes else file

    def mkdir(self: Path, *args: Any, **named: Any) -> None:
        with fault.lock:  # of threads that make the same directory, one does
            if not self.exists():
                fault.step("mkdir", self)
            made(self, *args, **named)

    def unlink(self: Path, *args: Any, **named: Any) -> None:
        if self.exists():
            fault.step("unlink", self)
        unlinked(self, *args, **named)

    def fsync(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        fault.step("fsync", path)
        synced(descriptor)

    def replace(old: Any, new: Any) -> None:
        fault.step("rename", new)
        replaced(old, new)
        if fault._kind in (None, KILL):  # an error after a rename that was done does not exist
            fault.step("renamed", new)

    def link(old: Any, new: Any) -> None:
        fault.step("rename", new)  # a record comes into its place by a link, which overwrites none
        linked(old, new)
        if fault._kind in (None, KILL):
            fault.step("renamed", new)

    for owner, name, function in (
        (Path, "open", open_),
        (Path, "mkdir", mkdir),
        (Path, "unlink", unlink),
        (os, "fsync", fsync),
        (os, "replace", replace),
        (os, "link", link),
    ):
        setattr(owner, name, function)


def attempt(job: dict[str, Any]) -> dict[str, Any]:
    """Fork, distill with a fault, and say how it ended: exit code, or minus the signal's number; stderr."""
    said = Path(job["said"])
    child = os.fork()
    if child == 0:
        _child(job, said)
    _, status = os.waitpid(child, 0)
    return {"code": os.waitstatus_to_exitcode(status), "err": said.read_text()}


def _child(job: dict[str, Any], said: Path) -> None:
    code = 70
    try:
        descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # pytest has others, where it is a test that forks
        log = Path(job["log"]) if job.get("log") else None
        fault = Fault(Path(job["root"]), job.get("kind"), tuple(job.get("at", ("", 0))), log)
        if job.get("kill_after") is not None:
            signal.setitimer(signal.ITIMER_REAL, job["kill_after"])
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        if job.get("watch", True):
            install(fault)
        code = _main(job["args"])
        fault.save()
    finally:
        if sys.stderr is not None:
            sys.stderr.flush()
        os._exit(code)


def _main(args: list[str]) -> int:
    from d4m_fast import cli

    sys.argv = ["d4m-fast", *args]
    try:
        cli.main()
    except SystemExit as ended:
        return int(ended.code or 0)


def serve() -> None:
    """Jobs as lines of JSON on stdin, results on stdout."""
    import diffusers  # noqa: F401
    import torch
    import transformers  # noqa: F401

    import d4m_fast.pipeline  # noqa: F401

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        sys.stdout.write(json.dumps(attempt(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
