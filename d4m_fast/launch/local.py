"""Worker processes of this machine on one run: each leases its work from the run directory, and the driver looks on.

The driver loads no network. It starts the processes, replaces those that die, shows how far all of them are, and
finishes the run. Nothing but a few lines goes through the pipes between them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from d4m_fast.config.distill import DistillConfig
from d4m_fast.errors import EXIT_SIGTERM, UNFORESEEN, D4MError, PreflightError
from d4m_fast.flow.processes import start_apart
from d4m_fast.flow.progress import Listener, Sized, T
from d4m_fast.flow.stopwatch import Stopwatch
from d4m_fast.job import Job, prepare
from d4m_fast.launch.progress import show
from d4m_fast.pipeline import finish, forgive, open_run, work
from d4m_fast.runs.claims import Seat
from d4m_fast.runs.place import Place
from d4m_fast.runs.run import LOGS, RunDirectory
from d4m_fast.storage import files

POLL_SECONDS = 0.5  # between looks at how far the run is
END_SECONDS = 10.0  # that a process may take to give its leases back, before it is killed
MOST_DEATHS = 5  # of one worker in a row, without an image made in between: more than a group has tries
GPUS = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Assignment:
    """The task of a worker process.

    Attributes:
        log: where its stderr goes.
        gpu: its own, of those that are visible to the driver; None where it has none of its own.
        threads: where the config names none.
    """

    config: DistillConfig
    place: Place
    log: Path
    gpu: int | None
    threads: int


@dataclass(frozen=True, slots=True)
class FinishedWorker:
    """The last message of a worker: nothing is left to do; with its seconds."""

    seconds: Mapping[str, float]
    waits: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class ImageMade:
    """A message: a worker has made an image of its own, so that it is not one that only dies."""


@dataclass(frozen=True, slots=True)
class LineToShow:
    """A line that a worker has for the user."""

    line: str


def distill_by_workers(job: Job, place: Place, workers: int, watch: Stopwatch, progress: Listener) -> dict[str, Any]:
    """Do what is missing of a run by processes of this machine, and return its summary.

    Args:
        job: of this process; each worker prepares the same config anew.

    Raises:
        D4MError: why the run cannot go on; what is committed stays.
    """
    run, summary = open_run(job, place)
    if summary is not None:
        return summary
    forgive(run, place)
    pool = _Pool(job, place, workers, watch, progress)
    try:
        pool.start(range(workers))
        show(job, place, run, progress, pool.serve())
    finally:
        pool.stop()
    return finish(job, place, watch)


@dataclass(slots=True)
class _Worker:
    """A process and the pipe to it."""

    rank: int
    process: BaseProcess
    connection: Connection


@dataclass
class _Pool:
    """The processes of a driver."""

    job: Job
    place: Place
    size: int
    watch: Stopwatch
    progress: Listener
    workers: list[_Worker] = field(default_factory=list)
    deaths: dict[int, int] = field(default_factory=dict)  # in a row, by rank

    def start(self, ranks: range | list[int]) -> None:
        # Children inherit the blocked SIGINT: Ctrl-C reaches this process alone, which then ends them. The resource
        # tracker, if it started with the first child, would unblock SIGINT again before that.
        resource_tracker.ensure_running()
        previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for rank in ranks:
                self.workers.append(_spawn(self._assignment(rank)))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)

    def stop(self) -> None:
        """End all processes; those that do not end in time are killed."""
        for worker in self.workers:
            worker.process.terminate()
        for worker in self.workers:
            worker.process.join(END_SECONDS)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.connection.close()
        self.workers.clear()

    def serve(self) -> Iterator[None]:
        """Take messages and replace the dead until every worker is done; yields between, at least now and then.

        Raises:
            D4MError: what a worker failed of, if no other group would do better.
        """
        while self.workers:
            ready = wait([worker.connection for worker in self.workers], POLL_SECONDS)
            for worker in [worker for worker in self.workers if worker.connection in ready]:
                self._take(worker)
            yield

    def _take(self, worker: _Worker) -> None:
        """Take a worker's message, or its death."""
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            self._replace(worker)
            return
        if isinstance(message, BaseException):
            raise message
        if isinstance(message, LineToShow):
            self.progress.say(f"worker {worker.rank + 1}: {message.line}")
        elif isinstance(message, ImageMade):
            self.deaths.pop(worker.rank, None)
        elif isinstance(message, FinishedWorker):
            self.watch.add(message.seconds, message.waits)
            self._forget(worker)

    def _replace(self, worker: _Worker) -> None:
        """Start another process in place of one that died, unless that has happened too often."""
        self._forget(worker)
        rank, code = worker.rank, worker.process.exitcode
        self.deaths[rank] = self.deaths.get(rank, 0) + 1
        log = self._assignment(rank).log
        if self.deaths[rank] < MOST_DEATHS:
            self.progress.say(f"worker {rank + 1} died (exit code {code}); another goes on; its log is {log}")
            self.start([rank])
        elif not self.workers:
            raise PreflightError(
                f"worker {rank + 1} died {MOST_DEATHS} times in a row, last with exit code {code} (out of memory?);"
                f" see {log}; what is committed is kept"
            )
        else:
            self.progress.say(f"worker {rank + 1} died {MOST_DEATHS} times in a row and is given up; see {log}")

    def _forget(self, worker: _Worker) -> None:
        worker.process.join()
        worker.connection.close()
        self.workers.remove(worker)

    def _assignment(self, rank: int) -> Assignment:
        place = replace(self.place, seat=Seat(rank, self.size), is_helper=True)
        log = self.place.path / LOGS / f"worker-{os.getpid()}-{rank + 1}.log"
        threads = max(1, torch.get_num_threads() // self.size)
        return Assignment(self.job.config, place, log, _own_gpu(self.job, rank), threads)


def _own_gpu(job: Job, rank: int) -> int | None:
    """Return the GPU of a worker's own, where there are several and none was asked for."""
    if job.device.type == "cpu" or job.device.index is not None or torch.cuda.device_count() < 2:
        return None
    return rank % torch.cuda.device_count()


def _spawn(assignment: Assignment) -> _Worker:
    context = multiprocessing.get_context("spawn")
    files.make_directory(assignment.log.parent)
    connection, worker_end = context.Pipe()
    process = context.Process(target=_work, args=(worker_end, assignment), daemon=True)
    start_apart(process)
    worker_end.close()  # or the end of the worker would not end the connection
    return _Worker(assignment.place.seat.rank, process, connection)


@dataclass(frozen=True)
class _Reports(Listener):
    """Listener of a worker, which tells the driver."""

    connection: Connection

    def track(self, stage: str, items: Sized[T]) -> Iterator[T]:
        has_made = False
        for item in items:
            if isinstance(item, Mapping) and not has_made:  # a row of the manifest; what others made comes without one
                self.connection.send(ImageMade())
                has_made = True
            yield item

    def say(self, line: str) -> None:
        self.connection.send(LineToShow(line))

    def warn(self, line: str) -> None:
        self.say(line)


def _work(connection: Connection, assignment: Assignment) -> None:
    """Work until nothing is left; an error is a message to the driver, not a traceback on the terminal."""
    _redirect(assignment.log)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_SIGTERM))  # so that leases are given back
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the driver minds it
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    if assignment.gpu is not None:
        _choose_gpu(assignment.gpu)
    torch.set_num_threads(assignment.threads)
    with contextlib.suppress(BrokenPipeError):  # the driver has ended
        connection.send(_outcome(connection, assignment))


def _outcome(connection: Connection, assignment: Assignment) -> FinishedWorker | D4MError:
    place, watch = assignment.place, Stopwatch()
    try:
        with watch("open"):
            job = prepare(assignment.config, artifacts=place.artifacts, run=place.path)
        run = RunDirectory(place.path, job.identity)
        work(job, place, run, watch, _Reports(connection))
    except D4MError as error:
        return error
    except UNFORESEEN as error:
        # What is not foreseen may have left a device that cannot be used again: this process ends, another goes on.
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        raise
    return FinishedWorker(watch.seconds, watch.waits)


def _redirect(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)


def _choose_gpu(number: int) -> None:
    """Leave this process one of the GPUs that are visible, before CUDA is opened."""
    visible = os.environ.get(GPUS, "")
    os.environ[GPUS] = visible.split(",")[number] if visible else str(number)


def _end_with(connection: Connection) -> None:
    """End this process with the driver, whose end of the pipe the system closes however it ends."""
    with contextlib.suppress(EOFError, OSError):
        connection.recv()
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(END_SECONDS / 2)
    os._exit(EXIT_SIGTERM)
