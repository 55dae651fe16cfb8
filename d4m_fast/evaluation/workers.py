"""Jobs side by side, one process and one thread each: results do not depend on how many."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from d4m_fast.allocator import keep_freed_memory
from d4m_fast.errors import D4MError, PreflightError, RunDirectoryError
from d4m_fast.evaluation.tasks import Exam, LabelTask, Result, Task, finish_labels, finish_task
from d4m_fast.flow.processes import start_apart
from d4m_fast.storage import files

POLL_SECONDS = 1.0  # between looks at jobs that others do
MOST_DEATHS = 3  # of processes at one job, before it is taken to be the job's fault
log = logging.getLogger(__name__)

Job = Task | LabelTask


# Not `concurrent.futures.ProcessPoolExecutor`, for three reasons. Its workers hold both ends of the queue of calls, so
# that they wait for ever, with the images in memory, when this process is killed (by SIGKILL, as when memory runs out);
# ours read the end of a pipe and leave. Before Python 3.14 it cannot end a worker in the middle of a task, so Ctrl-C
# would wait for the students in training. And it needs named semaphores, which some containers lack.
def run_jobs(exam: Exam, jobs: Sequence[Job], workers: int = 1) -> Iterator[Result | None]:
    """Do every job, yielding results as they finish (None for labels); bitwise the same for any number of workers.

    One worker is this process, more are spawned ones, which get the images once and end with the iterator; each has a
    GPU of its own where there are several. What a process that died was doing is taken over by another, from its
    checkpoint.

    Raises:
        D4MError: why a job cannot be done.
        PreflightError: it ended `MOST_DEATHS` processes.
    """
    workers = min(workers, len(jobs))
    keep_freed_memory()
    return _in_processes(exam, jobs, workers) if workers > 1 else (do_job(exam, job) for job in jobs)


def do_job(exam: Exam, job: Job) -> Result | None:
    """Do one job in this process."""
    if isinstance(job, Task):
        return finish_task(exam, job)
    finish_labels(exam, job)
    return None


def _in_processes(exam: Exam, jobs: Sequence[Job], workers: int) -> Iterator[Result | None]:
    # A file that all map: the images are in memory once, and not in /dev/shm, often 64 MB in a container.
    with tempfile.NamedTemporaryFile(prefix="d4m-fast-exam-") as payload:
        path = Path(payload.name)
        with files.refusing(path):
            torch.save((exam, tuple(jobs)), payload)
            payload.flush()
        pool = _Pool(path, [])
        try:
            pool.start(range(workers))
            yield from _serve(pool, len(jobs))
        finally:
            pool.stop()


@dataclass(slots=True)
class _Worker:
    """A process, the pipe to it, and the job that it does."""

    number: int
    process: BaseProcess
    connection: Connection
    job: int | None = None


@dataclass(slots=True)
class _Pool:
    """Processes that have the same exam and jobs."""

    payload: Path
    workers: list[_Worker]

    def start(self, numbers: Sequence[int]) -> None:
        # Children inherit the blocked SIGINT: Ctrl-C reaches this process alone, which then ends them. The resource
        # tracker, if it started with the first child, would unblock SIGINT again before that.
        resource_tracker.ensure_running()
        previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            started = [_spawn(number) for number in numbers]
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)
        self.workers += started
        for worker in started:
            with contextlib.suppress(OSError):  # it died at once, which is noticed when it is waited for
                worker.connection.send(self.payload)

    def replace_dead(self, worker: _Worker) -> _Worker:
        """Start another process in place of one that died."""
        worker.process.join()
        worker.connection.close()
        self.workers.remove(worker)
        self.start([worker.number])
        return self.workers[-1]

    def stop(self) -> None:
        for worker in self.workers:
            worker.process.terminate()
            worker.connection.close()
        for worker in self.workers:
            worker.process.join()


def _spawn(number: int) -> _Worker:
    context = multiprocessing.get_context("spawn")
    connection, worker_end = context.Pipe()
    process = context.Process(target=_work, args=(worker_end, number), daemon=True)
    start_apart(process)
    worker_end.close()  # or the end of the worker would not end the connection
    return _Worker(number, process, connection)


def _serve(pool: _Pool, job_count: int) -> Iterator[Result | None]:
    """Give each idle process the next job until all are done."""
    queue, deaths = deque(range(job_count)), dict[int, int]()
    for worker in list(pool.workers):
        _give(worker, queue)
    while busy := [worker for worker in pool.workers if worker.job is not None]:
        ready = wait([worker.connection for worker in busy])
        for worker in [worker for worker in busy if worker.connection in ready]:
            assert worker.job is not None
            try:
                answer = worker.connection.recv()
            except (EOFError, OSError):
                queue.appendleft(worker.job)
                _count_death(deaths, worker)
                _give(pool.replace_dead(worker), queue)
                continue
            if isinstance(answer, BaseException):
                raise answer
            worker.job = None
            yield answer
            _give(worker, queue)


def _give(worker: _Worker, queue: deque[int]) -> None:
    if queue:
        worker.job = queue.popleft()
        with contextlib.suppress(OSError):  # it died, which is noticed when it is waited for
            worker.connection.send(worker.job)


def _count_death(deaths: dict[int, int], worker: _Worker) -> None:
    assert worker.job is not None
    deaths[worker.job] = deaths.get(worker.job, 0) + 1
    worker.process.join()
    if deaths[worker.job] == MOST_DEATHS:
        raise PreflightError(
            f"a training process died {MOST_DEATHS} times at one job, last with exit code {worker.process.exitcode}"
            " (out of memory?); try --workers 1: what is finished is kept"
        )
    log.warning("a training process died (exit code %s); another goes on", worker.process.exitcode)


def _work(connection: Connection, number: int) -> None:
    """Answer each job until the connection is closed; an error is an answer, not a traceback on the terminal."""
    keep_freed_memory()
    with contextlib.suppress(EOFError, ConnectionError):
        # Code in it is no danger: the process that started this one wrote it.
        exam, jobs = torch.load(connection.recv(), mmap=True, weights_only=False)
        exam = _on_own_gpu(exam, number)
        while True:
            connection.send(_result_or_error(exam, jobs[connection.recv()]))


def _on_own_gpu(exam: Exam, number: int) -> Exam:
    """Return the exam with a process's own GPU, of those that there are, unless one was asked for."""
    device = exam.execution.device
    if device.type == "cpu" or device.index is not None or torch.accelerator.device_count() < 2:
        return exam
    own_device = torch.device(device.type, number % torch.accelerator.device_count())
    torch.accelerator.set_device_index(own_device.index)
    return replace(exam, execution=replace(exam.execution, device=own_device))


def _result_or_error(exam: Exam, job: Job) -> Result | BaseException | None:
    try:
        return do_job(exam, job)
    except (ArithmeticError, D4MError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError) as error:
        return error


def share_jobs(exam: Exam, jobs: Sequence[Job], rank: int, ranks: int) -> Iterator[Result | None]:
    """Do jobs beside the other processes of a launcher on the same work folder, and yield the results of all.

    A job is its holder's while its lock is held: what a process that died was doing is free again. Every process ends
    when all jobs are done.
    """
    first = rank * len(jobs) // ranks  # each begins elsewhere, so that they meet late
    remaining = [*jobs[first:], *jobs[:first]]
    while remaining:
        in_use = list[Job]()
        for job in remaining:
            try:
                yield do_job(exam, job)
            except RunDirectoryError:
                in_use.append(job)
        if len(in_use) == len(remaining):
            time.sleep(POLL_SECONDS)
        remaining = in_use


def do_together(exam: Exam, jobs: Sequence[Job], rank: int, ranks: int) -> Iterator[Result | None]:
    """Do jobs one after the other, each with all processes of a launcher; sets are labelled by one process each."""
    yield from share_jobs(exam, [job for job in jobs if isinstance(job, LabelTask)], rank, ranks)
    for job in jobs:
        if isinstance(job, Task):
            yield do_job(exam, job)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Jobs to do: a sized iterable of their results, in the order in which they finish."""

    exam: Exam
    jobs: Sequence[Job]
    workers: int

    def __len__(self) -> int:
        return len(self.jobs)

    def __iter__(self) -> Iterator[Result | None]:
        place = place_in_launcher()
        if place is None:
            return run_jobs(self.exam, self.jobs, self.workers)
        keep_freed_memory()
        exam = _on_own_gpu(self.exam, int(os.environ.get("LOCAL_RANK", place[0])))
        are_together = exam.execution.ranks.size > 1
        return (do_together if are_together else share_jobs)(exam, self.jobs, *place)


def place_in_launcher() -> tuple[int, int] | None:
    """Return this process's rank and their number under `torchrun` or a SLURM step; None where there is one process."""
    for rank, size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
        if rank in os.environ and int(os.environ.get(size, 1)) > 1:
            return int(os.environ[rank]), int(os.environ[size])
    return None


def is_follower() -> bool:
    """Whether another process of the launcher prints and keeps the results."""
    place = place_in_launcher()
    return place is not None and place[0] > 0
