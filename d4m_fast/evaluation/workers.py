"""Training of students side by side, one process and one thread each: results do not depend on how many."""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import signal
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import cast

from d4m_fast.allocator import keep_freed_memory
from d4m_fast.errors import D4MError, PreflightError
from d4m_fast.evaluation.results import Result
from d4m_fast.evaluation.train import Exam, Task, train_student


# Not `concurrent.futures.ProcessPoolExecutor`, for three reasons. Its workers hold both ends of the queue of calls, so
# that they wait for ever, with the images in memory, when this process is killed (by SIGKILL, as when memory runs out);
# ours read the end of a pipe and leave. Before Python 3.14 it cannot end a worker in the middle of a task, so Ctrl-C
# would wait for the students in training. And it needs named semaphores, which some containers lack.
def run_tasks(exam: Exam, tasks: Sequence[Task], workers: int = 1) -> Iterator[Result]:
    """Train every task's student, yielding results as they finish; bitwise the same for any number of workers.

    One worker runs in this process, more run in spawned ones, which get the images once and end with the iterator.

    Raises:
        D4MError: a worker process died.
    """
    workers = min(workers, len(tasks))
    keep_freed_memory()
    return _in_processes(exam, tasks, workers) if workers > 1 else (_run(exam, task) for task in tasks)


def _run(exam: Exam, task: Task) -> Result:
    return Result(task.arm, task.label_kind, task.seed, train_student(exam, task))


def _in_processes(exam: Exam, tasks: Sequence[Task], workers: int) -> Iterator[Result]:
    # Pickled here, by value: torch's own queues would put the images in /dev/shm, often 64 MB in a container.
    payload = pickle.dumps((exam, tuple(tasks)), pickle.HIGHEST_PROTOCOL)
    processes = _start(workers)
    try:
        yield from _serve([connection for _, connection in processes], payload, len(tasks))
    finally:
        _stop(processes)


def _start(workers: int) -> list[tuple[BaseProcess, Connection]]:
    # Children inherit the blocked SIGINT: Ctrl-C reaches this process alone, which then ends them. The resource
    # tracker, if it started with the first child, would unblock SIGINT again before that.
    resource_tracker.ensure_running()
    previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return [_spawn() for _ in range(workers)]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)


def _spawn() -> tuple[BaseProcess, Connection]:
    context = multiprocessing.get_context("spawn")
    connection, worker_end = context.Pipe()
    process = context.Process(target=_work, args=(worker_end,), daemon=True)
    process.start()
    worker_end.close()  # or the end of the worker would not end the connection
    return process, connection


def _stop(processes: Sequence[tuple[BaseProcess, Connection]]) -> None:
    for process, connection in processes:
        process.terminate()
        connection.close()
    for process, _ in processes:
        process.join()


def _serve(connections: Sequence[Connection], payload: bytes, task_count: int) -> Iterator[Result]:
    remaining, busy = iter(range(task_count)), set(connections)
    try:
        for connection in connections:
            connection.send_bytes(payload)
            connection.send(next(remaining))
        while busy:
            for ready in cast(list[Connection], wait(busy)):
                answer = ready.recv()
                if isinstance(answer, BaseException):
                    raise answer
                yield answer
                index = next(remaining, None)
                if index is None:
                    busy.discard(ready)
                else:
                    ready.send(index)
    except (EOFError, OSError) as error:
        raise PreflightError("a training process died (out of memory?); try --workers 1") from error


def _work(connection: Connection) -> None:
    """Answer each task until the connection is closed; an error is an answer, not a traceback on the terminal."""
    keep_freed_memory()
    with contextlib.suppress(EOFError, ConnectionError):
        exam, tasks = pickle.loads(connection.recv_bytes())
        while True:
            connection.send(_answer(exam, tasks[connection.recv()]))


def _answer(exam: Exam, task: Task) -> Result | BaseException:
    try:
        return _run(exam, task)
    except (ArithmeticError, D4MError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError) as error:
        return error
