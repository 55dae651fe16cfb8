"""Processes of d4m-fast side by side; as a script, one process imports and forks are the drivers and their workers.

Each line on stdin is a job: start a command, with changes of the machine that it and its workers see, or wait for one.
"""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any


def no_flock(_: str) -> None:
    import fcntl

    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    fcntl.flock = refused


def clock(seconds: str) -> None:
    """The day's clock goes wrong, for whoever may ask it."""
    day = time.time
    time.time = lambda: day() + float(seconds)
    time.time_ns = lambda: int(1e9 * (day() + float(seconds)))


def no_exclusion(_: str) -> None:
    """O_EXCL makes files that are there, as no file system should."""
    opened = os.open
    os.open = lambda path, flags, *args, **named: opened(path, flags & ~os.O_EXCL, *args, **named)


def no_links(_: str) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    os.link = refused


def slow(seconds: str) -> None:
    """Every call of the UNet takes longer."""
    from d4m_fast.engine.networks import Unet

    call = Unet.__call__

    def late(self: Unet, *args: Any) -> Any:
        time.sleep(float(seconds))
        return call(self, *args)

    setattr(Unet, "__call__", late)  # noqa: B010


def memory(images: str) -> None:
    """The UNet takes no more images than so many in a call."""
    import torch

    from d4m_fast.engine.networks import Unet

    call = Unet.__call__

    def limited(self: Unet, sample: torch.Tensor, *args: Any) -> Any:
        if len(sample) > int(images):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return call(self, sample, *args)

    setattr(Unet, "__call__", limited)  # noqa: B010


def poison(class_id: str) -> None:
    """Whoever clusters this class is killed."""
    _before_clustering(lambda ids: os.kill(os.getpid(), signal.SIGKILL) if int(class_id) in ids else None)


def bad_class(class_id: str) -> None:
    """A class cannot be clustered."""
    from d4m_fast.errors import DataError

    def fail(ids: list[int]) -> None:
        if int(class_id) in ids:
            raise DataError(f"class {class_id} is no good")

    _before_clustering(fail)


def _before_clustering(act: Callable[[list[int]], None]) -> None:
    from d4m_fast import generation

    cluster = getattr(generation, "cluster_group")  # noqa: B009

    def changed(group: Any, clustering: Any) -> Any:
        act([info.id for info in group])
        yield from cluster(group, clustering)

    setattr(generation, "cluster_group", changed)  # noqa: B010


def full_disk_of_worker(rank: str) -> None:
    """One worker finds no room for images."""
    from d4m_fast.launch import local
    from d4m_fast.storage import files

    work, durable = local._outcome, files._durable

    def outcome(connection: Any, assignment: Any) -> Any:
        if assignment.place.seat.rank == int(rank):
            files._durable = full
        return work(connection, assignment)

    def full(temporary: Path, path: Path) -> Any:
        if path.suffix == ".png":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return durable(temporary, path)

    local._outcome = outcome


CHANGES: dict[str, Callable[[str], None]] = {
    "no flock": no_flock,
    "clock": clock,
    "no exclusion": no_exclusion,
    "no links": no_links,
    "slow": slow,
    "memory": memory,
    "poison": poison,
    "bad class": bad_class,
    "full disk of worker": full_disk_of_worker,
}


def start(job: dict[str, Any]) -> int:
    """Fork a driver."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.setpgid(0, 0)
            for descriptor, end in ((1, "out"), (2, "err")):
                file = os.open(f"{job['said']}.{end}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(file, descriptor)
            for name, value in job["changes"].items():
                CHANGES[name](value)
            os.environ |= job.get("environment", {})
            code = _main(job["args"])
        finally:
            sys.stderr.flush()
            os._exit(code)
    return child


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _main(args: list[str]) -> int:
    from d4m_fast import cli

    sys.argv = ["d4m-fast", *args]
    try:
        cli.main()
    except SystemExit as ended:
        return int(ended.code or 0)


def serve() -> None:
    import torch

    from d4m_fast.engine.modules import import_libraries

    import_libraries(networks=True)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    real = multiprocessing.get_context
    multiprocessing.get_context = lambda method=None: real("fork")  # type: ignore[assignment]
    for line in sys.stdin:
        job = json.loads(line)
        answer = start(job) if job["do"] == "start" else wait(job["pid"])
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
