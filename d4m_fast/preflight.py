"""Checks of the machine before the libraries are imported, which end the process or hang where it has too little."""

from __future__ import annotations

import mmap
import os
import resource
import threading

from d4m_fast.errors import PreflightError

# 3.5 GiB: under limits up to 3 GB (ulimit -v 3000000) OpenBLAS was seen to end the process and PyTorch to abort; under
# 4 GB the error is one that can be told.
ADDRESS_SPACE = 7 << 29
OPEN_FILES = 40  # a run was seen to pass with 40, and to hang in a library with 20
SPARE_THREADS = 8  # of ours: reading, encoding and writing images


def require_machine() -> None:
    """Refuse to start where the libraries cannot.

    Raises:
        PreflightError: the current directory was removed, or address space, open files or threads are too few.
    """
    _require_current_directory()
    _require_address_space()
    _require_open_files()
    _require_threads()


def _require_current_directory() -> None:
    try:
        os.getcwd()
    except OSError as error:
        raise PreflightError(f"the current directory: {error.strerror}; change to one that is there") from error


def _require_address_space() -> None:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return
    try:
        mmap.mmap(-1, ADDRESS_SPACE, prot=mmap.PROT_READ).close()
    except OSError as error:
        raise PreflightError(
            f"address space is limited to {limit:,} bytes, the libraries take {ADDRESS_SPACE:,}; raise the limit"
            " (ulimit -v)"
        ) from error


def _require_open_files() -> None:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit < OPEN_FILES:
        raise PreflightError(f"open files are limited to {limit}, {OPEN_FILES} are needed; raise the limit (ulimit -n)")


def _require_threads() -> None:
    """Start as many as a run does: limits are of users and of control groups, and others' threads count."""
    cores = os.cpu_count()
    count, release = 2 * (1 if cores is None else cores) + SPARE_THREADS, threading.Event()
    threads = list[threading.Thread]()
    try:
        for _ in range(count):
            threads.append(threading.Thread(target=release.wait))
            threads[-1].start()
    except RuntimeError as error:
        raise PreflightError(
            f"threads: no more than {len(threads) - 1} can be started, {count} are needed; raise the limit (ulimit -u)"
        ) from error
    finally:
        release.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
